"""Whether segmentation damages what it sends: decided from what the other end says has arrived.

The receiver counts (`Arrivals`) and reports, at first only when datagrams are missing. The sender (`PathWatch`) then
compares three runs: with segmentation, without it, and with it again. Only if both runs with it lose far more than
the one without, segmentation goes off for that path. All here is pure: times and counters go in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from rustguard_py.planes.contract import Flow

# Seconds between two looks at the counters while data moves.
LOOK = 0.25
# A receiver reports when so many datagrams are missing, and this part of those sent. It begins to count again after
# so many seconds.
_FEW, _PART, _FORGET = 3, 0.05, 2.0
# After such a report it reports at every look, for so many seconds.
_EAGER = 5.0
# Loss that deserves a trial: so many datagrams, and this part of those sent, within so many seconds.
_SUSPICIOUS, _SUSPICIOUS_PART, _WINDOW = 8, 0.1, 5.0
# Datagrams that a run without segmentation needs, and those after which a second run with it is found innocent.
_ENOUGH, _INNOCENT = 32, 200
# The loss without segmentation has to be this many times less, and the difference so many standard deviations.
_TIMES, _DEVIATIONS = 4, 6.0
# Seconds that a run may take, and between two trials: twice as long after each that showed nothing.
_PATIENCE, _PAUSE, _PAUSE_MOST = 5.0, 10.0, 320.0
# Seconds after which segmentation is tried again on a path where it is off.
OFF_FOR = 3600.0


class Arrivals:
    """What a receiver has seen of one session, and what of it is worth a report."""

    __slots__ = ("_at", "_eager_until", "_index", "_next", "_received")

    def __init__(self) -> None:
        self._index: int | None = None
        self._next = self._received = 0
        self._at = float("-inf")
        self._eager_until = float("-inf")

    def look(self, flow: Flow, now: float) -> tuple[int, int, int] | None:
        """Return what to report now: a first counter, the one after the last, and how many between arrived."""
        if flow.local_index != self._index:
            self._index = flow.local_index
            self._begin(flow, now)
            return None
        expected = flow.next - self._next
        missing = expected - (flow.received - self._received)
        if missing >= _FEW and missing >= _PART * expected:
            self._eager_until = now + _EAGER
        report = None
        if now < self._eager_until and expected > 0:
            report = (self._next, flow.next, max(0, expected - missing))
        if report is not None or now - self._at >= _FORGET:
            self._begin(flow, now)
        return report

    def _begin(self, flow: Flow, now: float) -> None:
        self._next, self._received, self._at = flow.next, flow.received, now


class Stage(Enum):
    """Whether segmentation is on for a path, or which step of a trial runs there."""

    ON = "on"
    WITHOUT = "a run without it"
    AGAIN = "a second run with it"
    OFF = "off"


@dataclass(slots=True)
class _Run:
    """What was sent in a run, and what of it is missing."""

    sent: int = 0
    lost: int = 0

    @property
    def loss(self) -> float:
        return self.lost / self.sent if self.sent else 0.0

    @property
    def suspicious(self) -> bool:
        return self.lost >= _SUSPICIOUS and self.loss >= _SUSPICIOUS_PART

    def __add__(self, other: _Run) -> _Run:
        return _Run(self.sent + other.sent, self.lost + other.lost)


class PathWatch:
    """Watches what arrives of what is sent to one peer over one tunnel.

    Attributes:
        stage: What the path's segmentation is.
        evidence: Why it is off, for people; empty while it isn't.
    """

    __slots__ = (
        "_began",
        "_first",
        "_host",
        "_index",
        "_old_index",
        "_pause",
        "_quiet_until",
        "_run",
        "_since",
        "_until",
        "_without",
        "evidence",
        "stage",
    )

    def __init__(self) -> None:
        self._host: str | None = None
        self._since: tuple[int, int] | None = None
        self._pause = _PAUSE
        self._quiet_until = self._until = self._began = float("-inf")
        self._run = self._first = self._without = _Run()
        self.evidence = ""
        self.stage = Stage.ON
        self._index: int | None = None
        self._old_index: int | None = None

    @property
    def segmenting(self) -> bool:
        """Whether the kernel may cut messages for this path now."""
        return self.stage in (Stage.ON, Stage.AGAIN)

    def look(self, flow: Flow | None, host: str | None, now: float) -> None:
        """Do what is due. Call it at each look, after `segmenting` was carried out.

        Args:
            flow: The session that sends.
            host: The address that it sends to: another one is another path.
            now: The time.
        """
        if host != self._host:
            self._host = host
            self._start_over(now)
        if self.stage is Stage.OFF:
            if now >= self._until:
                self._start_over(now)
        elif self.stage is not Stage.ON and now >= self._until:
            self._give_up(now)
        if flow is not None and flow.remote_index != self._index:
            self._old_index, self._index = self._index, flow.remote_index
        if self._since is None and flow is not None:
            # A look after the change: what was under way in the planes has been sent.
            self._since = (flow.remote_index, flow.sent)

    def arrived(self, index: int, first: int, stop: int, received: int, now: float) -> None:
        """Note a report. The stage may change.

        Args:
            index: The receiver index of the session.
            first: A counter.
            stop: The counter after the last.
            received: How many of those counters arrived.
            now: The time.
        """
        if self._since is None or index == self._old_index or received < 0:
            return
        sent = stop - first
        # The earlier datagrams of the session that was the current one then are those of another run.
        if sent <= 0 or (index == self._since[0] and first < self._since[1]):
            return
        if self.stage is Stage.ON and now - self._began > _WINDOW:
            self._run, self._began = _Run(), now
        # What arrives late can make it less than none.
        self._run += _Run(sent, max(0, sent - received))
        self._decide(now)

    def _decide(self, now: float) -> None:
        run = self._run
        if self.stage is Stage.ON:
            if run.suspicious and now >= self._quiet_until:
                self._first = run
                self._enter(Stage.WITHOUT, now)
        elif self.stage is Stage.WITHOUT and run.sent >= _ENOUGH:
            if run.loss * _TIMES > self._first.loss:
                self._give_up(now)
            else:
                self._without = run
                self._enter(Stage.AGAIN, now)
        elif self.stage is Stage.AGAIN:
            if run.suspicious and self._without.loss * _TIMES <= run.loss:
                both = self._first + run
                if _deviations(both, self._without) >= _DEVIATIONS:
                    self._turn_off(both, now)
            elif run.sent >= _INNOCENT:
                self._give_up(now)

    def _turn_off(self, cut: _Run, now: float) -> None:
        self._enter(Stage.OFF, now)
        self._until = now + OFF_FOR
        alone = self._without
        self.evidence = (
            f"of the datagrams that the kernel cut, {cut.lost} of {cut.sent} were lost, and {alone.lost} of "
            f"{alone.sent} that were sent one by one"
        )

    def _give_up(self, now: float) -> None:
        """Go on with segmentation: it isn't the reason, or too little was sent to know."""
        self._enter(Stage.ON, now)
        self._quiet_until = now + self._pause
        self._pause = min(2 * self._pause, _PAUSE_MOST)

    def _enter(self, stage: Stage, now: float) -> None:
        self.stage = stage
        self._since = None
        self._run, self._began = _Run(), now
        self._until = now + _PATIENCE

    def _start_over(self, now: float) -> None:
        self.evidence = ""
        self._first = self._without = _Run()
        self._quiet_until = float("-inf")
        self._pause = _PAUSE
        self._enter(Stage.ON, now)


def _deviations(one: _Run, other: _Run) -> float:
    """Return by how many standard deviations two losses differ, if both runs had the same chance of loss."""
    chance = (one.lost + other.lost) / (one.sent + other.sent)
    deviation = math.sqrt(chance * (1 - chance) * (1 / one.sent + 1 / other.sent))
    return (one.loss - other.loss) / deviation if deviation else math.inf
