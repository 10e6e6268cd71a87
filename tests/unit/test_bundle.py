"""Two tunnels to one partner: which of them carry, what is sent over each, and when one is left. Times go in."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.enroll.tunnels.bundle import TICK, Bundle, Member
from rustguard_py.enroll.tunnels.health import MISSES, SILENCE
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.statistics import PeerStats, PlaneStats
from rustguard_py.model.timers import REJECT_AFTER_TIME

KEYS = (b"a" * 32, b"b" * 32)
NETWORK = ip_network("10.150.0.0/24")
DATAGRAM = 200


class Tunnel:
    """One tunnel with one peer, and its counters."""

    def __init__(self, key: bytes, *, asks_freely: bool) -> None:
        self.asks_freely = asks_freely
        self.fault: RustGuardError | None = None
        self.there = True
        self.asked: list[float] = []
        self.keepalives = 0
        self.woken = 0
        self.counters = PeerStats()
        self.peer = SimpleNamespace(
            id=1,
            config=PeerConfig(key, (NETWORK,), persistent_keepalive=25),
            endpoint=("192.0.2.1", 51820),
            session_began=0.0,
            attempt_began=None,
            initiation_sent=None,
            attempts=0,
        )
        self.node = self
        self.plane = SimpleNamespace(stats=self._stats)

    def __iter__(self) -> Any:
        return iter([self.peer])

    def get(self, key: bytes) -> Peer | None:
        return cast(Peer, self.peer) if key == self.peer.config.public_key else None

    def has_interface(self) -> bool:
        return self.there

    def set_peer(self, config: PeerConfig) -> None:
        self.keepalives += config.persistent_keepalive > 0

    def ask(self, _peer: Peer, at: float) -> None:
        self.asked.append(at)

    def wake(self) -> None:
        self.woken += 1

    def _stats(self) -> PlaneStats:
        assert self.fault is None, "a plane that broke isn't asked"
        return PlaneStats({1: replace(self.counters)})

    def send(self) -> None:
        self.counters.tx_packets += 1
        self.counters.tx_bytes += DATAGRAM

    def hear(self) -> None:
        self.counters.rx_packets += 1
        self.counters.rx_bytes += DATAGRAM


class World:
    """A bundle of two tunnels, both with a session, unless a test ends one."""

    def __init__(self, *, asks_freely: bool = True, first_has_routes: bool = False) -> None:
        self.first, self.second = self.tunnels = [Tunnel(key, asks_freely=asks_freely) for key in KEYS]
        members = [Member(cast(Any, each), f"rg{place}", 51820 + place) for place, each in enumerate(self.tunnels)]
        self.bundle = Bundle(members, cast(Any, None), first_has_routes=first_has_routes)
        self.bundle.add("laptop", KEYS, (NETWORK,))
        self.now = 0.0
        for place in (0, 1):
            self.session(place)
        self.check()

    def session(self, place: int) -> None:
        self.bundle.session(place, cast(Peer, self.tunnels[place].peer))

    def check(self, after: float = TICK) -> tuple[int, ...]:
        self.now += after
        self.bundle.observe(self.now)
        return self.bundle.carrying(KEYS[0])

    def move(self, checks: int, *, over: tuple[int, ...] = (0, 1), back: tuple[int, ...] = (0, 1)) -> tuple[int, ...]:
        """Let data move: sent over some tunnels, heard over some."""
        for _ in range(checks):
            for place in over:
                self.tunnels[place].send()
            for place in back:
                self.tunnels[place].hear()
            self.check()
        return self.bundle.carrying(KEYS[0])


def test_a_partner_is_reached_over_the_first_tunnel_until_another_has_a_session() -> None:
    world = World()
    world.bundle.start_over(KEYS[0])
    assert world.bundle.wanted_routes() == {NETWORK: (0,)}
    world.session(0)
    assert world.bundle.wanted_routes() == {NETWORK: (0,)}
    world.session(1)
    assert world.bundle.wanted_routes() == {NETWORK: (0, 1)}


def test_where_the_first_interface_has_routes_of_its_own_none_are_made_for_it_alone() -> None:
    world = World(first_has_routes=True)
    assert world.bundle.wanted_routes() == {NETWORK: (0, 1)}
    world.bundle.start_over(KEYS[0])
    assert world.bundle.wanted_routes() == {}


def test_a_partner_that_changes_keeps_its_tunnels_and_one_that_is_removed_has_none() -> None:
    world = World()
    other = ip_network("10.151.0.0/24")
    world.bundle.add("phone", KEYS, (other,))
    assert world.bundle.wanted_routes() == {other: (0, 1)}
    world.bundle.remove(b"x" * 32)
    assert world.bundle.wanted_routes() == {other: (0, 1)}
    world.bundle.remove(KEYS[0])
    assert world.bundle.wanted_routes() == {}
    # A session that ends late is nobody's.
    world.session(1)
    world.bundle.add("laptop", KEYS, (NETWORK,))
    assert world.bundle.wanted_routes() == {NETWORK: (0,)}


def test_while_data_moves_over_both_nothing_is_asked_and_both_carry() -> None:
    world = World()
    assert world.move(100) == (0, 1)
    assert world.first.asked == world.second.asked == []
    assert world.first.keepalives == world.second.keepalives == 0


def test_over_a_tunnel_that_no_data_takes_a_keepalive_goes_at_each_check_while_data_moves() -> None:
    world = World()
    world.move(10, over=(0,))
    assert (world.first.keepalives, world.second.keepalives) == (0, 10)
    for _ in range(100):
        world.check()
    # Ten seconds after the last data it is silent.
    assert world.second.keepalives <= 10 + 21


@pytest.mark.parametrize("asks_freely", [True, False])
def test_a_tunnel_over_which_nothing_arrives_is_left_and_asked_until_it_has_a_session(*, asks_freely: bool) -> None:
    world = World(asks_freely=asks_freely)
    world.move(3)
    assert world.move(MISSES - 1, over=(0,), back=(0,)) == (0, 1)
    assert world.move(1, over=(0,), back=(0,)) == (0,)
    world.move(5, over=(0,), back=(0,))
    assert len(world.second.asked) == 6
    world.session(1)
    assert world.bundle.carrying(KEYS[0]) == (0, 1)


@pytest.mark.parametrize(("asks_freely", "carrying"), [(True, (0, 1)), (False, (0,))])
def test_silence_alone_is_enough_only_where_a_handshake_would_end_the_session(
    asks_freely: bool, carrying: tuple[int, ...]
) -> None:
    world = World(asks_freely=asks_freely)
    world.move(3)
    # The first one has nothing to answer, so that neither is heard.
    assert world.move(int(SILENCE / TICK) + 1, over=(1,), back=()) == carrying
    assert bool(world.second.asked) is asks_freely or carrying == (0,)
    assert world.first.asked == []


def test_if_no_tunnel_is_heard_none_is_left() -> None:
    world = World()
    world.move(3)
    assert world.move(100, back=()) == (0, 1)


def test_a_check_that_comes_late_leaves_nothing() -> None:
    world = World()
    world.move(3)
    world.move(MISSES - 1, over=(0,), back=(0,))
    world.first.hear()
    assert world.check(after=5.0) == (0, 1)
    assert world.move(1, over=(0,), back=(0,)) == (0,)


def test_a_tunnel_that_broke_is_left_at_once_and_not_touched_any_more() -> None:
    for breaks in ("fault", "interface"):
        world = World()
        world.move(3)
        if breaks == "fault":
            world.second.fault = RustGuardError("The device is gone.")
        else:
            world.second.there = False
        woken = world.second.woken
        assert world.move(20, over=(0,), back=(0,)) == (0,)
        assert world.second.asked == []
        assert world.second.woken == woken
        assert world.first.woken > 20


def test_a_partner_that_is_away_is_not_asked() -> None:
    world = World()
    world.move(3)
    world.move(MISSES, over=(0,), back=(0,))
    asked = len(world.second.asked)
    for _ in range(1000):
        world.check()
    assert len(world.second.asked) - asked <= 30


def test_a_peer_that_is_nowhere_yet_is_not_asked() -> None:
    world = World()
    world.move(3)
    world.second.peer.endpoint = None
    assert world.move(3 * MISSES, over=(0,), back=(0,)) == (0,)
    assert world.second.asked == []
    assert world.second.keepalives == 0


def test_only_the_end_that_has_no_routes_renews_a_session_that_expired() -> None:
    for first_has_routes in (False, True):
        world = World(first_has_routes=first_has_routes)
        for each in world.tunnels:
            each.peer.session_began = world.now - REJECT_AFTER_TIME - 1
        world.move(1)
        assert bool(world.second.asked) is not first_has_routes


def test_a_partner_of_one_tunnel_only_is_not_checked() -> None:
    world = World()
    world.bundle.start_over(KEYS[0])
    world.session(0)
    woken = world.first.woken
    world.move(10, over=(0,), back=())
    assert world.first.asked == []
    assert world.first.woken == woken


def test_the_status_shows_each_tunnels_share() -> None:
    world = World()
    world.move(3, over=(0, 1), back=(0,))
    world.second.there = False
    assert world.bundle.report(world.now) == [
        {
            "interface": "rg0",
            "port": 51820,
            "state": "running",
            "sessions": 1,
            "carries_for": 1,
            "rx_bytes": 3 * DATAGRAM,
            "tx_bytes": 3 * DATAGRAM,
            "share": 0.6667,
        },
        {
            "interface": "rg1",
            "port": 51821,
            "state": "broken",
            "sessions": 1,
            "carries_for": 1,
            "rx_bytes": 0,
            "tx_bytes": 3 * DATAGRAM,
            "share": 0.3333,
        },
    ]
    for each in world.tunnels:
        each.counters = PeerStats()
    assert [each["share"] for each in world.bundle.report(world.now)] == [0.0, 0.0]
