"""Make the further tunnels, and put all of them together."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Interface, IPv6Interface

from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.runtime import lay_out, make_kernel_tunnel
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.tunnels import derive
from rustguard_py.enroll.tunnels.bundle import Bundle, Member
from rustguard_py.model.keys import public_key
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.system.interface import InterfaceSetup
from rustguard_py.system.multipath import Multipath
from rustguard_py.tunnel import Tunnel


def make_further(
    stack: AsyncExitStack,
    program: Program,
    private_keys: Sequence[bytes],
    sockets: Sequence[Sequence[socket.socket]],
    mtu: int,
    timestamps: KeptTimestamps,
) -> list[AnyTunnel]:
    """Make the further tunnels and their interfaces. They have no listeners yet.

    Args:
        stack: Closes them at the end.
        program: What runs.
        private_keys: One for each further tunnel, 32 bytes.
        sockets: The sockets of each one's port.
        mtu: The MTU of the interfaces, bytes.
        timestamps: The first tunnel's.
    """
    made: list[AnyTunnel] = []
    for number, (private_key, own) in enumerate(zip(private_keys, sockets, strict=True), 1):
        interface = derive.interface(program.interface, number)
        if program.engine.in_kernel:
            made.append(make_kernel_tunnel(stack, program, interface, private_key, own, several=True))
            continue
        plane = program.engine.make_plane(public_key(private_key), interface, own, mtu)
        stack.callback(plane.close)
        kept = derive.FurtherTimestamps(timestamps, number)
        tunnel = Tunnel.make(private_key, plane, kept, Listeners())
        stack.callback(tunnel.close)
        made.append(tunnel)
    return made


def make_bundle(
    voice: Voice,
    program: Program,
    tunnels: Sequence[AnyTunnel],
    ports: Sequence[int],
    addresses: Sequence[IPv4Interface | IPv6Interface],
    *,
    first_has_routes: bool,
) -> Bundle:
    """Put tunnels together, the first one first. Call `lay_out_bundle` once their peers are known."""
    members = [
        Member(tunnel, derive.interface(program.interface, number), port)
        for number, (tunnel, port) in enumerate(zip(tunnels, ports, strict=True))
    ]
    routes = Multipath([member.interface for member in members], addresses, voice.change)
    return Bundle(members, routes, first_has_routes=first_has_routes)


def lay_out_bundle(
    stack: AsyncExitStack,
    voice: Voice,
    mtu: int,
    addresses: Sequence[IPv4Interface | IPv6Interface],
    bundle: Bundle,
    *,
    in_kernel: bool = False,
) -> list[InterfaceSetup]:
    """Set our addresses on the further interfaces, bring them up, and make the routes over all interfaces.

    Returns:
        What the further interfaces were given.
    """
    hosts = host_addresses(addresses)
    further = [member.interface for member in bundle.members[1:]]
    setups = [lay_out(stack, voice, each, mtu, hosts, in_kernel=in_kernel) for each in further]
    stack.callback(bundle.close)
    for note in bundle.begin():
        voice.say(note)
    return setups


def host_addresses(addresses: Iterable[IPv4Interface | IPv6Interface]) -> list[IPv4Interface | IPv6Interface]:
    """Return the addresses without their networks, so that the kernel adds no routes."""
    return [type(each)((each.ip, each.max_prefixlen)) for each in addresses]
