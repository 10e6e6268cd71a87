"""The timestamp journal of a running tunnel: synced every second, and no reason to stop when the disk refuses."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from rustguard_py.model.errors import StateError
from rustguard_py.state.journal import TimestampJournal

log = logging.getLogger(__name__)

SYNC_SECONDS = 1.0


class KeptTimestamps:
    """What `node.Timestamps` asks for, kept in the journal of a state directory.

    A session lives for 180 s. A tunnel that shook no hands while its disk is full would be dead for everybody three
    minutes later, so a timestamp that can't be written is no error here: this process knows it all the same, and
    tries to write it every second. Only if it also dies before there is room, an initiation of that time can be
    answered once more; no session comes of it, as who replays it has no keys.

    Attributes:
        refused: Whether the disk refused last time.

    Raises:
        StateError: The journal can't be opened.
    """

    __slots__ = ("_journal", "refused")

    def __init__(self, directory: Path) -> None:
        self._journal = TimestampJournal.open(directory)
        self.refused = False

    def greatest(self, key: bytes) -> bytes | None:
        """Give the greatest timestamp (12 bytes) recorded for a key (32 bytes), or None."""
        return self._journal.greatest(key)

    def record(self, key: bytes, timestamp: bytes) -> None:
        """Record a timestamp (12 bytes) for a key (32 bytes)."""
        try:
            self._journal.record(key, timestamp)
        except StateError as error:
            self._note(error)

    async def keep_synced(self) -> None:
        """Make what was recorded outlive a power cut, again and again; ends when it is cancelled."""
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
