"""A memif's client that lays out its memory as VPP does: rings in one region, buffers in another, in no order."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ACK, _HELLO, _INIT, _ADD_REGION, _ADD_RING, _CONNECT, _CONNECTED = range(1, 8)
_SIZE, _VERSION, _IP = 128, 0x0200, 1
_COOKIE = 0x03E31F20
# Where a ring has its head, its tail and its first descriptor.
_HEAD, _TAIL, _FIRST, _DESCRIPTOR = 6, 64, 128, 16
_NEXT = 1
_RINGS, _BUFFERS = 0, 1
PATIENCE = 10.0


@dataclass
class _Ring:
    """One ring.

    Attributes:
        start: Where it begins in the region of the rings.
        buffers: Where the buffer of each slot begins in the region of the buffers.
        bell: Rung for the other side, or by it.
        head: What we have moved the head to.
        seen: Up to where we have looked, if we receive.
        longest: The slots of the longest packet so far.
        total: The slots of all packets so far.
    """

    start: int
    buffers: Sequence[int] | dict[int, int]
    bell: int
    head: int = 0
    seen: int = 0
    longest: int = 0
    total: int = 0


class MemifClient:
    """A client in mode ip with one ring per direction, connected.

    Args:
        path: The server's socket.
        number: The memif's id.
        secret: The secret.
        log2: The exponent of 2 of the rings' size.
        buffer: Bytes of each buffer.
        holes: Bytes behind the buffers, which nobody has written.
    """

    def __init__(
        self, path: Path, number: int, secret: bytes, *, log2: int = 5, buffer: int = 256, holes: int = 0
    ) -> None:
        self._slots, self._log2, self._buffer = 1 << log2, log2, buffer
        room = _FIRST + (_DESCRIPTOR << log2)
        (self._rings, rings), (self._data, data) = _region(2 * room), _region(2 * self._slots * buffer + holes)
        # By this they are written at once. `struct` writes zeros first, which the server would see.
        self._indices = memoryview(self._rings).cast("H")
        places = [each * buffer for each in range(2 * self._slots)]
        random.Random(1).shuffle(places)
        bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self._c2s = _Ring(0, places[: self._slots], bells[0])
        self._s2c = _Ring(room, places[self._slots :], bells[1])
        for each in (self._c2s, self._s2c):
            struct.pack_into("=I", self._rings, each.start, _COOKIE)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        assert self._heard() == _HELLO
        self._say(struct.pack("=HHIB24s32s", _INIT, _VERSION, number, _IP, secret, b"VPP, played"))
        self._say(struct.pack("=HHQ", _ADD_REGION, _RINGS, len(self._rings)), rings)
        self._say(struct.pack("=HHQ", _ADD_REGION, _BUFFERS, len(self._data)), data)
        for c2s, ring in ((1, self._c2s), (0, self._s2c)):
            self._say(struct.pack("=HHHHIBH", _ADD_RING, c2s, 0, _RINGS, ring.start, log2, 0), ring.bell)
        self._say(struct.pack("=H32s", _CONNECT, b"memif3/3"), answer=_CONNECTED)
        os.close(rings)
        os.close(data)
        # Only now, as VPP does.
        self._offer(self._slots)

    def send(self, packet: bytes) -> None:
        """Send a packet in as many buffers as it needs, once there is room."""
        ring, parts = self._c2s, [packet[at : at + self._buffer] for at in range(0, len(packet), self._buffer)]
        self._wait_for_room(len(parts))
        for number, part in enumerate(parts, ring.head):
            place = ring.buffers[number % self._slots]
            self._data[place : place + len(part)] = part
            self._put(ring, number, _NEXT if number < ring.head + len(parts) - 1 else 0, len(part))
        ring.longest, ring.total = max(ring.longest, len(parts)), ring.total + len(parts)
        self._move_head(ring, len(parts))
        os.eventfd_write(ring.bell, 1)

    def send_holes(self) -> None:
        """Send the beginning of each page that nobody has written."""
        ring, first = self._c2s, 2 * self._slots * self._buffer
        for place in range(-(-first // mmap.PAGESIZE) * mmap.PAGESIZE, len(self._data), mmap.PAGESIZE):
            self._wait_for_room(1)
            ring.buffers = dict.fromkeys(range(self._slots), place)
            self._put(ring, ring.head, 0, self._buffer)
            self._move_head(ring, 1)
            os.eventfd_write(ring.bell, 1)
        self._wait_for_room(self._slots)

    def receive(self) -> list[bytes]:
        """Return the packets that are there, and offer their buffers again."""
        ring, packets, parts = self._s2c, [], list[bytes]()
        first, tail = ring.seen, self._index(ring, _TAIL)
        while ring.seen != tail:
            slot = ring.seen % self._slots
            at = ring.start + _FIRST + slot * _DESCRIPTOR
            flags, region, length, offset = struct.unpack_from("=HHII", self._rings, at)
            assert (region, offset) == (_BUFFERS, ring.buffers[slot])
            parts.append(bytes(self._data[offset : offset + length]))
            ring.seen = (ring.seen + 1) % 65536
            if not flags & _NEXT:
                ring.longest, ring.total = max(ring.longest, len(parts)), ring.total + len(parts)
                packets.append(b"".join(parts))
                parts = []
        assert not parts, "a packet is published whole"
        self._offer((ring.seen - first) % 65536)
        return packets

    @property
    def slots(self) -> tuple[int, int]:
        """The slots that were filled so far, and those that came."""
        return self._c2s.total, self._s2c.total

    @property
    def longest(self) -> tuple[int, int]:
        """The slots of the longest packet that was sent, and of the longest that was received."""
        return self._c2s.longest, self._s2c.longest

    def close(self) -> None:
        """Leave."""
        self._socket.close()
        for each in (self._c2s, self._s2c):
            os.close(each.bell)
        self._indices.release()
        self._rings.close()
        self._data.close()

    def _wait_for_room(self, slots: int) -> None:
        until = time.monotonic() + PATIENCE
        while (self._c2s.head - self._index(self._c2s, _TAIL)) % 65536 + slots > self._slots:
            assert time.monotonic() < until, "the ring stays full"
            time.sleep(0.0002)

    def _offer(self, count: int) -> None:
        for number in range(self._s2c.head, self._s2c.head + count):
            self._put(self._s2c, number, 0, self._buffer)
        self._move_head(self._s2c, count)

    def _put(self, ring: _Ring, number: int, flags: int, length: int) -> None:
        slot = number % self._slots
        at = ring.start + _FIRST + slot * _DESCRIPTOR
        struct.pack_into("=HHII", self._rings, at, flags, _BUFFERS, length, ring.buffers[slot])

    def _move_head(self, ring: _Ring, count: int) -> None:
        ring.head = (ring.head + count) % 65536
        self._indices[(ring.start + _HEAD) // 2] = ring.head

    def _index(self, ring: _Ring, at: int) -> int:
        return self._indices[(ring.start + at) // 2]

    def _say(self, message: bytes, descriptor: int | None = None, answer: int = _ACK) -> None:
        """Send a message, and check that the answer is of the type that has to come."""
        socket.send_fds(self._socket, [message.ljust(_SIZE, b"\0")], [] if descriptor is None else [descriptor])
        assert self._heard() == answer

    def _heard(self) -> int:
        return int(struct.unpack_from("=H", self._socket.recv(_SIZE))[0])


def _region(size: int) -> tuple[mmap.mmap, int]:
    """Make a region. Return it with its descriptor."""
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    made = os.memfd_create("memif", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(made, size)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return mmap.mmap(made, size), made
