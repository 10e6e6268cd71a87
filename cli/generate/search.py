"""The search for the highest load without loss, as RFC 2544 (section 26.1) has it: halve the interval.

It measures nothing. It says which load to try next, and takes what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """When the search ends.

    Attributes:
        resolution: It ends when the least load that failed is within this fraction of the highest that passed.
        trials: The most trials, repetitions included.
        seconds: No trial begins later than this after the first.
        tries: How often a load may fail before it counts as failed: a pause of the machine isn't the engine's.
        floor: No lower load is tried, in packets per second.
    """

    resolution: float = 0.05
    trials: int = 16
    seconds: float = 60.0
    tries: int = 2
    floor: float = 100.0


class Search:
    """One search.

    Args:
        start: The first load, in packets per second. The best is one that just passes.
        limits: When it ends.
        now: The time.

    Attributes:
        best: The highest load that passed, or None.
        ended: Why the search ended: `resolution`, `trials`, `time` or `floor`; empty while it goes on.
    """

    def __init__(self, start: float, limits: Limits, now: float) -> None:
        self.best: float | None = None
        self.ended = ""
        self._limits = limits
        self._began = now
        self._load = max(start, limits.floor)
        self._failed: float | None = None
        self._failures = 0
        self._trials = 0

    def next_load(self, now: float) -> float | None:
        """Return the load to try, or None at the end."""
        limits = self._limits
        if not self.ended:
            if self._trials >= limits.trials:
                self.ended = "trials"
            elif now - self._began >= limits.seconds:
                self.ended = "time"
        return None if self.ended else self._load

    def record(self, passed: bool) -> None:
        """Take the result of the load that `next_load` returned."""
        self._trials += 1
        if not passed:
            self._failures += 1
            if self._failures < self._limits.tries:
                return
            self._failed = self._load
        else:
            self.best = self._load
        self._failures = 0
        self._choose()

    def _choose(self) -> None:
        best, failed, limits = self.best, self._failed, self._limits
        if failed is None:
            # Nothing has failed yet: look higher.
            self._load *= 1.5
        elif best is None:
            if self._load <= limits.floor:
                self.ended = "floor"
            self._load = max(self._load / 2, limits.floor)
        elif failed <= best * (1 + limits.resolution):
            self.ended = "resolution"
        else:
            self._load = (best + failed) / 2
