"""The receiver indices that we gave out: random, 32 bits, none twice (whitepaper section 5.4.2)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rustguard_py.model.endpoint import PeerId


class Indices:
    """Indices reserved for a handshake, and those in use by a session. Safe to call from several threads.

    Args:
        random: Gives n random bytes.
    """

    __slots__ = ("_lock", "_random", "_reserved", "_used")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._lock = threading.Lock()
        self._reserved: dict[PeerId, int] = {}
        self._used: set[int] = set()

    def reserve(self, peer: PeerId) -> int:
        """Give an index that nobody has; the one that `peer` reserved before and did not use is free again."""
        with self._lock:
            self._used.discard(self._reserved.pop(peer, -1))
            index = int.from_bytes(self._random(4), "little")
            while index in self._used:
                index = int.from_bytes(self._random(4), "little")
            self._used.add(index)
            self._reserved[peer] = index
            return index

    def take(self, peer: PeerId, index: int) -> None:
        """Put an index to use: it is no longer merely reserved."""
        with self._lock:
            if self._reserved.get(peer) == index:
                del self._reserved[peer]
            self._used.add(index)

    def release(self, index: int) -> None:
        """Free an index that a session had."""
        with self._lock:
            self._used.discard(index)

    def forget(self, peer: PeerId) -> None:
        """Free what `peer` reserved and did not use."""
        with self._lock:
            self._used.discard(self._reserved.pop(peer, -1))

    def __contains__(self, index: int) -> bool:
        return index in self._used
