"""The pairing window's clock, bounds and guess budgets."""

import math
from ipaddress import ip_address, ip_network

import pytest

from rustguard_py.enroll.pairing.window import Closed, Limits, Window
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
        window.charge("192.0.2.1/32", 0.0)
    assert not window.may_guess("192.0.2.1/32", 0.0)
    assert window.may_guess("192.0.2.2/32", 0.0)
    assert window.state(0.0).blocked == ("192.0.2.1/32",)
    assert window.state(0.0).guessing_sources == 1


def test_twenty_guesses_slow_the_window_down_to_a_turn_each_ten_seconds() -> None:
    window = Window()
    window.open(60, 0.0)
    for number in range(20):
        assert window.turn == -math.inf
        window.charge(f"192.0.2.{number}/32", 0.5)
    state = window.state(0.5)
    assert (state.is_open, state.guesses, state.guesses_allowed, state.guessing_sources) == (True, 20, 20, 20)
    assert state.closed is None
    assert window.turn == 10.5
    window.charge("192.0.2.77/32", 14.0)
    assert window.turn == 24.0
    window.open(60, 15.0)
    assert window.turn == -math.inf


def test_a_refund_gives_a_try_back() -> None:
    window = Window()
    window.open(60, 0.0)
    for _ in range(3):
        window.charge("192.0.2.1/32", 0.0)
    assert window.refund("192.0.2.1/32") == GuessRecord(1, 2, {"192.0.2.1/32": 2})
    assert window.may_guess("192.0.2.1/32", 0.0)


def test_a_crash_resets_nothing_and_a_person_does() -> None:
    window = Window()
    window.open(60, 0.0)
    for number in range(19):
        record = window.charge(f"192.0.2.{number % 7}/32", 0.0)
    crashed = Window(record)
    assert not crashed.is_open(0.0)
    crashed.resume(60, 0.0)
    assert crashed.is_open(0.0)
    assert (crashed.number, crashed.state(0.0).guesses) == (1, 19)
    assert not crashed.may_guess("192.0.2.1/32", 0.0)
    assert crashed.turn == -math.inf
    record = crashed.charge("192.0.2.9/32", 0.0)
    again = Window(record)
    again.resume(60, 100.0)
    assert (again.is_open(100.0), again.state(100.0).guesses, again.number) == (True, 20, 1)
    # When the last turn was isn't known.
    assert again.turn == 110.0
    again.open(60, 0.0)
    assert (again.number, again.state(0.0).guesses, again.is_open(0.0)) == (2, 0, True)


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_window_that_ended_leaves_no_debt(by_hand: bool) -> None:
    window = Window()
    window.open(60, 0.0)
    window.charge("192.0.2.1/32", 0.0)
    if by_hand:
        window.close()
    assert not window.is_open(60.0)
    assert window.state(60.0).guesses == 1
    later = Window(window.record)
    later.resume(60, 0.0)
    assert later.is_open(0.0)
    assert (later.number, later.state(0.0).guesses) == (2, 0)


def test_a_record_of_an_earlier_version_that_had_closed_over_guesses_goes_on_slowly() -> None:
    kept = {"window": 4, "used": 20, "by_source": {f"192.0.2.{n}/32": 2 for n in range(10)}}
    window = Window(GuessRecord.from_json(kept))
    window.resume(60, 0.0)
    assert (window.is_open(0.0), window.number, window.turn) == (True, 4, 10.0)
    assert window.record.to_json() == kept


def test_only_the_networks_named_may_try_and_only_in_that_window() -> None:
    window = Window()
    window.open(60, 0.0, Limits((ip_network("192.0.2.0/24"), ip_network("2001:db8:1::/48"))))
    inside = ["192.0.2.1", "192.0.2.255", "2001:db8:1:2::3"]
    outside = ["192.0.3.1", "2001:db8:2::1", "::ffff:192.0.2.1"]
    assert [window.allows(ip_address(each)) for each in inside + outside] == [True] * 3 + [False] * 3
    window.charge("192.0.2.1/32", 0.0)
    crashed = Window(GuessRecord.from_json(window.record.to_json()))
    crashed.resume(60, 0.0)
    assert crashed.state(0.0).limits == window.state(0.0).limits
    assert not crashed.allows(ip_address("192.0.3.1"))
    window.open(60, 1.0)
    assert window.allows(ip_address("192.0.3.1"))
    assert window.state(1.0).limits == Limits()


def test_new_peers_are_counted_over_a_crash_and_from_zero_in_the_next_window() -> None:
    window = Window()
    window.open(60, 0.0)
    assert [window.admit_new() for _ in range(51)] == [True] * 50 + [False]
    window.forget_new(window.number)
    window.forget_new(window.number + 1)
    crashed = Window(GuessRecord.from_json(window.record.to_json()))
    crashed.resume(60, 0.0)
    assert [crashed.admit_new() for _ in range(2)] == [True, False]
    crashed = Window(crashed.record)
    crashed.resume(60, 0.0, most=52)
    assert [crashed.admit_new() for _ in range(3)] == [True, True, False]
    crashed.open(60, 0.0, Limits(most=1))
    assert [crashed.admit_new() for _ in range(2)] == [True, False]
    crashed.close()
    assert crashed.record == GuessRecord(2)
