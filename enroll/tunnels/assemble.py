"""Make several tunnels and put them together."""

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
    """Make the interfaces and tunnels beside the first; nobody listens yet.

    Args:
        stack: Undoes it.
        program: What runs.
        private_keys: Of these tunnels, 32 bytes each.
        sockets: Of each one's port.
        mtu: Of the interfaces, bytes.
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
    """Put tunnels together, the first first; `lay_out_bundle` comes once it is known who is reached over them."""
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
) -> None:
    """Give the interfaces beside the first our addresses, bring them up, and make the routes over all."""
    hosts = host_addresses(addresses)
    for member in bundle.members[1:]:
        lay_out(stack, voice, member.interface, mtu, hosts, in_kernel=in_kernel)
    stack.callback(bundle.close)
    for note in bundle.begin():
        voice.say(note)


def host_addresses(addresses: Iterable[IPv4Interface | IPv6Interface]) -> list[IPv4Interface | IPv6Interface]:
    """Give the same addresses without their networks: the kernel then adds no route."""
    return [type(each)((each.ip, each.max_prefixlen)) for each in addresses]
