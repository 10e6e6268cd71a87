"""Thousands join at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.crowd import join_at_once
from support.faults import OPEN, TOKEN, end, site

# A fork shares memory.
pytestmark = pytest.mark.fresh

NETWORK = "198.18.0.0/16"
POOL = "--pool 10.150.0.0/16"


def _most_memory(pid: int) -> float:
    """The most that a process has had, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.fault(21)
def test_thousands_join_at_once(lab: Lab, tmp_path: Path, soak: bool) -> None:
    where = site(lab, tmp_path)
    count = 10_000 if soak else 500
    where.server.host.ip([f"route add {NETWORK} via {where.there[0].ipv4}"])
    server = where.server.serve(f"{OPEN} --most {count} {POOL}")
    crowd = join_at_once(where.hosts[0], NETWORK, count, where.address(), TOKEN, 300)
    memory = _most_memory(server.pid)
    given = [peer["address4"] for peer in where.server.peers().values()]
    print(
        f"row 21: {len(crowd.addresses)} of {count} joined within {crowd.seconds:.1f} s; "
        f"the server had {memory:.0f} MiB at most"
    )
    assert not crowd.failed
    assert len(set(crowd.addresses)) == count
    assert set(crowd.addresses) == set(given)
    assert memory <= 200
    assert end(server) == 0
    began = time.monotonic()
    server = where.server.serve(POOL)
    print(f"row 21: {time.monotonic() - began:.1f} s from its start until a server with them answers")
    assert {peer["address4"] for peer in where.server.peers().values()} == set(given)
    assert end(server) == 0
