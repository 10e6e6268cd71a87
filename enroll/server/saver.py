"""Save a server's state: one save for all callers that wait, retried while the disk refuses."""

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

# Seconds until a change is saved that may be lost in a crash without harm.
LAZY_SECONDS = 30.0
# Seconds until a failed save is tried again. Short, so that a person who made room sees the effect.
RETRY_SECONDS = 3.0


class Saver:
    """Saves the state of a running server.

    Args:
        state: The live state; each save writes a snapshot of it.
        write: Makes a document durable, like `Document.save`. Called in a thread, one call at a time.
        lazy: Seconds that `save_soon` may take.
        retry: Seconds until a failed save is tried again.

    Attributes:
        failed: Whether the last save failed.
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

    async def save(self, undo: Callable[[], None] | None = None) -> None:
        """Save, and return once all changes made before the call are durable.

        A failure is logged, and the save is retried in the background until it succeeds.

        Args:
            undo: Takes the caller's change back if it can't be saved, so that no later save contains it.

        Raises:
            StateError: It couldn't be saved this time.
        """
        try:
            await self._commit.commit(undo)
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
        """Save a change that was just made, and return whether that worked; if not, `undo` was called."""
        try:
            await self.save(undo)
        except StateError:
            return False
        return True

    def save_soon(self) -> None:
        """Save some time later, for a change that may be lost in a crash."""
        self._save_in(self._lazy)

    async def finish(self) -> None:
        """Save a last time, and return when no more writes follow."""
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
        self._tasks.spawn(self._save_in_background())

    async def _save_in_background(self) -> None:
        # `save` has logged the failure and set the timer for the next try.
        with suppress(StateError):
            await self.save()
