"""The events that wait for Python: no kind takes another's place, in Python's queue and in Rust's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.engine import has_native
from rustguard_py.planes.contract import (
    EndpointMoved,
    Event,
    Fault,
    ForeignReceived,
    HandshakeReceived,
    HandshakeWanted,
    KeypairConfirmed,
    Reason,
)
from rustguard_py.planes.event_queue import EVENTS_AT_ONCE, FOREIGN_QUEUE, EventQueue
from rustguard_py.planes.gate import HANDSHAKE_QUEUE

HERE = ("192.0.2.7", 1000)
needs_native = pytest.mark.skipif(not has_native(), reason="no native plane")


def _native() -> EventQueue:
    made: EventQueue = import_module("rustguard_py._native").EventQueue()
    return made


@pytest.fixture(params=[EventQueue, pytest.param(_native, marks=needs_native)], ids=["portable", "native"])
def queue(request: pytest.FixtureRequest) -> EventQueue:
    make: Callable[[], EventQueue] = request.param
    return make()


def _taken(queue: EventQueue) -> list[Event]:
    """All that waits."""
    taken: list[Event] = []
    while events := queue.take():
        assert len(events) <= EVENTS_AT_ONCE
        taken += events
    return taken


@pytest.mark.fault(38)
def test_a_peers_moves_displace_nothing_and_the_last_one_arrives(queue: EventQueue) -> None:
    handshakes = [HandshakeReceived(bytes([1, n]), HERE) for n in range(10)]
    for number in range(100_000):
        assert queue.put(EndpointMoved(7, ("198.51.100.1", number % 65536))) is None
        if number % 10_000 == 0:
            assert queue.put(handshakes[number // 10_000]) is None
    assert queue.handshakes() == 10
    # All of it at once: one move waits, however many there were.
    events = queue.take()
    assert [event for event in events if isinstance(event, HandshakeReceived)] == handshakes
    assert [event for event in events if not isinstance(event, HandshakeReceived)] == [
        EndpointMoved(7, ("198.51.100.1", 99_999 % 65536))
    ]
    assert queue.take() == []


def test_many_peers_that_move_leave_a_handshake_its_turn(queue: EventQueue) -> None:
    for peer in range(5000):
        queue.put(EndpointMoved(peer, HERE))
    queue.put(HandshakeReceived(b"\1 a stranger", HERE))
    queue.put(HandshakeReceived(b"\1 with a cookie", HERE, proven=True))
    first = queue.take()
    assert [event.datagram for event in first if isinstance(event, HandshakeReceived)] == [
        b"\1 with a cookie",
        b"\1 a stranger",
    ]
    assert len(_taken(queue)) == 5000 - (EVENTS_AT_ONCE - 2)


def test_strangers_handshakes_leave_room_for_proven_ones_and_for_enrollment(queue: EventQueue) -> None:
    stranger, proven = HandshakeReceived(b"\1", HERE), HandshakeReceived(b"\1", HERE, proven=True)
    for event, most, full in (
        (stranger, HANDSHAKE_QUEUE, "handshake_queue"),
        (proven, HANDSHAKE_QUEUE, "handshake_queue"),
        (ForeignReceived(b"RGE", HERE), FOREIGN_QUEUE, "foreign_queue"),
    ):
        assert {queue.put(event) for _ in range(most)} == {None}
        assert queue.put(event) == full
    assert queue.handshakes() == 2 * HANDSHAKE_QUEUE
    assert queue.put(HandshakeWanted(1, Reason.REKEY)) is None
    assert queue.put(Fault("it broke", fatal=True)) is None
    assert queue.put(Fault("it broke", fatal=True)) is None
    first = queue.take()
    assert first[0] == Fault("it broke", fatal=True)
    assert first.count(first[0]) == 1
    assert len(first) == EVENTS_AT_ONCE
    assert {type(event) for event in first[1:]} == {HandshakeReceived, ForeignReceived, HandshakeWanted}
    assert sum(isinstance(event, HandshakeReceived) and event.proven for event in first) >= 10


def test_of_a_peer_the_last_of_each_kind_waits(queue: EventQueue) -> None:
    for _ in range(1000):
        queue.put(HandshakeWanted(1, Reason.NO_ANSWER))
        queue.put(HandshakeWanted(1, Reason.REKEY))
        queue.put(EndpointMoved(1, HERE))
        queue.put(HandshakeWanted(2, Reason.NO_SESSION))
        queue.put(KeypairConfirmed(2, 5))
        queue.put(KeypairConfirmed(2, 6))
    assert queue.take() == [
        EndpointMoved(1, HERE),
        # It says more than that the session is old.
        HandshakeWanted(1, Reason.NO_ANSWER),
        # The session that peer 2 was to be asked for has come.
        KeypairConfirmed(2, 6),
    ]


peers = st.integers(1, 3)
places = st.sampled_from([HERE, ("2001:db8::1", 5, 0, 0)])
events = st.one_of(
    st.builds(HandshakeReceived, st.binary(max_size=3), places, st.booleans()),
    st.builds(ForeignReceived, st.binary(max_size=3), places),
    st.builds(HandshakeWanted, peers, st.sampled_from(Reason)),
    st.builds(KeypairConfirmed, peers, st.integers(0, 9)),
    st.builds(EndpointMoved, peers, places),
    st.builds(Fault, st.sampled_from(["one", "two"]), st.booleans()),
)


@needs_native
@given(st.lists(st.one_of(events, events, events, st.none()), max_size=150))
def test_both_give_the_same_events_in_the_same_order(script: list[Event | None]) -> None:
    ours, theirs = EventQueue(), _native()
    for step in [*script, None, None, None, None, None]:
        if step is None:
            assert theirs.take() == ours.take()
        else:
            assert theirs.put(step) == ours.put(step)
        assert theirs.handshakes() == ours.handshakes()
