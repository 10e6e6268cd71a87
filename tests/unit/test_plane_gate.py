"""Which datagrams cost Python a Diffie-Hellman, and which don't."""

from __future__ import annotations

import itertools
import os

import pytest

from rustguard_py.planes import gate as limits
from rustguard_py.planes.contract import HandshakeReceived
from rustguard_py.planes.gate import (
    BURST,
    HANDSHAKE_QUEUE,
    LOADED_QUEUE,
    SOURCES,
    Gate,
    SourceBudget,
    Verdict,
    source_network,
)
from rustguard_py.protocol import cookie, wire
from support.memory_plane import MemoryPlane

KEY = b"k" * 32
HERE = ("192.0.2.7", 1000)


def initiation(given: bytes | None = None, *, key: bytes = KEY) -> bytes:
    message = wire.Initiation(5, os.urandom(32), os.urandom(48), os.urandom(28)).encode()
    return cookie.add_macs(message, cookie.mac1_key(key), given)


def taste(reply: bytes, sent: bytes) -> bytes:
    """The cookie in a reply, as the sender of `sent` gets it out."""
    parsed = wire.parse_cookie_reply(reply)
    assert parsed is not None
    given = cookie.open_cookie(parsed, sent[-32:-16], cookie.cookie_key(KEY))
    assert given is not None
    return given


def test_mac1_decides_before_anything_else() -> None:
    gate = Gate(KEY, os.urandom)
    assert gate.judge(initiation(), HERE, 0, 0.0) is Verdict.PASS
    assert gate.judge(initiation(key=b"z" * 32), HERE, 0, 0.0) is Verdict.BAD_MAC1
    assert gate.judge(initiation()[:-1], HERE, 0, 0.0) is Verdict.BAD_LENGTH


def test_under_load_everybody_is_challenged_and_a_cookie_opens() -> None:
    gate = Gate(KEY, os.urandom)
    first = initiation()
    assert gate.judge(first, HERE, LOADED_QUEUE - 1, 0.0) is Verdict.PASS
    assert gate.judge(first, HERE, LOADED_QUEUE, 0.0) is Verdict.CHALLENGE
    reply = gate.challenge(first, HERE, 0.0)
    assert len(reply) == wire.COOKIE_REPLY_SIZE < len(first)
    given = taste(reply, first)
    assert gate.judge(initiation(given), HERE, LOADED_QUEUE, 0.1) is Verdict.PROVEN
    assert gate.judge(initiation(given), ("192.0.2.8", 1000), LOADED_QUEUE, 0.1) is Verdict.CHALLENGE
    assert gate.judge(initiation(given), ("192.0.2.7", 1001), LOADED_QUEUE, 0.1) is Verdict.CHALLENGE


def test_load_lasts_a_second_beyond_the_queue() -> None:
    gate = Gate(KEY, os.urandom)
    assert LOADED_QUEUE == HANDSHAKE_QUEUE // 8
    gate.judge(initiation(), HERE, LOADED_QUEUE, 0.0)
    assert gate.judge(initiation(), HERE, 0, 0.99) is Verdict.CHALLENGE
    assert gate.judge(initiation(), HERE, 0, 1.0) is Verdict.PASS


def test_load_goes_on_as_long_as_it_would_come_again() -> None:
    gate = Gate(KEY, os.urandom)
    sources = ((f"198.51.{number // 256}.{number % 256}", 1000) for number in itertools.count())

    def judge(backlog: int, now: float) -> Verdict:
        return gate.judge(initiation(), next(sources), backlog, now)

    # One too few more for another second of it, then just enough.
    for began, more, after in ((0.0, LOADED_QUEUE - 2, Verdict.PASS), (2.0, LOADED_QUEUE - 1, Verdict.CHALLENGE)):
        judge(LOADED_QUEUE, began)
        assert {judge(0, began + 0.9) for _ in range(more)} == {Verdict.CHALLENGE}
        assert judge(0, began + 1.5) is after
    assert judge(0, 3.91) is Verdict.PASS


def test_a_cookie_is_good_for_its_epoch_and_the_next() -> None:
    gate = Gate(KEY, os.urandom)
    sent = initiation()
    given = taste(gate.challenge(sent, HERE, 0.0), sent)
    assert gate.judge(initiation(given), HERE, LOADED_QUEUE, 119.0) is Verdict.PROVEN
    assert gate.judge(initiation(given), HERE, LOADED_QUEUE, 130.0) is Verdict.PROVEN
    assert gate.judge(initiation(given), HERE, LOADED_QUEUE, 250.0) is Verdict.CHALLENGE


@pytest.mark.fault(16)
def test_one_flooding_source_is_challenged_and_no_other_ever_is() -> None:
    gate = Gate(KEY, os.urandom)
    passed = challenged = 0
    for step in range(10_000):
        verdict = gate.judge(initiation(), HERE, 0, step / 50_000)
        passed += verdict is Verdict.PASS
        challenged += verdict is Verdict.CHALLENGE
        if step % 100 == 0:
            other = (f"198.51.{step // 25600}.{step // 100 % 256}", 1000)
            assert gate.judge(initiation(), other, 0, step / 50_000) is Verdict.PASS
    assert passed <= BURST + 20 * 0.2 + 1
    assert passed + challenged == 10_000
    print(f"row 16: {passed} of 10,000 in 0.2 s passed from the flooding source, 100 others never challenged")


def test_a_flood_in_anothers_name_does_not_lock_the_other_out() -> None:
    gate = Gate(KEY, os.urandom)
    for _ in range(100):
        gate.judge(initiation(), HERE, 0, 0.0)
    sent = initiation()
    assert gate.judge(sent, HERE, 0, 0.0) is Verdict.CHALLENGE
    given = taste(gate.challenge(sent, HERE, 0.0), sent)
    verdicts = [gate.judge(initiation(given), HERE, 0, 0.0) for _ in range(BURST + 1)]
    assert verdicts == [Verdict.PROVEN] * BURST + [Verdict.TOO_OFTEN]


def test_a_budget_is_20_a_second_after_5_at_once() -> None:
    budget = SourceBudget()
    assert [budget.spend("a", 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert sum(budget.spend("a", step / 1000) for step in range(1, 10_001)) == 200


def test_a_budget_belongs_to_an_ipv4_address_or_an_ipv6_64() -> None:
    same = source_network(("2001:db8:0:1::5", 1, 0, 0))
    assert source_network(("2001:db8:0:1:ffff::9", 2, 0, 0)) == same
    assert source_network(("2001:db8:0:2::5", 1, 0, 0)) != same
    assert source_network(("192.0.2.1", 1)) != source_network(("192.0.2.2", 1))


def test_made_up_sources_take_a_bounded_memory() -> None:
    budget = SourceBudget()
    granted = sum(budget.spend(number.to_bytes(8, "big"), 0.0) for number in range(SOURCES * 3))
    assert granted == SOURCES
    assert len(budget._full_at) == SOURCES
    assert budget.spend("later", 1.0)


def test_full_buckets_are_searched_for_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOURCES", 4)
    budget = SourceBudget()
    for began in (0.0, 1.0):
        # Their buckets are full again 0.05 s later, but a search has just found none.
        assert [budget.spend(f"{began}-{number}", began) for number in range(5)] == [True] * 4 + [False]
        assert not budget.spend("early", began + 0.099)
        assert budget.spend("late", began + 0.101)


@pytest.mark.parametrize("size", range(0, 200, 7))
def test_no_length_of_a_handshake_raises(size: int) -> None:
    plane = MemoryPlane(KEY)
    for kind in range(6):
        plane.datagram_in((bytes([kind]) + bytes(3) + os.urandom(200))[:size], HERE)
    assert plane.events == []


def test_a_plane_answers_a_challenge_and_passes_a_cookie_reply_only_for_its_own_index() -> None:
    backlog = [LOADED_QUEUE]
    plane = MemoryPlane(KEY, backlog=lambda: backlog[0])
    sent = initiation()
    plane.datagram_in(sent, HERE)
    ((to, reply),) = plane.take_outgoing()
    assert to == HERE
    assert plane.events == []
    backlog[0] = 0
    plane.advance(5.0)
    plane.datagram_in(initiation(taste(reply, sent)), HERE)
    assert len(plane.take_events()) == 1
    index = plane.reserve_index(1)
    theirs = cookie.cookie_reply(index, b"c" * 16, b"m" * 16, b"k" * 32, os.urandom)
    stray = cookie.cookie_reply(index ^ 1, b"c" * 16, b"m" * 16, b"k" * 32, os.urandom)
    plane.datagram_in(theirs, HERE)
    plane.datagram_in(stray, HERE)
    assert plane.events == [HandshakeReceived(theirs, HERE, proven=True)]
