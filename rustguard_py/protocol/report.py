"""The reports that two of ours send each other inside the tunnel (docs/internals/reports.md).

A datagram is `RGR`, a version, and items. An item is its kind (1 byte), the length of its body (2 bytes) and the
body. Numbers are big-endian. Items of unknown kinds, and what a newer version adds to the end of a body, are ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

# UDP port, on the tunnel's addresses.
REPORT_PORT = 51871
# Bytes. It fits into every tunnel.
REPORT_LIMIT = 1200

_MAGIC = b"RGR\x01"
_ITEM = struct.Struct(">BH")
_HELLO, _ARRIVED, _LEAVE, _LEFT = 1, 2, 3, 4
_HELLO_BODY = struct.Struct(">B")
_ARRIVED_BODY = struct.Struct(">BIQQQ")
# Bytes of what proves who leaves, and who answers.
PROOF = 32
_ASKS = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The sender understands reports.

    Attributes:
        asks: Whether it wants a Hello as an answer.
    """

    asks: bool


@dataclass(frozen=True, slots=True)
class Arrived:
    """What has arrived in a session.

    Attributes:
        tunnel: The tunnel's place, 0 for the first.
        index: The receiver index of the session's datagrams.
        first: A counter.
        stop: The counter after the last one that is reported.
        received: How many authentic datagrams with those counters arrived.
    """

    tunnel: int
    index: int
    first: int
    stop: int
    received: int


@dataclass(frozen=True, slots=True)
class Leave:
    """The sender, a client, leaves the network.

    Attributes:
        proof: 32 bytes, which only it and its server can make.
    """

    proof: bytes


@dataclass(frozen=True, slots=True)
class Left:
    """The server has removed the peer that left, durably.

    Attributes:
        proof: 32 bytes, which only it and its server can make.
    """

    proof: bytes


Item = Hello | Arrived | Leave | Left


def encode(items: Iterable[Item]) -> bytes:
    """Return a datagram with these items."""
    datagram = _MAGIC
    for item in items:
        match item:
            case Hello(asks):
                kind, body = _HELLO, _HELLO_BODY.pack(_ASKS if asks else 0)
            case Arrived(tunnel, index, first, stop, received):
                kind, body = _ARRIVED, _ARRIVED_BODY.pack(tunnel, index, first, stop, received)
            case Leave(proof):
                kind, body = _LEAVE, proof
            case Left(proof):
                kind, body = _LEFT, proof
        datagram += _ITEM.pack(kind, len(body)) + body
    return datagram


def decode(datagram: bytes) -> list[Item]:
    """Return the items of a datagram that this version knows.

    Raises:
        ValueError: It is no report of a version that we know, or it is cut off.
    """
    if not datagram.startswith(_MAGIC) or len(datagram) > REPORT_LIMIT:
        raise ValueError("not a report of version 1")
    items: list[Item] = []
    at = len(_MAGIC)
    while at < len(datagram):
        if at + _ITEM.size > len(datagram):
            raise ValueError("an item is cut off")
        kind, size = _ITEM.unpack_from(datagram, at)
        at += _ITEM.size
        body = datagram[at : at + size]
        at += size
        if len(body) != size:
            raise ValueError("an item is cut off")
        if kind == _HELLO:
            (flags,) = _take(_HELLO_BODY, body)
            items.append(Hello(bool(flags & _ASKS)))
        elif kind == _ARRIVED:
            items.append(Arrived(*_take(_ARRIVED_BODY, body)))
        elif kind in (_LEAVE, _LEFT):
            if len(body) < PROOF:
                raise ValueError("a body is too short")
            items.append((Leave if kind == _LEAVE else Left)(body[:PROOF]))
    return items


def _take(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise ValueError("a body is too short")
    return layout.unpack_from(body)
