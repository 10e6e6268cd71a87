"""When a peer needs a keepalive or is silent (whitepaper section 6.5; the kernel's timers.c).

Each peer has four timers. `Deadlines` finds the next one of all peers without a periodic tick. A peer that neither
sends nor receives has no timer set and costs nothing.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

from rustguard_py.model.timers import KEEPALIVE_TIMEOUT, REKEY_TIMEOUT

# If data was sent and nothing came for this long, the session is considered lost.
NO_ANSWER_TIMEOUT = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
# A random time of up to this is added, so that both ends don't start a handshake at once.
NO_ANSWER_JITTER = 0.334
NEVER = float("inf")


class Liveness:
    """The timers of one peer. Call its methods as things happen; `Deadlines.due` finds the timers that ran out.

    Attributes:
        keepalive_at: When to send a keepalive, because data came and nothing was sent since; or NEVER.
        no_answer_at: When to start a handshake, because data was sent and nothing came since; or NEVER.
        persistent_at: When to send the next persistent keepalive, or NEVER.
        report_at: When to tell Python where the peer is now, or NEVER.
        interval: Seconds between persistent keepalives, 0 for none.
        jitter: Random time added to NO_ANSWER_TIMEOUT, up to NO_ANSWER_JITTER; a new one per session.
        scheduled_at: The earliest time at which `Deadlines` looks at this peer, or NEVER.
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
        """Note that an authenticated datagram was sent; `data` unless a keepalive or a handshake."""
        self.keepalive_at = NEVER
        if self.interval:
            self.persistent_at = now + self.interval
        if data and self.no_answer_at == NEVER:
            self.no_answer_at = now + NO_ANSWER_TIMEOUT + self.jitter

    def received(self, now: float, *, data: bool) -> None:
        """Note that an authenticated datagram came; `data` unless a keepalive or a handshake."""
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
        """Note that the keepalive was sent. If more data came while it was pending, another will follow."""
        self.keepalive_at = now + KEEPALIVE_TIMEOUT if self._another else NEVER
        self._another = False

    def stop(self) -> None:
        """Stop the timers of a session: none is left."""
        self.keepalive_at = self.no_answer_at = NEVER
        self._another = False

    @property
    def deadline(self) -> float:
        """The earliest of the four times, or NEVER."""
        return min(self.keepalive_at, self.no_answer_at, self.persistent_at, self.report_at)


T = TypeVar("T")


class Deadlines(Generic[T]):
    """The next deadline over all peers: a heap whose stale entries stay until they reach the top.

    A timer that moves later (each packet moves the persistent one) changes nothing in the heap: its old entry reaches
    the top too early and goes back with the right time. Only a timer that moves earlier adds an entry.
    """

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T, Liveness]] = []
        self._order = 0

    def schedule(self, owner: T, liveness: Liveness) -> None:
        """Note the deadline of `owner`. Call it when a timer may have been set."""
        deadline = liveness.deadline
        if deadline < liveness.scheduled_at:
            liveness.scheduled_at = deadline
            self._order += 1
            heapq.heappush(self._heap, (deadline, self._order, owner, liveness))

    def next(self) -> float | None:
        """Return the time to call `due`, or None. It may be early, never late."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[T]:
        """Remove and return the owners with a timer at or before `now`. Schedule each again afterwards."""
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
