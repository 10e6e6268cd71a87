"""One end is stopped for longer than a session lasts (a suspended machine, a debugger)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.faults import OPEN, end, halt, site, until

# The row says 6 from SIGCONT on; a busy machine may need more.
SECONDS = 30.0


@pytest.mark.fault(12)
@pytest.mark.parametrize("stopped", ["client", "server"])
def test_traffic_goes_on_after_an_end_was_stopped(lab: Lab, tmp_path: Path, soak: bool, stopped: str) -> None:
    where = site(lab, tmp_path)
    client = where.client()
    programs = {"server": where.server.serve(OPEN)}
    programs["client"] = client.start(f"join {where.address()}")
    until("a ping", client.reaches)
    pause = 300 if soak else 10
    halt(programs[stopped])
    deadline = time.monotonic() + pause
    # Somebody still wants something: the other end's handshakes go unanswered, and it gives up.
    while time.monotonic() < deadline:
        assert not client.reaches()
    programs[stopped].send_signal(signal.SIGCONT)
    began = time.monotonic()
    until("a ping", lambda: client.reaches(wait=0.2), SECONDS)
    took = time.monotonic() - began
    print(f"row 12: the {stopped} was stopped for {pause} s; a ping {took:.1f} s after it went on")
    assert [end(programs["client"]), end(programs["server"])] == [0, 0]
