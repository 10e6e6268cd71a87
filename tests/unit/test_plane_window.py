"""The replay window, with the cases of the kernel's selftest (drivers/net/wireguard/selftest/counter.c)."""

from __future__ import annotations

import random

import pytest

from rustguard_py.model.timers import REJECT_AFTER_MESSAGES as REJECT
from rustguard_py.planes.replay_window import WINDOW_SIZE, ReplayWindow

OVER = WINDOW_SIZE + 1


def take(window: ReplayWindow, counter: int) -> bool:
    if not window.fresh(counter):
        return False
    window.mark(counter)
    return True


def test_the_window_is_no_smaller_than_8192() -> None:
    assert WINDOW_SIZE >= 8192


@pytest.mark.fault(31)
def test_the_kernels_34_cases_in_their_order() -> None:
    window = ReplayWindow()
    cases = [
        (0, True), (1, True), (1, False), (9, True), (8, True), (7, True), (7, False),
        (OVER, True), (OVER - 1, True), (OVER - 1, False), (OVER - 2, True), (2, True), (2, False),
        (OVER + 16, True), (3, False), (OVER + 16, False),
        (OVER * 4, True), (OVER * 4 - (OVER - 1), True), (10, False), (OVER * 4 - OVER, False),
        (OVER * 4 - (OVER + 1), False), (OVER * 4 - (OVER - 2), True), (OVER * 4 + 1 - OVER, False), (0, False),
        (REJECT, False), (REJECT - 1, True), (REJECT, False), (REJECT - 1, False), (REJECT - 2, True),
        (REJECT + 1, False), (REJECT + 2, False), (REJECT - 2, False), (REJECT - 3, True), (0, False),
    ]  # fmt: skip
    assert [take(window, counter) for counter, _ in cases] == [good for _, good in cases]
    print(f"row 31: {len(cases)} of {len(cases)} single window cases of the kernel's selftest")


@pytest.mark.parametrize(
    ("order", "then"),
    [
        (range(1, WINDOW_SIZE + 1), [(0, True), (0, False)]),
        (range(2, WINDOW_SIZE + 2), [(1, True), (0, False)]),
        (range(WINDOW_SIZE, -1, -1), []),
        (range(WINDOW_SIZE + 1, 0, -1), [(0, False)]),
        (range(WINDOW_SIZE, 0, -1), [(WINDOW_SIZE + 1, True), (0, False)]),
        (range(WINDOW_SIZE, 0, -1), [(0, True), (WINDOW_SIZE + 1, True)]),
    ],
)
def test_the_kernels_six_sweeps(order: range, then: list[tuple[int, bool]]) -> None:
    window = ReplayWindow()
    assert all(take(window, counter) for counter in order)
    assert [take(window, counter) for counter, _ in then] == [good for _, good in then]


def test_runs_and_single_counters_agree_with_a_plain_set() -> None:
    dice = random.Random(5)
    window, top = ReplayWindow(), -1
    seen: set[int] = set()
    for _ in range(3000):
        if dice.random() < 0.5:
            first = window.next + dice.choice((0, 0, 0, 1, 7, 300, 20_000))
            count = dice.randint(1, 64)
            assert all(window.fresh(counter) for counter in range(first, first + count))
            window.mark_run(first, count)
            seen.update(range(first, first + count))
            top = first + count - 1
        counter = max(0, top - dice.randint(-3, WINDOW_SIZE + 5))
        assert take(window, counter) == (counter not in seen and counter >= top - WINDOW_SIZE)
        if counter >= top - WINDOW_SIZE:
            seen.add(counter)
            top = max(top, counter)
