"""The relay of the fault tests does to datagrams what it was asked to, and no more."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from rustguard_py.lab.hosts import Lab
from support import relay
from support.relay import Fate, Ills

_ECHO = """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("::", 9)); print("ready", flush=True)
while True: s.sendto(*s.recvfrom(2000))
"""
_ASK = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(5)
for n in range(int(sys.argv[2])): s.sendto(b"%4d" % n, (sys.argv[1], 9))
try:
    while True: print(int(s.recv(2000)))
except TimeoutError: pass
"""


def _exchange(lab: Lab, ills: Ills, count: int, record: Path | None = None) -> tuple[list[int], Counter[str]]:
    alice, middle, bob = lab.host("alice"), lab.host("middle"), lab.host("bob")
    _, listening, _, there = lab.through(
        alice,
        middle,
        bob,
        nets4=("192.0.2.0/25", "192.0.2.128/25"),
        nets6=("2001:db8:1::/64", "2001:db8:2::/64"),
    )
    program = relay.start(middle, (str(listening.ipv6), 9), (str(there.ipv6), 9), ills, record)
    echo = bob.popen([sys.executable, "-c", _ECHO], stdout=-1)
    assert echo.stdout is not None
    echo.stdout.readline()
    came = alice.run([sys.executable, "-c", _ASK, str(listening.ipv6), str(count)]).stdout.split()
    program.terminate()
    said, _ = program.communicate(timeout=60)
    return [int(line) for line in came], Counter(json.loads(said))


def test_without_ills_everything_arrives_once_in_order_and_is_recorded(lab: Lab, tmp_path: Path) -> None:
    came, counts = _exchange(lab, Ills(), 100, tmp_path / "record")
    assert came == list(range(100))
    assert counts == {"received": 200}
    ways = Counter(json.loads(line)["way"] for line in (tmp_path / "record").read_text().splitlines())
    assert ways == {"to target": 100, "to client": 100}


def test_reordered_and_duplicated_ones_all_arrive(lab: Lab) -> None:
    came, counts = _exchange(lab, Ills(reorder=0.25, duplicate=0.1), 100)
    assert set(came) == set(range(100))
    assert came != sorted(came)
    # A copy made on the way there is doubled again by what it meets on the way back.
    assert len(came) == 100 + counts["duplicated"] > 110


def test_the_same_seed_gives_the_same_fate() -> None:
    ills = Ills(loss=0.3, duplicate=0.1, corrupt=0.05, reorder=0.25)
    one, other = Fate(ills), Fate(ills)
    sent = [bytes([n % 256]) * 100 for n in range(1000)]
    assert [one.of(each) for each in sent] == [other.of(each) for each in sent]
    assert 250 < one.counts["lost"] < 350


def test_a_corrupted_one_has_one_bit_flipped() -> None:
    [(_, changed)] = Fate(Ills(corrupt=1.0)).of(bytes(50))
    assert int.from_bytes(changed).bit_count() == 1


def test_what_is_longer_than_the_bound_vanishes() -> None:
    fate = Fate(Ills(above=1300))
    assert fate.of(bytes(1301)) == []
    assert fate.of(bytes(1300)) == [(0.0, bytes(1300))]
