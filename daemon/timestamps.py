"""The timestamp journal of a running tunnel. It is synced every second, and a full disk doesn't stop the tunnel."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from rustguard_py.daemon.clocks import clock_ahead
from rustguard_py.model.errors import StateError
from rustguard_py.protocol import tai64n
from rustguard_py.state.journal import TimestampJournal

log = logging.getLogger(__name__)

SYNC_SECONDS = 1.0
# The journal has the greatest forgotten timestamp of a key under the SHA-256 of this and the key.
_FORGOTTEN = b"rustguard forgotten timestamp"


class KeptTimestamps:
    """`node.Timestamps`, kept in the journal of a state directory.

    A session lives for 180 s. If a full disk stopped handshakes, the tunnel would be dead for everybody three minutes
    later. So a timestamp that can't be written is no error: it is kept in memory, and writing is tried again every
    second. If the process also dies before there is room, an initiation of that time can be replayed and is answered
    once more. No session comes of it, because the attacker doesn't have the keys.

    Args:
        directory: The state directory.
        wall: Returns Unix time in seconds.

    Attributes:
        refused: Whether the last write failed.

    Raises:
        StateError: The journal can't be opened.
    """

    __slots__ = ("_journal", "_wall", "refused")

    def __init__(self, directory: Path, wall: Callable[[], float] = time.time) -> None:
        self._journal = TimestampJournal.open(directory)
        self._wall = wall
        self.refused = False

    def greatest(self, key: bytes) -> bytes | None:
        """Return the greatest timestamp (12 bytes) recorded for a key (32 bytes), or None."""
        return self._journal.greatest(key)

    def record(self, key: bytes, timestamp: bytes) -> None:
        """Record a timestamp (12 bytes) for a key (32 bytes)."""
        try:
            self._journal.record(key, timestamp)
        except StateError as error:
            self._note(error)

    def is_new(self, key: bytes, timestamp: bytes) -> bool:
        """Return whether a peer can't have sent this timestamp before, as far as that is known.

        It must be greater than the greatest one that counts. One that is no greater than a forgotten one may have
        been recorded while the peer's clock was ahead. It counts only if it isn't far ahead again.

        Args:
            key: 32 bytes.
            timestamp: 12 bytes.
        """
        if not self._journal.is_new(key, timestamp):
            return False
        greatest, forgotten = self._journal.greatest(key), self._journal.greatest(_forgotten_name(key))
        # What the peer sent last counts as well as our clock, which may be behind after a start.
        latest = 0.0 if greatest is None else tai64n.decode(greatest) / 10**9
        wall = max(self._wall(), latest)
        return forgotten is None or timestamp > forgotten or clock_ahead(timestamp, wall) is None

    async def forget(self, keys: Iterable[bytes]) -> bytes | None:
        """Forget the timestamps of keys (32 bytes each), durably. Return the greatest of them, or None.

        Whoever recorded a handshake while the peer's clock was far ahead can't use it: see `is_new`.

        Raises:
            StateError: The disk refused.
        """
        forgotten = [self._forget(key) for key in keys]
        await asyncio.get_running_loop().run_in_executor(None, self._journal.sync)
        return max(filter(None, forgotten), default=None)

    async def keep_synced(self) -> None:
        """Sync the journal every SYNC_SECONDS, so that it survives a power cut. Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                await loop.run_in_executor(None, self._journal.sync)
            except StateError as error:
                self._note(error)
            else:
                if self.refused:
                    log.warning("timestamps can be saved again")
                self.refused = False

    def close(self) -> None:
        """Sync and close. May be called twice."""
        try:
            self._journal.close()
        except StateError as error:
            self._note(error)

    def _forget(self, key: bytes) -> bytes | None:
        known = self._journal.greatest(key)
        if known is not None:
            # First, so that a crash in between forgets nothing.
            self._journal.record(_forgotten_name(key), known)
        return self._journal.forget(key)

    def _note(self, error: StateError) -> None:
        if not self.refused:
            log.warning("timestamps of handshakes can't be saved; the tunnel goes on: %s", error)
        self.refused = True


def _forgotten_name(key: bytes) -> bytes:
    return sha256(_FORGOTTEN + key).digest()
