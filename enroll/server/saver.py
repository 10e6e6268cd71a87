"""Making a server's state durable: one save for all who wait, again while the disk refuses, later what can wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from rustguard_py.daemon.tasks import Tasks
from rustguard_py.model.errors import StateError
from rustguard_py.state.commit import GroupCommit
from rustguard_py.state.records import ServerState

log = logging.getLogger(__name__)

# What may be lost in a crash without harm is saved this long after it changed.
LAZY_SECONDS = 30.0
# After the disk refused; a person who made room wants to see it.
RETRY_SECONDS = 3.0


class Saver:
    """Saves the state of a running server, whoever changed it.

    Args:
        state: Live; a snapshot of it is what is saved.
        write: Makes a document durable, as `Document.save`; called in a thread, one call at a time.
        lazy: Seconds that `save_soon` may take.
        retry: Seconds until a save that failed is tried again.

    Attributes:
        failed: Whether the disk refused last time.
    """

    def __init__(
        self,
        state: ServerState,
        write: Callable[[Mapping[str, object]], None],
        *,
        lazy: float = LAZY_SECONDS,
        retry: float = RETRY_SECONDS,
    ) -> None:
        self.failed = False
        self._commit = GroupCommit(state.snapshot, lambda snapshot: write(snapshot.to_save()))
        self._lazy = lazy
        self._retry = retry
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()

    async def save(self) -> None:
        """Return when all that was changed is durable; while the disk refuses, try again beside and say so.

        Raises:
            StateError: The disk refused this time.
        """
        try:
            await self._commit.commit()
        except StateError as error:
            if not self.failed:
                log.warning("the state can't be saved, so nobody can join: %s", error)
            self.failed = True
            self._save_in(self._retry)
            raise
        if self.failed:
            log.warning("the state can be saved again")
        self.failed = False

    async def durable(self, undo: Callable[[], None]) -> bool:
        """Save a change that was just made; if the disk refuses, undo it and say False."""
        try:
            await self.save()
        except StateError:
            undo()
            return False
        return True

    def save_soon(self) -> None:
        """Have a change saved that a crash may lose."""
        self._save_in(self._lazy)

    async def finish(self) -> None:
        """Save what is not yet saved, and return when nothing is written any more."""
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()
        try:
            await self._commit.commit()
        except (StateError, OSError) as error:
            log.warning("the last changes could not be saved: %s", error)
        await self._commit.drain()

    def _save_in(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._tasks.spawn(self._save_beside())

    async def _save_beside(self) -> None:
        # What the disk refuses `save` has told, and comes again by itself.
        with suppress(StateError):
            await self.save()
