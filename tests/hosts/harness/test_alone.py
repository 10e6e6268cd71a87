"""A test and the programs that it starts see only their own daemons, whatever else runs on this machine."""

from __future__ import annotations

import os
import sys

from rustguard_py.lab.hosts import Lab

# A daemon where the machine's are, asked after by a program with a test's variables and by one without.
_LOOK = """
import asyncio, os, subprocess, sys
from pathlib import Path
from rustguard_py.daemon.control.server import ControlServer
from rustguard_py.state import paths

HIDDEN = dict(variable.split("=", 1) for variable in sys.argv[1:])

def status(more):
    argv = [sys.executable, "-m", "rustguard_py.cli", "status", "--json"]
    return subprocess.run(argv, env={**os.environ, **more}, capture_output=True).returncode

async def main():
    server = ControlServer(paths.announce(Path("/run/state")), {"status": lambda _: {"schema": 1}})
    await server.start()
    print(await asyncio.to_thread(status, HIDDEN), await asyncio.to_thread(status, {}))
    await server.close()

asyncio.run(main())
"""


def test_a_program_that_a_test_starts_does_not_see_the_machines_daemons(lab: Lab) -> None:
    machine = lab.host("machine", own_run=True)
    variables = [f"{name}={os.environ[name]}" for name in ("RUSTGUARD_RUNTIME", "RUSTGUARD_SYSTEM_RUNTIME")]
    assert machine.run([sys.executable, "-c", _LOOK, *variables]).stdout.split() == ["3", "0"]
