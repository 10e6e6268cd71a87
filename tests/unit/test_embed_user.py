"""An embedded tunnel needs no root, and leaves nothing on the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.embedded import Ends
from support.engines import on_both_engines
from support.other_user import NOBODY

# What the program does as an ordinary user, and what it sees of the system meanwhile. It is started as root and has
# run once before it gives that up, because another user may not be allowed to read this Python.
PROGRAM = """
import asyncio, json, os, socket, sys
from pathlib import Path
import rustguard_py
from support.embedded import to_one

one, other, engine, user = sys.argv[1:]

def system():
    status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "interfaces": [name for _, name in socket.if_nameindex()],
        "routes": [Path(f"/proc/net/{each}").read_text() for each in ("route", "ipv6_route")],
        "resolver": Path("/etc/resolv.conf").read_text(),
        "uids": status["Uid"].split(),
        "capabilities": [int(status[each], 16) for each in ("CapEff", "CapPrm")],
    }

async def carry():
    async with rustguard_py.connect(one, engine=engine) as here, rustguard_py.connect(other, engine=engine) as there:
        await there.write_batch([to_one(b"hello")])
        (packet,) = await here.read_batch(timeout=60)
        descriptors = [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        return bytes(packet)[28:].decode(), system(), [os.readlink(each) for each in descriptors]

asyncio.run(carry())
os.setgroups([])
os.setresgid(*[int(user)] * 3)
os.setresuid(*[int(user)] * 3)
before = system()
said, during, files = asyncio.run(carry())
print(json.dumps([said, before, during, system(), files]))
"""


@pytest.mark.needs_second_uid
@on_both_engines
def test_an_ordinary_user_has_a_tunnel_and_the_system_stays_as_it_was(engine: str, tmp_path: Path) -> None:
    home, ends = tmp_path / "home", Ends()
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ends.one(), ends.other(), engine, str(NOBODY)],
        env={**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home), "PYTHONPATH": tests},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, before, during, after, files = json.loads(done.stdout)
    assert said == "hello"
    assert before["uids"] == [str(NOBODY)] * 4
    assert before["capabilities"] == [0, 0]
    assert during == before
    assert after == before
    assert list(home.rglob("*")) == []
    assert "/dev/net/tun" not in files
