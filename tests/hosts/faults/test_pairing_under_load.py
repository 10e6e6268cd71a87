"""Pairing beside a flood of pairing datagrams that prove nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.engines import on_both_engines
from support.flood import Flood

pytestmark = pytest.mark.alone

PORT = 51820
MANY = 20_000
_TESTS = Path(__file__).parents[2]
_ENVIRONMENT = {"PYTHONPATH": str(_TESTS)}

# One HELLO after the other, each with the SHARE_C that its answer allows; prints the seconds until each answer.
_ASK = """
import json, os, socket, sys, time
server, seconds, pause = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3]), float(sys.argv[4])
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.settimeout(1)
took, ends = [], time.monotonic() + seconds
while time.monotonic() < ends:
    nonce = os.urandom(16)
    began = time.monotonic()
    here.sendto(b"RGE3\\1\\0\\0\\0" + nonce + bytes(104), server)
    try:
        while (answer := here.recv(2048))[8:24] != nonce:
            pass
        took.append(time.monotonic() - began)
        here.sendto(b"RGE3\\3\\0\\0\\0" + answer[8:60] + bytes(72), server)
    except TimeoutError:
        took.append(None)
    time.sleep(pause)
print(json.dumps(took))
"""


@pytest.mark.fault(42)
@on_both_engines
@pytest.mark.parametrize("sources", ["203.0.113.7/32", "198.51.100.0/25"], ids=["one source", "a hundred"])
@pytest.mark.parametrize("what", ["short", "share"])
def test_a_flood_that_proves_nothing_keeps_nobody_from_pairing(
    lab: Lab, soak: bool, what: str, sources: str, engine: str
) -> None:
    server, stranger, joiner = (lab.host(name) for name in ("server", "stranger", "joiner"))
    attacked, attacker = lab.link(server, stranger, ipv4="192.0.2.16/29")
    near, _ = lab.link(server, joiner, ipv4="192.0.2.0/29")
    for each in ("all", "default", *(one.interface for one in server.ends)):
        server.sysctl(f"net.ipv4.conf.{each}.rp_filter", 0)
    argv = [sys.executable, str(_TESTS / "support" / "guarded_plane.py"), engine, f"{PORT}"]
    plane = server.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_ENVIRONMENT)
    assert plane.stdout is not None
    assert plane.stdout.readline() == "up\n"
    flood = Flood(attacker, attacked, PORT, MANY, what, source=sources)
    seconds = 30.0 if soak else 4.0
    argv = [sys.executable, "-c", _ASK, f"{near.ipv4}", f"{PORT}", f"{seconds}", "0.1"]
    took: list[float | None] = json.loads(joiner.run(argv, timeout=seconds + 60).stdout)
    flooded = flood.end()
    said, _ = plane.communicate("\n", timeout=60)
    counted = json.loads(said)
    answered = [each for each in took if each is not None]
    print(
        f"{flooded.rate:,.0f}/s of `{what}` from {sources} ({engine}): {len(answered)} of {len(took)} HELLOs "
        f"answered, {max(answered) * 1000:.1f} ms at most, {counted['passed']} SHARE_Cs passed; {counted['drops']}"
    )
    assert counted["passed"] >= 0.9 * len(answered)
    assert counted["drops"][{"short": "pairing_malformed", "share": "pairing_cookie"}[what]] > flooded.datagrams / 2
    assert len(answered) >= (1.0 if engine == "native" else 0.9) * len(took)
