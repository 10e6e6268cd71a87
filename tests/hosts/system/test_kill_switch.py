"""A kill switch that a hook made stays shut while what we set is removed and put back."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import eventually
from support.quick import PORT, Lan, lan

# The example of wg-quick(8), word for word but for the second program, which it leaves to the reader.
_SWITCH = "".join(
    f"{when} = {table} {verb} OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) "
    "-m addrtype ! --dst-type LOCAL -j REJECT\n"
    for when, verb in (("PostUp", "-I"), ("PreDown", "-D"))
    for table in ("iptables", "ip6tables")
)
# Sent all the time to a host behind the tunnel, over both families, whatever the kernel says to it.
_STREAM = """
import socket, time
ends = [(socket.AF_INET, "198.51.100.2"), (socket.AF_INET6, "2001:db8:2::2")]
sockets = [(socket.socket(family, socket.SOCK_DGRAM), (address, 9)) for family, address in ends]
while True:
    for each, end in sockets:
        try:
            each.sendto(b"private", end)
        except OSError:
            pass
    time.sleep(0.001)
"""
_ENGINES = ["auto", "portable"] if os.environ.get("RUSTGUARD_SOAK") else ["auto"]
_RULES = "for v in -4 -6; do ip $v rule del table 51820; ip $v rule del suppress_prefixlength 0; done"
_REMOVALS = (
    "ip addr flush dev wg0",
    "ip route flush dev wg0; ip -6 route flush dev wg0; ip route flush table 51820",
    _RULES,
    "ip link set wg0 down; ip link set wg0 up",
    "ip link set wg0 mtu 1000",
    "nft delete table ip rustguard-wg0",
    "ip link delete wg0",
    "ip link set wg0 down; ip link set wg0 name x0; ip link set x0 up",
)

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("iptables", "ip6tables", "wg"))), reason="iptables or wg is missing"
)


@pytest.fixture
def net(lab: Lab) -> Lan:
    net = lan(lab)
    net.home.file(
        f"Address = 10.9.0.2/24, fd09::2/64\nListenPort = {PORT}", net.laptop.peer("AllowedIPs = 10.9.0.1, fd09::1")
    )
    return net


class _Outside:
    """What leaves the laptop's link besides the tunnel's datagrams, from now on."""

    def __init__(self, net: Lan, log: Path) -> None:
        other = f"(ip or ip6) and not icmp6 and not (udp and host 192.0.2.2 and port {PORT})"
        argv = ["tcpdump", "-n", "-l", "--immediate-mode", "-Q", "out", "-i", net.ends[0].interface, other]
        self._log = log
        self._programs = [net.laptop.host.popen(argv, log=log)]
        eventually(lambda: "listening on" in log.read_text(), what="the capture")
        self._programs.append(net.laptop.host.popen([sys.executable, "-c", _STREAM]))

    def seen(self) -> int:
        """Return how many packets left."""
        return self._log.read_text().count("> 198.51.100.2") + self._log.read_text().count("> 2001:db8:2::2")

    def end(self) -> None:
        for each in self._programs:
            each.send_signal(signal.SIGTERM)
            each.wait(60)


def _up(net: Lan, hooks: str, engine: str) -> str:
    peer = net.home.peer(f"AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:{PORT}")
    net.laptop.file(f"Address = 10.9.0.1/24, fd09::1/64\n{hooks}", peer)
    for each in (net.home, net.laptop):
        each.run(f"up wg0 --engine {engine}")
    net.laptop.reaches("10.9.0.2")
    return _routing(net)


def _routing(net: Lan) -> str:
    rules = "ip rule; ip -6 rule; ip route show table 51820; nft list tables | sort"
    what = f"ip -o addr show wg0 | sed 's/^[0-9]*: //'; {rules}"
    return net.laptop.host.run(["sh", "-c", what], check=False).stdout


@pytest.mark.fault(44)
@pytest.mark.parametrize("engine", _ENGINES)
def test_nothing_passes_the_kill_switch_of_wg_quick_whatever_is_removed(
    net: Lan, tmp_path: Path, engine: str
) -> None:
    wanted = _up(net, _SWITCH, engine)
    outside = _Outside(net, tmp_path / "capture")
    for script in _REMOVALS:
        net.laptop.host.run(["sh", "-c", script], check=False)
        eventually(lambda: _routing(net) == wanted, 5.0, what=f"the return after {script}")
        net.laptop.reaches("10.9.0.2")
    # A changed file, which sets routes and rules again.
    conf = net.laptop.root / "etc/wireguard/wg0.conf"
    conf.write_text(conf.read_text().replace("fd09::1/64", "fd09::1/64, 10.8.0.1/32"))
    net.laptop.run("up wg0")
    leaked = outside.seen()
    print(f"{engine}: {leaked} packets left outside the tunnel")
    assert leaked == 0
    net.laptop.run("down wg0")
    eventually(outside.seen, what="packets after the switch is gone")
    outside.end()


@pytest.mark.fault(44)
def test_without_a_kill_switch_packets_pass_for_less_than_a_second(net: Lan, tmp_path: Path) -> None:
    """What the capture above would have shown."""
    wanted = _up(net, "", "auto")
    outside = _Outside(net, tmp_path / "capture")
    began = time.monotonic()
    net.laptop.host.run(["sh", "-c", _RULES])
    eventually(lambda: _routing(net) == wanted, 20.0)
    took = time.monotonic() - began
    leaked = outside.seen()
    print(f"{leaked} packets left in {took:.2f} s")
    assert leaked > 0
    time.sleep(0.5)
    before = outside.seen()
    time.sleep(1)
    assert outside.seen() == before
    outside.end()
