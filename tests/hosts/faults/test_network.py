"""Joins over a path that loses, reorders, duplicates and corrupts; a wall clock that jumps."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support import relay
from support.faults import OPEN, Site, Station, end, site, until
from support.relay import Ills

# The row says 30; the start of the command is in it here, six of them share the machine.
JOIN_SECONDS = 90.0
AT_ONCE = 6
SOURCES = ["203.0.113.0/24", "198.18.1.0/24", "198.18.2.0/24"]
YEARS = 10 * 365.25 * 86400


@dataclass(slots=True)
class _Path:
    """A bad path to the server, and how those fared who joined over it."""

    row: int
    what: str
    ills: Ills
    count: int
    port: int
    times: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def _join_all(where: Site, address: str, paths: list[_Path]) -> set[str]:
    """Have everybody join over their path, some at a time; give the addresses that they then have."""
    waiting = [path for path in paths for _ in range(path.count)]
    running: list[tuple[_Path, Station, subprocess.Popen[str], float]] = []
    addresses = set()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            path, client = waiting.pop(0), where.client()
            program = client.start(f"join {address}:{path.port} --save-only")
            running.append((path, client, program, time.monotonic()))
        for each in [each for each in running if each[2].poll() is not None]:
            running.remove(each)
            path, client, program, began = each
            if program.returncode:
                path.failed.append(client.said())
                continue
            path.times.append(time.monotonic() - began)
            addresses.add(client.kept()["networks"][-1]["address4"].partition("/")[0])
        time.sleep(0.01)
    return addresses


@pytest.mark.fault(1, 2, 3)
def test_everybody_joins_over_paths_that_lose_reorder_duplicate_and_corrupt(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    where = site(lab, tmp_path)
    middle = where.hosts[0]
    outside = lab.host("outside")
    _, listening = lab.link(outside, middle, ipv4="192.0.2.0/29")
    where.hosts[0] = outside
    paths = [
        _Path(1, "30 % lost each way", Ills(loss=0.3), 200 if soak else 6, 40_001),
        _Path(2, "25 % reordered, 10 % duplicated", Ills(reorder=0.25, duplicate=0.1), 200 if soak else 4, 40_002),
        _Path(3, "a bit flipped in 5 %", Ills(corrupt=0.05), 200 if soak else 4, 40_003),
    ]
    for path, sources in zip(paths, SOURCES, strict=True):
        # A changed bit may come out as a wrong token, and a source has few of them: each client is one of its own.
        ends = (str(listening.ipv4), path.port), (where.address(), 51820)
        relay.start(middle, *ends, path.ills, sources=IPv4Network(sources))
        where.server.host.ip([f"route add {sources} via {where.there[0].ipv4}"])
    server = where.server.serve(f"{OPEN} --pool 10.150.0.0/22")
    addresses = _join_all(where, str(listening.ipv4), paths)
    given = [peer["address4"] for peer in where.server.peers().values()]
    assert len(given) == len(set(given))
    assert addresses <= set(given)
    joined = sum(len(path.times) for path in paths)
    assert len(addresses) == joined
    for path in paths:
        # One in a hundred may fail at such a loss, so in the short run one.
        assert len(path.times) >= path.count - (max(1, path.count // 100) if path.row == 1 else 0), path.failed
        assert max(path.times) <= JOIN_SECONDS
        times = f"median {sorted(path.times)[path.count // 2]:.1f} s, worst {max(path.times):.1f} s"
        print(f"row {path.row}: {path.what}: {len(path.times)} of {path.count} joined, {times}")
    assert end(server) == 0


# Read by Python at its start: the wall clock, and nothing else, is off by what a file says.
_CLOCK = """
import os, time
_true, _true_ns, _file = time.time, time.time_ns, os.environ["WALL_CLOCK_OFFSET"]
def _offset():
    with open(_file) as file: return float(file.read() or 0)
time.time = lambda: _true() + _offset()
time.time_ns = lambda: _true_ns() + int(_offset() * 1e9)
"""


@pytest.mark.fault(11)
def test_a_wall_clock_that_jumps_moves_no_window_and_ends_no_session(lab: Lab, tmp_path: Path) -> None:
    """No namespace has a CLOCK_REALTIME of its own, so what is shifted is what our programs read of it.

    Rekeys after 120 s with such jumps are tests/unit/test_node.py's, under a virtual clock.
    """
    where = site(lab, tmp_path)
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_CLOCK)
    offset = folder / "offset"
    offset.write_text("0")
    client = where.client()
    for station in (where.server, client):
        station.environment |= {"PYTHONPATH": str(folder), "WALL_CLOCK_OFFSET": str(offset)}
    server = where.server.serve(OPEN)
    offset.write_text(str(YEARS))
    program = client.start(f"join {where.address()}")
    until("a ping", client.reaches)
    assert where.server.kept()["peers"][0]["joined"] > time.time() + YEARS / 2
    asked = time.monotonic()
    where.server.ask("open", seconds=1000)
    opened = time.monotonic()
    worst = 0.0
    for jump in (-YEARS, 3600, -3600, YEARS, -YEARS):
        offset.write_text(str(jump))
        time.sleep(0.2)
        until("a ping", client.reaches)
        before = time.monotonic()
        left = where.server.status()["window"]["remaining"]
        # It was opened, and looked at, at some time between our question and the answer.
        early, late = 1000 - (time.monotonic() - asked), 1000 - (before - opened)
        worst = max(worst, early - left, left - late)
        # A new handshake, of a clock that stands far from where the one before stood.
        assert end(program) == 0
        program = client.start("join")
        until("a ping of a new session", client.reaches)
    assert worst <= 1
    print(
        f"row 11: clock + and - 10 years and 1 hour: window off by {worst:.2f} s at most; new sessions came at once"
    )
    assert [end(program), end(server)] == [0, 0]
