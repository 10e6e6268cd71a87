"""Where a peer is reached, the networks behind it, and its number.

An endpoint can also carry the local address at which the peer was heard. Replies go out from that address, so the
peer sees the source that it sent to, while the route leads over the interface at which it was heard. Use `heard`,
`local_of`, `interface_of` and `plain` for it, and `is_same` to compare it too.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address
from typing import cast

# The number by which a plane knows a peer.
PeerId = int

IpAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# An address with the prefix length of its network, as an interface has it.
InterfaceAddress = IPv4Interface | IPv6Interface

# An address as the socket module has it: (host, port), or (host, port, flowinfo, scope_id) for IPv6.
Endpoint = tuple[str, int] | tuple[str, int, int, int]


class _Heard(tuple[str | int, ...]):
    """An endpoint with the local address at which it was heard."""

    local: bytes
    interface: int


def heard(endpoint: Endpoint, local: bytes, interface: int = 0) -> Endpoint:
    """Return an endpoint that remembers the local address at which it was heard. It equals the plain endpoint.

    Args:
        endpoint: The source of a datagram.
        local: The datagram's destination, 4 or 16 bytes.
        interface: The number of the interface that it came by. 0 if that doesn't matter: then the local address is
            used whatever the route.
    """
    made = _Heard(endpoint)
    made.local, made.interface = local, interface
    return cast(Endpoint, made)


def local_of(endpoint: Endpoint | None) -> bytes | None:
    """Return the local address (4 or 16 bytes) at which `endpoint` was heard, or None to let the kernel choose."""
    return endpoint.local if isinstance(endpoint, _Heard) else None


def interface_of(endpoint: Endpoint | None) -> int:
    """Return the number of the interface at which `endpoint` was heard, or 0 if it isn't known."""
    return endpoint.interface if isinstance(endpoint, _Heard) else 0


def at_once(endpoint: Endpoint) -> Endpoint:
    """Return the same endpoint for an answer at once. Nobody looks up the route to who has proved nothing."""
    local = local_of(endpoint)
    return endpoint if local is None else heard(plain(endpoint), local)


def plain(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint without its local address."""
    return cast(Endpoint, tuple(endpoint)) if isinstance(endpoint, _Heard) else endpoint


def with_port(endpoint: Endpoint, port: int) -> Endpoint:
    """Return another UDP port at the same address."""
    return (endpoint[0], port, *endpoint[2:])


def is_same(one: Endpoint | None, other: Endpoint | None) -> bool:
    """Return whether two endpoints are the same, including their local addresses and interfaces."""
    return one is other or (
        one == other and local_of(one) == local_of(other) and interface_of(one) == interface_of(other)
    )


def endpoint_text(endpoint: Endpoint | None) -> str | None:
    """Return an endpoint as text: `192.0.2.1:51820`, `[2001:db8::1]:51820`, or None for None."""
    if endpoint is None:
        return None
    host, port = endpoint[0], endpoint[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_of(source: Endpoint) -> IPv4Address | IPv6Address:
    """Return a socket address's host without its zone, and an IPv4-mapped address as an IPv4 address."""
    address = ip_address(source[0].partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
