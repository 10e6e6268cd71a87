"""Tables for people: quick for thousands of rows, and right on a narrow terminal."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from rustguard_py.cli import render

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def peer(number: int, name: str = "laptop") -> dict[str, Any]:
    return {
        "name": f"{name}-{number}",
        "public_key": KEY,
        "address4": f"10.77.{number >> 8}.{number & 255}",
        "address6": "fd77::2",
        "endpoint": f"198.51.100.7:{10000 + number}",
        "state": "active",
        "last_handshake": 40.0,
        "last_received": 12.3,
        "rx_bytes": 1536,
        "tx_bytes": 5 * 2**30,
    }


def shown(width: int, *peers: dict[str, Any], verbose: bool = False) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(render.peers(peers, verbose=verbose))
    return file.getvalue().splitlines()


def test_two_thousand_rows_take_little_time() -> None:
    rows = [peer(number) for number in range(2000)]
    console = Console(file=io.StringIO(), width=200)
    took = []
    for _ in range(3):
        began = time.process_time()
        console.print(render.peers(rows, verbose=False))
        took.append(time.process_time() - began)
    print(f"2,000 peers: {min(took) * 1000:.0f} ms of CPU")
    assert min(took) < 0.5
    began = time.process_time()
    Console(file=io.StringIO(), width=60).print(render.peers(rows, verbose=True))
    assert time.process_time() - began < 1.0


def test_at_60_columns_the_address_stays_and_the_key_goes() -> None:
    head, row = shown(60, peer(2))
    assert head.split() == ["NAME", "ADDRESS", "STATE", "↓", "↑"]
    assert "10.77.0.2" in row
    assert "active 12s ago" in row
    assert len(row) <= 60


def test_at_60_columns_all_of_a_peer_takes_a_line_for_each_cell() -> None:
    lines = shown(
        60, peer(2), peer(3, "a-machine-with-a-very-long-name-that-somebody-gave-it-once-or-twice"), verbose=True
    )
    assert max(map(len, lines)) <= 60
    assert lines[:7] == [
        "laptop-2",
        "  address   10.77.0.2 fd77::2",
        "  state     active 12s ago",
        "  endpoint  198.51.100.7:10002",
        "  ↓         1.5 KiB",
        "  ↑         5.0 GiB",
        f"  key       {KEY}",
    ]
    assert "".join(lines[7:9]) == "a-machine-with-a-very-long-name-that-somebody-gave-it-once-or-twice-3"
    # Where there is room, it is a table.
    assert len(shown(160, peer(2), peer(3), verbose=True)) == 3


def test_a_status_of_60_columns_has_no_longer_line_and_keeps_the_addresses() -> None:
    document = {
        "role": "tunnel",
        "interface": "wg0",
        "uptime": 7200.0,
        "addresses": ["10.77.0.1/24", "fd77::1/64"],
        "port": 51820,
        "mtu": 1420,
        "public_key": KEY,
        "fingerprint": "ABCDEFGHIJKLMNOP",
        "engine": "native",
        "engine_reason": "the fastest here; 1 queue of two threads for 2 cores; AEAD: AVX-512 for 16 packets at once",
        "state_directory": "/var/lib/rustguard/tunnels/wg0",
        "counters": {"handshakes": 3, "drops": {"replayed": 7}},
        "peers": [peer(2), peer(3)],
        "warnings": ["There is no private key yet, and the one shown is a placeholder that no peer knows."],
        "notes": ["Off: tun-checksum, as asked for (--offloads no-tun-checksum)."],
    }
    for verbose in (False, True):
        file = io.StringIO()
        Console(file=file, width=60).print(render.status(document, verbose=verbose))
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= 60
        assert {"10.77.0.2", "10.77.0.3"} <= set(file.getvalue().split())
    # Nothing is left out when all is asked for.
    assert file.getvalue().count(KEY) == 3


def test_columns_go_in_turn_and_a_long_name_is_cut_last() -> None:
    row = peer(2, "a-machine-with-a-very-long-name-that-somebody-gave-it")
    heads = [shown(width, row)[0].split() for width in (160, 130, 100, 60, 40)]
    assert [len(head) for head in heads] == [7, 6, 5, 3, 3]
    assert "10.77.0.2" in shown(40, row)[1]
    assert len(shown(60, row)[1]) <= 60


def test_wide_characters_count_twice() -> None:
    lines = shown(120, peer(2, "日本"), peer(3, "ab"))
    assert lines[1].index("10.77.0.2") + 2 == lines[2].index("10.77.0.3")


def test_no_color_means_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    Console(file=file, width=120, force_terminal=True).print(render.peers([peer(2)], verbose=False))
    assert "\x1b[3" not in file.getvalue()


def test_what_happened_is_wrapped_beside_its_time_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "_console", lambda: Console(width=60))
    render.moments([("2026-11-26 09:30:00+0000", "a peer with a long name [joined] from \x1b " + "word " * 12)])
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert len(lines) > 2
    assert all(len(each) <= 60 for each in lines)
    assert lines[0].startswith("2026-11-26 09:30:00+0000  a peer")
    assert all(each.startswith(" " * 26) for each in lines[1:])
    assert "[joined] from \\x1b" in " ".join(each[26:].strip() for each in lines)


@pytest.mark.parametrize(
    ("ports", "line"),
    [
        ({"role": "server", "port": 51820}, "10.77.0.1/24, port 51820, MTU 1420"),
        ({"role": "client", "port": 51820, "listen_port": 40472}, "10.77.0.1/24, port 40472, MTU 1420"),
        ({"role": "client", "port": 51820}, "10.77.0.1/24, MTU 1420"),
    ],
)
def test_the_port_next_to_an_address_is_of_the_same_machine(ports: dict[str, Any], line: str) -> None:
    assert render._addresses({"addresses": ["10.77.0.1/24"], "mtu": 1420, **ports}) == line


@pytest.mark.parametrize(("to_server", "title"), [(False, " PORT"), (True, " TO PORT")])
def test_a_client_shows_its_tunnels_with_the_ports_that_they_lead_to(to_server: bool, title: str) -> None:
    row = {
        "interface": "rg0",
        "port": 51820,
        "state": "running",
        "sessions": 1,
        "carries_for": 1,
        "rx_bytes": 0,
        "tx_bytes": 0,
        "share": 1.0,
    }
    file = io.StringIO()
    Console(file=file, width=100).print(render.tunnels([row], to_server=to_server))
    assert title in file.getvalue()
    assert (" TO PORT" in file.getvalue()) is to_server
