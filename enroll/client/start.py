"""Joining, in order: pair once and keep what came of it, or take what was kept; then start the client.

load the state · pair, or take what an earlier join kept · check the networks · save · make the interface · tell the
tunnel of the server · lay out the interface · answer at the control socket; then carry traffic until told to stop
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from rustguard_py import engine
from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.data_path import DataPath
from rustguard_py.enroll.client.client import Client
from rustguard_py.enroll.client.control import ClientControl
from rustguard_py.enroll.client.pair import ask
from rustguard_py.enroll.pairing.client import Joined, PairingClient
from rustguard_py.enroll.tunnels import assemble, derive
from rustguard_py.enroll.tunnels.bundle import Bundle
from rustguard_py.model.address import DEFAULT_PORT, LAST_PORT, parse
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, UnansweredError, UsageError
from rustguard_py.model.keys import generate_private_key, parse_fingerprint, public_key
from rustguard_py.model.tunnel import AnyTunnel
from rustguard_py.planes.tun import Tun
from rustguard_py.state.document import Document
from rustguard_py.state.records import MOST_TUNNELS, ClientState, NetworkRecord, TunnelRecord
from rustguard_py.system.interface import free_interface_name, why_no_ipv6
from rustguard_py.system.networks import collisions, taken_networks
from rustguard_py.system.resolve import has_route, resolve

# How long the start waits for the server's name, seconds; without an answer it is looked up again later.
FIRST_LOOK = 1.0
# How long to ask a server that was joined before, seconds: its window is likely closed, and what was kept will do.
PATIENCE_WHEN_KEPT = 4.0


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What `join` was told.

    Attributes:
        directory: Where the state lies.
        server: `HOST[:PORT]` as typed, or None for the network joined last.
        token: None to use what an earlier join kept.
        name: What to be called there.
        data_path: What shall move the packets.
        fingerprint: The one that the server must have, or None.
        interface: Its name, or None for the first free one.
        save_only: Whether to pair and keep, and carry no traffic.
        group: Who beside root may use the control socket.
    """

    directory: Path
    server: str | None
    token: str | None = field(repr=False)
    name: str
    data_path: DataPath
    fingerprint: str | None = None
    interface: str | None = None
    save_only: bool = False
    group: str | None = None


async def join(options: JoinOptions, voice: Voice, ready: Callable[[], None]) -> None:
    """Join, and carry traffic until told to stop.

    Args:
        options: What to do.
        voice: How to talk.
        ready: Called once when the tunnel is up (or, with `save_only`, never).

    Raises:
        RustGuardError: It can't be done, or the data plane broke.
    """
    async with AsyncExitStack() as stack:
        chosen = engine.choose(options.data_path)
        document = Document.open(options.directory)
        stack.callback(document.close)
        state = _load(document)
        if runtime.remove_leftovers([state.private_key], options.directory):
            voice.say("Removed the interface that was left when RustGuard was killed.")
        interface = options.interface or free_interface_name()
        if not options.save_only:
            _try_interface(interface, chosen)
        sockets = runtime.bind(stack, 0)
        port = sockets[0].getsockname()[1]
        network, endpoint = await _obtain(options, voice, document, state, sockets)
        if options.save_only:
            voice.say(f"Kept in {options.directory}. To connect: sudo rustguard join")
            return
        network = _without_ipv6(network, voice)
        chosen, network = _with_tunnels(options, voice, interface, chosen, network)
        program = Program("client", options.directory, interface, chosen, now())
        tunnel, timestamps = runtime.make_tunnel(
            stack, program, state.private_key, sockets, network.mtu, several=bool(network.tunnels)
        )
        bundle = _make_bundle(stack, voice, program, state.private_key, network, tunnel, timestamps)
        client = Client(tunnel, network, timestamps, interface, voice, bundle)
        # Before there is an address to send from: the first packet then waits for the handshake, and isn't dropped.
        client.connect(endpoint or await _locate(network))
        if bundle is None:
            runtime.lay_out(
                stack,
                voice,
                interface,
                network.mtu,
                network.addresses,
                network.routes,
                in_kernel=chosen.in_kernel,
            )
        else:
            # What lies behind the server is reached over all.
            runtime.lay_out(stack, voice, interface, network.mtu, assemble.host_addresses(network.addresses))
            assemble.lay_out_bundle(stack, voice, network.mtu, network.addresses, bundle, in_kernel=chosen.in_kernel)
        await runtime.answer(stack, options.directory, ClientControl(client, program).handlers(), options.group)
        await runtime.answer_wg(stack, tunnel, interface, lambda: (state.private_key, port))
        voice.say(f"Engine {chosen.name} ({chosen.reason}).")
        ready()
        await client.run()


def _with_tunnels(
    options: JoinOptions, voice: Voice, interface: str, chosen: engine.Engine, network: NetworkRecord
) -> tuple[engine.Engine, NetworkRecord]:
    """Give what runs where the server has several tunnels: over the first alone if it must."""
    if not network.tunnels:
        return chosen, network
    number = 1 + len(network.tunnels)
    if options.data_path.xdp is not None:
        voice.say(f"The server has {number} tunnels; AF_XDP takes the first alone.")
        return chosen, replace(network, tunnels=())
    for place in range(1, number):
        runtime.check_interface(derive.interface(interface, place), chosen)
    return chosen.for_tunnels(number, options.data_path.queues), network


def _make_bundle(
    stack: AsyncExitStack,
    voice: Voice,
    program: Program,
    private_key: bytes,
    network: NetworkRecord,
    tunnel: AnyTunnel,
    timestamps: KeptTimestamps,
) -> Bundle | None:
    """Make the tunnels beside the first; all of them with our one key, which is what the server knows us by."""
    others = network.tunnels
    if not others:
        return None
    sockets = [runtime.bind(stack, 0) for _ in others]
    tunnels = [
        tunnel,
        *assemble.make_further(stack, program, [private_key] * len(others), sockets, network.mtu, timestamps),
    ]
    ports = [network.port, *(each.port for each in others)]
    return assemble.make_bundle(voice, program, tunnels, ports, network.addresses, first_has_routes=False)


def _load(document: Document) -> ClientState:
    data = document.load()
    if data is not None:
        return ClientState.from_json(data)
    # Kept before anybody is asked: after a crash the same key, and so the same address, comes again.
    state = ClientState(generate_private_key())
    document.save(state.to_json())
    return state


def _try_interface(interface: str, chosen: engine.Engine) -> None:
    """Refuse what could not be made, before the server gives an address for it."""
    runtime.check_interface(interface, chosen)
    if not chosen.in_kernel:
        Tun(interface, lambda _: None).close()
        return
    from rustguard_py.kernel.netlink import KernelInterface

    KernelInterface.make(interface, "rustguard").remove()


async def _obtain(
    options: JoinOptions, voice: Voice, document: Document, state: ClientState, sockets: Sequence[socket.socket]
) -> tuple[NetworkRecord, Endpoint | None]:
    """Give the network to connect to, paired anew or kept, and where its server answered if that is known."""
    host, port = parse(options.server) if options.server is not None else (None, None)
    kept = state.network(host, port)
    if options.token is None or host is None:
        if kept is None:
            what = f"{host} was not joined before." if host else "Nothing was joined before."
            raise UsageError(what, f"Join with: sudo rustguard join {host or 'HOST'} --token SECRET")
        _check_fingerprint(kept, options.fingerprint)
        _check_networks(kept)
        return kept, None
    try:
        async with asyncio.timeout(None if kept is None else PATIENCE_WHEN_KEPT):
            network, endpoint = await _pair(options, voice, state, kept, host, port or DEFAULT_PORT, sockets)
    except (UnansweredError, TimeoutError) as error:
        if kept is None:
            raise
        why = error.message if isinstance(error, UnansweredError) else f"{host} lets nobody new in now."
        voice.say(f"{why} It was joined before, so we connect with what was kept.")
        _check_networks(kept)
        return kept, None
    _check_networks(network)
    document.save(state.with_network(network).to_json())
    voice.say(
        f"Joined {host} as {network.name}, {network.address4}; the server's fingerprint is {network.fingerprint}."
    )
    return network, endpoint


async def _pair(
    options: JoinOptions,
    voice: Voice,
    state: ClientState,
    kept: NetworkRecord | None,
    host: str,
    port: int,
    sockets: Sequence[socket.socket],
) -> tuple[NetworkRecord, Endpoint]:
    servers = await resolve(host, port)
    # Where the server's kernel has the tunnel's port to itself, pairing is on the next.
    others = [] if port >= LAST_PORT else [_beside(each, port + 1) for each in servers]
    voice.say(f"Asking {host}, UDP port {port}.")
    client = PairingClient(
        options.token or "",
        public_key(state.private_key),
        options.name,
        os.urandom,
        now(),
        expected=options.fingerprint,
        known_server=None if kept is None else kept.server_key,
    )
    joined = await ask(client, sockets, servers, others)
    return _record(joined, host, port), _beside(joined.server, port)


def _beside(place: Endpoint, port: int) -> Endpoint:
    """Another port of the same address."""
    return (place[0], port, *place[2:])


def _record(joined: Joined, host: str, port: int) -> NetworkRecord:
    given = joined.admission
    return NetworkRecord(
        host=host,
        # The one that was typed: behind a forwarded port the server doesn't know by what number it is reached.
        port=port,
        server_key=given.server_key,
        preshared_key=joined.preshared_key,
        name=given.name,
        address4=given.address4,
        address6=given.address6,
        routes=given.routes,
        mtu=given.mtu,
        keepalive=given.keepalive,
        gateway4=given.gateway4,
        gateway6=given.gateway6,
        joined=time.time(),
        tunnels=_tunnels(joined, port),
    )


def _tunnels(joined: Joined, port: int) -> tuple[TunnelRecord, ...]:
    """Give those beside the first; behind forwarded ports theirs are as far from the first one's as at the server."""
    given = joined.admission
    moved = [(each.server_key, each.port - given.port + port) for each in given.tunnels[: MOST_TUNNELS - 1]]
    return tuple(TunnelRecord(key, at) for key, at in moved if 1 <= at <= 65535)


def _check_fingerprint(network: NetworkRecord, expected: str | None) -> None:
    if expected is not None and parse_fingerprint(expected) != network.fingerprint:
        raise RefusedError(
            f"The server joined before has the fingerprint {network.fingerprint}, not the one given.",
            "Leave --server out, or join the other server with its token and --state DIR.",
        )


def _check_networks(network: NetworkRecord) -> None:
    """Refuse what this machine already knows as something else, before anything is touched."""
    taken = taken_networks()
    for wanted in (*network.pools, *network.routes):
        if found := collisions(wanted, taken):
            raise RefusedError(
                f"The network {wanted} of {network.host} collides with what this machine has: {found[0]}.",
                "Have that server serve another --pool, or leave the network that collides.",
            )


async def _locate(network: NetworkRecord) -> Endpoint | None:
    """Look where the server is, for a moment; with no network or no answer it's looked for later."""
    try:
        async with asyncio.timeout(FIRST_LOOK):
            found = await resolve(network.host, network.port)
    except (UnansweredError, TimeoutError):
        return None
    return next(filter(has_route, found), None)


def _without_ipv6(network: NetworkRecord, voice: Voice) -> NetworkRecord:
    why = why_no_ipv6()
    if why is None or network.address6 is None:
        return network
    voice.say(f"{why} The tunnel carries IPv4 only.")
    return replace(network, address6=None, gateway6=None)
