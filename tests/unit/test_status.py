"""The documents that a daemon's status is: what they say of peers and of tunnels, added up over several."""

from __future__ import annotations

import os
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.daemon import status
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.status import ACTIVE_FOR, PeerLine
from rustguard_py.engine import Engine
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.keys import fingerprint
from rustguard_py.model.statistics import PeerStats, PlaneStats, WorkerStats
from rustguard_py.model.tunnel import AnyTunnel

KEY, OTHER, OURS = b"k" * 32, b"o" * 32, b"s" * 32
LINE = PeerLine("laptop", KEY, "10.9.0.2", None, None)
NOW = 1000.0


def tunnel(
    stats: PlaneStats | None = None,
    began: float | None = None,
    *,
    key: bytes = KEY,
    fault: str = "",
    silent: list[str] | None = None,
) -> AnyTunnel:
    """Return a tunnel with one peer, whose number is 5."""
    peer = SimpleNamespace(id=5, session_began=began)
    made = SimpleNamespace(
        node=SimpleNamespace(public_key=OURS, get={key: peer}.get),
        plane=SimpleNamespace(stats=lambda: stats or PlaneStats()),
        fault=RustGuardError(fault) if fault else None,
        silent=silent or [],
    )
    return cast(AnyTunnel, made)


def of(stats: PeerStats, **more: Any) -> PlaneStats:
    return PlaneStats({5: stats}, **more)


def peer(*tunnels: AnyTunnel, line: PeerLine = LINE, keys: list[bytes] | None = None) -> dict[str, Any]:
    document = status.peers(tunnels, [line], NOW, keys=keys)
    assert document["schema"] == 1
    [found] = document["peers"]
    return cast(dict[str, Any], found)


def test_a_peers_counters_are_added_up_over_all_tunnels() -> None:
    first = PeerStats(("192.0.2.1", 7), 1, 2, 3, 4, 990.0, 995.0, 5, 6)
    second = PeerStats(("192.0.2.9", 9), 10, 20, 30, 40, 970.0, None, 50, 60)
    found = peer(tunnel(of(first), 900.0), tunnel(of(second), 950.25, key=OTHER), keys=[KEY, OTHER])
    assert found == {
        "name": "laptop",
        "dns_name": None,
        "public_key": b64encode(KEY).decode(),
        "address4": "10.9.0.2",
        "address6": None,
        # The first tunnel has the peer's endpoint.
        "endpoint": "192.0.2.1:7",
        "state": "active",
        "last_handshake": 49.75,
        "last_received": 10.0,
        "rx_bytes": 11,
        "tx_bytes": 22,
        "rx_packets": 33,
        "tx_packets": 44,
        "handshakes": 55,
        "drops": 66,
        "keepalive": 0,
        "clock_ahead": None,
    }


def test_a_peer_that_no_tunnel_has_is_shown_with_what_is_kept_of_it() -> None:
    line = replace(LINE, endpoint="192.0.2.1:7", keepalive=25, clock_ahead="2150-01-01T00:00:00Z", dns_name="laptop")
    found = peer(tunnel(key=OTHER), line=line)
    assert (found["endpoint"], found["keepalive"], found["dns_name"]) == ("192.0.2.1:7", 25, "laptop")
    assert found["clock_ahead"] == "2150-01-01T00:00:00Z"
    assert (found["last_handshake"], found["last_received"], found["rx_bytes"]) == (None, None, 0)


@pytest.mark.parametrize(
    ("began", "heard", "changes", "state"),
    [
        (None, None, {}, "never"),
        (None, None, {"endpoint": "192.0.2.1:7"}, "idle"),
        # One that somebody wrote down proves nothing.
        (None, None, {"endpoint": "192.0.2.1:7", "was_heard": False}, "never"),
        (None, NOW - 500, {"endpoint": "192.0.2.1:7", "was_heard": False}, "idle"),
        (None, None, {"has_connected": False, "endpoint": "192.0.2.1:7"}, "never-connected"),
        (NOW, None, {"has_connected": False}, "active"),
        (None, NOW - ACTIVE_FOR, {}, "active"),
        (None, NOW - ACTIVE_FOR - 0.1, {}, "idle"),
        # The handshake that began the session was heard too.
        (NOW - 1, NOW - 500, {}, "active"),
        (NOW - 500, NOW - 1, {}, "active"),
        (NOW - 500, None, {}, "idle"),
        (NOW, NOW, {"has_to_join_again": True}, "has-to-join-again"),
    ],
)
def test_a_peers_state(began: float | None, heard: float | None, changes: dict[str, Any], state: str) -> None:
    assert peer(tunnel(of(PeerStats(last_received=heard)), began), line=replace(LINE, **changes))["state"] == state


def common(*tunnels: AnyTunnel, reports: Any = None) -> dict[str, Any]:
    engine = Engine("native", "it is there", notes=("no AF_XDP.",))
    return status.common(Program("server", Path("/var/lib/x"), "rg0", engine, 900.5), tunnels, NOW, reports)


def test_the_program_its_key_and_the_counters_of_all_planes() -> None:
    worker = WorkerStats("in-0", 3, 300, [0, 1] + 14 * [0], 9)
    first = of(PeerStats(handshakes=2), drops={"no_peer": 1, "replay": 2}, notes=["no GRO."], workers=[worker])
    second = of(PeerStats(handshakes=3), drops={"replay": 5}, notes=["no GRO.", "no GSO."], workers=[worker])
    assert common(tunnel(first), tunnel(second), reports=SimpleNamespace(notes=["off towards laptop."])) == {
        "schema": 1,
        "role": "server",
        "state_directory": "/var/lib/x",
        "pid": os.getpid(),
        "interface": "rg0",
        "engine": "native",
        "engine_reason": "it is there",
        "sandbox": {"applied": [], "refused": []},
        "public_key": b64encode(OURS).decode(),
        "fingerprint": fingerprint(OURS),
        "counters": {"handshakes": 5, "drops": {"no_peer": 1, "replay": 7}},
        "memif": None,
        "workers": [
            {
                "name": name,
                "packets": 3,
                "bytes": 300,
                "batches": 1,
                "batch_sizes": [0, 1] + 14 * [0],
                "system_calls": 9,
            }
            for name in ("in-0", "in-0 of 1")
        ],
        # The same of several planes is one.
        "healthy": True,
        "notes": ["no AF_XDP.", "no GRO.", "no GSO.", "off towards laptop."],
        "uptime": 99.5,
    }


def test_without_reports_the_notes_are_the_engines() -> None:
    assert common(tunnel())["notes"] == ["no AF_XDP."]


def test_each_tunnel_that_broke_is_a_warning() -> None:
    assert status.broken([tunnel(), tunnel(fault="The device is gone."), tunnel()]) == [
        "Tunnel 1 of 3 broke: The device is gone. The others go on; a restart fixes it."
    ]


def test_a_plane_that_does_not_answer_is_a_warning_and_not_healthy() -> None:
    silent = [tunnel(silent=["rg-in", "rg-out"]), tunnel(silent=["rg-in"])]
    assert status.broken(silent) == ["The data plane doesn't answer (rg-in, rg-out). A restart fixes it."]
    assert common(*silent)["healthy"] is False
    assert common(tunnel(), tunnel(fault="The device is gone."))["healthy"] is False
