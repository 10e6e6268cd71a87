"""The timestamp journal of a running tunnel. It is synced every second, and a full disk doesn't stop the tunnel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from rustguard_py.model.errors import StateError
from rustguard_py.state.journal import TimestampJournal

log = logging.getLogger(__name__)

SYNC_SECONDS = 1.0


class KeptTimestamps:
    """`node.Timestamps`, kept in the journal of a state directory.

    A session lives for 180 s. If a full disk stopped handshakes, the tunnel would be dead for everybody three minutes
    later. So a timestamp that can't be written is no error: it is kept in memory, and writing is tried again every
    second. If the process also dies before there is room, an initiation of that time can be replayed and is answered
    once more. No session comes of it, because the attacker doesn't have the keys.

    Attributes:
        refused: Whether the last write failed.

    Raises:
        StateError: The journal can't be opened.
    """

    __slots__ = ("_journal", "refused")

    def __init__(self, directory: Path) -> None:
        self._journal = TimestampJournal.open(directory)
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

    async def forget(self, keys: Iterable[bytes]) -> bytes | None:
        """Forget the timestamps of keys (32 bytes each), durably. Return the greatest of them, or None.

        Whoever recorded a handshake of a forgotten timestamp can send it once more. It opens no session, but its
        timestamp counts again.

        Raises:
            StateError: The disk refused.
        """
        forgotten = [self._journal.forget(key) for key in keys]
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

    def _note(self, error: StateError) -> None:
        if not self.refused:
            log.warning("timestamps of handshakes can't be saved; the tunnel goes on: %s", error)
        self.refused = True
