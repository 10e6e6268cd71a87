"""The pairing window: how long clients may pair, who may try, and how fast wrong tokens are checked.

Wrong tokens don't close a window, because then anybody could close it. Each source has a few. After the first twenty
of a window the next one is checked only at the next turn, every ten seconds. So a window checks at most 20 wrong
tokens, and one more for each ten seconds that it is open.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from math import inf
from typing import Final

from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import UsageError
from rustguard_py.model.rate_limit import site_of
from rustguard_py.state.records import GuessRecord

MAX_SECONDS: Final = 24 * 60 * 60
GUESSES_A_SOURCE: Final = 3
# Wrong tokens that are checked as soon as they come. Each later one takes a turn.
GUESSES_AT_ONCE: Final = 20
TURN_SECONDS: Final = 10.0
NEW_PEERS: Final = 50


class Closed(Enum):
    """Why a window isn't open. The value is for people."""

    NEVER_OPENED = "not opened since the start"
    TIME = "its time ran out"
    PERSON = "closed by hand"
    UNSAVED = "it couldn't be saved"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a person allows in one window.

    Attributes:
        sources: Networks from which clients may try; empty for all.
        most: How many new peers are admitted.
    """

    sources: tuple[Network, ...] = ()
    most: int = NEW_PEERS


@dataclass(frozen=True, slots=True)
class WindowState:
    """The state of a window, for `status`.

    Attributes:
        is_open: Whether clients may pair now.
        remaining: Seconds left, 0.0 when closed.
        number: Counts the windows since this server was first started.
        guesses: Wrong tokens so far.
        guesses_allowed: How many of them are checked as soon as they come.
        guessing_sources: How many sources tried them.
        closed: Why it is closed; None while it is open.
        blocked: Sources that used up their guesses.
        limits: What the person who opened it allows.
        new_peers: How many new peers it has admitted.
    """

    is_open: bool
    remaining: float
    number: int
    guesses: int
    guesses_allowed: int
    guessing_sources: int
    closed: Closed | None
    blocked: tuple[str, ...]
    limits: Limits
    new_peers: int


class Window:
    """A window on a monotonic clock; changes of the wall clock don't affect it.

    It is closed at first. The caller of `open`, `resume` or `close` must then make `record` durable. When a count
    changes, `rustguard_py.enroll.pairing.server` returns the record for the same purpose.

    Args:
        record: What was saved of the last window, or None.
    """

    __slots__ = (
        "_by_site",
        "_by_source",
        "_closed",
        "_ended",
        "_ends",
        "_limits",
        "_new_peers",
        "_taken_back",
        "_turn",
        "_used",
        "number",
    )

    def __init__(self, record: GuessRecord | None = None) -> None:
        record = GuessRecord() if record is None else record
        self.number = record.window
        self._used = record.used
        self._by_source = dict(record.by_source)
        self._by_site: Counter[str] = Counter()
        for source, count in record.by_source.items():
            self._by_site[site_of(source)] += count
        self._limits = Limits(record.sources, NEW_PEERS if record.most is None else record.most)
        self._new_peers = record.new_peers
        self._taken_back = 0
        self._ended = record == GuessRecord(record.window)
        self._closed = Closed.NEVER_OPENED
        self._ends: float | None = None
        self._turn = -inf

    def open(self, seconds: float, now: float, limits: Limits | None = None) -> None:
        """Open a window with fresh budgets, in place of one that is open. For when a person asked for it.

        Args:
            seconds: More than 0, at most 86,400.
            now: Monotonic seconds.
            limits: Who may try, and how many new peers are admitted; None for everybody and the usual number.

        Raises:
            UsageError: `seconds` is out of bounds; nothing is changed.
        """
        _check(seconds)
        self.number += 1
        self._used = 0
        self._by_source = {}
        self._by_site.clear()
        self._limits = Limits() if limits is None else limits
        self._new_peers = 0
        self._taken_back = 0
        self._ended = False
        self._ends = now + seconds

    def resume(self, seconds: float, now: float, most: int | None = None) -> None:
        """Open a window after a start (`serve --open`). This may be a restart after a crash, so budgets aren't reset.

        A window that was open when the last process died continues with its counts and limits.

        Args:
            seconds: More than 0, at most 86,400.
            now: Monotonic seconds.
            most: How many new peers are admitted; None for the number kept, or the usual one.

        Raises:
            UsageError: `seconds` is out of bounds; nothing is changed.
        """
        if self._ended:
            self.open(seconds, now, Limits() if most is None else Limits(most=most))
            return
        _check(seconds)
        if most is not None:
            self._limits = replace(self._limits, most=most)
        self._ends = now + seconds
        # When the last turn was isn't on disk: it may have been a moment ago.
        self._turn = now + TURN_SECONDS

    def close(self, why: Closed = Closed.PERSON) -> None:
        """Close now, because a person asked for it or the server stops, or as `why` says.

        No effect if it is closed already.
        """
        if self._ends is not None:
            self._ends = None
            self._ended = True
            self._closed = why

    def is_open(self, now: float) -> bool:
        """Return whether clients may pair now."""
        if self._ends is not None and now >= self._ends:
            self._ends = None
            self._ended = True
            self._closed = Closed.TIME
        return self._ends is not None

    @property
    def ends(self) -> float | None:
        """When the window closes by itself, in monotonic seconds; None if it is closed."""
        return self._ends

    def remaining(self, now: float) -> float:
        """Return the seconds left, 0.0 when closed."""
        return self._ends - now if self.is_open(now) and self._ends is not None else 0.0

    # -- guesses --------------------------------------------------------------------------------------------

    def allows(self, address: IPv4Address | IPv6Address) -> bool:
        """Return whether clients at this address may try in this window."""
        return not self._limits.sources or any(address in network for network in self._limits.sources)

    def may_guess(self, source: str, now: float) -> bool:
        """Return whether a source (see `rate_limit.source_of`) may still have a token checked."""
        return self.is_open(now) and self._by_source.get(source, 0) < GUESSES_A_SOURCE

    def guesses_of(self, source: str) -> tuple[int, int]:
        """Return how many wrong tokens the site of a source, and the source, have tried in this window."""
        return self._by_site.get(site_of(source), 0), self._by_source.get(source, 0)

    @property
    def turn(self) -> float:
        """From when the next token may be checked, in monotonic seconds; -inf while guesses are left for at once."""
        return self._turn if self._used >= GUESSES_AT_ONCE else -inf

    def charge(self, source: str, now: float) -> GuessRecord:
        """Count a wrong token that was checked now. The caller makes the record durable."""
        self._used += 1
        self._by_source[source] = self._by_source.get(source, 0) + 1
        self._by_site[site_of(source)] += 1
        self._turn = now + TURN_SECONDS
        return self.record

    def refund(self, source: str) -> GuessRecord:
        """Take a charge back: the same session proved afterwards that it was only a garbled datagram."""
        left = self._by_source.get(source, 0) - 1
        self._used = max(0, self._used - 1)
        self._by_site[site_of(source)] -= 1
        if left > 0:
            self._by_source[source] = left
        else:
            self._by_source.pop(source, None)
        return self.record

    # -- new peers ------------------------------------------------------------------------------------------

    def admit_new(self) -> bool:
        """Count a new peer; return False if the window has admitted as many as it may."""
        if self._new_peers >= self._limits.most:
            return False
        self._new_peers += 1
        return True

    def forget_new(self, number: int) -> None:
        """Take back the count of a new peer that was not admitted after all.

        Args:
            number: The window in which it was counted. A later one has its own count.
        """
        if number == self.number:
            self._new_peers = max(0, self._new_peers - 1)

    def take_back_new(self, number: int) -> None:
        """Take back the count of a new peer that was admitted and couldn't use that.

        A window does so as often as it admits new peers. Otherwise one machine could join as a new one for ever.

        Args:
            number: The window in which it was counted.
        """
        if number == self.number and self._taken_back < self._limits.most:
            self._taken_back += 1
            self.forget_new(number)

    # -- what is saved and shown ----------------------------------------------------------------------------

    @property
    def record(self) -> GuessRecord:
        """What must be on disk, so that a crash gives nobody a second budget.

        For a window that ran out of time or was closed by hand, that is only its number; the next one begins at zero.
        """
        if self._ended:
            return GuessRecord(self.number)
        most = None if self._limits.most == NEW_PEERS else self._limits.most
        return GuessRecord(
            self.number, self._used, dict(self._by_source), self._limits.sources, most, self._new_peers
        )

    def state(self, now: float) -> WindowState:
        """Return the window's state, for `status`."""
        is_open = self.is_open(now)
        return WindowState(
            is_open=is_open,
            remaining=self.remaining(now),
            number=self.number,
            guesses=self._used,
            guesses_allowed=GUESSES_AT_ONCE,
            guessing_sources=len(self._by_source),
            closed=None if is_open else self._closed,
            blocked=tuple(sorted(s for s, n in self._by_source.items() if n >= GUESSES_A_SOURCE)),
            limits=self._limits,
            new_peers=self._new_peers,
        )


def _check(seconds: float) -> None:
    # Written so that NaN is refused too.
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(
            f"A window can be open for more than 0 and at most {MAX_SECONDS} seconds (24 hours), not {seconds}.",
            "Run: rustguard open 60",
        )
