"""An asyncio loop under a virtual clock: when nothing is left to do, the clock moves to the next timer.

What the loop gives to its executor is done at once, in the loop's thread. So hours pass in milliseconds, and always
in the same order.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from rustguard_py.enroll.server import admissions
from rustguard_py.model import clock

T = TypeVar("T")
BEGAN = 1000.0
# 2026-01-01T00:00:00Z, the wall clock's time at BEGAN.
WALL_BEGAN = 1_767_225_600.0
# So many rounds without a moment passing are an endless loop.
_MOST_ROUNDS = 20_000
# Seconds, of the machine's clock.
_PATIENCE = 10.0


class _Jumping(selectors.SelectSelector):
    """Never waits: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGAN
        self._rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            # At the end the loop waits for the thread that closes its executor, the only one beside it.
            events = super().select(_PATIENCE)
        if not events and timeout is None:
            raise RuntimeError("nobody is left who could end the wait")
        if events or not timeout or timeout < 0:
            self._rounds += 1
            if self._rounds > _MOST_ROUNDS:
                raise RuntimeError("this goes on without end while no time passes")
            return events
        self._rounds = 0
        self.now += timeout
        return events


class _AtOnce(ThreadPoolExecutor):
    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)
        return future


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; `time()` begins at BEGAN."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)
        self.set_default_executor(_AtOnce(1))

    def time(self) -> float:
        return self._jumping.now


def run(monkeypatch: pytest.MonkeyPatch, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it on a virtual loop, with the project's clocks set to the loop's."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, monkeypatch.context() as patch:
        loop = runner.get_loop()
        boot = SimpleNamespace(CLOCK_BOOTTIME=0, clock_gettime=lambda _: loop.time())
        patch.setattr(clock, "time", boot)
        patch.setattr(admissions, "time", SimpleNamespace(time=lambda: WALL_BEGAN + loop.time() - BEGAN))
        return runner.run(main())
