"""`serve`, `join` and `up` with DPDK's testpmd behind their memif: it sends each packet back to where it came from.

So an echo request comes back as one of the address that was asked. The asking machine answers it, and that answer
comes back too: `ping` sees it, after its packets crossed the memif twice each way.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Host, Lab
from support.engines import needs_native
from support.product import HOME4, INNER, OPEN, POOL, TOKEN, Site, eventually
from support.quick import PORT, Quick
from support.testpmd import INTERFACE, Testpmd

# testpmd spins, so one of them at a time. Each test kills it, and us.
pytestmark = [
    needs_native,
    pytest.mark.needs_testpmd,
    pytest.mark.xdist_group("testpmd"),
    pytest.mark.fault(51),
]
SECOND = "10.150.0.2"
# A hundred datagrams, each of which has to come back as it was, to the socket that sent it.
EXCHANGE = """
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], 7))
for size in range(100, 1300, 12):
    sent = os.urandom(size)
    s.send(sent)
    assert s.recv(2000) == sent
"""


def _begin(started: list[Testpmd], socket: Path, *, server: bool) -> Testpmd:
    started.append(Testpmd(socket, server=server))
    started[-1].start()
    return started[-1]


def _exchange(host: Host, address: str) -> None:
    host.run([sys.executable, "-c", EXCHANGE, address])


def test_a_server_with_testpmd_as_its_network(tmp_path: Path, lab: Lab, started: list[Testpmd]) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    first = site.client("first", home)
    before = home.settings()
    socket = tmp_path / "m"
    words = f"--memif {socket},id=5,secret=psst,role=server,mode=ethernet"
    serving = home.serve(f"--pool {POOL} {OPEN} --engine native {words}")
    testpmd = _begin(started, socket, server=False)
    first.join(HOME4)
    _exchange(first.host, INNER)
    assert home.status()["memif"]["interface"] == INTERFACE

    # testpmd is killed and comes back: sessions stay.
    testpmd.kill()
    eventually(lambda: not home.status()["memif"]["connected"], what="the end is noticed")
    testpmd = _begin(started, socket, server=False)
    first.reaches(INNER)
    _exchange(first.host, INNER)
    assert home.peers()["first"]["handshakes"] == 1

    # The server is killed, and testpmd connects again when it is told to.
    testpmd.stop()
    serving.send_signal(signal.SIGKILL)
    serving.wait()
    serving = home.start("serve --engine native", None)
    eventually(lambda: home.alive(serving) and home.status()["memif"], what="it serves again")
    testpmd.connect_again()
    testpmd.start()
    first.reaches(INNER)
    _exchange(first.host, INNER)

    # Both are killed.
    testpmd.kill()
    serving.send_signal(signal.SIGKILL)
    serving.wait()
    serving = home.start("serve --engine native", None)
    eventually(lambda: home.alive(serving) and home.status()["memif"], what="it serves again")
    testpmd = _begin(started, socket, server=False)
    first.reaches(INNER)
    _exchange(first.host, INNER)
    counts = testpmd.stop()
    assert (counts.received, counts.dropped) == (counts.sent, 0)
    assert home.settings() == before


def test_a_client_with_testpmd_as_its_network(tmp_path: Path, lab: Lab, started: list[Testpmd]) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    first = site.client("first", home)
    before = first.settings()
    socket = tmp_path / "m"
    home.serve(f"--pool {POOL} {OPEN}")
    words = f"--memif {socket},id=5,secret=psst,mode=ethernet"
    joining = first.start(f"join {HOME4} --name first --engine native {words}", TOKEN)
    testpmd = _begin(started, socket, server=True)
    eventually(lambda: first.alive(joining) and first.status()["memif"]["connected"], what="it connects")
    home.reaches(SECOND)
    _exchange(home.host, SECOND)
    testpmd.kill()
    joining.send_signal(signal.SIGKILL)
    joining.wait()
    _begin(started, socket, server=True)
    joining = first.start("join --engine native", None)
    eventually(lambda: first.alive(joining) and first.status()["memif"]["connected"], what="it connects again")
    home.reaches(SECOND)
    _exchange(home.host, SECOND)
    assert first.settings() == before


def test_a_file_with_testpmd_as_its_network(tmp_path: Path, lab: Lab, started: list[Testpmd]) -> None:
    here, there = (Quick(lab.host(name, own_files=True)) for name in ("here", "there"))
    lab.link(here.host, there.host, ipv4="192.0.2.0/30")
    there.file(
        f"Address = 10.7.0.2/24\nListenPort = {PORT}",
        here.peer("AllowedIPs = 10.7.0.1/32\nEndpoint = 192.0.2.1:51820"),
    )
    here.file(
        f"Address = 10.7.0.1/24\nListenPort = {PORT}\n",
        there.peer("AllowedIPs = 10.7.0.0/24\nEndpoint = 192.0.2.2:51820\nPersistentKeepalive = 25"),
    )
    before = here.system().splitlines()
    there.run("up wg0")
    socket = tmp_path / "m"
    up = f"up wg0 --engine native --memif {socket},id=5,secret=psst,role=server,mode=ethernet"
    assert "answered for 10.7.0.0/24, but not for 10.7.0.1" in here.run(up).stderr
    testpmd = _begin(started, socket, server=False)
    there.reaches("10.7.0.1")
    _exchange(there.host, "10.7.0.1")
    testpmd.kill()
    here.kill()
    here.run(up)
    _begin(started, socket, server=False)
    there.reaches("10.7.0.1")
    _exchange(there.host, "10.7.0.1")
    here.run("down wg0")
    assert not socket.exists()
    changed = set(here.system().splitlines()) ^ set(before)
    assert all(line.startswith(("/run/rustguard", "/run/wireguard")) for line in changed), changed
