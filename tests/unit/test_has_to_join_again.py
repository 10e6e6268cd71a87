"""States that hold peers or networks of the first RustGuard, whose protocol was removed."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from ipaddress import IPv4Address, ip_interface
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.cli import render
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.client.kept import usable
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.model.errors import RefusedError
from rustguard_py.model.keys import NO_PRESHARED_KEY, encode_key
from rustguard_py.model.sudo import as_root
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import EventfulPlane
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.records import PeerRecord, ServerState
from rustguard_py.tunnel import Tunnel
from support.memory_plane import MemoryPlane

ENROLLED, IMPORTED, QUICK, STOCK, JOINED, OTHER = (bytes([number]) * 32 for number in range(1, 7))
PSK = b"p" * 32


def peer(key: bytes, name: str, address4: str, **members: Any) -> dict[str, Any]:
    return {
        "name": name,
        "public_key": encode_key(key),
        "preshared_key": encode_key(NO_PRESHARED_KEY),
        "address4": address4,
        "address6": None,
        "joined": 1.7e9,
        "endpoint": None,
        "previous_preshared_keys": [],
        **members,
    }


PEERS = [
    peer(ENROLLED, "peer", "10.5.0.2", endpoint="", address6="fd05::2"),
    peer(IMPORTED, "peer-10.5.0.3", "10.5.0.3", endpoint="192.0.2.3:51820"),
    peer(QUICK, "peer-2", "10.5.0.4"),
    peer(STOCK, "attic", "10.5.0.5", endpoint="192.0.2.5:51820", address6="fd05::5"),
    peer(JOINED, "laptop", "10.5.0.6", preshared_key=encode_key(PSK), endpoint=""),
]
DOCUMENT = {
    "role": "server",
    "private_key": encode_key(bytes(31) + b"\x40"),
    "server_id": encode_key(bytes(32)),
    "pool4": "10.5.0.0/24",
    "pool6": "fd05::/64",
    "port": 51820,
    "mtu": 1420,
    "peers": PEERS,
    "revoked": [],
    "guesses": {"window": 0, "used": 0, "by_source": {}},
}


@pytest.mark.parametrize(
    ("members", "has_to"),
    [
        ({"name": "peer", "endpoint": ""}, True),
        ({"name": "anything", "endpoint": "", "address6": "fd05::2"}, True),
        ({"name": "peer-10.5.0.2"}, True),
        ({"name": "peer-10.5.0.2-3", "endpoint": "192.0.2.2:4000"}, True),
        ({"name": "peer-10.5.0.2", "address6": "fd05::2"}, False),
        ({"name": "peer-10.5.0.20"}, False),
        ({"name": "peer-10.5.0.2-b"}, False),
        ({"name": "peer-10x5.0.2"}, False),
        ({"name": "peer-2"}, False),
        ({"name": "phone", "endpoint": "192.0.2.2:4000"}, False),
        ({"name": "peer", "endpoint": "", "preshared_key": encode_key(PSK)}, False),
        ({"name": "peer-10.5.0.2", "preshared_key": encode_key(PSK)}, False),
    ],
)
def test_a_peer_of_the_first_rustguard_is_recognized_and_one_of_a_wg_quick_file_is_not(
    members: dict[str, Any], has_to: bool
) -> None:
    name = members.pop("name")
    assert PeerRecord.from_json(peer(ENROLLED, name, "10.5.0.2", **members)).has_to_join_again is has_to


class Running:
    """A server that has begun with a state of such peers, with its tunnel in memory."""

    def __init__(self, directory: Path) -> None:
        self.timestamps = KeptTimestamps(directory)
        self.state = ServerState.from_json(DOCUMENT)
        self.tunnel = Tunnel.make(
            self.state.private_key, cast(EventfulPlane, MemoryPlane(bytes(32))), self.timestamps, Listeners()
        )
        saver = Saver(self.state, lambda _: None, lazy=3600, retry=3600)
        self.server = RunningServer(self.tunnel, Registry(self.state), saver, self.timestamps, self.state.pool6)
        self.ask = ServerControl(self.server, None, None).handlers()  # type: ignore[arg-type]  # for the status alone
        self.server.admissions.begin()

    def live(self) -> set[bytes]:
        return {each.config.public_key for each in self.tunnel.node}

    def states(self) -> dict[str, str]:
        document = self.ask["peers"]({})
        assert isinstance(document, dict)
        return {each["name"]: each["state"] for each in document["peers"]}

    async def join(self, key: bytes, name: str) -> PeerRecord:
        record = await self.server.admissions.admit(key, name, PSK, "192.0.2.9:4000")
        assert isinstance(record, PeerRecord)
        return record

    async def finish(self) -> None:
        await self.server.finish()
        self.timestamps.close()


def test_they_are_counted_in_the_log_shown_and_not_put_into_the_tunnel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        with caplog.at_level(logging.INFO):
            running = Running(tmp_path)
        assert [record.getMessage() for record in caplog.records] == [
            "2 peers of the first RustGuard must join again; see which: rustguard peers"
        ]
        assert running.live() == {QUICK, STOCK, JOINED}
        assert running.states() == {
            "peer": "has-to-join-again",
            "peer-10.5.0.3": "has-to-join-again",
            "peer-2": "never",
            "attic": "idle",
            "laptop": "idle",
        }
        render.show_peers(running.ask["peers"]({}), verbose=False)  # type: ignore[arg-type]  # it isn't awaited
        lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
        assert "has to join again" in lines["peer"]
        assert "has to join again" in lines["peer-10.5.0.3"]
        assert "has to join again" not in lines["peer-2"] + lines["attic"] + lines["laptop"]
        await running.finish()

    asyncio.run(main())


def test_one_that_joins_again_with_its_key_is_a_normal_peer(tmp_path: Path) -> None:
    async def main() -> None:
        running = Running(tmp_path)
        record = await running.join(ENROLLED, "laptop")
        assert (record.name, str(record.address4)) == ("peer", "10.5.0.2")
        # The removed protocol's lack of a preshared key must not let anybody in.
        assert record.preshared_keys == (PSK,)
        assert ENROLLED in running.live()
        assert running.states()["peer"] == "idle"
        await running.finish()

    asyncio.run(main())


def test_a_new_key_that_joins_with_its_name_takes_its_place(tmp_path: Path) -> None:
    async def main() -> None:
        running = Running(tmp_path)
        await running.ask["rename"]({"old": "peer-10.5.0.3", "new": "cellar"})  # type: ignore[misc]  # it is awaited
        assert running.states()["cellar"] == "has-to-join-again"
        assert IMPORTED not in running.live()
        record = await running.join(OTHER, "cellar")
        assert (record.name, str(record.address4)) == ("cellar", "10.5.0.3")
        assert running.states()["cellar"] == "never-connected"
        assert running.live() == {QUICK, STOCK, JOINED, OTHER}
        assert IMPORTED not in running.state.peers
        # A peer that can connect keeps its name.
        assert (await running.join(b"n" * 32, "laptop")).name == "laptop-2"
        assert ServerState.from_json(running.state.to_json()).peers == running.state.peers
        await running.finish()

    asyncio.run(main())


# -- a client -------------------------------------------------------------------------------------------------


def client_state(**members: Any) -> ClientState:
    network = {
        "host": "home.example",
        "port": 51820,
        "server_key": encode_key(b"s" * 32),
        "preshared_key": encode_key(NO_PRESHARED_KEY),
        "name": "laptop",
        "address4": str(ip_interface("10.5.0.2/24")),
        "address6": None,
        "routes": [],
        "mtu": 1420,
        "keepalive": 25,
        "gateway4": "10.5.0.1",
        "gateway6": None,
        "joined": 1.7e9,
        **members,
    }
    return ClientState.from_json({"role": "client", "private_key": encode_key(bytes(32)), "networks": [network]})


@pytest.mark.parametrize(
    ("members", "server"),
    [
        ({}, "home.example"),
        ({"port": 4000}, "home.example:4000"),
        ({"host": "2001:db8::1"}, "2001:db8::1"),
        ({"host": "2001:db8::1", "port": 4000}, "[2001:db8::1]:4000"),
    ],
)
def test_a_client_is_told_to_join_again_and_how(members: dict[str, Any], server: str) -> None:
    with pytest.raises(RefusedError, match="first RustGuard") as refused:
        usable(client_state(**members).network(), joins=False)
    assert refused.value.fix == f"Join again: {as_root(f'rustguard join {server} --token -')}"


def test_a_client_with_a_token_joins_as_if_for_the_first_time() -> None:
    assert usable(client_state().network(), joins=True) is None


@pytest.mark.parametrize("joins", [False, True])
def test_a_network_with_a_preshared_key_stays_usable(joins: bool) -> None:
    network = client_state(preshared_key=encode_key(PSK)).network()
    assert usable(network, joins=joins) is network
    assert usable(None, joins=joins) is None


def test_asking_thousands_of_peers_of_a_wg_quick_file_costs_little() -> None:
    record = PeerRecord.from_json(peer(ENROLLED, "phone", "10.5.0.2", endpoint="192.0.2.2:4000"))
    records = [
        replace(record, name=f"peer-10.5.{n >> 8}.{n & 255}", address4=IPv4Address(f"10.5.{n >> 8}.{n & 255}"))
        for n in range(2000)
    ]
    began = time.process_time()
    assert all(each.has_to_join_again for each in records)
    # A pattern of its own for each took 100 ms.
    assert time.process_time() - began < 0.05
