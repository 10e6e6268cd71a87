"""Several tunnels between a server and a client, as a person has them: `serve --tunnels N`, and `join` follows."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rustguard_py.lab import Lab
from rustguard_py.state.document import Document
from rustguard_py.state.records import ClientState
from support.product import HOME4, HOME6, INNER, OPEN, PATIENCE, TOKEN, Machine, Site, eventually

POLICIES = ("net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy")
FLOWS = 64
# A tunnel that dies is left within 10 s; what is waited for is more, for a machine that is slow and busy.
PATIENT = 30.0

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


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def sysctls(machine: Machine) -> list[str]:
    return [machine.host.run(["sysctl", "-n", name]).stdout.strip() for name in POLICIES]


def start(machine: Machine, program: str, *words: str, log: Path | None = None) -> subprocess.Popen[str]:
    return machine.host.popen([sys.executable, "-c", program, *words], log=log)


def carries_all(machine: Machine, tunnels: int) -> bool:
    """Whether each tunnel carries for the one partner there is, and a route in each family says so."""
    rows = machine.status()["tunnels"]
    routes = "".join(machine.host.run(["ip", family, "route"]).stdout for family in ("-4", "-6"))
    all_carry = len(rows) == tunnels and all(row["carries_for"] == 1 for row in rows)
    return all_carry and routes.count("nexthop") == 2 * tunnels


def set_up(site: Site, tunnels: int, outer: str = HOME4) -> tuple[Machine, Machine]:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN} --tunnels {tunnels}")
    laptop.join(outer)
    for machine in (home, laptop):
        eventually(lambda machine=machine: carries_all(machine, tunnels), PATIENT, "all tunnels")  # type: ignore[misc]
    return home, laptop


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


def assert_even(near: Machine, inner: str, kind: str, tunnels: int) -> None:
    """For 64 flows chance alone is more than the fifth that is promised on the average, so many more are sent."""
    counts = spread(near, inner, kind, 21000, 1024 * tunnels // 2, tunnels)
    assert all(abs(count - 512) < 0.2 * 512 for count in counts), counts


@pytest.mark.parametrize(("tunnels", "outer"), [(2, HOME6), (4, HOME4)])
def test_flows_are_spread_over_the_tunnels_and_nothing_is_left(site: Site, tunnels: int, outer: str) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    before = [(machine.network(), sysctls(machine)) for machine in (home, laptop)]
    server = home.serve(f"--pool 10.150.0.0/24 {OPEN} --tunnels {tunnels}")
    client = laptop.join(outer)
    for machine in (home, laptop):
        eventually(lambda machine=machine: carries_all(machine, tunnels), PATIENT, "all tunnels")  # type: ignore[misc]
    assert sysctls(home) == sysctls(laptop) == ["1", "1"]
    for near, far in ((laptop, home), (home, laptop)):
        for address in far.status()["addresses"]:
            inner = address.split("/")[0]
            for kind in ("UDP", "TCP"):
                spread(near, inner, kind, 20000, FLOWS, tunnels)
                assert_even(near, inner, kind, tunnels)
    rows = laptop.status()["tunnels"]
    assert [row["interface"] for row in rows][1] == "rg0-1"
    assert [row["port"] for row in rows] == list(range(51820, 51820 + tunnels))
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=0.01)
    assert all(row["share"] > 0 and row["sessions"] == 1 for row in rows)
    assert "rg0-1" in laptop.run("status").stdout
    for program in (client, server):
        program.terminate()
        assert program.wait(PATIENCE) == 0
    assert [(machine.network(), sysctls(machine)) for machine in (home, laptop)] == before


def test_no_burst_of_new_flows_makes_an_end_leave_a_tunnel(site: Site, soak: bool) -> None:
    """Bursts of 1,000 flows and more, over both protocols and families, from either end, after any pause."""
    machines = set_up(site, 4)
    for turn in range(200 if soak else 4):
        near, far = machines[:: 1 if turn % 2 else -1]
        inner = far.status()["addresses"][turn // 2 % 2].split("/")[0]
        near.host.run(
            [sys.executable, "-c", BURST, inner, str(10000 + turn * 97), "1024", ("UDP", "TCP")[turn % 3 % 2]]
        )
        time.sleep(turn * 1.7 % 4)
        for machine in machines:
            assert "no longer" not in machine.said(), f"burst {turn}: {machine.said()}"
            assert [row["carries_for"] for row in machine.status()["tunnels"]] == [1] * 4


@pytest.mark.parametrize(
    ("family", "where"), [(4, "to the server"), (4, "to the client"), (4, "both ways"), (6, "both ways")]
)
def test_a_tunnel_that_dies_keeps_no_flow_for_ten_seconds_and_comes_back(
    site: Site, family: int, where: str, tmp_path: Path
) -> None:
    home, laptop = set_up(site, 2)
    inner = home.status()["addresses"][family == 6].split("/")[0]
    start(home, ECHO, inner)
    log = tmp_path / "stream"
    start(laptop, STREAM, inner, str(FLOWS), "30000", log=log)

    def waiting() -> list[tuple[float, int]]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [(float(line.split()[0]), int(line.split()[1])) for line in lines]

    eventually(lambda: waiting() and waiting()[-1][1] == 0, seconds=PATIENT, what="an answer on each flow")
    arrivals = {"to the server": (home, "dport"), "to the client": (laptop, "sport")}
    chosen = [rule for name, rule in arrivals.items() if where in (name, "both ways")]
    cut = time.monotonic()
    for machine, port in chosen:
        chain = "add chain inet break in { type filter hook input priority 0; }"
        rules = ["add table inet break", chain, f"add rule inet break in udp {port} 51821 drop", ""]
        machine.host.run(["nft", "-f", "-"], stdin="\n".join(rules))
    eventually(lambda: waiting()[-1][1] > 0, seconds=PATIENT, what="flows without an answer")
    eventually(lambda: waiting()[-1][0] > cut + 2 and waiting()[-1][1] == 0, seconds=PATIENT, what="all flows again")
    whole = next(at for at, missing in waiting() if at > cut + 2 and missing == 0)
    lost = max(missing for at, missing in waiting() if at > cut)
    print(
        f"IPv{family}, {where}: {lost} of {FLOWS} flows were without an answer, all went on after {whole - cut:.1f} s"
    )
    assert lost > 0
    for machine in (home, laptop):
        eventually(
            lambda machine=machine: [row["carries_for"] for row in machine.status()["tunnels"]] == [1, 0],  # type: ignore[misc]
            what="the dead tunnel left out",
        )
    for machine, _ in chosen:
        machine.host.run(["nft", "delete", "table", "inet", "break"])
    back = time.monotonic()
    for machine in (home, laptop):
        eventually(lambda machine=machine: carries_all(machine, 2), seconds=PATIENT, what="both tunnels")  # type: ignore[misc]
    print(f"both tunnels again after {time.monotonic() - back:.1f} s")
    assert whole - cut < 10


def test_a_client_that_knows_of_one_tunnel_has_that_one_beside_a_client_with_all(site: Site) -> None:
    home = site.home()
    old, new = site.client("old", home), site.client("new", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN} --tunnels 2")
    # It forgets the others, as one does that has never heard of them.
    old.run(f"join {HOME4} --save-only --name old", TOKEN)
    document = Document.open(old.state)
    state = ClientState.from_json(document.load())
    assert len(state.networks[0].tunnels) == 1
    document.save(replace(state, networks=(replace(state.networks[0], tunnels=()),)).to_json())
    document.close()
    old.join("", token=None)
    new.join("198.51.100.9")
    eventually(
        lambda: [row["carries_for"] for row in home.status()["tunnels"]] == [2, 1],
        seconds=PATIENT,
        what="the second tunnel",
    )
    assert old.status()["tunnels"] == []
    assert [row["sessions"] for row in home.status()["tunnels"]] == [2, 1]
    addresses = {name: peer["address4"] for name, peer in home.peers().items()}
    eventually(
        lambda: f"{addresses['new']} " in home.host.run(["ip", "route"]).stdout, seconds=PATIENT, what="its route"
    )
    assert f"{addresses['old']} " not in home.host.run(["ip", "route"]).stdout
    for machine in (old, new):
        for address in home.status()["addresses"]:
            assert machine.reaches(address.split("/")[0])
    before = out_packets(home, 2)[1]
    spread(home, addresses["old"], "UDP", 20000, FLOWS, 2)
    assert out_packets(home, 2)[1] == before
    home.run("peers revoke new")
    eventually(
        lambda: f"{addresses['new']} " not in home.host.run(["ip", "route"]).stdout,
        seconds=PATIENT,
        what="its route's end",
    )
    assert not new.pings(INNER)


def test_the_number_is_kept_and_a_server_that_comes_back_has_all_tunnels_again(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    server = home.serve(f"--pool 10.150.0.0/24 {OPEN} --tunnels 2")
    laptop.join(HOME4)
    eventually(lambda: carries_all(laptop, 2), seconds=PATIENT, what="both tunnels")
    server.terminate()
    assert server.wait(PATIENCE) == 0
    began = time.monotonic()
    home.serve("", token=None)
    start(laptop, STREAM, INNER, str(FLOWS), "30000")
    eventually(lambda: carries_all(home, 2), seconds=PATIENT, what="both tunnels at the server")
    print(f"both tunnels carry {time.monotonic() - began:.1f} s after a restart")


def test_a_plane_that_breaks_leaves_the_others_going_on(site: Site) -> None:
    _, laptop = set_up(site, 2)
    laptop.host.run(["ip", "link", "delete", "rg0"])
    eventually(lambda: laptop.pings(INNER), seconds=PATIENT, what="traffic over the other")
    assert [row["state"] for row in laptop.status()["tunnels"]] == ["broken", "running"]
    assert "broke" in laptop.status()["warnings"][0]
    program = laptop.programs[0]
    laptop.host.run(["ip", "link", "delete", "rg0-1"])
    assert program.wait(PATIENCE) != 0


def test_what_cannot_be_is_refused_with_the_mend(site: Site) -> None:
    home = site.home()
    for words, said in (
        ("--tunnels 2 --port 65535", "lower --port"),
        ("--tunnels 2 --interface fifteen-letters", "too long"),
    ):
        ended = home.run(f"serve --pool 10.150.0.0/24 {words}", TOKEN, check=False)
        assert ended.returncode != 0
        assert said in ended.stderr
    assert home.network() == site.machine("other").network()
