"""Which routes the kernel deletes on a host, none of them missed.

`ip monitor` has room for 416 KiB (`net.core.rmem_max`) and goes on after it lost events, which happens when it
doesn't get a processor while thousands of routes change. Here is room for all of them, and the kernel says ENOBUFS
if there wasn't.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from rustguard_py.lab.hosts import Host
from support.ecn_probe import socket_in

# A quarter of a million messages: the kernel counts about 1 KiB for each.
_ROOM = 1 << 28
# rtnetlink(7): the groups RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE, and what is read of a message.
_GROUPS = 1 << 6 | 1 << 10
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")
_ATTRIBUTE = struct.Struct("=HH")
_RTM_DELROUTE, _RTN_UNICAST, _RTA_DST = 25, 1, 1
_SO_RCVBUFFORCE = 33


@contextmanager
def deleted_routes(host: Host) -> Iterator[list[str]]:
    """Follow the unicast routes that the kernel deletes; the list is filled at the end.

    The kernel queues an event before the command that caused it ends.

    Raises:
        OSError: Events were lost (ENOBUFS).
    """
    gone: list[str] = []
    with socket_in(host, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
        events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        events.bind((0, _GROUPS))
        yield gone
        events.setblocking(False)
        while True:
            try:
                gone += _deleted(events.recv(1 << 16))
            except BlockingIOError:
                return


def _deleted(messages: bytes) -> Iterator[str]:
    while messages:
        length, kind, *_ = _HEADER.unpack_from(messages)
        if kind == _RTM_DELROUTE:
            family, bits, *_, route_type, _flags = _ROUTE.unpack_from(messages, _HEADER.size)
            if route_type == _RTN_UNICAST:
                yield f"{_destination(messages[_HEADER.size + _ROUTE.size : length], family)}/{bits}"
        messages = messages[(length + 3) & ~3 :]


def _destination(attributes: bytes, family: int) -> str:
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _RTA_DST:
            return socket.inet_ntop(family, attributes[_ATTRIBUTE.size : length])
        attributes = attributes[(length + 3) & ~3 :]
    return "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 - a default route has no destination
