"""What a server says is refused if it makes no sense. Whatever isn't refused can be saved, loaded and exported."""

from __future__ import annotations

import json
from ipaddress import ip_interface
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustguard_py import conf, conf_reader, conf_writer
from rustguard_py.enroll import export
from rustguard_py.enroll.client.obtain import _record
from rustguard_py.enroll.client.routes import RouteAnswers, RouteChoice, choose
from rustguard_py.enroll.pairing.admission import Admission
from rustguard_py.enroll.pairing.messages import Details
from rustguard_py.enroll.pairing.outcome import Joined
from rustguard_py.enroll.server.registry import PeerChange, Registry
from rustguard_py.model.errors import StateError
from rustguard_py.model.keys import encode_key
from rustguard_py.model.printable import is_hidden
from rustguard_py.state import envelope
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.records import ServerState
from support.examples import examples

PRIVATE, SERVER, PSK = (bytes([number]) * 32 for number in (64, 7, 9))
OK: dict[str, Any] = {
    "status": "ok",
    "name": "laptop",
    "address4": "10.150.0.2/24",
    "address6": "fd00::2/64",
    "server_key": encode_key(SERVER),
    "port": 51820,
    "mtu": 1420,
    "keepalive": 25,
    "routes": ["192.168.7.0/24", "2001:db8:7::/48"],
    "gateway4": "10.150.0.1",
    "gateway6": "fd00::1",
    "tunnels": [{"key": encode_key(PSK), "port": 51822}],
}
HOOK = "\nPreUp = touch /tmp/pwned\n#"


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("address6", f"fd00::2%{scope}/64") for scope in ("eth0", f"x{HOOK}", "\x1b[2J", "1", "")),
        *(("gateway6", f"fd00::1%{scope}") for scope in ("eth0", HOOK)),
        *(("routes", [f"fd01::%{scope}/64"]) for scope in ("eth0", HOOK, "\x1b]0;x\x07")),
        ("routes", "10.0.0.0/8"),
        ("routes", {"10.0.0.0/8": 1}),
        ("routes", None),
        ("routes", ["10.0.0.1/8"]),
        ("routes", ["10.0.0.0/255.0.0.0"]),
        ("routes", [f"10.{number}.0.0/16" for number in range(65)]),
        ("tunnels", [{"key": encode_key(PSK), "port": 0}]),
        ("tunnels", "none"),
        ("name", ""),
        ("name", "x" * 46),
        ("name", "ä" * 23),
        ("name", "a\nb"),
        ("name", "\ud800"),
        ("name", "--help"),
        ("name", " x"),
        ("name", encode_key(SERVER)),
        ("address4", "10.150.0.1/24"),
        ("address4", "10.150.0.0/24"),
        ("address4", "10.150.0.255/24"),
        ("address4", "10.150.0.2"),
        ("address4", "10.151.0.2/24"),
        ("address4", "224.5.0.2/24"),
        ("address4", "127.0.0.2/8"),
        ("address4", "169.254.0.2/16"),
        ("address4", " 10.150.0.2/24"),
        ("address6", "fd00::1/64"),
        ("address6", "fd00::/64"),
        ("address6", "fd01::2/64"),
        ("address6", "ff02::2/64"),
        ("address6", None),
        ("gateway4", "10.151.0.1"),
        ("gateway4", None),
        ("gateway6", "fd01::1"),
        ("port", 0),
        ("port", 65536),
        ("port", True),
        ("mtu", 1279),
        ("mtu", 65001),
        ("keepalive", 65536),
        ("keepalive", 1.0),
        ("server_key", encode_key(SERVER)[:-1]),
    ],
)
def test_what_makes_no_sense_is_refused_on_the_wire(member: str, value: object) -> None:
    assert Admission.from_mapping(OK) is not None
    assert Admission.from_mapping({**OK, member: value}) is None


def test_the_limits_themselves_are_accepted() -> None:
    accepted: tuple[dict[str, object], ...] = (
        {"mtu": 1280},
        {"mtu": 65000},
        {"routes": [f"10.{number}.0.0/16" for number in range(64)]},
        {"routes": []},
        {"name": "x" * 45},
        {"name": "ä" * 22 + "x"},
        {"address6": None, "gateway6": None},
        {"address4": "10.150.0.2/30"},
        {"address4": "10.0.0.2/8"},
    )
    for members in accepted:
        gateway = {"gateway4": "10.0.0.1"} if members.get("address4") == "10.0.0.2/8" else {}
        assert Admission.from_mapping({**OK, **members, **gateway}) is not None


odd = st.text(st.characters(codec=None), max_size=6) | st.sampled_from(
    [HOOK, "\x1b[2J", "%", "/", "x" * 46, "-a", " "]
)
hosts = st.integers(0, 40)
MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "name": odd | st.builds("laptop{}".format, odd) | st.just("laptop"),
    "address4": st.builds("10.150.0.{}/{}".format, hosts, st.integers(20, 33)) | odd | st.just(OK["address4"]),
    "address6": st.builds("fd00::{:x}{}/{}".format, hosts, st.just("") | odd, st.integers(60, 129)) | st.none(),
    "port": st.integers(-1, 65537),
    "mtu": st.integers(1200, 66000),
    "keepalive": st.integers(-1, 65537),
    "routes": st.lists(
        st.builds("{}{}/{}".format, st.ip_addresses(), st.just("") | odd, st.integers(0, 129))
        | st.sampled_from(["0.0.0.0/2", "8.8.8.8/32", "2001:db8::/32", "10.150.0.0/25"]),
        max_size=4,
    ),
    "gateway4": st.builds("10.150.0.{}".format, hosts),
    "gateway6": st.builds("fd00::{:x}{}".format, hosts, st.just("") | odd) | st.none(),
    "tunnels": st.lists(
        st.fixed_dictionaries({"key": st.just(encode_key(PSK)), "port": st.integers(0, 65536)}), max_size=9
    ),
    "server_key": st.binary(min_size=31, max_size=33).map(lambda key: encode_key(key[:32].ljust(32, b"\0"))),
}
replacements = st.sets(st.sampled_from(sorted(MEMBERS)), max_size=4).flatmap(
    lambda chosen: st.fixed_dictionaries({member: MEMBERS[member] for member in sorted(chosen)})
)
choices = st.sampled_from([None, RouteChoice(all=True), RouteChoice(), RouteChoice.parse("0.0.0.0/1,2001:db8::/30")])


@settings(max_examples=examples(400))
@given(replacements, st.integers(1, 65535), choices)
def test_what_a_server_can_say_is_saved_loaded_and_exported(
    replaced: dict[str, Any], port: int, choice: RouteChoice | None
) -> None:
    given = Admission.from_mapping({**OK, **replaced})
    if given is None:
        return
    assert Admission.from_mapping(given.to_mapping()) == given
    network = _record(Joined(given, PSK, ("192.0.2.1", port), b""), "home.example", port)
    network = choose(network, None, RouteAnswers(choice))
    state = ClientState(PRIVATE, (network,))
    _, document = envelope.decode(envelope.encode(1, state.to_json()))
    assert ClientState.from_json(document) == state
    config = export.of_client(state, network)
    assert conf_reader.parse(conf_writer.write(config)) == config
    assert config.hooks == conf.Hooks()
    shown = json.dumps(state.to_json(), ensure_ascii=False)
    assert not any(map(is_hidden, shown))


@settings(max_examples=examples(300))
@given(st.binary(min_size=34, max_size=34), odd | st.builds("laptop{}".format, odd))
def test_what_a_client_can_say_is_saved_and_loaded(start: bytes, name: str) -> None:
    encoded = name.encode(errors="surrogatepass")[:45]
    details = Details.parse(start + bytes([len(encoded)]) + encoded.ljust(45, b"\0"))
    if details is None:
        return
    assert Details.parse(details.encode()) == details
    registry = Registry(server_state())
    for key in (details.public_key, bytes(32)):
        change = registry.admit(key, details.name, PSK, "192.0.2.7:51820", 1.7e9)
        assert isinstance(change, PeerChange)
        change.keep()
    _, document = envelope.decode(envelope.encode(1, registry.state.to_save()))
    assert ServerState.from_json(document) == registry.state


def server_state() -> ServerState:
    return ServerState.from_json(
        {
            "role": "server",
            "private_key": encode_key(PRIVATE),
            "server_id": encode_key(PSK),
            "pool4": "10.150.0.0/24",
            "pool6": "fd00::/64",
            "port": 51820,
            "mtu": 1420,
            "peers": [],
            "revoked": [],
            "guesses": {"window": 0, "used": 0, "by_source": {}},
        }
    )


def kept(**members: object) -> dict[str, object]:
    given = Admission.from_mapping(OK)
    assert given is not None
    network = _record(Joined(given, PSK, ("192.0.2.1", 51820), b""), "home.example", 51820)
    return {**network.to_json(), "joined": 1.7e9, **members}


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("address6", f"fd00::2%{HOOK}/64"),
        ("address6", "fd00::2%eth0/64"),
        ("address6", "fd00::1/64"),
        ("address4", "10.151.0.2/24"),
        ("address4", "224.0.0.2/24"),
        ("gateway6", "fd00::1%\x1b[2J"),
        ("routes", ["fd01::%\x1b[2J/64"]),
        ("offered", ["fd01::%\x1b[2J/64"]),
        ("host", "home\nPreUp = id"),
        ("host", "home\x1b[2J"),
        ("host", ""),
        ("host", "x" * 256),
        ("accepts_all", 1),
        ("joined", float("nan")),
        ("joined", float("inf")),
        ("joined", 10**400),
    ],
)
def test_a_state_that_somebody_edited_is_checked_as_the_wire_is(member: str, value: object) -> None:
    assert NetworkRecord.from_json(kept()).address6 == ip_interface("fd00::2/64")
    with pytest.raises(StateError) as refused:
        NetworkRecord.from_json(kept(**{member: value}))
    assert f"network.{member}" in refused.value.message
    assert not any(map(is_hidden, refused.value.message))


@pytest.mark.parametrize(
    ("member", "value", "loaded"),
    [
        ("name", "", None),
        ("name", "--x\x1b", "x"),
        ("name", encode_key(PSK), "peer"),
        ("mtu", 576, 1280),
        ("mtu", 65535, 65000),
    ],
)
def test_what_an_earlier_version_could_save_is_loaded_within_the_limits(
    member: str, value: object, loaded: object
) -> None:
    if loaded is None:
        with pytest.raises(StateError):
            NetworkRecord.from_json(kept(**{member: value}))
        return
    network = NetworkRecord.from_json(kept(**{member: value}))
    assert getattr(network, member) == loaded
    assert NetworkRecord.from_json(network.to_json()) == network
    assert network.to_json() == kept(**{member: loaded})
