"""For which epochs the cookies and ephemeral keys of a server are good: this one, the one before, and no other."""

from __future__ import annotations

from random import Random

import pytest

from rustguard_py.enroll.pairing.cookies import Cookies
from rustguard_py.model.endpoint import Endpoint

HERE: Endpoint = ("192.0.2.7", 40000)
NONCE = bytes(16)


@pytest.mark.parametrize("first", [7, 0, 2**32 - 1])
def test_a_cookie_is_good_under_its_own_number_only_also_where_the_numbers_begin_again(first: int) -> None:
    cookies = Cookies(Random(0).randbytes, 0.0)
    cookies.epoch = first
    made = []
    for passed in range(3):
        cookies.rotate(120.0 * passed)
        assert cookies.epoch == (first + passed) % 2**32
        made.append(cookies.make(HERE, NONCE, NONCE, 0))
    good = {
        (age, number)
        for age, cookie in enumerate(made)
        for number in range(-2, 6)
        if cookies.check(cookie, (first + number) % 2**32, HERE, NONCE, NONCE, 0)
    }
    assert good == {(1, 1), (2, 2)}
    known = [cookies.ephemeral_of((first + number) % 2**32) for number in range(-2, 6)]
    assert [each is not None for each in known] == [False] * 3 + [True] * 2 + [False] * 3


def test_the_secret_is_replaced_when_it_is_due_and_not_sooner() -> None:
    cookies = Cookies(Random(0).randbytes, 5.0)
    assert cookies.due == 125.0
    before = cookies.gate(bytes(32))
    cookies.rotate(124.9)
    assert cookies.gate(bytes(32)) is before
    assert before.previous is None
    cookies.rotate(125.0)
    after = cookies.gate(bytes(32))
    assert after.previous == before.current
    assert (after.current.number, cookies.due) == ((before.current.number + 1) % 2**32, 245.0)
