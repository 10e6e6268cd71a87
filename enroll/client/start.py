"""Running `join`, in order.

choose the engine · load the state · with `--rootless`, start the helper that makes the interface · give up
privileges · check that the interface can be made · open a UDP port · pair, or take what an earlier join kept
(`obtain`) · make tunnels and interfaces (`connect`) · answer at the control socket · carry traffic until stopped
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from rustguard_py import engine
from rustguard_py.daemon import memif, runtime
from rustguard_py.daemon.confinement import confine
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.control.server import group_id
from rustguard_py.daemon.keeper import keep
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.reports import Inside
from rustguard_py.data_path import DataPath
from rustguard_py.enroll.client.checks import accept_any_network, check_interface, check_networks
from rustguard_py.enroll.client.client import RunningClient
from rustguard_py.enroll.client.connect import fit_tunnels, lay_out, locate, make_client, make_reports, without_ipv6
from rustguard_py.enroll.client.control import ClientControl
from rustguard_py.enroll.client.obtain import Applicant, Obtained, Target, load, obtain, withdraw
from rustguard_py.enroll.client.routes import RouteAnswers
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import IpAddress
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.peer_names import dns_name_of
from rustguard_py.model.sudo import as_root
from rustguard_py.planes import offload
from rustguard_py.rootless import proxies
from rustguard_py.rootless.helper import Helper
from rustguard_py.rootless.names import Names, is_name
from rustguard_py.rootless.options import Rootless
from rustguard_py.sandbox.report import Report
from rustguard_py.state.client_records import NetworkRecord
from rustguard_py.state.document import Document
from rustguard_py.state.paths import option_for
from rustguard_py.system.interface import InterfaceSetup, check_interface_name, why_no_ipv6

# The name of an interface in a network namespace of its own.
USUAL_NAME = "rg0"


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """The command line of `join`; only `join` reads it.

    Attributes:
        directory: State directory.
        target: The server to join or to connect to.
        applicant: The token and name to pair with, or None to use what an earlier join kept.
        data_path: The engine to use and its options.
        interface: Name of the interface, or None for the first free one.
        save_only: Whether to pair and save, without carrying traffic.
        group: Group allowed to use the control socket, besides root.
        answers: Which of the routes that the server offers are accepted.
        sandbox: Whether the process gives up for good what a client doesn't need.
        log: The log file of a process in the background, or None.
        rootless: The options of a tunnel in a network namespace of its own; None for one in ours.
    """

    directory: Path
    target: Target
    applicant: Applicant | None
    data_path: DataPath
    interface: str | None = None
    save_only: bool = False
    group: str | None = None
    answers: RouteAnswers = field(default_factory=RouteAnswers)
    sandbox: bool = False
    log: Path | None = None
    rootless: Rootless | None = None


async def join(options: JoinOptions, voice: Voice, ready: Callable[[], None]) -> None:
    """Join, and carry traffic until stopped.

    Args:
        options: The command line.
        voice: Prints what happens.
        ready: Called once when the tunnel is up (with `save_only`, never).

    Raises:
        RustGuardError: The join failed, or the data plane broke.
    """
    if options.interface is not None:
        check_interface_name(options.interface)
    group_id(options.group)
    async with AsyncExitStack() as stack:
        chosen = engine.choose(options.data_path)
        document = Document.open(options.directory)
        stack.callback(document.close)
        state = load(document)
        data_path = options.data_path
        offloads, kept = data_path.to_keep(state.offloads), data_path.memif_to_keep(state.memif)
        chosen = engine.choose(data_path.with_kept(offloads, kept))
        if (offloads, kept) != (state.offloads, state.memif):
            state = replace(state, offloads=offloads, memif=kept)
            document.save(state.to_json())
        inside = None
        if options.rootless is not None and not options.save_only:
            inside = Helper.start(options.interface or USUAL_NAME, chosen.queues)
            stack.callback(inside.close)
        elif runtime.remove_leftovers([state.private_key], options.directory):
            voice.say("Removed the interface that was left when RustGuard was killed.")
        sandbox = confine(stack, options.directory, chosen, options.group, wanted=options.sandbox, log=options.log)
        if not options.save_only and inside is None:
            await runtime.with_free_name(
                stack,
                options.interface,
                lambda _, name: check_interface(name, chosen),
                runtime.taken_names(chosen),
            )
        sockets = runtime.bind(stack, 0)
        port = sockets[0].getsockname()[1]
        obtained = await obtain(
            options.target,
            options.applicant,
            document,
            state,
            sockets,
            voice,
            options.answers,
            check_networks if options.rootless is None and chosen.memif is None else accept_any_network,
        )
        if options.save_only:
            connect = as_root(f"rustguard join{option_for('client', options.directory)}")
            voice.say(f"Saved in {options.directory}. To connect: {connect}")
            return
        # What fails before the tunnel is up leaves no join behind, neither here nor on the server.
        try:
            async with AsyncExitStack() as attempt:
                start = _Start(options, voice, chosen, sandbox, state.private_key, sockets, port, obtained)
                connecting = _connect(attempt, start) if inside is None else _connect_inside(attempt, start, inside)
                client, program = await connecting
                stack.push_async_exit(attempt.pop_all())
        except RustGuardError:
            if obtained.joined is not None:
                withdraw(obtained.joined, document, state, _open(stack, sockets, port))
            raise
        if inside is None:
            hint = "the server decides, or the options of `rustguard join`"
            await runtime.answer_wg_fixed(stack, client.tunnel, program.interface, state.private_key, port, hint)
        voice.say(f"Engine {program.engine.name} ({program.engine.reason}).")
        if program.engine.memif is not None:
            memif.introduce(voice, program.engine.memif, client.network.addresses, client.network.mtu)
        ready()
        await client.run()


@dataclass(frozen=True, slots=True)
class _Start:
    """What a client is made of.

    Attributes:
        options: The command line.
        voice: Prints what happens.
        engine: The engine.
        sandbox: What was given up.
        private_key: Ours, 32 bytes.
        sockets: Bound to our port, one per family. A plane may have taken them.
        port: That port.
        obtained: The network.
    """

    options: JoinOptions
    voice: Voice
    engine: engine.Engine
    sandbox: Report
    private_key: bytes = field(repr=False)
    sockets: Sequence[socket.socket]
    port: int
    obtained: Obtained

    def make(
        self,
        stack: AsyncExitStack,
        interface: str,
        network: NetworkRecord,
        tun: tuple[int, ...] = (),
        *,
        rootless: bool = False,
    ) -> tuple[RunningClient, Program]:
        """Make the client, which doesn't know its server yet.

        Args:
            stack: Undoes it.
            interface: The interface's name.
            network: The network, with the addresses that are used here.
            tun: See `Program`.
            rootless: Whether the interface is in a network namespace of its own.
        """
        fitted, fitting = fit_tunnels(network, self.engine, interface, self.voice, rootless=rootless)
        fitting = fitting.answering((*fitted.pools, *fitted.routes), fitted.addresses)
        program = Program("client", self.options.directory, interface, fitting, now(), self.sandbox, tun)
        bound = _open(stack, self.sockets, self.port)
        return make_client(stack, self.voice, program, self.private_key, bound, fitted), program


async def _connect(stack: AsyncExitStack, start: _Start) -> tuple[RunningClient, Program]:
    """Make the client and its interfaces, and answer at the control socket."""
    options, voice, has_interface = start.options, start.voice, start.engine.memif is None
    network = without_ipv6(start.obtained.network, voice, why_no_ipv6() if has_interface else None)
    client, program = await runtime.with_free_name(
        stack,
        options.interface,
        lambda attempt, interface: start.make(attempt, interface, network),
        runtime.taken_names(start.engine),
    )
    if has_interface:
        client.reports = make_reports(client, program.engine)
    # The peer is set before the interface has an address to send from. So the first packet waits for the handshake
    # and isn't dropped.
    client.connect(start.obtained.endpoint or await locate(client.network, voice))
    keeper = None
    if has_interface:
        setups = lay_out(stack, voice, client, in_kernel=program.engine.in_kernel)
        more = None if client.bundle is None else client.bundle.to_keep()
        keeper = await keep(stack, client.tunnels, setups, voice.change, more)
    control = ClientControl(client, program, keeper, start.private_key, start.port)
    await runtime.answer(stack, options.directory, control.handlers(), options.group)
    return client, program


async def _connect_inside(stack: AsyncExitStack, start: _Start, inside: Helper) -> tuple[RunningClient, Program]:
    """Make the client on the interface that the helper made, and answer at the control socket.

    Nobody else is in that network namespace, so nothing there has to be watched and put back.
    """
    options, voice, rootless = start.options, start.voice, start.options.rootless
    assert rootless is not None  # noqa: S101 - the helper was started for it
    network = without_ipv6(start.obtained.network, voice, inside.no_ipv6)
    client, program = start.make(stack, inside.interface, network, tuple(inside.queues), rootless=True)
    network = client.network
    client.reports = make_reports(client, program.engine, Inside(inside.index, inside.open_socket))
    client.connect(start.obtained.endpoint or await locate(network, voice))
    setup = InterfaceSetup(
        inside.interface,
        network.mtu,
        network.addresses,
        network.routes,
        gso_max_segs=offload.wanted_gso_segments(network.mtu),
    )
    if note := await inside.set_up(setup, names_of(network, rootless.servers), voice.change):
        voice.say(note)

    def end(error: RustGuardError) -> None:
        client.tunnel.fault = error
        client.tunnel.stopped.set()

    inside.watch(end)
    ways = await proxies.start(stack, inside, rootless, voice.say)
    control = ClientControl(client, program, None, start.private_key, start.port, inside, ways)
    await runtime.answer(stack, options.directory, control.handlers(), options.group)
    return client, program


def names_of(network: NetworkRecord, servers: Sequence[IpAddress]) -> Names:
    """Return what names mean inside a network: its server's and our own, and who knows the others.

    Args:
        network: The network.
        servers: The name servers to use; without any, the server of the network is asked.
    """
    gateways = [each for each in (network.gateway4, network.gateway6) if each is not None]
    named: list[tuple[str, IpAddress]] = [(network.host, each) for each in gateways if is_name(network.host)]
    own = dns_name_of(network.name)
    named += [(own, each.ip) for each in network.addresses if own]
    return Names(tuple(servers) or tuple(gateways), tuple(named))


def _open(stack: AsyncExitStack, sockets: Sequence[socket.socket], port: int) -> Sequence[socket.socket]:
    """Return the sockets, or others on their port if a plane has had them."""
    return sockets if all(each.fileno() >= 0 for each in sockets) else runtime.bind(stack, port)
