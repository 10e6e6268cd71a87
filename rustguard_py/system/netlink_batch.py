"""Addresses and routes of an interface, changed many at a time (rtnetlink(7)).

A call of pyroute2 for each route takes about a millisecond, which is half a minute for the files that have ten
thousand. Here many requests go to the kernel in one message. It handles them in order, answers those that it refuses,
and acknowledges the last one, so an answer to that means that all are done.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from rustguard_py.system.interface import IFA_F_NODAD, RT_TABLE_MAIN, RTN_UNICAST

# Requests in one message. If all of them are refused, the answers must fit into the socket's receive buffer.
REQUESTS = 128

# linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_HEADER = struct.Struct("=IHHII")
# linux/rtnetlink.h, linux/if_addr.h
_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 21, 24, 25
_RTMSG, _IFADDRMSG = struct.Struct("=8BI"), struct.Struct("=4BI")
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTPROT_STATIC = 4
_RT_SCOPE_UNIVERSE, _RT_SCOPE_NOWHERE = 0, 255
_RT_TABLE_COMPAT = 252
_ANSWER_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the kernel.

    Attributes:
        kind: Its type, RTM_….
        flags: NLM_F_….
        body: What follows the header.
    """

    kind: int
    flags: int
    body: bytes


def route(network: str, index: int, table: int = RT_TABLE_MAIN, *, add: bool) -> Request:
    """Return the request that adds or deletes the route to a network by an interface.

    Args:
        network: With its prefix length.
        index: The interface's number.
        table: The routing table.
        add: False deletes it.
    """
    address, _, length = network.partition("/")
    family, packed = _packed(address)
    scope = _RT_SCOPE_UNIVERSE if add else _RT_SCOPE_NOWHERE
    short = table if table < _RT_TABLE_COMPAT or table in (253, RT_TABLE_MAIN, 255) else _RT_TABLE_COMPAT
    head = _RTMSG.pack(family, int(length), 0, 0, short, _RTPROT_STATIC, scope, RTN_UNICAST, 0)
    attributes = _attribute(_RTA_TABLE, struct.pack("=I", table)) + _attribute(_RTA_OIF, struct.pack("=I", index))
    if int(length):
        attributes += _attribute(_RTA_DST, packed)
    return _request(_RTM_NEWROUTE if add else _RTM_DELROUTE, head + attributes, add=add)


def address(interface_address: str, index: int, *, add: bool) -> Request:
    """Return the request that adds an address to an interface, or deletes it.

    Args:
        interface_address: With its prefix length.
        index: The interface's number.
        add: False deletes it.
    """
    bare, _, length = interface_address.partition("/")
    family, packed = _packed(bare)
    # Without this, nothing could bind to it until duplicate address detection ends. Nobody else can have it here.
    flags = IFA_F_NODAD if add and family == socket.AF_INET6 else 0
    head = _IFADDRMSG.pack(family, int(length), flags, _RT_SCOPE_UNIVERSE, index)
    attributes = _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    return _request(_RTM_NEWADDR if add else _RTM_DELADDR, head + attributes, add=add)


def send(requests: Sequence[Request], *, stop: bool) -> list[int]:
    """Have the kernel do these requests, in order.

    It blocks for as long as the kernel takes, about 10 ms for a thousand.

    Args:
        requests: What to do.
        stop: Whether to send no further message once a request was refused. The kernel does the rest of that message.

    Returns:
        The errno of each request that was sent, 0 for success.

    Raises:
        OSError: The kernel can't be asked.
    """
    codes: list[int] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as channel:
        channel.bind((0, 0))
        channel.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sequences = count(1)
        for start in range(0, len(requests), REQUESTS):
            codes += _exchange(channel, requests[start : start + REQUESTS], next(sequences) * REQUESTS)
            if stop and any(codes):
                break
    return codes


def _exchange(channel: socket.socket, requests: Sequence[Request], first: int) -> list[int]:
    """Send one message of requests, numbered from `first`, and return their errnos."""
    last = len(requests) - 1
    message = bytearray()
    for place, each in enumerate(requests):
        flags = _NLM_F_REQUEST | each.flags | (_NLM_F_ACK if place == last else 0)
        message += _HEADER.pack(_HEADER.size + len(each.body), each.kind, flags, first + place, 0) + each.body
    channel.sendto(message, (0, 0))
    codes = [0] * len(requests)
    while True:
        received = memoryview(channel.recv(_ANSWER_SIZE))
        while received:
            length, kind, _, sequence, _ = _HEADER.unpack_from(received)
            place = sequence - first
            if kind == _NLMSG_ERROR and 0 <= place <= last:
                codes[place] = -struct.unpack_from("=i", received, _HEADER.size)[0]
                if place == last:
                    return codes
            received = received[(length + 3) & ~3 :]


def _request(kind: int, body: bytes, *, add: bool) -> Request:
    return Request(kind, _NLM_F_CREATE | _NLM_F_EXCL if add else 0, body)


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _attribute(kind: int, value: bytes) -> bytes:
    # All values here have whole words, so there is no padding.
    return struct.pack("=HH", 4 + len(value), kind) + value
