"""A link of 1,280 bytes on the way, and a router that reports nothing (ICMP is dropped)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import End, Host, Lab
from support.faults import GATEWAY, OPEN, Station, end, until

SECRETIVE = """
table inet secretive {
  chain telling {
    type filter hook output priority 0
    icmp type destination-unreachable drop
    icmpv6 type packet-too-big drop
  }
}
"""
# Sends so many MiB to an address; takes them, and prints a digest and the longest time without any.
_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7)) as stream:
    for number in range(int(sys.argv[2])): stream.sendall(bytes([number]) * (1 << 20))
"""
_TAKE = """
import hashlib, socket, time
with socket.create_server(("0.0.0.0", 7)) as listener: stream, _ = listener.accept()
digest, longest, last = hashlib.sha256(), 0.0, time.monotonic()
while data := stream.recv(1 << 16):
    digest.update(data)
    longest, last = max(longest, time.monotonic() - last), time.monotonic()
print(digest.hexdigest(), longest)
"""


def _carry(sender: Host, taker: Host, address: str, mebibytes: int) -> float:
    """Carry so much over TCP, whole; give the longest stall, seconds."""
    program = taker.popen([sys.executable, "-c", _TAKE], stdout=subprocess.PIPE)
    taker.wait_listening("tcp", 7)
    sender.run([sys.executable, "-c", _SEND, address, str(mebibytes)], timeout=300)
    digest, longest = program.communicate(timeout=60)[0].split()
    assert digest == hashlib.sha256(b"".join(bytes([n]) * (1 << 20) for n in range(mebibytes))).hexdigest()
    return float(longest)


def _narrow(router: Host, near: End, far: End) -> None:
    for one in (near, far):
        one.set("mtu", "1280")
    router.nft(SECRETIVE)


@pytest.mark.fault(4)
@pytest.mark.parametrize("where", ["at the server", "at the client"])
def test_a_small_link_that_nobody_tells_of(lab: Lab, tmp_path: Path, soak: bool, where: str) -> None:
    """Over IPv4, where a router divides what is too large for it: our datagrams allow that."""
    hosts = [lab.host(name) for name in ("client", "router", "server")]
    left, left_gateway, right_gateway, right = lab.through(*hosts, nets4=("192.168.9.0/24", "192.0.2.0/24"))
    _narrow(hosts[1], *((right_gateway, right) if where == "at the server" else (left, left_gateway)))
    tmp_path.chmod(0o700)
    client, server = (Station(host, tmp_path / host.name, tmp_path / f"{host.name}-run") for host in hosts[::2])
    programs = [server.serve(OPEN), client.start(f"join {right.ipv4}")]
    began = time.monotonic()
    until("a ping", client.reaches)
    joined = time.monotonic() - began
    address = client.kept()["networks"][0]["address4"].partition("/")[0]
    mebibytes = 100 if soak else 10
    stalls = [
        _carry(hosts[0], hosts[2], GATEWAY, mebibytes),
        _carry(hosts[2], hosts[0], address, mebibytes),
    ]
    print(
        f"row 4: 1,280 bytes {where}, nobody told: joined in {joined:.1f} s; {mebibytes} MiB each way, "
        f"the longest stall {max(stalls):.2f} s"
    )
    assert max(stalls) < 10
    assert [end(program) for program in reversed(programs)] == [0, 0]
