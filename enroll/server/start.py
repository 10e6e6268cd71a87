"""Running `serve`, in order.

load the state · apply the settings · choose the engine · give up privileges · check the pools · open the ports · make
the interfaces and the server · set addresses · save · let clients pair · answer at the control socket; then serve
until stopped
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rustguard_py import engine
from rustguard_py.daemon import audit, memif, runtime
from rustguard_py.daemon.confinement import confine
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.keeper import keep
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.reports import Reports
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.data_path import DataPath
from rustguard_py.enroll.server.banner import introduce
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.enroll.server.farewells import Farewells
from rustguard_py.enroll.server.partners import Partners
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.enroll.server.settings import Settings, apply, check_pools, costs
from rustguard_py.enroll.tunnels import assemble, derive
from rustguard_py.model.address import pairing_port
from rustguard_py.model.clock import now
from rustguard_py.model.errors import UsageError
from rustguard_py.model.tunnel import AnyTunnel
from rustguard_py.state.document import Document
from rustguard_py.state.records import MOST_TUNNELS, ServerState
from rustguard_py.system.interface import InterfaceSetup, check_interface_name, why_no_ipv6

_WG_HINT = "peers are changed with `rustguard peers` and `rustguard export --new`, the rest with options of `serve`"


@dataclass(frozen=True, slots=True)
class PairingOptions:
    """Token and window of the start.

    Attributes:
        token: The token that a client must know, or None if nobody can join until the next start.
        open_for: Seconds that the window is open from the start, or None.
        most: How many new peers that window admits, or None for the usual number.
    """

    token: str | None = field(repr=False)
    open_for: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.open_for is not None and self.token is None:
            raise UsageError("--open needs a token that clients can know.", "Add: --token -")
        if self.most is not None and self.open_for is None:
            raise UsageError("--most limits the window that --open opens.", "Add: --open")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The command line of `serve`; only `serve` reads it.

    Attributes:
        directory: State directory.
        settings: Changes to what is kept.
        pairing: Token and window of the start.
        data_path: The engine to use and its options.
        interface: Name of the interface, or None for the first free one.
        group: Group allowed to use the control socket, besides root.
        sandbox: Whether the process gives up for good what a server doesn't need.
        log: The log file of a process in the background, or None.
    """

    directory: Path
    settings: Settings
    pairing: PairingOptions
    data_path: DataPath
    interface: str | None = None
    group: str | None = None
    sandbox: bool = False
    log: Path | None = None


async def serve(options: ServeOptions, voice: Voice, ready: Callable[[], None] = lambda: None) -> None:
    """Run a server until it is stopped.

    Args:
        options: The command line.
        voice: Prints what happens.
        ready: Called once when clients can connect.

    Raises:
        RustGuardError: It can't start, or the data plane broke.
    """
    if options.interface is not None:
        check_interface_name(options.interface)
    async with AsyncExitStack() as stack:
        document = Document.open(options.directory)
        stack.callback(document.close)
        kept = document.load()
        state = apply(options.settings, kept)
        state.offloads = options.data_path.to_keep(state.offloads)
        state.memif = options.data_path.memif_to_keep(state.memif)
        chosen = _choose(options.data_path.with_kept(state.offloads, state.memif), state.tunnels)
        pools = [pool for pool in (state.pool4, state.pool6) if pool is not None]
        chosen = chosen.answering(pools, state.addresses())
        own_keys = [derive.private_key(state.private_key, number) for number in range(MOST_TUNNELS)]
        if runtime.remove_leftovers(own_keys, options.directory):
            voice.say("Removed the interface that was left when RustGuard was killed.")
        audit.narrow(options.directory)
        sandbox = confine(stack, options.directory, chosen, options.group, wanted=options.sandbox, log=options.log)
        # It has a thread, which is to have no more privileges than this one.
        stack.enter_context(audit.recording(options.directory))
        has_interface = chosen.memif is None
        ipv6_fault = why_no_ipv6() if state.pool6 is not None and has_interface else None

        def make(attempt: AsyncExitStack, interface: str) -> tuple[RunningServer, Program]:
            interfaces = [derive.interface(interface, number) for number in range(state.tunnels)]
            if has_interface:
                check_pools(state, interfaces)
            if_taken = "Choose another: --interface NAME"
            if interface == state.interface and options.interface is None:
                if_taken = f"Is it wg-quick's? Then end it: wg-quick down {interface}. {if_taken}"
            for each in interfaces:
                runtime.check_interface(each, chosen, if_taken)
            program = Program("server", options.directory, interface, chosen, now(), sandbox)
            server = _make_server(attempt, voice, program, state, document, has_ipv6=ipv6_fault is None)
            return server, program

        asked, taken = options.interface or state.interface, runtime.taken_names(chosen)
        server, program = await runtime.with_free_name(stack, asked, make, taken)
        interfaces = [derive.interface(program.interface, number) for number in range(state.tunnels)]
        setups = []
        # Reports are exchanged at our inner address, which the program behind a memif has.
        if has_interface:
            server.reports = _make_reports(server, program, interfaces)
            setups = _lay_out(stack, voice, program.interface, server, in_kernel=chosen.in_kernel)
        # Saved this late so that a start that fails over a taken port or pool leaves the state as it was. Saved only
        # if it differs so that a server that crashed can start again while the disk is full.
        if (document_now := state.to_json()) != kept:
            document.save(document_now)
        for line in costs(kept, state):
            voice.say(line)
        await _let_pair(server, options.pairing)
        more = None if server.bundle is None else server.bundle.to_keep()
        keeper = await keep(stack, server.tunnels, setups, voice.change, more) if has_interface else None
        control = ServerControl(server, program, ipv6_fault, keeper)
        await runtime.answer(stack, options.directory, control.handlers(), options.group)
        await _answer_wg(stack, server, interfaces)
        stack.push_async_callback(server.finish)
        server.begin()
        introduce(server, program, options.directory, voice.say)
        if chosen.memif is not None:
            memif.introduce(voice, chosen.memif, server.addresses, state.mtu)
        ready()
        server.report_to(voice.manager, program.interface)
        await runtime.until_all_stopped(server.stopped, server.tunnels)
        voice.manager.stopping()


def _choose(data_path: DataPath, tunnels: int) -> engine.Engine:
    if tunnels > 1 and data_path.xdp is not None:
        raise UsageError("AF_XDP serves only one tunnel.", "Leave out --xdp, or add: --tunnels 1")
    if tunnels > 1 and data_path.memif:
        raise UsageError("A memif serves only one tunnel.", "Add: --tunnels 1; or, to use interfaces: --memif none")
    chosen = engine.choose(data_path)
    return chosen if tunnels == 1 else chosen.for_tunnels(tunnels)


def _make_server(
    stack: AsyncExitStack, voice: Voice, program: Program, state: ServerState, document: Document, *, has_ipv6: bool
) -> RunningServer:
    """Make the tunnels with their interfaces, and a server on them."""
    registry = Registry(state)
    sockets = runtime.bind(stack, state.port)
    # The kernel's engine doesn't share the tunnel's port, so pairing needs one of its own.
    pairing = runtime.bind(stack, pairing_port(state.port)) if program.engine.in_kernel else []
    tunnel, timestamps = runtime.make_tunnel(
        stack, program, state.private_key, sockets, state.mtu, pairing, several=state.tunnels > 1
    )
    # The pool stays in the state for the day when this machine has IPv6 again.
    pool6 = state.pool6 if has_ipv6 else None
    bundle = None
    if state.tunnels > 1:
        # The first tunnel's interface has the route to the pool.
        own = state.addresses(ipv6=has_ipv6)
        bundle = assemble.make_bundle(
            voice,
            program,
            [tunnel, *_further_tunnels(stack, program, state, timestamps)],
            [derive.port(state.port, number) for number in range(state.tunnels)],
            own,
            first_has_routes=True,
        )
    return RunningServer(tunnel, registry, Saver(state, document.save), timestamps, pool6, bundle)


def _further_tunnels(
    stack: AsyncExitStack, program: Program, state: ServerState, timestamps: KeptTimestamps
) -> list[AnyTunnel]:
    numbers = range(1, state.tunnels)
    sockets = [runtime.bind(stack, derive.port(state.port, number)) for number in numbers]
    keys = [derive.private_key(state.private_key, number) for number in numbers]
    return assemble.make_further(stack, program, keys, sockets, state.mtu, timestamps)


def _make_reports(server: RunningServer, program: Program, interfaces: list[str]) -> Reports:
    state = server.state
    return Reports(
        server.tunnels,
        interfaces,
        state.addresses(ipv6=False)[0].ip,
        Partners(state).find,
        segments=program.engine.offloads.udp_segmentation,
        looks=not program.engine.in_kernel,
        remove=Farewells(state, server.admissions).remove,
    )


def _lay_out(
    stack: AsyncExitStack, voice: Voice, interface: str, server: RunningServer, *, in_kernel: bool
) -> list[InterfaceSetup]:
    mtu = server.state.mtu
    setup = runtime.lay_out(stack, voice, interface, mtu, server.addresses, server.routes, in_kernel=in_kernel)
    if server.bundle is None:
        return [setup]
    further = assemble.lay_out_bundle(stack, voice, mtu, server.addresses, server.bundle, in_kernel=in_kernel)
    return [setup, *further]


async def _let_pair(server: RunningServer, pairing: PairingOptions) -> None:
    if pairing.token is not None:
        await server.take_token(pairing.token)
    if pairing.open_for is not None:
        await server.resume_window(pairing.open_for, pairing.most)


async def _answer_wg(stack: AsyncExitStack, server: RunningServer, interfaces: list[str]) -> None:
    for number, tunnel in enumerate(server.tunnels):
        key = derive.private_key(server.state.private_key, number)
        port = derive.port(server.state.port, number)
        await runtime.answer_wg_fixed(stack, tunnel, interfaces[number], key, port, _WG_HINT)
