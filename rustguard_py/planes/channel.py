"""A channel in place of an interface, for the portable plane. It is the readable twin of `_native.Channel`."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from collections.abc import Iterable

from rustguard_py.planes.contract import CHANNEL_BYTES, CHANNEL_PACKETS, Packet
from rustguard_py.planes.device import FullError

_MAX_PACKET = 65535


class _Signal:
    """A descriptor that is readable while it is set. It is closed with its last user."""

    __slots__ = ("_on", "fd")

    def __init__(self) -> None:
        self._on = False
        self.fd = -1
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self, on: bool) -> None:
        if on and not self._on:
            os.eventfd_write(self.fd, 1)
        elif self._on and not on:
            os.eventfd_read(self.fd)
        self._on = on

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class _Lane:
    """A bounded queue of packets between two threads.

    Attributes:
        ready: Readable while packets wait, and once it is closed.
        room: Readable when there is room again after `put` found none, and once it is closed.
        closed: Whether it is closed.
    """

    def __init__(self, packets: int, size: int) -> None:
        self.ready, self.room = _Signal(), _Signal()
        self.closed = False
        self._limits = packets, size
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, packets: Iterable[bytes]) -> int:
        """Put packets in, and return how many there was room for. One packet always has room."""
        with self._lock:
            if self.closed:
                raise _broken()
            taken = 0
            for packet in packets:
                if self._waiting and not self._has_room(packet):
                    self.room.set(False)
                    break
                self._waiting.append(packet)
                self._bytes += len(packet)
                taken += 1
            self.ready.set(bool(self._waiting))
            return taken

    def take(self, most: int) -> list[bytes]:
        """Take at most `most` packets out. A closed lane still hands out what it has, and then raises."""
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            if self.closed and not taken:
                raise _broken()
            self._bytes -= sum(map(len, taken))
            packets, size = self._limits
            if len(self._waiting) <= packets // 2 and self._bytes <= size // 2:
                self.room.set(True)
            self.ready.set(bool(self._waiting) or self.closed)
            return taken

    def close(self) -> None:
        """Let nothing more be put in, and wake both sides."""
        with self._lock:
            self.closed = True
            self.ready.set(True)
            self.room.set(True)

    def _has_room(self, packet: bytes) -> bool:
        packets, size = self._limits
        return len(self._waiting) < packets and self._bytes + len(packet) <= size


class Channel:
    """`PacketChannel` in Python. Each packet is copied once when it is written, and not again.

    Args:
        capacity: Packets that may wait in each direction.
        memory: Their bytes together.
    """

    def __init__(self, *, capacity: int = CHANNEL_PACKETS, memory: int = CHANNEL_BYTES) -> None:
        self._to_user, self._to_plane = _Lane(capacity, memory), _Lane(capacity, memory)
        self._used = False

    @property
    def closed(self) -> bool:
        """See `PacketChannel.closed`."""
        return self._to_user.closed

    def read_batch(self, most: int = 64) -> list[memoryview]:
        """See `PacketChannel.read_batch`."""
        return [memoryview(packet) for packet in self._to_user.take(max(1, most))]

    def write_batch(self, packets: Iterable[Packet]) -> int:
        """See `PacketChannel.write_batch`."""
        copies = [bytes(packet) for packet in packets]
        if any(len(packet) > _MAX_PACKET for packet in copies):
            raise ValueError("A packet has at most 65535 bytes.")
        return self._to_plane.put(copies)

    def wait(self, seconds: float) -> bool:
        """See `PacketChannel.wait`."""
        look = select.poll()
        look.register(self, select.POLLIN)
        return bool(look.poll(max(0.0, seconds) * 1000))

    def fileno(self) -> int:
        """See `PacketChannel.fileno`."""
        return self._to_user.ready.fd

    def writable_fileno(self) -> int:
        """See `PacketChannel.writable_fileno`."""
        return self._to_plane.room.fd

    def close(self) -> None:
        """See `PacketChannel.close`."""
        self._to_plane.close()
        self._to_user.close()

    def device(self, name: str) -> ChannelDevice:
        """Return the plane's end, which messages call `name`.

        Raises:
            ValueError: A plane has it already.
        """
        if self._used:
            raise ValueError("The channel has a plane already.")
        self._used = True
        return ChannelDevice(name, self, self._to_user, self._to_plane)


class ChannelDevice:
    """`Device`: the plane's end of a channel. It has no superpackets, and is always up."""

    kind = "channel"
    vnet = False

    def __init__(self, name: str, channel: Channel, to_user: _Lane, to_plane: _Lane) -> None:
        self.name = name
        self.fd = to_plane.ready.fd
        self._channel = channel
        self._to_user, self._to_plane = to_user, to_plane

    def read(self, into: list[memoryview]) -> int:
        """See `Device.read`."""
        try:
            taken = self._to_plane.take(1)
        except BrokenPipeError:
            raise EOFError from None
        if not taken:
            raise BlockingIOError
        size = len(taken[0])
        into[0][:size] = taken[0]
        return size

    def write(self, packet: bytes | memoryview) -> None:
        """See `Device.write`."""
        if not self._to_user.put([bytes(packet)]):
            raise FullError

    def write_merged(self, _parts: list[bytes | memoryview], /) -> None:
        """See `Device.write_merged`."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def is_up(self) -> bool:
        """See `Device.is_up`."""
        return True

    def end_offloads(self) -> bool:
        """See `Device.end_offloads`."""
        return False

    def close(self) -> None:
        """See `Device.close`. Closes the whole channel."""
        self._channel.close()
        # The plane may live until the next garbage collection, and the lanes' descriptors live as long as they do.
        del self._channel, self._to_user, self._to_plane


def _broken() -> BrokenPipeError:
    return BrokenPipeError(errno.EPIPE, "The channel is closed")
