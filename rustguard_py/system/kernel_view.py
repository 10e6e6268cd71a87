"""What the kernel has now: links, addresses, routes and rules, read in a few small netlink dumps.

pyroute2 would do too, but it takes about 0.1 ms per route, and this is read each time something changes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

# include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, fib_rules.h.
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE, _RTM_GETRULE = 18, 22, 26, 34
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 9, 15
_FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE = 6, 10, 14, 15
_RTN_UNICAST = 1
_IFF_UP = 0x1
_NO_SUPPRESSION = 0xFFFFFFFF
# What a kernel without IPv6, or without routing rules, answers.
_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_HEADER = struct.Struct("IHHII")
_LINK = struct.Struct("BxHiII")
_ADDRESS = struct.Struct("BBBBI")
_ROUTE = struct.Struct("BBBBBBBBI")
_NEXTHOP = struct.Struct("HBBi")

# An address or a network: as the kernel has it, and its prefix length.
Prefix = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Link:
    """One interface.

    Attributes:
        index: Its number.
        up: Whether an admin has it up.
        mtu: Bytes.
    """

    index: int
    up: bool
    mtu: int


@dataclass(frozen=True, slots=True)
class RuleSeen:
    """A routing rule, as far as ours differ from each other.

    Attributes:
        version: 4 or 6.
        priority: Its place.
        table: The table that it sends packets to.
        mark: The mark that it looks at, 0 for none.
        suppresses: Whether it suppresses default routes.
    """

    version: int
    priority: int
    table: int
    mark: int
    suppresses: bool


@dataclass(slots=True)
class View:
    """What the kernel has.

    Attributes:
        links: The interfaces asked about that exist, by name.
        addresses: The addresses of each interface, by its number.
        routes: The numbers of the interfaces that each unicast route leads to, by its table and network. There may be
            several routes to one network.
        rules: All routing rules.
    """

    links: dict[str, Link] = field(default_factory=dict)
    addresses: dict[int, set[Prefix]] = field(default_factory=dict)
    routes: dict[tuple[int, Prefix], list[frozenset[int]]] = field(default_factory=dict)
    rules: set[RuleSeen] = field(default_factory=set)

    def is_up(self, interface: str) -> bool:
        """Return whether an interface exists and is up."""
        link = self.links.get(interface)
        return link is not None and link.up

    def has_address(self, interface: str, address: str) -> bool:
        """Return whether an interface has an address, written with its prefix length."""
        link = self.links.get(interface)
        return link is not None and split(address) in self.addresses.get(link.index, ())

    def has_route(self, interface: str, network: str, table: int | None) -> bool:
        """Return whether a network is routed to an interface in a table, or in any if that is None."""
        link = self.links.get(interface)
        prefix = split(network)
        tables = [table] if table is not None else {each for each, _ in self.routes}
        return link is not None and any(
            link.index in over for each in tables for over in self.routes.get((each, prefix), ())
        )


def split(text: str) -> Prefix:
    """Return an address or a network, written with its prefix length, as the kernel has it."""
    address, _, length = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address), int(length)


def network_of(address: str) -> str:
    """Return the network of an address, both written with their prefix length."""
    return str(ip_network(address, strict=False))


def read(interfaces: Collection[str]) -> View:
    """Return what the kernel has on these interfaces, and all routing rules.

    Raises:
        OSError: The kernel refused to say.
    """
    view = View()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.bind((0, 0))
        # The kernel then filters by interface (Linux 4.20). Without that, we do.
        with suppress(OSError):
            asking.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        for name in interfaces:
            _read_link(asking, name, view)
        indices = {link.index for link in view.links.values()}
        for index in indices:
            _read_addresses(asking, index, view)
        for index in indices:
            _read_routes(asking, index, indices, view)
        _read_rules(asking, view)
    return view


def _read_link(asking: socket.socket, name: str, view: View) -> None:
    request = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    try:
        messages = list(_ask(asking, _RTM_GETLINK, request, dump=False))
    except OSError:
        return  # there is none
    for message in messages:
        _, _, index, flags, _ = _LINK.unpack_from(message)
        mtu = next((value for kind, value in attributes(message, _LINK.size) if kind == _IFLA_MTU), bytes(4))
        view.links[name] = Link(index, bool(flags & _IFF_UP), _number(mtu))


def _read_addresses(asking: socket.socket, index: int, view: View) -> None:
    found = view.addresses.setdefault(index, set())
    for message in _ask(asking, _RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, index), dump=True):
        _, length, _, _, of = _ADDRESS.unpack_from(message)
        values = dict(attributes(message, _ADDRESS.size))
        address = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS))
        if of == index and address is not None:
            found.add((address, length))


def _read_routes(asking: socket.socket, index: int, ours: Collection[int], view: View) -> None:
    for family in _FAMILIES:
        request = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_OIF, struct.pack("I", index))
        for message in _ask(asking, _RTM_GETROUTE, request, dump=True):
            _, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message)
            if kind != _RTN_UNICAST:
                continue
            values = dict(attributes(message, _ROUTE.size))
            over = _interfaces(values)
            if over.isdisjoint(ours):
                continue
            number = _number(values[_RTA_TABLE]) if _RTA_TABLE in values else table
            prefix = values.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16)), length
            known = view.routes.setdefault((number, prefix), [])
            if over not in known:
                known.append(over)


def _interfaces(values: dict[int, bytes]) -> frozenset[int]:
    found = set()
    if _RTA_OIF in values:
        found.add(_number(values[_RTA_OIF]))
    hops, at = values.get(_RTA_MULTIPATH, b""), 0
    while at + _NEXTHOP.size <= len(hops):
        size, _, _, index = _NEXTHOP.unpack_from(hops, at)
        found.add(index)
        at += max(_NEXTHOP.size, _aligned(size))
    return frozenset(found)


def _read_rules(asking: socket.socket, view: View) -> None:
    for family in _FAMILIES:
        for message in _ask(asking, _RTM_GETRULE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), dump=True):
            table = _ROUTE.unpack_from(message)[4]
            values = {kind: _number(value) for kind, value in attributes(message, _ROUTE.size) if len(value) == 4}
            rule = RuleSeen(
                4 if family == socket.AF_INET else 6,
                values.get(_FRA_PRIORITY, 0),
                values.get(_FRA_TABLE, table),
                values.get(_FRA_FWMARK, 0),
                values.get(_FRA_SUPPRESS_PREFIXLEN, _NO_SUPPRESSION) != _NO_SUPPRESSION,
            )
            view.rules.add(rule)


# -- netlink ------------------------------------------------------------------------------------------------


def _ask(asking: socket.socket, kind: int, body: bytes, *, dump: bool) -> Iterator[bytes]:
    """Send one request, and yield the bodies of the answers."""
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
    try:
        asking.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
    except OSError as error:
        # qemu, as it emulates another processor, refuses here what it can't translate.
        if dump and error.errno in _UNSUPPORTED:
            return
        raise
    while True:
        for of, _, message in messages(asking.recv(1 << 18)):
            if of == _NLMSG_DONE:
                return
            if of == _NLMSG_ERROR:
                code = -struct.unpack_from("i", message)[0]
                if dump and code in _UNSUPPORTED:
                    return
                raise OSError(code, os.strerror(code))
            yield message
            if not dump:
                return


def messages(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the messages in what a netlink socket received: the kind, the port of who caused it, and the body."""
    at = 0
    while at + _HEADER.size <= len(received):
        size, kind, _, _, port = _HEADER.unpack_from(received, at)
        if size < _HEADER.size:
            return
        yield kind, port, received[at + _HEADER.size : at + size]
        at += _aligned(size)


def attributes(message: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes of a netlink message, which begin at an offset."""
    while at + 4 <= len(message):
        size, kind = struct.unpack_from("HH", message, at)
        if size < 4:
            return
        # The two highest bits are flags.
        yield kind & 0x3FFF, message[at + 4 : at + size]
        at += _aligned(size)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _aligned(size: int) -> int:
    return size + 3 & ~3


def _number(value: bytes) -> int:
    return int.from_bytes(value[:4], "little" if struct.pack("=H", 1) == b"\1\0" else "big")
