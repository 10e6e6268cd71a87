"""Starting a server, in order.

lock and load the state · check the pools · open the port · make the interface · put the server together · lay out
the interface · save · answer at the control socket; then serve until told to stop
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from rustguard_py import engine
from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.program import Program
from rustguard_py.data_path import DataPath
from rustguard_py.enroll.server.banner import introduce
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer, own_addresses
from rustguard_py.enroll.tunnels import assemble, derive
from rustguard_py.model.address import LAST_PORT, pairing_port
from rustguard_py.model.clock import now
from rustguard_py.model.defaults import DEFAULT_MTU, DEFAULT_PORT
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.keys import generate_private_key
from rustguard_py.state.document import Document
from rustguard_py.state.records import MOST_TUNNELS, ServerState
from rustguard_py.system.interface import free_interface_name, why_no_ipv6
from rustguard_py.system.networks import collisions, make_ula, propose, taken_networks


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `serve` was told.

    Attributes:
        directory: Where the state lies.
        token: What a client must know; None when nobody can join until the next start.
        data_path: What shall move the packets.
        pool4: None for the one kept.
        pool6: None for the one kept, or a ULA /64 made at the first start.
        use_pool6: False for IPv4 only.
        port: UDP, or None for the one kept.
        open_for: Seconds that the window is open for from the start.
        interface: Its name, or None for the first free one.
        mtu: Of the interface, bytes, or None for the one kept.
        tunnels: How many there are to each client, or None for the number kept.
        group: Who beside root may use the control socket.
    """

    directory: Path
    token: str | None = field(repr=False)
    data_path: DataPath
    pool4: IPv4Network | None = None
    pool6: IPv6Network | None = None
    use_pool6: bool = True
    port: int | None = None
    open_for: float | None = None
    interface: str | None = None
    mtu: int | None = None
    tunnels: int | None = None
    group: str | None = None


async def serve(options: ServeOptions, voice: Voice) -> None:
    """Run a server until it is told to stop.

    Raises:
        RustGuardError: It can't start, or the data plane broke.
    """
    async with AsyncExitStack() as stack:
        server, program = await _start(options, voice, stack)
        server.begin()
        introduce(server, program, voice.say)
        await runtime.until_all_stopped(server.stopped, server.tunnels)


async def _start(options: ServeOptions, voice: Voice, stack: AsyncExitStack) -> tuple[RunningServer, Program]:
    if options.open_for is not None and options.token is None:
        raise UsageError("--open needs a token that clients can know.", "Add: --token SECRET")
    document = Document.open(options.directory)
    stack.callback(document.close)
    kept = document.load()
    state = _prepare(options, kept)
    chosen = _choose(options, state.tunnels)
    registry = Registry(state)
    own_keys = [derive.private_key(state.private_key, number) for number in range(MOST_TUNNELS)]
    if runtime.remove_leftovers(own_keys, options.directory):
        voice.say("Removed the interface that was left when RustGuard was killed.")
    interface = options.interface or free_interface_name()
    interfaces = [derive.interface(interface, number) for number in range(state.tunnels)]
    _check_pools(state, interfaces, first=not state.peers)
    for each in interfaces:
        runtime.check_interface(each, chosen)
    program = Program("server", options.directory, interface, chosen, now())
    server, ipv6_fault = _make_server(program, registry, document, stack, voice)
    runtime.lay_out(stack, voice, interface, state.mtu, server.addresses, in_kernel=chosen.in_kernel)
    if server.bundle is not None:
        assemble.lay_out_bundle(stack, voice, state.mtu, server.addresses, server.bundle, in_kernel=chosen.in_kernel)
    # Not before: a start that fails over a taken port or pool must not be what the next one is told by the state.
    # Nor without need: a server that crashed comes back while the disk is full.
    if (document_now := state.to_json()) != kept:
        document.save(document_now)
    await _prepare_pairing(options, server)
    control = ServerControl(server, program, ipv6_fault)
    await runtime.answer(stack, options.directory, control.handlers(), options.group)
    for number, tunnel in enumerate(server.tunnels):
        key = derive.private_key(state.private_key, number)
        port = derive.port(state.port, number)
        await runtime.answer_wg(stack, tunnel, interfaces[number], _always(key, port))
    stack.push_async_callback(server.finish)
    return server, program


def _always(private_key: bytes, port: int) -> Callable[[], tuple[bytes, int]]:
    return lambda: (private_key, port)


def _choose(options: ServeOptions, tunnels: int) -> engine.Engine:
    if tunnels > 1 and options.data_path.xdp is not None:
        raise UsageError("AF_XDP serves one tunnel, not several.", "Leave out --xdp, or add: --tunnels 1")
    chosen = engine.choose(options.data_path)
    return chosen if tunnels == 1 else chosen.for_tunnels(tunnels, options.data_path.queues)


def _make_server(
    program: Program, registry: Registry, document: Document, stack: AsyncExitStack, voice: Voice
) -> tuple[RunningServer, str | None]:
    """Put a server together on an interface that is made; and say why it is without IPv6, if it is."""
    state = registry.state
    sockets = runtime.bind(stack, state.port)
    # The kernel keeps the tunnel's port to itself.
    pairing = runtime.bind(stack, pairing_port(state.port)) if program.engine.in_kernel else []
    tunnel, timestamps = runtime.make_tunnel(
        stack, program, state.private_key, sockets, state.mtu, pairing, several=state.tunnels > 1
    )
    ipv6_fault = why_no_ipv6() if state.pool6 is not None else None
    pool6 = state.pool6 if ipv6_fault is None else None
    bundle = None
    if state.tunnels > 1:
        numbers = range(1, state.tunnels)
        others = [runtime.bind(stack, derive.port(state.port, number)) for number in numbers]
        keys = [derive.private_key(state.private_key, number) for number in numbers]
        tunnels = [tunnel, *assemble.make_further(stack, program, keys, others, state.mtu, timestamps)]
        ports = [derive.port(state.port, number) for number in range(state.tunnels)]
        # The route to the pool is the first one's.
        own = own_addresses(state.pool4, pool6)
        bundle = assemble.make_bundle(voice, program, tunnels, ports, own, first_has_routes=True)
    return RunningServer(tunnel, registry, Saver(state, document.save), timestamps, pool6, bundle), ipv6_fault


async def _prepare_pairing(options: ServeOptions, server: RunningServer) -> None:
    if options.token is not None:
        await server.take_token(options.token)
    if options.open_for is not None:
        await server.resume_window(options.open_for)


def _prepare(options: ServeOptions, kept: dict[str, object] | None) -> ServerState:
    """Read the state, or make it, with what the command line changes; the caller saves it."""
    if kept is None:
        if options.pool4 is None:
            raise UsageError(
                "The first start needs to know which addresses to give out.", "Add: --pool 10.150.0.0/24"
            )
        state = ServerState(
            private_key=generate_private_key(),
            server_id=os.urandom(32),
            pool4=options.pool4,
            pool6=(options.pool6 or make_ula(os.urandom)) if options.use_pool6 else None,
            port=options.port or DEFAULT_PORT,
            mtu=options.mtu or DEFAULT_MTU,
            tunnels=options.tunnels or 1,
        )
    else:
        state = ServerState.from_json(kept)
        state.pool4 = options.pool4 or state.pool4
        # None was kept because somebody asked for none.
        state.pool6 = (options.pool6 or state.pool6) if options.use_pool6 else None
        state.port = options.port or state.port
        state.mtu = options.mtu or state.mtu
        state.tunnels = options.tunnels or state.tunnels
        _check_peers(state)
    if (last := derive.port(state.port, state.tunnels - 1)) > LAST_PORT:
        raise UsageError(
            f"{state.tunnels} tunnels need UDP ports from {state.port} to {last}, and there are not so many.",
            "Choose a lower --port.",
        )
    return state


def _check_peers(state: ServerState) -> None:
    """Refuse a pool that peers have no addresses of."""
    for option, pool, member in (("--pool", state.pool4, "address4"), ("--pool6", state.pool6, "address6")):
        given = [address for each in state.peers.values() if (address := getattr(each, member)) is not None]
        if pool is not None and (outside := [address for address in given if address not in pool]):
            raise RefusedError(
                f"{len(outside)} peers have addresses that are not of the pool {pool}, such as {outside[0]}.",
                f"Leave {option} out to keep the pool that they are of; or start another network: --state DIR",
            )


def _check_pools(state: ServerState, interfaces: Sequence[str], *, first: bool) -> None:
    """Refuse a pool that this machine already knows as something else, before anything is touched."""
    taken = taken_networks(exclude=interfaces)
    for pool in (state.pool4, state.pool6):
        found = collisions(pool, taken) if pool is not None else []
        if not found:
            continue
        free = propose([network for network, _ in taken], state.pool4.prefixlen) if pool == state.pool4 else None
        mend = (
            f"Take a free one: --pool {free}" if free is not None and first else "Take another one, or remove that."
        )
        raise RefusedError(f"The pool {pool} collides with what this machine has: {found[0]}.", mend)
