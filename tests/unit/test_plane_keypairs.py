"""Which session sends and which receives."""

from __future__ import annotations

import pytest

from rustguard_py.model.timers import (
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
)
from rustguard_py.planes.contract import Keypair
from rustguard_py.planes.keypairs import WARM_SESSIONS, Keypairs, Session, WarmSessions


def session(number: int = 1, *, initiator: bool = True, warm: WarmSessions | None = None) -> Session:
    return Session(Keypair(number, number + 100, b"s" * 32, b"r" * 32, initiator, 0.0), warm or WarmSessions())


def places(keypairs: Keypairs) -> tuple[int | None, ...]:
    three = (keypairs.current, keypairs.next, keypairs.previous)
    return tuple(None if one is None else one.local_index for one in three)


def test_an_initiators_session_is_current_and_pushes_the_others_back() -> None:
    keypairs = Keypairs()
    dead = [keypairs.install(session(number)) for number in (1, 2, 3)]
    assert places(keypairs) == (3, None, 2)
    assert [[one.local_index for one in gone] for gone in dead] == [[], [], [1]]


def test_a_responders_session_is_next_until_confirmed() -> None:
    keypairs = Keypairs()
    keypairs.install(session(1))
    fresh = session(2, initiator=False)
    keypairs.install(fresh)
    assert places(keypairs) == (1, 2, None)
    assert keypairs.confirm(fresh) == []
    assert places(keypairs) == (2, None, 1)


def test_crossing_handshakes_leave_the_initiators_current_and_the_responders_receiving() -> None:
    keypairs = Keypairs()
    for number, initiator in ((1, True), (2, False), (3, True)):
        dead = keypairs.install(session(number, initiator=initiator))
    assert places(keypairs) == (3, None, 2)
    assert [one.local_index for one in dead] == [1]


def test_clearing_gives_all() -> None:
    keypairs = Keypairs()
    for number, initiator in ((1, True), (2, True), (3, False)):
        keypairs.install(session(number, initiator=initiator))
    assert {one.local_index for one in keypairs.clear()} == {2, 3}
    assert places(keypairs) == (None, None, None)


@pytest.mark.fault(35)
def test_no_nonce_is_given_twice_and_none_at_the_limit() -> None:
    one = session()
    one.counter = REJECT_AFTER_MESSAGES - 3
    assert one.claim(4, 0.0) is None
    given = [one.claim(count, 0.0) for count in (2, 2, 1, 1)]
    assert given == [REJECT_AFTER_MESSAGES - 3, None, REJECT_AFTER_MESSAGES - 1, None]
    print(f"row 35: the last nonce given is REJECT-AFTER-MESSAGES - 1 = {given[2]}")


@pytest.mark.fault(35)
def test_a_session_gives_no_nonce_from_reject_after_time_on() -> None:
    one = session()
    assert one.claim(1, REJECT_AFTER_TIME - 0.001) == 0
    assert one.claim(1, REJECT_AFTER_TIME) is None


def test_sending_wears_out_by_messages_at_both_ends_and_by_time_at_the_initiators() -> None:
    initiator, responder = session(), session(initiator=False)
    assert not initiator.worn_by_sending(REKEY_AFTER_TIME - 0.001)
    assert initiator.worn_by_sending(REKEY_AFTER_TIME)
    assert not responder.worn_by_sending(REKEY_AFTER_TIME)
    responder.counter = REKEY_AFTER_MESSAGES
    assert not responder.worn_by_sending(0.0)
    responder.counter += 1
    assert responder.worn_by_sending(0.0)


def test_only_so_many_sessions_keep_their_ciphers_and_a_cold_one_still_works() -> None:
    warm = WarmSessions()
    sessions = [session(number, warm=warm) for number in range(WARM_SESSIONS + 5)]
    sealed = [one.sealer.encrypt(bytes(12), b"x", None) for one in sessions]
    assert sum(one._ciphers is not None for one in sessions) == WARM_SESSIONS
    assert sessions[0].sealer.encrypt(bytes(12), b"x", None) == sealed[0]


def test_keys_are_not_in_what_is_printed() -> None:
    keypair = Keypair(1, 2, b"secretsecretsecretsecretsecret12", b"hidden" * 5 + b"12", True, 0.0)
    assert "secret" not in repr(keypair)
    assert "hidden" not in repr(keypair)
