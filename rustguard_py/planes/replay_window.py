"""The replay window of one receiving key (whitepaper section 5.4.6; RFC 6479 for a wide window).

It keeps the counters below the highest that were *not yet seen*, as the bits of one integer. Without loss this is
zero and takes no memory, and a run of n counters moves it with one shift.
"""

from __future__ import annotations

from rustguard_py.model.timers import REJECT_AFTER_MESSAGES

# How far behind the highest counter a datagram may be. The kernel allows 8,128.
WINDOW_SIZE = 8192
_MASK = (1 << (WINDOW_SIZE + 1)) - 1


class ReplayWindow:
    """The counters seen so far. Mark a counter only after its datagram was authenticated.

    Attributes:
        next: One more than the highest counter seen; 0 at first.
        marked: How many counters were marked.
    """

    __slots__ = ("_missing", "marked", "next")

    def __init__(self) -> None:
        self.next = 0
        self.marked = 0
        # Bit d stands for the counter `next - 1 - d`. It is 1 if that counter has not been seen.
        self._missing = 0

    def fresh(self, counter: int) -> bool:
        """Return whether `counter` is below REJECT-AFTER-MESSAGES, in the window and not yet seen."""
        behind = self.next - 1 - counter
        if behind < 0:
            return counter < REJECT_AFTER_MESSAGES
        return behind <= WINDOW_SIZE and bool(self._missing >> behind & 1)

    def mark(self, counter: int) -> None:
        """Mark one fresh counter as seen."""
        self.marked += 1
        behind = self.next - 1 - counter
        if behind >= 0:
            self._missing &= ~(1 << behind)
        else:
            self._advance(-behind)
            self._missing &= -2

    def mark_run(self, counter: int, count: int) -> None:
        """Mark `count` counters, from `counter` on, as seen. None may be below `next`."""
        self.marked += count
        self._advance(counter + count - self.next)
        self._missing &= -1 << count

    def _advance(self, steps: int) -> None:
        """Raise the highest counter by `steps`. The skipped ones are missing until they are marked."""
        self.next += steps
        if steps > WINDOW_SIZE:
            self._missing = _MASK
        else:
            self._missing = (self._missing << steps | (1 << steps) - 1) & _MASK
