"""The decision that segmentation damages a path, with the real counters of two ends and a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from rustguard_py.daemon.segmentation import LOOK, OFF_FOR, Arrivals, PathWatch, Stage
from rustguard_py.planes.contract import Flow

HOST = "192.0.2.7"
# Of datagrams that the kernel cut, and of those sent one by one: whether one is lost.
Fate = Callable[[bool, float], bool]


@dataclass
class Ends:
    """A sender whose datagrams go to a receiver, and the receiver's reports back.

    Attributes:
        fate: What happens to each datagram.
        rate: Datagrams sent per look, at a time.
        delayed: How many looks late the reports come.
    """

    fate: Fate
    rate: Callable[[float], int] = lambda _: 100
    now: float = 0.0
    sent: int = 0
    next: int = 0
    received: int = 0
    index: int = 5
    segmenting: bool = True
    turned_off: list[float] = field(default_factory=list)
    arrivals: Arrivals = field(default_factory=Arrivals)
    watch: PathWatch = field(default_factory=PathWatch)

    def look(self, host: str = HOST) -> None:
        self.watch.look(Flow(1, self.index, self.sent, 0, 0), host, self.now)
        self._obey()
        for _ in range(self.rate(self.now)):
            if not self.fate(self.segmenting, self.now):
                self.received += 1
                self.next = self.sent + 1
            self.sent += 1
        self.now += LOOK
        report = self.arrivals.look(Flow(self.index, 1, 0, self.next, self.received), self.now)
        if report is not None:
            self.watch.arrived(self.index, *report, self.now)
            self._obey()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.look()

    def rekey(self) -> None:
        self.index += 1
        self.sent = self.next = self.received = 0

    def _obey(self) -> None:
        if self.segmenting and self.watch.stage is Stage.OFF:
            self.turned_off.append(self.now)
        self.segmenting = self.watch.segmenting


def damaging(rest: float = 0.0, *, chance: float = 0.97, seed: int = 1) -> Fate:
    """Nearly all of what the kernel cuts is lost, and a part of the rest."""
    draw = random.Random(seed).random
    return lambda cut, _: draw() < (chance if cut else rest)


def losing(fraction: float, seed: int) -> Fate:
    draw = random.Random(seed).random
    return lambda _cut, _now: draw() < fraction


@pytest.mark.parametrize("rest", [0.0, 0.01, 0.05])
@pytest.mark.parametrize(
    ("chance", "rate", "seconds"),
    [(0.98, 12, 5), (0.98, 100, 5), (0.98, 5000, 5), (0.5, 100, 5), (0.5, 5000, 5), (0.5, 12, 60), (0.4, 100, 60)],
)
def test_where_segmentation_damages_it_is_off_soon(chance: float, rest: float, rate: int, seconds: float) -> None:
    ends = Ends(damaging(rest, chance=chance), lambda _: rate)
    ends.run(seconds)
    assert ends.watch.stage is Stage.OFF
    assert not ends.segmenting
    assert "were lost" in ends.watch.evidence


def test_a_damaged_tcp_stream_that_backs_off_is_enough() -> None:
    """It sends ten, of which one arrives, then one or two at each look; without segmentation it doubles."""
    window = 10

    def rate(_: float) -> int:
        nonlocal window
        window = 2 if ends.segmenting else min(2 * window, 400)
        return 10 if ends.now == 0 else window

    singles = 0

    def fate(cut: bool, _: float) -> bool:
        # Every third comes alone and isn't damaged.
        nonlocal singles
        singles += 1
        return cut and singles % 3 != 0

    ends = Ends(fate, rate)
    ends.run(10)
    assert ends.watch.stage is Stage.OFF
    print(f"off after {ends.turned_off[0]:.2f} s")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("rate", [3, 20, 200])
def test_random_loss_for_an_hour_is_no_reason(fraction: float, rate: int, soak: bool) -> None:
    for seed in range(3 if soak else 1):
        ends = Ends(losing(fraction, seed), lambda _: rate)
        for _ in range(30):
            ends.run(120)
            ends.rekey()
        assert ends.turned_off == []
        assert ends.watch.stage is not Stage.OFF


def test_loss_that_comes_and_goes_is_no_reason() -> None:
    """Nothing arrives for half a second, every few seconds, at random: a radio that fades."""
    for seed in range(20):
        draw = random.Random(seed)
        until, after = 0.0, 0.0

        def fate(_cut: bool, now: float, draw: random.Random = draw) -> bool:
            nonlocal until, after
            if now >= after:
                until, after = now + 0.5, now + draw.uniform(2, 8)
            return now < until

        ends = Ends(fate, lambda _: 50)
        ends.run(600)
        assert ends.turned_off == []


def test_a_link_that_is_full_is_no_reason() -> None:
    for seed in range(5):
        ends = Ends(losing(0.4, seed), lambda _: 300)
        ends.run(600)
        assert ends.turned_off == []


def test_after_an_hour_it_is_tried_again() -> None:
    ends = Ends(damaging())
    ends.run(5)
    [first] = ends.turned_off
    ends.run(OFF_FOR - 10)
    assert ends.watch.stage is Stage.OFF
    ends.run(15)
    assert len(ends.turned_off) == 2
    assert first + OFF_FOR < ends.turned_off[1] < first + OFF_FOR + 5


def test_where_it_was_repaired_meanwhile_it_stays_on() -> None:
    bad = damaging()
    ends = Ends(lambda cut, now: now < 1000 and bad(cut, now))
    ends.run(OFF_FOR + 60)
    assert (ends.watch.stage, len(ends.turned_off), ends.watch.evidence) == (Stage.ON, 1, "")


def test_another_address_is_another_path() -> None:
    ends = Ends(damaging())
    ends.run(5)
    ends.watch.look(None, "192.0.2.99", ends.now)
    assert ends.watch.segmenting


def test_a_new_session_in_the_middle_of_a_trial_confuses_nothing() -> None:
    ends = Ends(damaging(0.01))
    while ends.segmenting:
        ends.look()
    ends.rekey()
    ends.run(5)
    assert len(ends.turned_off) == 1


def test_reports_that_make_no_sense_change_nothing() -> None:
    watch = PathWatch()
    watch.look(Flow(1, 5, 0, 0, 0), HOST, 0.0)
    for first, stop, received in ((10, 10, 0), (10, 5, 0), (0, 100, -1), (2**63, 0, 2**63), (0, 100, 10**12)):
        watch.arrived(5, first, stop, received, 1.0)
    assert watch.stage is Stage.ON


def test_a_receiver_says_nothing_while_nothing_is_missing() -> None:
    arrivals = Arrivals()
    assert [arrivals.look(Flow(5, 1, 0, n * 100, n * 100), n * LOOK) for n in range(100)] == [None] * 100


def test_a_receiver_that_misses_some_reports_each_stretch_once() -> None:
    arrivals = Arrivals()
    arrivals.look(Flow(5, 1, 0, 0, 0), 0.0)
    assert arrivals.look(Flow(5, 1, 0, 10, 1), 0.25) == (0, 10, 1)
    assert arrivals.look(Flow(5, 1, 0, 10, 1), 0.5) is None
    assert arrivals.look(Flow(5, 1, 0, 30, 21), 0.75) == (10, 30, 20)
    assert arrivals.look(Flow(5, 1, 0, 60, 51), 9.0) is None


@pytest.mark.parametrize(
    ("sent", "missing", "reports"), [(60, 3, True), (61, 3, False), (20, 2, False), (20, 3, True)]
)
def test_a_receiver_reports_what_is_three_datagrams_and_a_twentieth(sent: int, missing: int, reports: bool) -> None:
    arrivals = Arrivals()
    arrivals.look(Flow(5, 1, 0, 0, 0), 0.0)
    found = arrivals.look(Flow(5, 1, 0, sent, sent - missing), LOOK)
    assert found == ((0, sent, sent - missing) if reports else None)


def test_a_receiver_does_not_add_up_what_was_missing_two_seconds_apart() -> None:
    arrivals = Arrivals()
    for at, sent, received in ((0.0, 0, 0), (0.25, 10, 8), (2.0, 10, 8), (2.25, 20, 16)):
        assert arrivals.look(Flow(5, 1, 0, sent, received), at) is None


def test_reports_of_a_peer_whose_address_is_not_known_are_taken() -> None:
    watch = PathWatch()
    watch.look(Flow(1, 5, 0, 0, 0), None, 0.0)
    for number in range(4):
        watch.arrived(5, number * 100, number * 100 + 100, 0, number / 4)
    assert watch.stage is not Stage.ON
