"""The receiver indices in use: random, 32 bits, each used once (whitepaper section 5.4.2)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rustguard_py.model.endpoint import PeerId


class Indices:
    """Indices that are reserved for a handshake or used by a session. Safe to call from several threads.

    Args:
        random: Returns n random bytes.
    """

    __slots__ = ("_lock", "_random", "_reserved", "_used")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._lock = threading.Lock()
        self._reserved: dict[PeerId, int] = {}
        # The peer that each one was given to.
        self._used: dict[int, PeerId] = {}

    def reserve(self, peer: PeerId) -> int:
        """Return a free index. The one that `peer` reserved before and did not use is freed."""
        with self._lock:
            self._used.pop(self._reserved.pop(peer, -1), None)
            index = int.from_bytes(self._random(4), "little")
            while index in self._used:
                index = int.from_bytes(self._random(4), "little")
            self._used[index] = peer
            self._reserved[peer] = index
            return index

    def take(self, peer: PeerId, index: int) -> None:
        """Mark an index as used by a session."""
        with self._lock:
            if self._reserved.get(peer) == index:
                del self._reserved[peer]
            self._used[index] = peer

    def release(self, index: int) -> None:
        """Free the index of a session."""
        with self._lock:
            self._used.pop(index, None)

    def forget(self, peer: PeerId) -> None:
        """Free the index that `peer` reserved and did not use."""
        with self._lock:
            self._used.pop(self._reserved.pop(peer, -1), None)

    def owner(self, index: int) -> PeerId | None:
        """Return the peer that has an index, or None."""
        return self._used.get(index)

    def __contains__(self, index: int) -> bool:
        return index in self._used
