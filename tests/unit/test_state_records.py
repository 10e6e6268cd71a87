"""Records: strict both ways, small, fast, and without secrets in their repr."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.model.errors import StateError
from rustguard_py.model.keys import encode_key, fingerprint
from rustguard_py.state.client_records import ClientState, NetworkRecord, TunnelRecord
from rustguard_py.state.document import Document
from rustguard_py.state.envelope import decode, encode
from rustguard_py.state.records import GuessRecord, PeerRecord, ServerState

PRIVATE, PSK = sha256(b"private").digest(), sha256(b"psk").digest()


def peer(number: int) -> PeerRecord:
    key = sha256(b"%d" % number).digest()
    return PeerRecord(
        name=f"peer-{number}",
        public_key=key,
        preshared_key=sha256(key).digest(),
        address4=IPv4Address("10.150.0.2") + number,
        address6=IPv6Address("fd00::2") + number,
        joined=1.7e9 + number / 4,
        endpoint=None if number % 2 else f"203.0.113.9:{number}",
        previous_preshared_keys=(PSK, PSK[::-1]) if number % 2 else (),
    )


def server(peers: int) -> ServerState:
    records = [peer(number) for number in range(peers)]
    return ServerState(
        private_key=PRIVATE,
        server_id=sha256(b"id").digest(),
        pool4=IPv4Network("10.150.0.0/16"),
        pool6=IPv6Network("fd00::/64"),
        port=51820,
        mtu=1420,
        peers={record.public_key: record for record in records},
        revoked={sha256(b"out").digest()},
        guesses=GuessRecord(7, 5, {"192.0.2.0/32": 3, "2001:db8::/64": 2}),
    )


def network(host: str = "home.example") -> NetworkRecord:
    return NetworkRecord(
        host=host,
        port=51820,
        server_key=sha256(host.encode()).digest(),
        preshared_key=PSK,
        name="laptop",
        address4=IPv4Interface("10.150.0.2/24"),
        address6=IPv6Interface("fd00::2/64"),
        routes=(ip_network("192.168.7.0/24"), ip_network("2001:db8:7::/48")),
        mtu=1420,
        keepalive=25,
        gateway4=IPv4Address("10.150.0.1"),
        gateway6=IPv6Address("fd00::1"),
        joined=1.7e9,
    )


def through_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_a_server_comes_back_as_it_was() -> None:
    assert ServerState.from_json(through_json(server(5).to_json())) == server(5)
    several = replace(server(1), tunnels=4)
    assert ServerState.from_json(through_json(several.to_json())) == several
    assert "tunnels" not in server(1).to_json()
    bare = replace(server(0), pool6=None, revoked=set(), guesses=GuessRecord())
    assert ServerState.from_json(through_json(bare.to_json())) == bare


def test_a_client_comes_back_as_it_was() -> None:
    for state in (ClientState(PRIVATE), ClientState(PRIVATE, (network("a"), network("b")))):
        assert ClientState.from_json(through_json(state.to_json())) == state
    several = replace(network(), tunnels=(TunnelRecord(PSK, 51821), TunnelRecord(PSK[::-1], 51822)))
    assert NetworkRecord.from_json(through_json(several.to_json())) == several
    assert "tunnels" not in network().to_json()
    bare = replace(network(), address6=None, gateway6=None, routes=())
    assert NetworkRecord.from_json(through_json(bare.to_json())) == bare


def test_a_network_tells_its_pools_and_its_servers_fingerprint() -> None:
    assert network().pools == (ip_network("10.150.0.0/24"), ip_network("fd00::/64"))
    assert network().fingerprint == fingerprint(network().server_key)


def test_the_network_joined_last_is_first_and_replaces_its_predecessor() -> None:
    state = ClientState(PRIVATE).with_network(network("home")).with_network(network("office"))
    assert state.network() == network("office")
    assert state.network("home") == network("home")
    assert state.network("home", 1) is None
    assert state.network("elsewhere") is None
    moved = replace(network("home"), host="new.example")
    assert state.with_network(moved).networks == (moved, network("office"))
    rekeyed = replace(network("office"), server_key=bytes(32))
    assert state.with_network(rekeyed).networks == (rekeyed, network("home"))


def test_what_is_saved_of_peers_made_once_is_what_their_values_give() -> None:
    state = server(3)
    state.peers[PSK] = replace(peer(7), public_key=PSK, name='a\\ "é 𝄞', endpoint='\\ "\n\x7f\u2028 é 𝄞')
    for _ in range(2):
        assert encode(5, state.to_save()) == encode(5, state.to_json())
        # Some have been made by now, and this one is another.
        state.peers[PSK] = replace(state.peers[PSK], endpoint="[2001:db8::1]:9", previous_preshared_keys=(PRIVATE,))
    assert decode(encode(5, state.to_save())) == (5, through_json(state.to_json()))


def test_a_snapshot_does_not_change_with_the_live_state() -> None:
    live = server(3)
    snapshot = live.snapshot()
    live.peers[peer(9).public_key] = peer(9)
    live.revoked.clear()
    live.guesses = GuessRecord(8)
    assert snapshot == server(3)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("role", "peer"),
        ("private_key", encode_key(PRIVATE)[:-1]),
        ("server_id", None),
        ("pool4", "10.150.0.1/16"),
        ("pool6", "fd00::/200"),
        ("port", 0),
        ("port", True),
        ("port", "51820"),
        ("mtu", None),
        ("mtu", 575),
        ("peers", {}),
        ("peers[1]", []),
        ("peers[1].name", ""),
        ("peers[1].name", "é" * 23),
        ("peers[1].name", "peer-0"),
        ("peers[1].public_key", "!" * 44),
        ("peers[1].public_key", encode_key(peer(0).public_key)),
        ("peers[1].preshared_key", 7),
        ("peers[1].previous_preshared_keys", None),
        ("peers[1].previous_preshared_keys[1]", "AAAA"),
        ("peers[1].address4", "10.150.0.256"),
        ("peers[1].address4", "10.150.0.2"),
        ("peers[1].address6", 5),
        ("peers[1].address6", "fd00::2"),
        ("peers[1].joined", -1),
        ("peers[1].joined", "now"),
        ("peers[1].joined", True),
        ("peers[1].endpoint", 5),
        ("revoked[0]", "AAAA"),
        ("guesses", None),
        ("guesses.window", -1),
        ("guesses.used", 1.5),
        ("guesses.by_source", []),
        ("guesses.by_source.192.0.2.0/32", "3"),
        ("peers[1].colour", "blue"),
        ("tunnels", 0),
        ("tunnels", 9),
        ("colour", "blue"),
    ],
)
def test_a_member_that_cannot_be_meant_is_named(member: str, value: object) -> None:
    with pytest.raises(StateError) as caught:
        ServerState.from_json(changed(server(2).to_json(), member, lambda parent, last: put(parent, last, value)))
    assert f" {member} " in caught.value.message
    assert encode_key(PRIVATE)[:-1] not in caught.value.message


def test_each_missing_member_is_named() -> None:
    whole: dict[str, object] = {"server": server(1).to_json(), "client": ClientState(PRIVATE, (network(),)).to_json()}
    paths = [path for path in members(whole) if path.count(".") and "by_source." not in path]
    assert len(paths) > 30
    for path in paths:
        state = changed(whole, path, lambda parent, last: parent.pop(last))
        read = ServerState if path.startswith("server") else ClientState
        with pytest.raises(StateError) as caught:
            read.from_json(state[path.partition(".")[0]])
        assert f" {path.partition('.')[2]} is missing" in caught.value.message


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("role", "peer"),
        ("networks", None),
        ("networks[0].host", 5),
        ("networks[0].port", 65536),
        ("networks[0].mtu", 100),
        ("networks[0].keepalive", -1),
        ("networks[0].address4", "fd00::2/64"),
        ("networks[0].address6", "10.0.0.1/8"),
        ("networks[0].routes[1]", "10.0.0.1/8"),
        ("networks[0].routes[1]", 10),
        ("networks[0].gateway4", "here"),
    ],
)
def test_a_clients_member_that_cannot_be_meant_is_named(member: str, value: object) -> None:
    state = ClientState(PRIVATE, (network(),)).to_json()
    with pytest.raises(StateError) as caught:
        ClientState.from_json(changed(state, member, lambda parent, last: put(parent, last, value)))
    assert f" {member} " in caught.value.message


def test_the_state_of_the_other_role_is_called_so_and_another_directory_is_asked_for() -> None:
    client = ClientState(PRIVATE, (network(),)).to_json()
    with pytest.raises(StateError, match="This state directory is a client's, and a server needs another") as caught:
        ServerState.from_json(client)
    assert caught.value.fix.startswith("Choose one with --state DIR")
    assert caught.value.fix.endswith("To use the client's: rustguard join")
    with pytest.raises(StateError, match="This state directory is a server's, and a client needs another") as caught:
        ClientState.from_json(server(1).to_json())
    assert caught.value.fix.endswith("To use the server's: rustguard serve")


@pytest.mark.parametrize("value", [None, [], "state", 5])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(StateError, match="not a JSON object"):
        ServerState.from_json(value)
    with pytest.raises(StateError, match="not a JSON object"):
        ClientState.from_json(value)


def test_a_record_that_could_not_be_read_back_cannot_be_made() -> None:
    for wrong in (
        {"name": ""},
        {"name": "x" * 46},
        {"public_key": bytes(31)},
        {"preshared_key": b""},
        {"previous_preshared_keys": (PSK, b"1")},
    ):
        with pytest.raises(ValueError, match="bytes"):
            replace(peer(1), **wrong)


@pytest.mark.fault(34)
def test_no_repr_shows_a_secret() -> None:
    state, client = server(1), ClientState(PRIVATE, (network(),))
    shown = repr(state) + repr(peer(0)) + repr(peer(1)) + repr(client) + repr(network())
    secrets = [PRIVATE, PSK, peer(0).preshared_key]
    for secret in secrets:
        assert repr(secret) not in shown
        assert secret.hex() not in shown
        assert encode_key(secret) not in shown
    print(f"row 34: {len(secrets)} secrets looked for in the reprs of 4 records: none")


@pytest.mark.fault(21)
def test_ten_thousand_peers_are_lean_and_quick_to_save_and_load(tmp_path: Path) -> None:
    gc.collect()
    tracemalloc.start()
    state = server(10_000)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    document = Document.open(tmp_path / "state")
    document.load()
    begun = time.perf_counter()
    snapshot = state.snapshot()
    copied = time.perf_counter()
    document.save(snapshot.to_save())
    saved = time.perf_counter()
    document.save(snapshot.to_save())
    again_saved = time.perf_counter()
    document.close()
    document = Document.open(tmp_path / "state")
    loading = time.perf_counter()
    again = ServerState.from_json(document.load())
    loaded = time.perf_counter()
    document.close()
    assert again == state
    assert held < 10 << 20
    # Ten times the goals, for a slow and busy machine.
    assert copied - begun < 0.5
    assert saved - begun < 10
    assert loaded - loading < 20
    print(
        f"10,000 peers: {held / 2**20:.1f} MiB held, snapshot {(copied - begun) * 1e3:.1f} ms, "
        f"save {(saved - begun) * 1e3:.0f} ms, the next {(again_saved - saved) * 1e3:.0f} ms, "
        f"load {(loaded - loading) * 1e3:.0f} ms"
    )


def changed(state: dict[str, object], path: str, change: Callable[[Any, Any], None]) -> dict[str, object]:
    """Change one member of a copy, named as errors name it."""
    copy: dict[str, object] = json.loads(json.dumps(state))
    parts: list[str | int] = []
    for part in path.split(".", path.count(".") if "by_source" not in path else 2):
        name, *indices = part.replace("]", "").split("[")
        parts += [name, *(int(index) for index in indices)]
    parent: Any = copy
    for step in parts[:-1]:
        parent = parent[step]
    change(parent, parts[-1])
    return copy


def put(parent: dict[object, object], last: object, value: object) -> None:
    parent[last] = value


def members(value: object, path: str = "") -> list[str]:
    """List the paths of all members of objects below a value."""
    found: list[str] = []
    if isinstance(value, dict):
        for name, below in value.items():
            here = f"{path}.{name}" if path else name
            found += [here, *members(below, here)]
    if isinstance(value, list):
        for index, below in enumerate(value):
            found += members(below, f"{path}[{index}]")
    return found


def test_guesses_of_any_window_are_kept() -> None:
    guesses = GuessRecord(2**53 - 1, 2**53 - 1, {"192.0.2.0/32": 2**53 - 1}, new_peers=2**53 - 1)
    assert GuessRecord.from_json(json.loads(json.dumps(guesses.to_json()))) == guesses


@pytest.mark.parametrize("name", ["window", "used", "most", "new_peers"])
def test_a_count_is_from_0_to_what_json_keeps_exactly(name: str) -> None:
    least = {"window": 0, "used": 0, "by_source": {}}
    for count in (0, 2**53):
        assert getattr(GuessRecord.from_json({**least, name: count}), name) == count
    for count in (-1, 2**53 + 1):
        with pytest.raises(StateError, match=name):
            GuessRecord.from_json({**least, name: count})
    with pytest.raises(StateError, match="by_source"):
        GuessRecord.from_json({**least, "by_source": {"192.0.2.0/32": 2**53 + 1}})
