"""The portable plane between two hosts: real devices, sockets and offloads; no handshakes."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from typing import Any

import pytest

from rustguard_py.lab.hosts import Host, Lab
from support import fixed_plane

PROGRAM = fixed_plane.__file__
BYTES = 20_000_000
_SEND = (
    "import socket,sys,random; s=socket.create_connection((sys.argv[1],5000));"
    f"s.sendall(random.Random(5).randbytes({BYTES})); s.close()"
)
_TAKE = (
    "import socket,sys,hashlib; l=socket.create_server((sys.argv[1],5000),"
    "family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET);"
    "print('listening',flush=True); s=l.accept()[0]; h=hashlib.sha256()\n"
    "while d:=s.recv(1<<18): h.update(d)\n"
    "print(h.hexdigest())"
)


class Running:
    """A plane in a host."""

    def __init__(self, host: Host, number: int, peer: str) -> None:
        command = [sys.executable, PROGRAM, f"pl{number}", str(number), peer]
        self.program = host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.host = host
        assert self.line() == "up"

    def line(self) -> str:
        assert self.program.stdout is not None
        return self.program.stdout.readline().strip()

    def end(self) -> dict[str, Any]:
        """Stop it; give its counters."""
        assert self.program.stdin is not None
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        return self.last_words()

    def last_words(self) -> dict[str, Any]:
        while not (line := self.line()).startswith("{"):
            assert line, "the plane ended without a word"
        assert self.program.wait(60) == 0
        counters: dict[str, Any] = json.loads(line)
        return counters


def send(source: Host, target: Host, address: str) -> None:
    """Carry BYTES over TCP and compare."""
    taker = target.popen([sys.executable, "-c", _TAKE, address], stdout=subprocess.PIPE)
    assert taker.stdout is not None
    assert taker.stdout.readline() == "listening\n"
    source.run([sys.executable, "-c", _SEND, address])
    expected = hashlib.sha256(random.Random(5).randbytes(BYTES)).hexdigest()
    assert taker.stdout.readline().strip() == expected
    assert taker.wait(60) == 0


@pytest.mark.parametrize("outside", [4, 6])
def test_tcp_of_both_families_arrives_whole_both_ways(lab: Lab, outside: int) -> None:
    a, b = lab.host("alice"), lab.host("bob")
    near, far = lab.link(a, b, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
    ends = (near.ipv4, far.ipv4) if outside == 4 else (near.ipv6, far.ipv6)
    one, two = Running(a, 1, str(ends[1])), Running(b, 2, str(ends[0]))
    send(a, b, "10.99.0.2")
    send(b, a, "fd99::1")
    a.run(["ping", "-c", "3", "-i", "0.05", "-W", "20", "-s", "3000", "-q", "10.99.0.2"])
    said = [one.end(), two.end()]
    for each in said:
        assert each["descriptors"][0] == each["descriptors"][1]
        assert each["threads"] == 1
        assert each["notes"] == []
        # A busy control thread must not keep the loop from its turn.
        assert each["switch_interval"] <= 0.0002
    packets = said[0]["tx"] + said[1]["tx"]
    print(f"{BYTES} bytes each way over IPv{outside}: {packets} datagrams, drops {said[0]['drops']}")


def test_tcp_arrives_whole_where_the_link_has_no_udp_segmentation(lab: Lab) -> None:
    a, b = lab.host("alice"), lab.host("bob")
    near, far = lab.link(a, b, ipv4="192.0.2.0/24")
    for host in (a, b):
        lab.udp_segmentation(host, on=False)
    one, two = Running(a, 1, str(far.ipv4)), Running(b, 2, str(near.ipv4))
    send(a, b, "10.99.0.2")
    for plane in (one, two):
        assert plane.end()["threads"] == 1


def test_tcp_arrives_whole_over_a_link_smaller_than_the_datagrams(lab: Lab) -> None:
    a, b = lab.host("alice"), lab.host("bob")
    near, far = lab.link(a, b, ipv4="192.0.2.0/24", mtu=1280)
    one, two = Running(a, 1, str(far.ipv4)), Running(b, 2, str(near.ipv4))
    send(a, b, "10.99.0.2")
    said = one.end()
    assert len(said["notes"]) == 1
    assert two.end()["threads"] == 1
    print(f"link of 1280: {said['notes'][0]}")


def test_an_interface_taken_away_is_a_fatal_fault_and_closes_everything(lab: Lab) -> None:
    a, b = lab.host("alice"), lab.host("bob")
    _, far = lab.link(a, b, ipv4="192.0.2.0/24")
    plane = Running(a, 1, str(far.ipv4))
    a.ip(["link del pl1"])
    said = plane.last_words()
    assert said["descriptors"][0] == said["descriptors"][1]
    assert said["threads"] == 1


def test_an_unreachable_network_is_counted_and_the_plane_goes_on(lab: Lab) -> None:
    a, b = lab.host("alice"), lab.host("bob")
    near, far = lab.link(a, b, ipv4="192.0.2.0/24")
    one, two = Running(a, 1, str(far.ipv4)), Running(b, 2, str(near.ipv4))
    near.set("down")
    a.run(["ping", "-c", "5", "-i", "0.2", "-W", "1", "10.99.0.2"], check=False)
    near.set("up")
    a.run(["ping", "-c", "3", "-i", "0.05", "-W", "20", "10.99.0.2"])
    assert one.end()["drops"]["send_enetunreach"] >= 1
    assert two.end()["threads"] == 1
