"""When to look at what we set, and what to put back, under a virtual clock."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.daemon.reconciler import (
    LEAST,
    LOOK_EACH,
    MOST,
    PERIOD,
    SETTLE,
    TRY_AGAIN,
    Reconciler,
)

THINGS = ("the address", "the route", "the rule")


def look(reconciler: Reconciler, missing: set[str], now: float, by: str | None = None) -> list[str]:
    """Look, and put back whatever is to be put back."""
    reconciler.begin_look(now)
    wanted = reconciler.decide(sorted(missing), now, by=by)
    for each in wanted:
        reconciler.put_back(each, None)
    reconciler.end_look(missing, now)
    return wanted


def test_without_a_change_it_looks_each_30_seconds() -> None:
    reconciler = Reconciler(100.0)
    assert reconciler.poll_timeout() == 100.0 + LOOK_EACH
    look(reconciler, set(), 130.0)
    assert reconciler.poll_timeout() == 130.0 + LOOK_EACH


def test_after_a_change_it_looks_soon_and_a_storm_of_changes_does_not_delay_or_multiply_looks() -> None:
    reconciler = Reconciler(0.0)
    at, looks = 10.0, []
    reconciler.changed(at)
    assert reconciler.poll_timeout() == 10.0 + SETTLE
    while at < 20.0:
        reconciler.changed(at)
        if reconciler.poll_timeout() <= at:
            looks.append(at)
            look(reconciler, set(), at)
        at += 0.01
    assert len(looks) <= 10.0 / LEAST + 1
    assert max(after - before for before, after in pairwise(looks)) < 1.0


@pytest.mark.parametrize("took", [0.05, 2.0])
def test_a_change_during_a_look_is_looked_at_after_it(took: float) -> None:
    reconciler = Reconciler(0.0)
    reconciler.begin_look(10.0)
    reconciler.changed(10.04)
    reconciler.end_look((), 10.0 + took)
    assert reconciler.poll_timeout() == 10.0 + took + LEAST
    # What changed before the look, it has seen.
    reconciler.changed(20.0)
    reconciler.begin_look(20.1)
    reconciler.end_look((), 20.2)
    assert reconciler.poll_timeout() == 20.1 + LOOK_EACH


def test_what_is_missing_is_put_back_at_once_with_the_cause() -> None:
    reconciler = Reconciler(0.0)
    assert look(reconciler, {"the rule"}, 1.0, by="networkd") == ["the rule"]
    record = reconciler.records["the rule"]
    assert (record.times, record.last, record.by, record.waits_until) == (1, 1.0, "networkd", None)


def test_a_thing_that_is_removed_again_and_again_waits_and_the_others_do_not() -> None:
    reconciler = Reconciler(0.0)
    for number in range(MOST):
        assert look(reconciler, {"the rule"}, float(number))
    assert look(reconciler, {"the rule", "the route"}, 10.0) == ["the route"]
    assert reconciler.records["the rule"].waits_until == PERIOD
    # It looks again when the time has come, with no change needed.
    look(reconciler, {"the rule"}, 31.0)
    assert reconciler.poll_timeout() == PERIOD
    assert look(reconciler, {"the rule"}, PERIOD) == ["the rule"]
    assert reconciler.records["the rule"].waits_until is None


def test_what_is_there_again_by_itself_no_longer_waits() -> None:
    reconciler = Reconciler(0.0)
    for number in range(MOST + 1):
        look(reconciler, {"the rule"}, float(number))
    look(reconciler, set(), 20.0)
    assert reconciler.records["the rule"].waits_until is None


def test_what_could_not_be_put_back_is_tried_again_soon() -> None:
    reconciler = Reconciler(0.0)
    [thing] = reconciler.decide(["the address"], 1.0)
    reconciler.put_back(thing, "IPv6 is switched off")
    reconciler.end_look({thing}, 1.0)
    assert reconciler.poll_timeout() == 1.0 + TRY_AGAIN
    assert reconciler.records[thing].refused == "IPv6 is switched off"
    look(reconciler, {thing}, 6.0)
    assert reconciler.records[thing].refused is None


def test_what_happened_an_hour_ago_is_forgotten() -> None:
    reconciler = Reconciler(0.0)
    look(reconciler, {f"route {number}" for number in range(5000)}, 1.0)
    look(reconciler, {"the rule"}, PERIOD + 2.0)
    assert len(reconciler.records) <= 1000
    assert "the rule" in reconciler.records
    look(reconciler, set(), PERIOD + 3599.0)
    assert set(reconciler.records) == {"the rule"}
    look(reconciler, set(), PERIOD + 3603.0)
    assert reconciler.records == {}


@pytest.mark.fault(44)
@given(st.lists(st.tuples(st.floats(0.0, 40.0), st.sets(st.sampled_from(THINGS))), max_size=150))
def test_no_thing_is_put_back_more_often_than_allowed_nor_left_for_longer_than_a_period(
    removals: list[tuple[float, set[str]]],
) -> None:
    """Another program removes things at random; a look comes whenever the reconciler asks for one."""
    now, missing = 0.0, set[str]()
    reconciler = Reconciler(now)
    put_back: dict[str, list[float]] = defaultdict(list)
    since: dict[str, float] = {}

    def look_until(end: float) -> None:
        nonlocal now
        while (due := reconciler.poll_timeout()) <= end:
            now = max(now, due)
            for each in look(reconciler, missing, now):
                put_back[each].append(now)
                assert now - since.pop(each) <= PERIOD + SETTLE + LEAST
                missing.discard(each)

    for pause, gone in removals:
        look_until(now + pause)
        now += pause
        for each in gone:
            missing.add(each)
            since.setdefault(each, now)
        reconciler.changed(now)
    look_until(now + PERIOD + LEAST + SETTLE)
    assert missing == set()
    for times in put_back.values():
        for first, later in zip(times, times[MOST:], strict=False):
            assert later - first >= PERIOD
