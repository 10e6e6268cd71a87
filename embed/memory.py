"""What a tunnel without a state directory keeps in memory: a client's state, and the timestamps of handshakes."""

from __future__ import annotations

from collections.abc import Mapping


class MemoryState:
    """A client's state that ends with the program: `enroll.client.obtain.Keeps`."""

    def load(self) -> dict[str, object] | None:
        """Return None: nothing was ever saved."""
        return None

    def save(self, data: Mapping[str, object], /) -> None:
        """Save nothing."""


class MemoryTimestamps:
    """`node.Timestamps` that end with the program.

    An initiation that somebody recorded during an earlier run may be answered once more. No session comes of it,
    because whoever replays it doesn't have the keys.
    """

    def __init__(self) -> None:
        self._greatest: dict[bytes, bytes] = {}

    def greatest(self, key: bytes, /) -> bytes | None:
        """Return the greatest timestamp (12 bytes) recorded for a key (32 bytes), or None."""
        return self._greatest.get(key)

    def record(self, key: bytes, timestamp: bytes, /) -> None:
        """Record a timestamp (12 bytes) for a key (32 bytes)."""
        self._greatest[key] = timestamp

    def is_new(self, key: bytes, timestamp: bytes, /) -> bool:
        """Return whether a peer can't have sent this timestamp before, as far as this run knows."""
        return timestamp > self._greatest.get(key, b"")

    async def keep_synced(self) -> None:
        """Return at once: there is no disk."""
