"""The packets that are generated: IPv4 and UDP, with a record that says what was sent and when.

The record begins the UDP payload, little endian; zeros fill the rest:

    0   magic       4 bytes, "RGEN"
    4   trial       so that what is late from one trial isn't counted in the next
    8   flow        from 0
    12  size        of the whole IP packet, bytes
    16  sequence    8 bytes, of the flow, from 0
    24  due         8 bytes, nanoseconds of CLOCK_MONOTONIC: when the packet was to be sent

`native/generator/src/layout.rs` and `bench/wireguard-go/traffic.go` have the same layout.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

HEADERS = 28
RECORD = struct.Struct("<4sIIIQQ")
MAGIC = b"RGEN"
# A flow has a source port of its own.
FIRST_PORT = 10_000
TARGET_PORT = 7007
LEAST_SIZE, MOST_SIZE = 64, 1420
MOST_FLOWS = 10_000
# The simple IMIX, 7:4:1, in an order that mixes the sizes; the largest is what fits into the tunnel.
IMIX = (64, 594, 64, 64, 594, 1420, 64, 594, 64, 64, 594, 64)

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_UDP = struct.Struct(">HHHH")


@dataclass(frozen=True, slots=True)
class Record:
    """What a packet says of itself; see the module."""

    trial: int
    flow: int
    sequence: int
    due: int


def build(record: Record, size: int, source: str, target: str) -> bytes:
    """Return an IPv4 packet of `size` bytes with both checksums."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    fixed = _IPV4.pack(0x45, 0, size, 0, 0x4000, 64, socket.IPPROTO_UDP, 0, ends[:4], ends[4:])
    header = fixed[:10] + struct.pack(">H", _checksum(fixed)) + fixed[12:]
    body = RECORD.pack(MAGIC, record.trial, record.flow, size, record.sequence, record.due)
    length = size - 20
    ports = FIRST_PORT + record.flow, TARGET_PORT
    # The rest is zeros, which change no sum.
    pseudo = ends + struct.pack(">HH", socket.IPPROTO_UDP, length)
    checksum = _checksum(pseudo + _UDP.pack(*ports, length, 0) + body) or 0xFFFF
    return header + _UDP.pack(*ports, length, checksum) + body + bytes(size - HEADERS - RECORD.size)


def parse(packet: bytes | memoryview) -> Record | None:
    """Return the record of an IPv4 packet, or None if it isn't one of ours, whole."""
    if len(packet) < HEADERS + RECORD.size:
        return None
    magic, trial, flow, size, sequence, due = RECORD.unpack_from(packet, HEADERS)
    return Record(trial, flow, sequence, due) if magic == MAGIC and size == len(packet) else None


def sizes(text: str) -> tuple[int, ...]:
    """Return the sizes that follow each other: those of the mix for `imix`, else the one number."""
    return IMIX if text == "imix" else (int(text),)


def size_at(number: int, flows: int, pattern: tuple[int, ...]) -> int:
    """Return the size of packet `number`. Each flow gets every size."""
    return pattern[(number // flows + number % flows) % len(pattern)]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
