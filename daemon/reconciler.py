"""Decides when to look at what we set on the system, and which missing things to put back. It does no I/O.

A change that another program made is looked at after `SETTLE`, and everything each `LOOK_EACH` seconds. What is
missing is put back at once. A thing that is removed again and again is put back `MOST` times in `PERIOD` seconds, so
that we never fight with another program.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final

# Seconds between two looks when nothing is known to have changed.
LOOK_EACH: Final = 30.0
# A change causes several messages in a row. Wait this long for them, seconds.
SETTLE: Final = 0.1
# The least time between two looks, seconds.
LEAST: Final = 0.4
# How often a thing is put back in one period, and the period in seconds.
MOST: Final = 6
PERIOD: Final = 60.0
# When a thing is tried again that couldn't be put back, seconds.
TRY_AGAIN: Final = 5.0
# How long a thing that was put back is remembered, seconds, and how many of them.
REMEMBERED: Final = 3600.0
_MOST_REMEMBERED = 1000


@dataclass(slots=True)
class Record:
    """What happened to one thing.

    Attributes:
        times: How often it was missing and put back.
        last: When it was last found missing.
        by: The program that last removed it, or None if that isn't known.
        waits_until: When it is put back again, or None unless it was put back too often.
        refused: Why it couldn't be put back, or None.
        warned: Whether the waiting was reported. It is again after the thing has stayed for a look.
    """

    times: int = 0
    last: float = float("-inf")
    by: str | None = None
    waits_until: float | None = None
    refused: str | None = None
    warned: bool = False
    _recent: deque[float] = field(default_factory=deque)


class Reconciler:
    """The decisions for one daemon. A thing is known by its description.

    Args:
        now: The time.

    Attributes:
        records: What happened to each thing, by its description.
    """

    def __init__(self, now: float) -> None:
        self.records: dict[str, Record] = {}
        self._due = now + LOOK_EACH
        self._looked = now

    def changed(self, now: float) -> None:
        """Take note that another program may have changed something: look soon."""
        self._due = min(self._due, max(now + SETTLE, self._looked + LEAST))

    def poll_timeout(self) -> float:
        """Return when to look."""
        return self._due

    def decide(self, missing: Iterable[str], now: float, *, by: str | None = None) -> list[str]:
        """Take what a look found missing. Return what to put back now, in the same order.

        Args:
            missing: Descriptions.
            now: The time.
            by: The program that is likely the cause.
        """
        wanted = []
        for each in dict.fromkeys(missing):
            record = self.records.setdefault(each, Record())
            recent = record._recent
            while recent and recent[0] <= now - PERIOD:
                recent.popleft()
            if record.waits_until is None:
                record.last, record.by = now, by or record.by
            if len(recent) < MOST:
                recent.append(now)
                record.waits_until = None
                record.times += 1
                wanted.append(each)
            else:
                record.waits_until = recent[0] + PERIOD
        return wanted

    def begin_look(self, now: float) -> None:
        """Take note that a look begins. It may miss a change that comes from now on, so another look follows that."""
        self._due = now + LOOK_EACH

    def end_look(self, missing: Container[str], now: float) -> None:
        """Take note that everything was looked at since `begin_look`, and that this was missing."""
        self._looked, self._due = now, max(self._due, now + LEAST)
        for each, record in self.records.items():
            if each not in missing:
                record.waits_until = record.refused = None
                record.warned = record.warned and record._recent[-1] > now - PERIOD
            elif record.waits_until is not None:
                self._due = min(self._due, max(record.waits_until, now + LEAST))
            elif record.refused is not None:
                self._due = min(self._due, now + TRY_AGAIN)
        self._forget(now)

    def put_back(self, thing: str, refused: str | None) -> None:
        """Take note that a thing was put back, or why that was refused."""
        if (record := self.records.get(thing)) is not None:
            record.refused = refused
            if refused is None:
                record.waits_until = None

    def _forget(self, now: float) -> None:
        """Forget what happened long ago, and the oldest if there is too much."""
        for each in [each for each, record in self.records.items() if record.last <= now - REMEMBERED]:
            if self.records[each].waits_until is None and self.records[each].refused is None:
                del self.records[each]
        if len(self.records) > _MOST_REMEMBERED:
            by_age = sorted(self.records, key=lambda each: self.records[each].last)
            for each in by_age[: len(self.records) - _MOST_REMEMBERED]:
                if now - self.records[each].last >= PERIOD:
                    del self.records[each]
