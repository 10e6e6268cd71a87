"""The registry: names, and which preshared keys a peer that joins again may still come with."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from rustguard_py.enroll.server.registry import PeerChange, Registry
from rustguard_py.model import peer_names
from rustguard_py.state.records import ServerState

CLIENT = b"c" * 32


def key(number: int) -> bytes:
    return bytes([number]) * 32


def make_registry() -> Registry:
    return Registry(ServerState(bytes(32), bytes(32), IPv4Network("10.150.0.0/24"), None, 51820, 1420))


def begin_join(registry: Registry, number: int) -> PeerChange:
    change = registry.admit(CLIENT, "laptop", key(number), "192.0.2.2:4000", 1.7e9)
    assert isinstance(change, PeerChange)
    return change


def join(registry: Registry, number: int) -> None:
    begin_join(registry, number).keep()


def keys(registry: Registry) -> list[int]:
    record = registry.state.peers[CLIENT]
    return [each[0] for each in (record.preshared_key, *record.previous_preshared_keys)]


def test_who_joins_again_may_come_with_the_key_used_last_and_those_of_the_last_joins() -> None:
    registry = make_registry()
    for number in range(1, 4):
        join(registry, number)
    # Joined with --save-only and killed while joining once more: it has the second of the three.
    assert keys(registry) == [3, 2, 1]
    for number in range(4, 20):
        join(registry, number)
    assert keys(registry) == [19, 18, 1]


def test_keys_before_the_one_that_was_used_are_dropped() -> None:
    registry = make_registry()
    for number in range(1, 5):
        join(registry, number)
    assert keys(registry) == [4, 3, 1]
    assert registry.settled(CLIENT, 2) is None
    assert registry.settled(CLIENT, 1) == registry.state.peers[CLIENT]
    assert keys(registry) == [4, 3]
    for number in range(5, 9):
        join(registry, number)
    assert keys(registry) == [8, 7, 3]
    registry.settled(CLIENT, 0)
    assert keys(registry) == [8]
    assert registry.settled(CLIENT, 0) is None


def test_a_join_that_could_not_be_saved_leaves_the_keys_as_they_were() -> None:
    registry = make_registry()
    join(registry, 1)
    join(registry, 2)
    begin_join(registry, 3).undo()
    assert keys(registry) == [2, 1]


def named(registry: Registry, number: int, wished: str) -> str:
    change = registry.admit(key(number), wished, bytes(32), None, 1.7e9)
    assert isinstance(change, PeerChange)
    change.keep()
    return change.record.name


def test_a_crowd_of_one_name_gets_the_lowest_free_numbers() -> None:
    registry = make_registry()
    assert [named(registry, number, "pi") for number in range(1, 5)] == ["pi", "pi-2", "pi-3", "pi-4"]
    assert named(registry, 5, "pi-5") == "pi-5"
    assert named(registry, 6, "pi") == "pi-6"
    registry.revoke("pi-2").keep()
    registry.rename("pi-4", "attic").keep()
    assert [named(registry, number, "pi") for number in range(7, 10)] == ["pi-2", "pi-4", "pi-7"]
    registry.revoke("pi").keep()
    assert named(registry, 10, "pi") == "pi"


def test_no_name_of_a_crowd_is_looked_for_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    numbered = peer_names.numbered

    def note(name: str, number: int) -> str:
        tried.append(number)
        return numbered(name, number)

    monkeypatch.setattr("rustguard_py.enroll.server.registry.numbered", note)
    registry = make_registry()
    for number in range(200):
        named(registry, number, "pi")
    assert len(tried) < 2 * 200
