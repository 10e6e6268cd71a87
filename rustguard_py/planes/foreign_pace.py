"""Limits how many enrollment datagrams reach Python: a rate per second for each of the three steps of a join.

In a flood, the threads that move packets must keep their share of the machine. But a crowd that joins at once is as
fast for a moment, retransmits every second, and must get through before it gives up. So the burst is large. Each step
has its own rate, so clients that were already answered don't wait for new ones, nor for a flood of first messages,
which anybody can send from forged addresses.
"""

from __future__ import annotations

# Datagrams per second and step.
RATE = 1000.0
# Datagrams at once per step.
BURST = 2048
# In a flood, datagrams are admitted in runs of this many seconds, so Python wakes up per run and not per datagram.
RUN = 0.02
# Enrollment messages 3 and 5 of any revision. All others count as a first message.
_STEPS = {b"\x03": 1, b"\x05": 2}


class ForeignPace:
    """A rate limit per step."""

    def __init__(self) -> None:
        # Per step, when the datagrams so far are handled at RATE.
        self._until = [float("-inf")] * 3

    def admit(self, datagram: bytes, now: float) -> bool:
        """Return whether this datagram may reach Python."""
        now = now // RUN * RUN
        step = _STEPS.get(datagram[4:5], 0)
        until = max(self._until[step], now) + 1 / RATE
        if until - now > BURST / RATE:
            return False
        self._until[step] = until
        return True
