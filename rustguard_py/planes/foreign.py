"""How many enrollment datagrams are the control side's to look at: so many a second for each of a join's three steps.

More come in a flood, and the control side shall leave the packets that move their share of the machine. But a crowd
that joins at once comes as fast for a moment, asks again each second, and must be through before it gives up. So
there is room for many at once; and who has been answered isn't kept waiting by those who have only begun, nor by a
flood of first messages, which anybody can send in anybody's name.
"""

from __future__ import annotations

# A second, of one step.
RATE = 1000.0
# At once, of one step.
BURST = 2048
# In a flood they come in runs, this many seconds' worth each: the control side is woken for a run, not for each.
RUN = 0.02
# Enrollment's messages 3 and 5 (docs/internals/enrollment.md) of any revision. Any other counts as a first.
_STEPS = {b"\x03": 1, b"\x05": 2}


class ForeignPace:
    """The pace of each step."""

    def __init__(self) -> None:
        # When the datagrams so far would be through at RATE.
        self._until = [float("-inf")] * 3

    def admit(self, datagram: bytes, now: float) -> bool:
        """Tell whether one more may be looked at."""
        now = now // RUN * RUN
        step = _STEPS.get(datagram[4:5], 0)
        until = max(self._until[step], now) + 1 / RATE
        if until - now > BURST / RATE:
            return False
        self._until[step] = until
        return True
