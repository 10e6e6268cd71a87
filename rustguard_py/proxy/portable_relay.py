"""The portable relay: bytes move in the event loop, where the extension isn't built."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import struct
from typing import Final

from rustguard_py.proxy.relay import Ended, RelayStatistics

# Bytes read at once, and so the most that a direction keeps.
_AT_ONCE: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)


class _Direction:
    """One direction: reads of one socket while nothing is held, and writes to the other while something is."""

    def __init__(self, connection: _Connection, source: socket.socket, sink: socket.socket, early: bytes) -> None:
        self._connection, self._source, self._sink = connection, source, sink
        self._held = memoryview(early)
        self._writing = False
        self.done = False
        self.moved = 0

    def holds(self) -> bool:
        return len(self._held) > 0

    def start(self) -> None:
        loop = self._connection.loop
        if self.holds():
            self._writing = True
            loop.add_writer(self._sink, self._write)
        else:
            loop.add_reader(self._source, self._read)

    def _read(self) -> None:
        try:
            received = self._source.recv(_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._connection.end("reset")
            return
        if received:
            self._held = memoryview(received)
            self._write()
            return
        self._connection.loop.remove_reader(self._source)
        self._finish()

    def _write(self) -> None:
        loop = self._connection.loop
        try:
            count = self._sink.send(self._held)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._connection.end("reset")
            return
        self._held = self._held[count:]
        self.moved += count
        self._connection.moved(count)
        if self.holds() != self._writing:
            self._writing = not self._writing
            if self._writing:
                loop.remove_reader(self._source)
                loop.add_writer(self._sink, self._write)
            else:
                loop.remove_writer(self._sink)
                loop.add_reader(self._source, self._read)

    def _finish(self) -> None:
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._connection.end("reset")
            return
        self.done = True
        self._connection.finish()


class _Connection:
    def __init__(self, relay: PortableRelay, number: int, sockets: tuple[socket.socket, socket.socket], early: bytes):
        self.loop = relay.loop
        self.number = number
        self._relay = relay
        self._sockets = sockets
        outside, inside = sockets
        self.ways = (_Direction(self, outside, inside, early), _Direction(self, inside, outside, b""))
        self.active_at = self.loop.time()
        for way in self.ways:
            way.start()

    def moved(self, count: int) -> None:
        if count:
            self.active_at = self.loop.time()

    def finish(self) -> None:
        if all(way.done for way in self.ways):
            self.end("finished")

    def end(self, how: str) -> None:
        """Close both sockets, with a reset where something would be lost."""
        for each in self._sockets:
            self.loop.remove_reader(each)
            self.loop.remove_writer(each)
            if how == "reset" or any(way.holds() for way in self.ways):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            each.close()
        self._relay.gone(self, how)


class PortableRelay:
    """`Relay` in Python. All its calls are made in the thread of the running loop.

    A reset of a side that has ended its own stream is noticed only when the next byte is written to it. What a side
    sent just before it was lost may be lost too.

    Args:
        connections: The most connections at once.
        idle: Seconds without a byte after which a connection ends. None: never.

    Attributes:
        loop: The loop that moves the bytes.
    """

    def __init__(self, *, connections: int, idle: float | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self._most = connections
        self._numbers = itertools.count()
        self._active: dict[int, _Connection] = {}
        self._waiting: list[Ended] = []
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._counts = {"added": 0, "refused": 0, "resets": 0, "idle": 0, "bytes_in": 0, "bytes_out": 0}
        self._closed = False
        self._timer = None if idle is None else self.loop.call_later(idle / 4, self._end_idle, idle)

    def add(self, outside: int, inside: int, early: bytes) -> int:
        """See `Relay.add`."""
        sockets = socket.socket(fileno=outside), socket.socket(fileno=inside)
        full = len(self._active) + len(self._waiting) >= self._most
        if full or self._closed:
            for each in sockets:
                each.close()
            self._counts["refused"] += full
            number = errno.EMFILE if full else errno.ESHUTDOWN
            raise OSError(number, os.strerror(number))
        for each in sockets:
            each.setblocking(False)
        connection = _Connection(self, next(self._numbers), sockets, early)
        self._active[connection.number] = connection
        self._counts["added"] += 1
        return connection.number

    def statistics(self) -> RelayStatistics:
        """See `Relay.statistics`."""
        counts = dict(self._counts)
        for each in self._active.values():
            counts["bytes_in"] += each.ways[0].moved
            counts["bytes_out"] += each.ways[1].moved
        return RelayStatistics(
            active=len(self._active), bytes_copied=counts["bytes_in"] + counts["bytes_out"], **counts
        )

    def fileno(self) -> int:
        """See `Relay.fileno`."""
        return self._wake

    def ended(self) -> list[Ended]:
        """See `Relay.ended`."""
        if self._waiting:
            os.eventfd_read(self._wake)
        taken, self._waiting = self._waiting, []
        return taken

    def close(self) -> None:
        """See `Relay.close`."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for each in list(self._active.values()):
            each.end("closed")
        os.close(self._wake)
        self._wake = -1

    def gone(self, connection: _Connection, how: str) -> None:
        """Take note of a connection that ended."""
        del self._active[connection.number]
        bytes_in, bytes_out = (way.moved for way in connection.ways)
        self._counts["bytes_in"] += bytes_in
        self._counts["bytes_out"] += bytes_out
        self._counts["resets"] += how == "reset"
        self._counts["idle"] += how == "idle"
        if not self._closed:
            self._waiting.append(Ended(connection.number, how, bytes_in, bytes_out))
            os.eventfd_write(self._wake, 1)

    def _end_idle(self, idle: float) -> None:
        now = self.loop.time()
        for each in list(self._active.values()):
            if now - each.active_at >= idle:
                each.end("idle")
        self._timer = self.loop.call_later(idle / 4, self._end_idle, idle)
