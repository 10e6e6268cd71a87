"""What a tunnel without a state directory keeps in memory: a client's state, and the timestamps of handshakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Keys of ours whose last timestamps are kept, at most.
_MOST_KEYS = 1024


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

    The timestamps that we sent are kept for the whole process, because peers remember them too: a tunnel that is
    opened again continues from there.

    Args:
        own: Our public key, 32 bytes.
    """

    _SENT: Final[dict[bytes, bytes]] = {}

    def __init__(self, own: bytes | None = None) -> None:
        self._own = own
        self._greatest: dict[bytes, bytes] = {}
        if own in self._SENT:
            self._greatest[own] = self._SENT[own]

    def greatest(self, key: bytes, /) -> bytes | None:
        """Return the greatest timestamp (12 bytes) recorded for a key (32 bytes), or None."""
        return self._greatest.get(key)

    def record(self, key: bytes, timestamp: bytes, /) -> None:
        """Record a timestamp (12 bytes) for a key (32 bytes)."""
        self._greatest[key] = timestamp
        if key == self._own:
            # The one that was unused for longest is forgotten first. Other threads may do the same at once.
            self._SENT.pop(key, None)
            self._SENT[key] = timestamp
            for old in list(self._SENT)[:-_MOST_KEYS]:
                self._SENT.pop(old, None)

    def is_new(self, key: bytes, timestamp: bytes, /) -> bool:
        """Return whether a peer can't have sent this timestamp before, as far as this run knows."""
        return timestamp > self._greatest.get(key, b"")

    async def keep_synced(self) -> None:
        """Return at once: there is no disk."""
