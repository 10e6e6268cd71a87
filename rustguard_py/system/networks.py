"""The networks that this machine already uses, and a free one."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import (
    IPv4Network,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any, Final, TypeVar

from rustguard_py.model.endpoint import Network
from rustguard_py.system.interface import RT_TABLE_MAIN, RTN_UNICAST, with_netlink
from rustguard_py.system.netlink_library import IPRoute

# 0.0.0.0/1 and 128.0.0.0/1 together are how other VPNs write a default route.
_DEFAULT_HALVES = 1


def outward_interface() -> str | None:
    """Return the interface of this machine's IPv4 default route, or None if it has none."""

    def read(netlink: IPRoute) -> str | None:
        names = dict(socket.if_nameindex())
        routes = netlink.get_default_routes(family=socket.AF_INET, table=RT_TABLE_MAIN)
        return next((names[index] for each in routes if (index := each.get_attr("RTA_OIF")) in names), None)

    return with_netlink(read)


def taken_networks(exclude: Collection[str] = ()) -> list[tuple[Network, str]]:
    """Return the networks of this machine's addresses and routes.

    These are the addresses of all interfaces and the unicast routes of the main table. Default routes (also as two
    halves) and IPv6 link-local addresses, which every interface has, are left out.

    Args:
        exclude: Interfaces to leave out.

    Returns:
        Each network once, with its description: `address 192.168.1.5/24 on eth0` or
        `route 10.0.0.0/8 via 192.168.1.1 on eth0`.
    """
    taken: dict[Network, str] = {}

    def read(netlink: IPRoute) -> None:
        names = dict(socket.if_nameindex())
        for network, what, index in (*_addresses(netlink, names), *_routes(netlink, names)):
            if names.get(index) not in exclude:
                taken.setdefault(network, what)

    with_netlink(read)
    return list(taken.items())


def _addresses(netlink: IPRoute, names: dict[int, str]) -> Iterator[tuple[Network, str, int]]:
    for message in netlink.get_addr():
        index, length = message["index"], message["prefixlen"]
        far = message.get_attr("IFA_ADDRESS")
        near = message.get_attr("IFA_LOCAL") or far
        if near is None:
            continue
        what = f"address {near}/{length} on {names.get(index, index)}"
        if near != far:
            # Point to point: the prefix is that of the far end.
            yield ip_network(near), what, index
        network = ip_interface(f"{far or near}/{length}").network
        if not (network.version == 6 and network.is_link_local):
            yield network, what, index


def _routes(netlink: IPRoute, names: dict[int, str]) -> Iterator[tuple[Network, str, int]]:
    for message in netlink.get_routes(table=RT_TABLE_MAIN):
        destination, length = message.get_attr("RTA_DST"), message["dst_len"]
        table = message.get_attr("RTA_TABLE") or message["table"]
        if table != RT_TABLE_MAIN or message["type"] != RTN_UNICAST:
            continue
        if destination is None or length <= _DEFAULT_HALVES:
            continue
        network = ip_network(f"{destination}/{length}")
        if network.version == 6 and network.is_link_local:
            continue
        index = message.get_attr("RTA_OIF") or 0
        yield network, _name_route(message, network, names.get(index)), index


def _name_route(message: Any, network: Network, interface: str | None) -> str:
    gateway = message.get_attr("RTA_GATEWAY")
    via = f" via {gateway}" if gateway else ""
    on = f" on {interface}" if interface else ""
    several = " over several gateways" if message.get_attr("RTA_MULTIPATH") else ""
    return f"route {network}{via}{on}{several}"


# Private networks (RFC 1918), each with the offset to start at, away from the ranges of home routers and containers.
_PRIVATE: Final = (
    (IPv4Network("10.0.0.0/8"), 150 << 16),
    (IPv4Network("172.16.0.0/12"), 8 << 16),
    (IPv4Network("192.168.0.0/16"), 150 << 8),
)


_Label = TypeVar("_Label")


def collisions(pool: Network, taken: Iterable[tuple[Network, _Label]]) -> list[_Label]:
    """Return the labels of the networks that overlap with the pool, in the given order.

    A default route never collides, because it doesn't stand for the addresses in it.

    Args:
        pool: A network of either family.
        taken: Networks of either family, each with a label.
    """
    return [label for network, label in taken if network.prefixlen and _overlap(pool, network)]


def propose(taken: Iterable[Network], prefixlen: int = 24) -> IPv4Network | None:
    """Return a private network that overlaps with none of those taken, or None if there is none of this size.

    The result is the same for the same arguments.

    Args:
        taken: Networks of either family. Default routes don't count.
        prefixlen: The size of the network, 8 to 30.
    """
    obstacles = [n for n in taken if isinstance(n, IPv4Network) and n.prefixlen]
    for space, start in _PRIVATE:
        if prefixlen < space.prefixlen:
            continue
        base = int(space.network_address)
        begin = base + start >> 32 - prefixlen << 32 - prefixlen
        found = _first_free(begin, int(space.broadcast_address), prefixlen, obstacles)
        found = found or _first_free(base, begin - 1, prefixlen, obstacles)
        if found is not None:
            return found
    return None


def make_ula(random: Callable[[int], bytes]) -> IPv6Network:
    """Return a new unique local /64 (RFC 4193, section 3.1): fd, 40 random bits, subnet 0."""
    return IPv6Network((b"\xfd" + random(5) + bytes(10), 64))


def _overlap(one: Network, other: Network) -> bool:
    # Networks of different families never overlap, and `overlaps` refuses to compare them.
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def _first_free(first: int, last: int, prefixlen: int, obstacles: list[IPv4Network]) -> IPv4Network | None:
    size = 1 << 32 - prefixlen
    at = -(-first // size) * size
    while at + size - 1 <= last:
        candidate = IPv4Network((at, prefixlen))
        hit = next((network for network in obstacles if network.overlaps(candidate)), None)
        if hit is None:
            return candidate
        beyond = max(int(hit.broadcast_address), int(candidate.broadcast_address)) + 1
        at = -(-beyond // size) * size
    return None
