"""When a peer needs a keepalive or has fallen silent (whitepaper section 6.5; the kernel's timers.c).

Each peer has four timers of its own; `Deadlines` finds the next one of all peers without a tick. A peer that
neither sends nor receives has no timer set and costs nothing.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

from rustguard_py.model.timers import KEEPALIVE_TIMEOUT, REKEY_TIMEOUT

# Data was sent, and nothing heard, for this long: the session is taken for lost.
NO_ANSWER_TIMEOUT = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
# Up to this much is added by chance, so that both ends do not start a handshake at the same moment.
NO_ANSWER_JITTER = 0.334
NEVER = float("inf")


class Liveness:
    """The timers of one peer. Call the methods as things happen; `due` says which timers ran out.

    Attributes:
        keepalive_at: Send an empty datagram: data came, and nothing was sent since. Or NEVER.
        no_answer_at: Start a handshake: data was sent, and nothing came since. Or NEVER.
        persistent_at: Send an empty datagram, whatever happened. Or NEVER.
        report_at: Tell Python where the peer is now. Or NEVER.
        interval: Seconds of the persistent keepalive, 0 for none.
        jitter: Added to NO_ANSWER_TIMEOUT, up to NO_ANSWER_JITTER; drawn anew for each session.
        scheduled_at: The earliest time at which `Deadlines` will look at this peer, or NEVER.
    """

    __slots__ = (
        "_another",
        "interval",
        "jitter",
        "keepalive_at",
        "no_answer_at",
        "persistent_at",
        "report_at",
        "scheduled_at",
    )

    def __init__(self) -> None:
        self.keepalive_at = NEVER
        self.no_answer_at = NEVER
        self.persistent_at = NEVER
        self.report_at = NEVER
        self.scheduled_at = NEVER
        self.interval = 0
        self.jitter = 0.0
        self._another = False

    def sent(self, now: float, *, data: bool) -> None:
        """An authenticated datagram went out; `data` unless it was a keepalive or a handshake."""
        self.keepalive_at = NEVER
        if self.interval:
            self.persistent_at = now + self.interval
        if data and self.no_answer_at == NEVER:
            self.no_answer_at = now + NO_ANSWER_TIMEOUT + self.jitter

    def received(self, now: float, *, data: bool) -> None:
        """An authenticated datagram came in; `data` unless it was a keepalive or a handshake."""
        self.no_answer_at = NEVER
        if self.interval:
            self.persistent_at = now + self.interval
        if not data:
            return
        if self.keepalive_at == NEVER:
            self.keepalive_at = now + KEEPALIVE_TIMEOUT
        else:
            self._another = True

    def keepalive_ran_out(self, now: float) -> None:
        """The keepalive went out. If more data had come while it was pending, there will be another."""
        self.keepalive_at = now + KEEPALIVE_TIMEOUT if self._another else NEVER
        self._another = False

    def stop(self) -> None:
        """Stop the timers of a session: none is left."""
        self.keepalive_at = self.no_answer_at = NEVER
        self._another = False

    @property
    def deadline(self) -> float:
        """The next of the four, or NEVER."""
        return min(self.keepalive_at, self.no_answer_at, self.persistent_at, self.report_at)


T = TypeVar("T")


class Deadlines(Generic[T]):
    """The next deadline over all peers: a heap whose stale entries are left until they surface.

    A timer that moves later (each packet moves the persistent one) touches nothing: the old entry surfaces, is
    found to be early, and goes back with the right time. Only a timer that moves earlier adds an entry.
    """

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T, Liveness]] = []
        self._order = 0

    def schedule(self, owner: T, liveness: Liveness) -> None:
        """Call after a timer of `owner` may have been set."""
        deadline = liveness.deadline
        if deadline < liveness.scheduled_at:
            liveness.scheduled_at = deadline
            self._order += 1
            heapq.heappush(self._heap, (deadline, self._order, owner, liveness))

    def next(self) -> float | None:
        """Give the time to call `due`, or None. It may be early, never late."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[T]:
        """Take out the owners that have a timer at or before `now`; schedule each again afterwards."""
        owners = []
        while self._heap and self._heap[0][0] <= now:
            at, _, owner, liveness = heapq.heappop(self._heap)
            if at != liveness.scheduled_at:
                continue
            liveness.scheduled_at = NEVER
            if liveness.deadline <= now:
                owners.append(owner)
            else:
                self.schedule(owner, liveness)
        return owners
