"""Timers without a tick."""

from __future__ import annotations

from rustguard_py.planes.liveness import NEVER, Deadlines, Liveness


def test_an_idle_peer_has_no_deadline() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.schedule("idle", Liveness())
    assert deadlines.next() is None


def test_moving_a_timer_later_adds_nothing_and_it_still_runs_out_in_time() -> None:
    deadlines: Deadlines[str] = Deadlines()
    liveness = Liveness()
    liveness.interval = 25
    for now in range(1000):
        liveness.sent(float(now), data=False)
        deadlines.schedule("peer", liveness)
        for owner in deadlines.due(float(now)):
            deadlines.schedule(owner, liveness)
    assert len(deadlines._heap) == 1
    assert deadlines.due(1023.9) == []
    assert deadlines.due(1024.0) == ["peer"]


def test_a_timer_that_moves_earlier_is_found_and_its_old_entry_is_not() -> None:
    deadlines: Deadlines[str] = Deadlines()
    liveness = Liveness()
    liveness.persistent_at = 100.0
    deadlines.schedule("peer", liveness)
    liveness.keepalive_at = 10.0
    deadlines.schedule("peer", liveness)
    assert deadlines.next() == 10.0
    assert deadlines.due(10.0) == ["peer"]
    liveness.keepalive_at = NEVER
    deadlines.schedule("peer", liveness)
    assert deadlines.due(99.0) == []
    assert deadlines.due(100.0) == ["peer"]
    assert deadlines.due(200.0) == []


def test_10000_peers_that_were_busy_once_leave_an_empty_heap() -> None:
    deadlines: Deadlines[int] = Deadlines()
    peers = [Liveness() for _ in range(10_000)]
    for number, liveness in enumerate(peers):
        liveness.received(0.0, data=True)
        deadlines.schedule(number, liveness)
    for number in deadlines.due(10.0):
        peers[number].keepalive_ran_out(10.0)
        deadlines.schedule(number, peers[number])
    assert deadlines.next() is None
