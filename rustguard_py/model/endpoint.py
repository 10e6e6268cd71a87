"""Where a peer is, which networks are behind it, and the number that stands for it."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import cast

PeerId = int


Network = IPv4Network | IPv6Network


# An address as the socket module gives it: (host, port), or (host, port, flowinfo, scope_id) over IPv6.
Endpoint = tuple[str, int] | tuple[str, int, int, int]


class _Heard(tuple[str | int, ...]):
    """An endpoint that also knows at which address of ours it was heard."""

    local: bytes


def heard(endpoint: Endpoint, local: bytes) -> Endpoint:
    """Give an endpoint from which a datagram came to an address of ours: what goes to it goes out from there.

    It equals the plain one.

    Args:
        endpoint: Where it came from.
        local: Where it came to, 4 or 16 bytes.
    """
    made = _Heard(endpoint)
    made.local = local
    return cast(Endpoint, made)


def local_of(endpoint: Endpoint | None) -> bytes | None:
    """Give the address of ours that `endpoint` was heard at, 4 or 16 bytes; None leaves the choice to the kernel."""
    return endpoint.local if isinstance(endpoint, _Heard) else None


def plain(endpoint: Endpoint) -> Endpoint:
    """Give an endpoint without the address of ours that it was heard at."""
    return cast(Endpoint, tuple(endpoint)) if isinstance(endpoint, _Heard) else endpoint


def with_port(endpoint: Endpoint, port: int) -> Endpoint:
    """Return another UDP port at the same address."""
    return (endpoint[0], port, *endpoint[2:])


def is_same(one: Endpoint | None, other: Endpoint | None) -> bool:
    """Say whether two endpoints are one, their addresses of ours included."""
    return one is other or (one == other and local_of(one) == local_of(other))


def endpoint_text(endpoint: Endpoint | None) -> str | None:
    """Write an endpoint as people do: `192.0.2.1:51820`, `[2001:db8::1]:51820`."""
    if endpoint is None:
        return None
    host, port = endpoint[0], endpoint[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
