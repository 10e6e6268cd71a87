"""The pairing window's clock, bounds and guess budgets."""

import math

import pytest

from rustguard_py.enroll.pairing.window import Closed, Window
from rustguard_py.model.errors import UsageError
from rustguard_py.state.records import GuessRecord


def test_it_is_closed_until_opened_and_closes_on_time() -> None:
    window = Window()
    assert not window.is_open(0)
    assert window.state(0).closed is Closed.NEVER_OPENED
    window.open(60, 100.0)
    assert window.remaining(100.0) == 60
    assert window.is_open(159.999)
    assert window.ends == 160.0
    assert not window.is_open(160.0)
    assert window.remaining(160.0) == 0
    assert window.state(160.0).closed is Closed.TIME
    # A clock that is read out of order reopens nothing.
    assert not window.is_open(100.0)


def test_open_replaces_what_is_left() -> None:
    window = Window()
    window.open(60, 0.0)
    window.open(5, 1.0)
    assert window.remaining(1.0) == 5
    assert window.number == 2


def test_close_closes() -> None:
    window = Window()
    window.open(60, 0.0)
    window.close()
    assert window.state(1.0).closed is Closed.PERSON
    window.close()
    assert window.state(1.0).remaining == 0


@pytest.mark.parametrize("seconds", [9223372036854775807, 10**400, 86_401, 0, -1, math.nan, math.inf])
@pytest.mark.parametrize("method", ["open", "resume"])
def test_seconds_out_of_bounds_are_refused_with_the_bound(method: str, seconds: float) -> None:
    window = Window()
    with pytest.raises(UsageError, match="86400 seconds") as caught:
        getattr(window, method)(seconds, 0.0)
    assert caught.value.fix
    assert not window.is_open(0.0)
    assert window.number == 0


def test_three_guesses_a_source_then_it_is_not_heard() -> None:
    window = Window()
    window.open(60, 0.0)
    for _ in range(3):
        assert window.may_guess("192.0.2.1/32", 0.0)
        window.charge("192.0.2.1/32")
    assert not window.may_guess("192.0.2.1/32", 0.0)
    assert window.may_guess("192.0.2.2/32", 0.0)
    assert window.state(0.0).blocked == ("192.0.2.1/32",)


def test_twenty_guesses_close_the_window_and_it_says_why() -> None:
    window = Window()
    window.open(60, 0.0)
    for number in range(20):
        assert window.is_open(0.0)
        window.charge(f"192.0.2.{number}/32")
    state = window.state(0.0)
    assert (state.is_open, state.guesses, state.guesses_allowed, state.closed) == (False, 20, 20, Closed.GUESSES)


def test_a_refund_gives_a_try_back() -> None:
    window = Window()
    window.open(60, 0.0)
    for _ in range(3):
        window.charge("192.0.2.1/32")
    assert window.refund("192.0.2.1/32") == GuessRecord(1, 2, {"192.0.2.1/32": 2})
    assert window.may_guess("192.0.2.1/32", 0.0)


def test_a_crash_resets_nothing_and_a_person_does() -> None:
    window = Window()
    window.open(60, 0.0)
    for number in range(19):
        record = window.charge(f"192.0.2.{number % 7}/32")
    crashed = Window(record)
    assert not crashed.is_open(0.0)
    assert crashed.resume(60, 0.0)
    assert (crashed.number, crashed.state(0.0).guesses) == (1, 19)
    assert not crashed.may_guess("192.0.2.1/32", 0.0)
    record = crashed.charge("192.0.2.9/32")
    again = Window(record)
    assert not again.resume(60, 0.0)
    assert again.state(0.0).closed is Closed.GUESSES
    again.open(60, 0.0)
    assert (again.number, again.state(0.0).guesses, again.is_open(0.0)) == (2, 0, True)


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_window_that_ended_leaves_no_debt(by_hand: bool) -> None:
    window = Window()
    window.open(60, 0.0)
    window.charge("192.0.2.1/32")
    if by_hand:
        window.close()
    assert not window.is_open(60.0)
    assert window.state(60.0).guesses == 1
    later = Window(window.record)
    assert later.resume(60, 0.0)
    assert (later.number, later.state(0.0).guesses) == (2, 0)
