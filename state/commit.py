"""Group commit: concurrent callers share one save."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Saves in a thread, one save at a time, for any number of callers in one event loop.

    Args:
        snapshot: Called in the loop's thread just before a save. Its result must not change afterwards.
        save: Called in a thread with the snapshot. It returns when the snapshot is durable.
        executor: Runs the thread; the loop's own by default.

    Attributes:
        saves: Number of saves begun.
    """

    def __init__(
        self, snapshot: Callable[[], T], save: Callable[[T], None], executor: Executor | None = None
    ) -> None:
        self.saves = 0
        self._snapshot = snapshot
        self._save = save
        self._executor = executor
        self._next: asyncio.Future[None] | None = None
        self._undos: list[Callable[[], None]] = []
        self._runner: asyncio.Task[None] | None = None

    async def commit(self, undo: Callable[[], None] | None = None) -> None:
        """Wait for a save that begins after this call. Raise what it raises.

        Cancelling a caller doesn't cancel the save.

        Args:
            undo: Called if the save fails, before the next save takes its snapshot. So what the caller made isn't
                saved after it was told that it couldn't be.
        """
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.create_future()
        waited_for = self._next
        if undo is not None:
            self._undos.append(undo)
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        await asyncio.shield(waited_for)

    async def drain(self) -> None:
        """Wait until no save runs or is wanted. Await it before closing what `save` writes to."""
        while self._runner is not None:
            await asyncio.wait({self._runner})

    async def _run(self) -> None:
        try:
            while self._next is not None:
                waiters, self._next = self._next, None
                undos, self._undos = self._undos, []
                await self._serve(waiters, undos)
        finally:
            self._runner = None

    async def _serve(self, waiters: asyncio.Future[None], undos: list[Callable[[], None]]) -> None:
        loop = asyncio.get_running_loop()
        self.saves += 1
        try:
            await loop.run_in_executor(self._executor, self._save, self._snapshot())
        except Exception as error:
            waiters.set_exception(error)
            waiters.exception()  # Marks it as retrieved, even if every caller was cancelled.
            for undo in undos:
                undo()
        else:
            waiters.set_result(None)
