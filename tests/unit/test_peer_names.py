"""A peer's label and DNS name: what can be one, what becomes one, and which peer a name means."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustguard_py.enroll.server.registry import PeerChange, Registry
from rustguard_py.model.errors import RefusedError, StateError, UsageError
from rustguard_py.model.keys import encode_key
from rustguard_py.model.peer_names import check_label, dns_name_of, is_label, label_of, numbered
from rustguard_py.state.records import PeerRecord, ServerState


def wide(text: str) -> str:
    """Return a text in full-width characters."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


VICTIM, DECOY, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
anything = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(
    [
        encode_key(VICTIM),
        f" {encode_key(VICTIM)}\u200b",
        "--help",
        "- -x",
        "ﷺ" * 15,
        "\u0301a",
        "ﬃ" * 15,
        wide("--help"),
    ]
)


@given(anything)
def test_any_text_makes_a_label_or_nothing(text: str) -> None:
    label = label_of(text)
    assert label == "" or (is_label(label) and check_label(label) == label)
    assert is_label(text) == (text != "" and label == text)
    assert len(label.encode()) <= 45
    assert label.isprintable()
    assert label == label.strip()
    assert not label.startswith("-")


@given(anything, st.integers(2, 10**6))
def test_a_label_makes_a_dns_name_and_a_number_keeps_both(text: str, number: int) -> None:
    label = label_of(text) or "peer"
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", dns_name_of(label))
    assert dns_name_of(dns_name_of(label)) == dns_name_of(label)
    assert is_label(numbered(label, number))
    assert dns_name_of(numbered(dns_name_of(label), number)) == numbered(dns_name_of(label), number)


@pytest.mark.parametrize(
    ("label", "dns_name"),
    [
        ("laptop", "laptop"),
        ("Anna's Läptop", "anna-s-laptop"),
        ("Straße_7", "strasse-7"),
        ("笔记本", "peer"),
        ("ПК-2", "peer-2"),
        ("peer-10.5.0.3", "peer-10-5-0-3"),
        ("x" * 45, "x" * 45),
        ("x", "x"),
    ],
)
def test_the_dns_name_is_what_remains_of_the_label(label: str, dns_name: str) -> None:
    assert check_label(label) == label
    assert dns_name_of(label) == dns_name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "1 to 45 bytes"),
        ("ä" * 23, "1 to 45 bytes"),
        (" x", "begin or end with a blank"),
        ("x\xa0", "begin or end with a blank"),
        ("--help", "hyphen"),
        (wide("-x"), "hyphen"),
        (encode_key(VICTIM), "look like a key"),
        (encode_key(VICTIM)[:-2] + "B=", "look like a key"),
        ("a\nb", "printable"),
        ("a\u202eb", "printable"),
        ("laptop\ufe0f", "printable"),
        ("\u3164", "printable"),
    ],
)
def test_a_person_learns_why_a_name_is_none(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_label(name)
    registry = make_registry()
    admit(registry, VICTIM, "laptop")
    with pytest.raises(UsageError, match=why):
        registry.rename("laptop", name)


def make_registry() -> Registry:
    return Registry(ServerState(bytes(32), bytes(32), IPv4Network("10.150.0.0/24"), None, 51820, 1420))


def admit(registry: Registry, key: bytes, wished: str) -> PeerRecord:
    change = registry.admit(key, wished, bytes(31) + b"p", None, 1.7e9)
    assert isinstance(change, PeerChange)
    change.keep()
    return change.record


def test_a_key_means_its_peer_whatever_others_are_called() -> None:
    registry = make_registry()
    admit(registry, VICTIM, "laptop")
    decoy = admit(registry, DECOY, encode_key(VICTIM))
    assert decoy.name == "peer"
    assert registry.revoke(encode_key(VICTIM)).public_key == VICTIM


def test_a_key_means_its_peer_even_if_another_has_it_as_a_name() -> None:
    registry = make_registry()
    admit(registry, VICTIM, "laptop")
    admit(registry, DECOY, "other")
    # As it could have been before names were checked.
    registry._names[encode_key(VICTIM)] = DECOY
    assert registry.find(encode_key(VICTIM)).public_key == VICTIM


@pytest.mark.parametrize(
    "wished", [wide("laptop"), " laptop ", "--laptop", "lap\u200btop", "laptop\ufe0f", "laptop\x1b"]
)
def test_a_look_alike_gets_a_number(wished: str) -> None:
    registry = make_registry()
    admit(registry, VICTIM, "laptop")
    assert admit(registry, DECOY, wished).name == "laptop-2"
    assert registry.find("laptop").public_key == VICTIM


def test_no_label_is_anothers_dns_name_nor_the_other_way_round() -> None:
    registry = make_registry()
    first = admit(registry, VICTIM, "Läptop")
    second = admit(registry, DECOY, "laptop")
    third = admit(registry, OTHER, "LAPTOP")
    assert (first.name, first.dns_name) == ("Läptop", "laptop")
    assert (second.name, second.dns_name) == ("laptop-2", "laptop-2")
    assert (third.name, third.dns_name) == ("LAPTOP", "laptop-3")
    for record in (first, second, third):
        for name in record.names:
            assert registry.find(name) == record
    assert registry.find("La\u0308ptop") == first
    with pytest.raises(RefusedError, match="There is a peer laptop already"):
        registry.rename("LAPTOP", "laptop")
    renamed = registry.rename("laptop-3", "Kitchen Pi")
    renamed.keep()
    assert (renamed.record.name, renamed.record.dns_name) == ("Kitchen Pi", "kitchen-pi")
    assert registry.find("kitchen-pi").public_key == OTHER
    with pytest.raises(RefusedError):
        registry.find("laptop-3")
    registry.revoke("laptop").keep()
    assert admit(registry, bytes(31) + b"9", "laptop").name == "laptop"


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["a", "A", "ä", "a-2", "A-2", "peer", "ж", "", "-a", wide("a")]) | anything, max_size=12)
)
def test_names_are_unique_and_survive_a_restart(wishes: list[str]) -> None:
    registry = make_registry()
    for number, wished in enumerate(wishes, 10):
        admit(registry, bytes([number]) * 32, wished)
    names = [name for record in registry.state.peers.values() for name in record.names]
    assert len(names) == len(set(names))
    again = ServerState.from_json(registry.state.to_json())
    assert again == registry.state
    assert [each.dns_name for each in again.peers.values()] == [
        each.dns_name for each in registry.state.peers.values()
    ]


def kept(*names: str) -> list[tuple[str, str]]:
    """Load a state of an earlier version, in which peers have these names."""
    state = make_registry().state.to_json()
    peers = []
    for number, name in enumerate(names, 2):
        record = PeerRecord(
            "x", bytes([number]) * 32, bytes(32), IPv4Address(f"10.150.0.{number}"), None, 1.7e9, None
        ).to_json()
        peers.append({**record, "name": name})
    state["peers"] = peers
    loaded = ServerState.from_json(state)
    assert ServerState.from_json(state) == loaded
    assert ServerState.from_json(loaded.to_json()) == loaded
    Registry(loaded)
    return [(each.name, each.dns_name) for each in loaded.peers.values()]


def test_names_kept_by_an_earlier_version_become_labels_that_differ() -> None:
    assert kept(wide("laptop"), "laptop", "--help", " ", encode_key(VICTIM), "Laptop", "laptop-2") == [
        ("laptop-3", "laptop-3"),
        ("laptop", "laptop"),
        ("help", "help"),
        ("peer", "peer"),
        ("peer-2", "peer-2"),
        ("Laptop", "laptop-4"),
        ("laptop-2", "laptop-2"),
    ]


@settings(max_examples=50)
@given(st.lists(anything.filter(lambda name: _fits(name)), unique=True, max_size=8))
def test_any_names_kept_by_an_earlier_version_load(names: list[str]) -> None:
    found = [set(pair) for pair in kept(*names)]
    assert sum(map(len, found)) == len(set().union(*found))


def _fits(name: str) -> bool:
    try:
        return 1 <= len(name.encode()) <= 45
    except UnicodeEncodeError:
        return False


def test_a_dns_name_that_is_none_can_not_be_kept() -> None:
    record = admit(make_registry(), VICTIM, "laptop")
    with pytest.raises(ValueError, match="letters, digits and hyphens"):
        replace(record, dns_name="a.b")


def test_two_peers_with_one_kept_dns_name_do_not_load() -> None:
    registry = make_registry()
    for number, name in enumerate(("laptop", "phone"), 1):
        admit(registry, bytes([number]) * 32, name)
    kept = registry.state.to_json()
    for each in cast(Any, kept["peers"]):
        each["dns_name"] = "kitchen"
    with pytest.raises(StateError, match=r"peers\[1\]\.dns_name.* is also another peer's"):
        ServerState.from_json(kept)
    cast(Any, kept["peers"])[1]["dns_name"] = "kitchen-2"
    assert [each.dns_name for each in ServerState.from_json(kept).peers.values()] == ["kitchen", "kitchen-2"]


def test_a_kept_dns_name_stays_though_an_earlier_peers_name_would_make_it() -> None:
    registry = make_registry()
    for number, name in enumerate(("laptop", "phone"), 1):
        admit(registry, bytes([number]) * 32, name)
    kept = registry.state.to_json()
    first, second = cast(Any, kept["peers"])
    first["name"] = "Kitchen"
    first.pop("dns_name", None)
    second["dns_name"] = "kitchen"
    assert [each.dns_name for each in ServerState.from_json(kept).peers.values()] == ["kitchen-2", "kitchen"]
