"""Flows between two machines, over several tunnels: how they are spread, and which go unanswered."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from support.product import Machine, eventually

FLOWS = 64
POLICIES = ("net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy")

# Sends a datagram a tenth of a second on each flow, and writes each second which flows had an answer within the last.
STREAM = """
import selectors, socket, sys, time
address, flows, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
select = selectors.DefaultSelector()
sockets, heard = [], [0.0] * flows
for flow in range(flows):
    each = socket.socket(family, socket.SOCK_DGRAM)
    each.bind(("", first + flow))
    each.connect((address, 7))
    each.setblocking(False)
    select.register(each, selectors.EVENT_READ, flow)
    sockets.append(each)
sent = told = 0.0
while True:
    now = time.monotonic()
    if now - sent >= 0.1:
        sent = now
        for each in sockets:
            try:
                each.send(b"x" * 64)
            except OSError:
                pass
    for key, _ in select.select(0.05):
        try:
            while key.fileobj.recv(100):
                heard[key.data] = now
        except OSError:
            pass
    if now - told >= 0.5:
        told = now
        print(f"{now:.2f} {sum(now - at > 1.0 for at in heard)}", flush=True)
"""
ECHO = """
import socket, sys
made = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
made.bind((sys.argv[1], 7))
while True:
    data, source = made.recvfrom(2048)
    try:
        made.sendto(data, source)
    except OSError:
        pass
"""
# One packet on each of some flows: a datagram over UDP, a SYN over TCP, which is refused.
BURST = """
import socket, sys
address, first, flows, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
for port in range(first, first + flows):
    with socket.socket(family, socket.SOCK_DGRAM if kind == "UDP" else socket.SOCK_STREAM) as each:
        each.bind(("", port))
        if kind == "UDP":
            each.connect((address, 9))
            each.send(bytes(1000))
        else:
            each.settimeout(20)
            each.connect_ex((address, 9))
"""


def sysctls(machine: Machine) -> list[str]:
    return [machine.host.run(["sysctl", "-n", name]).stdout.strip() for name in POLICIES]


def start(machine: Machine, program: str, *words: str, log: Path | None = None) -> subprocess.Popen[str]:
    return machine.host.popen([sys.executable, "-c", program, *words], log=log)


def carries_all(machine: Machine, tunnels: int) -> bool:
    """Whether each tunnel carries for the one partner there is, and a route in each family says so."""
    rows = machine.status()["tunnels"]
    if len(rows) != tunnels or any(row["carries_for"] != 1 for row in rows):
        return False
    routes = "".join(machine.host.run(["ip", family, "route"]).stdout for family in ("-4", "-6"))
    return routes.count("nexthop") == 2 * tunnels


def out_packets(machine: Machine, tunnels: int) -> list[int]:
    names = ["rg0", *(f"rg0-{number}" for number in range(1, tunnels))]
    lines = [
        line.replace(":", " ").split() for line in machine.host.run(["cat", "/proc/net/dev"]).stdout.splitlines()
    ]
    sent = {line[0]: int(line[10]) for line in lines[2:]}
    return [sent[name] for name in names]


def spread(near: Machine, inner: str, kind: str, first: int, flows: int, tunnels: int) -> list[int]:
    """Send a packet on each of some flows, and count how many went over each tunnel."""
    earlier = out_packets(near, tunnels)
    near.host.run([sys.executable, "-c", BURST, inner, str(first), str(flows), kind])
    counts = [late - early for late, early in zip(out_packets(near, tunnels), earlier, strict=True)]
    print(f"{flows} {kind} flows from {near.host.name} to {inner} over {tunnels} tunnels: {counts}")
    return counts


def start_stream(near: Machine, inner: str, log: Path | None = None) -> subprocess.Popen[str]:
    """Send datagrams on FLOWS flows, ten a second on each, and log how many go without an answer."""
    return start(near, STREAM, inner, str(FLOWS), "30000", log=log)


class Stream:
    """Datagrams on many flows to a machine that answers them.

    Args:
        near: Sends.
        far: Answers at `inner`.
        log: A file of its own.
    """

    def __init__(self, near: Machine, far: Machine, inner: str, log: Path) -> None:
        self._log = log
        start(far, ECHO, inner)
        start_stream(near, inner, log)

    def until_whole(self, seconds: float) -> None:
        """Wait until each flow is answered."""
        eventually(lambda: self._told() and self._told()[-1][1] == 0, seconds, "an answer on each flow")

    def break_port(self, places: Iterable[tuple[Machine, str]], port: int, seconds: float) -> tuple[float, int]:
        """Drop what comes in from or to a UDP port, and wait until each flow is answered all the same.

        Args:
            places: Where, and `sport` or `dport`.
            port: Its number.
            seconds: To wait, for the first flow without an answer and for the last.

        Returns:
            How long after that there still were such flows, and how many there were at most.
        """
        for machine, side in places:
            chain = "add chain inet break in { type filter hook input priority 0; }"
            rules = ["add table inet break", chain, f"add rule inet break in udp {side} {port} drop", ""]
            machine.host.run(["nft", "-f", "-"], stdin="\n".join(rules))
        cut = time.monotonic()
        eventually(lambda: self._told()[-1][1] > 0, seconds, "flows without an answer")
        eventually(
            lambda: self._told()[-1][0] > cut + 2 and self._told()[-1][1] == 0, seconds, "all flows answered again"
        )
        whole = next(at for at, missing in self._told() if at > cut + 2 and missing == 0)
        return whole - cut, max(missing for at, missing in self._told() if at > cut)

    def restore_port(self, places: Iterable[tuple[Machine, str]]) -> None:
        """End that."""
        for machine, _ in places:
            machine.host.run(["nft", "delete", "table", "inet", "break"])

    def _told(self) -> list[tuple[float, int]]:
        """When, and how many flows had had no answer for a second."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [(float(line.split()[0]), int(line.split()[1])) for line in lines if len(line.split()) == 2]
