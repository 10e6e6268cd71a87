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
from functools import partial
from pathlib import Path

from rustguard_py import engine
from rustguard_py.daemon import runtime
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
from rustguard_py.state.client_records import ClientState, NetworkRecord
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
        if (offloads := options.data_path.to_keep(state.offloads)) != state.offloads:
            state = replace(state, offloads=offloads)
            document.save(state.to_json())
        chosen = engine.choose(options.data_path.with_kept(state.offloads))
        inside = None
        if options.rootless is not None and not options.save_only:
            inside = Helper.start(options.interface or USUAL_NAME, chosen.queues)
            stack.callback(inside.close)
        elif runtime.remove_leftovers([state.private_key], options.directory):
            voice.say("Removed the interface that was left when RustGuard was killed.")
        sandbox = confine(stack, options.directory, chosen, options.group, wanted=options.sandbox, log=options.log)
        if not options.save_only and inside is None:
            await runtime.with_free_name(stack, options.interface, lambda _, name: check_interface(name, chosen))
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
            check_networks if options.rootless is None else accept_any_network,
        )
        if options.save_only:
            connect = as_root(f"rustguard join{option_for('client', options.directory)}")
            voice.say(f"Saved in {options.directory}. To connect: {connect}")
            return
        # What fails before the tunnel is up leaves no join behind, neither here nor on the server.
        try:
            async with AsyncExitStack() as attempt:
                make = _connect if inside is None else partial(_connect_inside, inside)
                client, program = await make(attempt, options, voice, chosen, sandbox, state, sockets, obtained)
                stack.push_async_exit(attempt.pop_all())
        except RustGuardError:
            if obtained.joined is not None:
                withdraw(obtained.joined, document, state, _open(stack, sockets, port))
            raise
        if inside is None:
            hint = "the server decides, or the options of `rustguard join`"
            await runtime.answer_wg_fixed(stack, client.tunnel, program.interface, state.private_key, port, hint)
        voice.say(f"Engine {program.engine.name} ({program.engine.reason}).")
        ready()
        await client.run()


async def _connect(
    stack: AsyncExitStack,
    options: JoinOptions,
    voice: Voice,
    chosen: engine.Engine,
    sandbox: Report,
    state: ClientState,
    sockets: Sequence[socket.socket],
    obtained: Obtained,
) -> tuple[RunningClient, Program]:
    """Make the client and its interfaces, and answer at the control socket."""
    network, port = without_ipv6(obtained.network, voice, why_no_ipv6()), sockets[0].getsockname()[1]

    def make(attempt: AsyncExitStack, interface: str) -> tuple[RunningClient, Program]:
        fitted, fitting = fit_tunnels(network, chosen, interface, voice)
        program = Program("client", options.directory, interface, fitting, now(), sandbox)
        bound = _open(attempt, sockets, port)
        return make_client(attempt, voice, program, state.private_key, bound, fitted), program

    client, program = await runtime.with_free_name(stack, options.interface, make)
    client.reports = make_reports(client, program.engine)
    # The peer is set before the interface has an address to send from. So the first packet waits for the handshake
    # and isn't dropped.
    client.connect(obtained.endpoint or await locate(client.network, voice))
    setups = lay_out(stack, voice, client, in_kernel=program.engine.in_kernel)
    more = None if client.bundle is None else client.bundle.to_keep()
    keeper = await keep(stack, client.tunnels, setups, voice.change, more)
    control = ClientControl(client, program, keeper, state.private_key)
    await runtime.answer(stack, options.directory, control.handlers(), options.group)
    return client, program


async def _connect_inside(
    inside: Helper,
    stack: AsyncExitStack,
    options: JoinOptions,
    voice: Voice,
    chosen: engine.Engine,
    sandbox: Report,
    state: ClientState,
    sockets: Sequence[socket.socket],
    obtained: Obtained,
) -> tuple[RunningClient, Program]:
    """Make the client on the interface that the helper made, and answer at the control socket.

    Nobody else is in that network namespace, so nothing there has to be watched and put back.
    """
    assert options.rootless is not None  # noqa: S101 - the helper was started for it
    network, fitting = fit_tunnels(
        without_ipv6(obtained.network, voice, inside.no_ipv6), chosen, inside.interface, voice, rootless=True
    )
    tun = tuple(inside.queues)
    program = Program("client", options.directory, inside.interface, fitting, now(), sandbox, tun)
    bound = _open(stack, sockets, sockets[0].getsockname()[1])
    client = make_client(stack, voice, program, state.private_key, bound, network)
    client.reports = make_reports(client, program.engine, Inside(inside.index, inside.open_socket))
    client.connect(obtained.endpoint or await locate(network, voice))
    setup = InterfaceSetup(
        inside.interface,
        network.mtu,
        network.addresses,
        network.routes,
        gso_max_segs=offload.wanted_gso_segments(network.mtu),
    )
    if note := await inside.set_up(setup, names_of(network, options.rootless.servers), voice.change):
        voice.say(note)

    def end(error: RustGuardError) -> None:
        client.tunnel.fault = error
        client.tunnel.stopped.set()

    inside.watch(end)
    ways = await proxies.start(stack, inside, options.rootless, voice.say)
    control = ClientControl(client, program, None, state.private_key, inside, ways)
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
