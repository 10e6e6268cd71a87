"""Sessions that were begun and never confirmed: counted, and slowed down when there are many.

Such a session tests no token. But each is a computation with the token by us that somebody can watch from outside,
and they cost us time and memory. They are slowed and never stopped, because stopping would lock out others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from rustguard_py.model.rate_limit import RateLimit, site_of

# Begun and not confirmed, in one window. Beyond these, new sessions are slowed.
SOURCE_BOUND: Final = 20
WINDOW_BOUND: Final = 1000
SOURCE_RATE: Final = 1.0
# Per lane; there are two.
LANE_RATE: Final = 5.0
# Sources that are counted one by one. The others count for the window.
SOURCES: Final = 4096


@dataclass(slots=True)
class _Source:
    begun: int = 0
    abandoned: int = 0
    rate: RateLimit = field(default_factory=lambda: RateLimit(SOURCE_RATE, 1))


class Unconfirmed:
    """Counts the sessions of one window that are not confirmed.

    Attributes:
        abandoned: Sessions that ended without a CONFIRM.
    """

    __slots__ = ("_begun", "_by_site", "_by_source", "_newcomers", "_others", "abandoned")

    def __init__(self) -> None:
        self.abandoned = 0
        self._begun = 0
        self._by_source: dict[str, _Source] = {}
        # The sessions of the sources that are counted, by site.
        self._by_site: Counter[str] = Counter()
        # Sites without such a session have a lane of their own, so that the others can't take their place.
        self._newcomers = RateLimit(LANE_RATE, 1)
        self._others = RateLimit(LANE_RATE, 1)

    @property
    def sources(self) -> int:
        """How many sources have abandoned sessions; at most `SOURCES`."""
        return sum(bool(each.abandoned) for each in self._by_source.values())

    @property
    def is_slow(self) -> bool:
        """Whether new sessions of all sources are slowed."""
        return self._begun >= WINDOW_BOUND

    def may_begin(self, source: str, now: float) -> bool:
        """Return whether a source (see `rate_limit.source_of`) may begin a session now."""
        known = self._by_source.get(source)
        if known is not None and known.begun >= SOURCE_BOUND and not known.rate.take(now):
            return False
        lane = self._others if site_of(source) in self._by_site else self._newcomers
        return not self.is_slow or lane.take(now)

    def begin(self, source: str) -> None:
        """Count a session that has begun."""
        self._begun += 1
        known = self._by_source.get(source)
        if known is None and len(self._by_source) < SOURCES:
            known = self._by_source[source] = _Source()
        if known is not None:
            known.begun += 1
            self._by_site[site_of(source)] += 1

    def confirm(self, source: str) -> None:
        """Count a session no longer: its CONFIRM came."""
        self._begun = max(0, self._begun - 1)
        known = self._by_source.get(source)
        if known is not None:
            known.begun -= 1
            self._by_site[site := site_of(source)] -= 1
            if known.begun <= 0:
                del self._by_source[source]
            if self._by_site[site] <= 0:
                del self._by_site[site]

    def abandon(self, source: str) -> bool:
        """Count a session as abandoned; return whether to report that: the first one, and each tenfold."""
        self.abandoned += 1
        known = self._by_source.get(source)
        if known is not None:
            known.abandoned += 1
        return str(self.abandoned).strip("0") == "1"
