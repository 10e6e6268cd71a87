"""Connecting to a network: its tunnels, their interfaces and addresses, and the client that runs on them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.reports import Inside, Partner, Reports
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.engine import Engine
from rustguard_py.enroll.client.client import RunningClient
from rustguard_py.enroll.tunnels import assemble, derive
from rustguard_py.enroll.tunnels.bundle import Bundle
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UnansweredError
from rustguard_py.model.tunnel import AnyTunnel
from rustguard_py.state.client_records import NetworkRecord
from rustguard_py.system.interface import InterfaceSetup
from rustguard_py.system.resolve import has_route, resolve

# How long the start waits for the server's name, seconds. Without an answer the name is looked up again later.
FIRST_LOOK = 1.0


def without_ipv6(network: NetworkRecord, voice: Voice, why: str | None) -> NetworkRecord:
    """Return the network without its IPv6 addresses if there is a reason (`why_no_ipv6`) that there can be none."""
    if why is None or network.address6 is None:
        return network
    voice.say(f"{why} The tunnel carries IPv4 only.")
    return replace(network, address6=None, gateway6=None)


def fit_tunnels(
    network: NetworkRecord, engine: Engine, interface: str, voice: Voice, *, rootless: bool = False
) -> tuple[NetworkRecord, Engine]:
    """Return the network with the tunnels that are used here, and the engine as it runs that many.

    Raises:
        RustGuardError: An interface of a further tunnel can't be made.
    """
    if not network.tunnels:
        return network, engine
    number = 1 + len(network.tunnels)
    if engine.xdp is not None or engine.memif is not None or rootless:
        who = "--rootless uses" if rootless else "a memif can use" if engine.memif is not None else "AF_XDP can use"
        voice.say(f"The server has {number} tunnels; {who} only the first.")
        return replace(network, tunnels=()), engine
    for place in range(1, number):
        runtime.check_interface(derive.interface(interface, place), engine)
    return network, engine.for_tunnels(number)


def make_client(
    stack: AsyncExitStack,
    voice: Voice,
    program: Program,
    private_key: bytes,
    sockets: Sequence[socket.socket],
    network: NetworkRecord,
) -> RunningClient:
    """Make the tunnels of a network and their interfaces, and a client on them; nothing is sent yet.

    Args:
        stack: Undoes it.
        voice: Prints what happens.
        program: The first tunnel's interface and the engine.
        private_key: Ours, 32 bytes.
        sockets: Bound, one per family; the first tunnel's.
        network: The network to connect to.
    """
    tunnel, timestamps = runtime.make_tunnel(
        stack, program, private_key, sockets, network.mtu, several=bool(network.tunnels)
    )
    bundle = _make_bundle(stack, voice, program, private_key, network, tunnel, timestamps)
    return RunningClient(tunnel, network, timestamps, program.interface, voice, bundle)


def make_reports(client: RunningClient, chosen: Engine, inside: Inside | None = None) -> Reports | None:
    """Return the reports that a client exchanges with its server; None without an inner IPv4 address.

    Args:
        client: The client.
        chosen: The engine.
        inside: Where the interface is, if not in our network namespace.
    """
    network, bundle = client.network, client.bundle
    server = network.gateway4
    if server is None or network.address4 is None:
        return None
    partner = Partner(network.host, tuple(client.server_keys))
    interfaces = [client.interface] if bundle is None else [member.interface for member in bundle.members]
    return Reports(
        client.tunnels,
        interfaces,
        network.address4.ip,
        lambda address: partner if address == str(server) else None,
        segments=chosen.offloads.udp_segmentation,
        ask=None if chosen.in_kernel else server,
        looks=not chosen.in_kernel,
        inside=inside,
    )


def _make_bundle(
    stack: AsyncExitStack,
    voice: Voice,
    program: Program,
    private_key: bytes,
    network: NetworkRecord,
    tunnel: AnyTunnel,
    timestamps: KeptTimestamps,
) -> Bundle | None:
    """Make the further tunnels, if there are any. All use our one key, because the server knows us by it."""
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


def lay_out(stack: AsyncExitStack, voice: Voice, client: RunningClient, *, in_kernel: bool) -> list[InterfaceSetup]:
    """Give the client's interfaces their addresses and routes, bring them up, and return what they were given."""
    network, first = client.network, client.interface
    if client.bundle is None:
        return [
            runtime.lay_out(stack, voice, first, network.mtu, network.addresses, network.routes, in_kernel=in_kernel)
        ]
    # The first interface gets no routes of its own: the networks behind the server are reached over all tunnels.
    hosts = assemble.host_addresses(network.addresses)
    setup = runtime.lay_out(stack, voice, first, network.mtu, hosts, in_kernel=in_kernel)
    further = assemble.lay_out_bundle(
        stack, voice, network.mtu, network.addresses, client.bundle, in_kernel=in_kernel
    )
    return [setup, *further]


async def locate(network: NetworkRecord, voice: Voice) -> Endpoint | None:
    """Return an address of the server that this machine has a route to.

    None without a network or without an answer in `FIRST_LOOK` seconds; the name is then looked up again later.
    """
    try:
        async with asyncio.timeout(FIRST_LOOK):
            found = await resolve(network.host, network.port)
    except (UnansweredError, TimeoutError) as error:
        why = error.message if isinstance(error, UnansweredError) else f"The name {network.host} isn't resolved yet."
        voice.say(f"{why} It is looked up again until it is found.")
        return None
    return next(filter(has_route, found), None)
