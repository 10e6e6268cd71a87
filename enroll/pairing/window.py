"""The pairing window: how long clients may pair, and how many wrong tokens are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rustguard_py.model.errors import UsageError
from rustguard_py.state.records import GuessRecord

MAX_SECONDS = 24 * 60 * 60
GUESSES_A_SOURCE = 3
GUESSES_A_WINDOW = 20


class Closed(Enum):
    """Why a window isn't open. The value is for people."""

    NEVER_OPENED = "not opened since the start"
    TIME = "its time ran out"
    PERSON = "closed by hand"
    GUESSES = "too many wrong tokens"


@dataclass(frozen=True, slots=True)
class WindowState:
    """The state of a window, for `status`.

    Attributes:
        is_open: Whether clients may pair now.
        remaining: Seconds left, 0.0 when closed.
        number: Counts the windows since this server was first started.
        guesses: Wrong tokens so far.
        guesses_allowed: How many wrong tokens close the window.
        closed: Why it is closed; None while it is open.
        blocked: Sources that used up their guesses.
    """

    is_open: bool
    remaining: float
    number: int
    guesses: int
    guesses_allowed: int
    closed: Closed | None
    blocked: tuple[str, ...]


class Window:
    """A window on a monotonic clock; changes of the wall clock don't affect it.

    It is closed at first. The caller of `open`, `resume` or `close` must then make `record` durable. When a count
    changes, `rustguard_py.enroll.pairing.server` returns the record for the same purpose.

    Args:
        record: What was saved of the last window, or None.
    """

    __slots__ = ("_by_source", "_closed", "_ended", "_ends", "_used", "number")

    def __init__(self, record: GuessRecord | None = None) -> None:
        record = GuessRecord() if record is None else record
        self.number = record.window
        self._used = record.used
        self._by_source = dict(record.by_source)
        self._ended = record.used == 0
        self._closed = Closed.NEVER_OPENED
        self._ends: float | None = None

    def open(self, seconds: float, now: float) -> None:
        """Open a window with fresh budgets, in place of one that is open. For when a person asked for it.

        Args:
            seconds: More than 0, at most 86,400.
            now: Monotonic seconds.

        Raises:
            UsageError: `seconds` is out of bounds; nothing is changed.
        """
        _check(seconds)
        self.number += 1
        self._used = 0
        self._by_source = {}
        self._ended = False
        self._ends = now + seconds

    def resume(self, seconds: float, now: float) -> bool:
        """Open a window after a start (`serve --open`). This may be a restart after a crash, so budgets aren't reset.

        A window that was open when the last process died continues with its counts. One that closed because of wrong
        tokens stays closed until a person opens it.

        Args:
            seconds: More than 0, at most 86,400.
            now: Monotonic seconds.

        Returns:
            Whether the window is open now.

        Raises:
            UsageError: `seconds` is out of bounds; nothing is changed.
        """
        if self._ended:
            self.open(seconds, now)
            return True
        _check(seconds)
        if self._used >= GUESSES_A_WINDOW:
            self._closed = Closed.GUESSES
            return False
        self._ends = now + seconds
        return True

    def close(self) -> None:
        """Close now, because a person asked for it or the server stops. No effect if it is closed already."""
        if self._ends is not None:
            self._ends = None
            self._ended = True
            self._closed = Closed.PERSON

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

    def may_guess(self, source: str, now: float) -> bool:
        """Return whether a source (see `cookies.source_of`) may still have a token evaluated."""
        return self.is_open(now) and self._by_source.get(source, 0) < GUESSES_A_SOURCE

    def charge(self, source: str) -> GuessRecord:
        """Count a wrong token; the last allowed one closes the window. The caller makes the record durable."""
        self._used += 1
        self._by_source[source] = self._by_source.get(source, 0) + 1
        if self._used >= GUESSES_A_WINDOW and self._ends is not None:
            self._ends = None
            self._closed = Closed.GUESSES
        return self.record

    def refund(self, source: str) -> GuessRecord:
        """Take a charge back: the same session proved afterwards that it was only a garbled datagram."""
        left = self._by_source.get(source, 0) - 1
        self._used = max(0, self._used - 1)
        if left > 0:
            self._by_source[source] = left
        else:
            self._by_source.pop(source, None)
        return self.record

    @property
    def record(self) -> GuessRecord:
        """What must be on disk, so that a crash gives nobody a second budget.

        For a window that ran out of time or was closed by hand, that is only its number; the next one begins at zero.
        """
        if self._ended:
            return GuessRecord(self.number)
        return GuessRecord(self.number, self._used, dict(self._by_source))

    def state(self, now: float) -> WindowState:
        """Return the window's state, for `status`."""
        is_open = self.is_open(now)
        return WindowState(
            is_open=is_open,
            remaining=self.remaining(now),
            number=self.number,
            guesses=self._used,
            guesses_allowed=GUESSES_A_WINDOW,
            closed=None if is_open else self._closed,
            blocked=tuple(sorted(s for s, n in self._by_source.items() if n >= GUESSES_A_SOURCE)),
        )


def _check(seconds: float) -> None:
    # Written so that NaN is refused too.
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(
            f"A window can be open for more than 0 and at most {MAX_SECONDS} seconds (24 hours), not {seconds}.",
            "Run: rustguard open 60",
        )
