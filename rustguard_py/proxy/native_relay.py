"""The native relay: bytes move in Rust, by splice(2), in threads that never take the interpreter's lock."""

from __future__ import annotations

import errno
import os

from rustguard_py import _native
from rustguard_py.proxy.relay import Ended, RelayStatistics


class NativeRelay:
    """`Relay` in Rust (`native/relay`).

    Args:
        threads: Threads for all connections.
        connections: The most connections at once.
        pipes: The most pipes at once, of two descriptors each. Without one, bytes go through a buffer.
        idle: Seconds without a byte after which a connection ends. None: never.

    Raises:
        OSError: The kernel refuses a descriptor or a thread.
    """

    def __init__(self, *, threads: int, connections: int, pipes: int, idle: float | None) -> None:
        self._relay: _native.Relay | None = _native.Relay(
            threads=threads, connections=connections, pipes=pipes, idle=idle
        )
        self._last = RelayStatistics()

    def add(self, outside: int, inside: int, early: bytes) -> int:
        """See `Relay.add`."""
        if self._relay is None:
            os.close(outside)
            os.close(inside)
            raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        return self._relay.add(outside, inside, early)

    def statistics(self) -> RelayStatistics:
        """See `Relay.statistics`."""
        if self._relay is None:
            return self._last
        return RelayStatistics(**dict(self._relay.statistics()))

    def fileno(self) -> int:
        """See `Relay.fileno`."""
        return -1 if self._relay is None else self._relay.fileno()

    def ended(self) -> list[Ended]:
        """See `Relay.ended`."""
        return [] if self._relay is None else [Ended(*one) for one in self._relay.ended()]

    def close(self) -> None:
        """See `Relay.close`."""
        if self._relay is not None:
            self._relay.close()
            self._last = self.statistics()
            # With it go its own descriptors.
            self._relay = None
