"""Pairing beside floods of enrollment datagrams that prove nothing, from anywhere or in a client's name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rustguard_py.enroll.pairing.outcome import Failed
from rustguard_py.lab.hosts import End, Lab
from support.attack_table import Row, is_long
from support.engines import on_the_better_engine
from support.flood import Flood
from support.product import OPEN, PATIENCE, POOL, TOKEN, Machine, Site, eventually
from support.wire_link import World

floods = pytest.mark.alone

PORT = 51820
MANY = 20_000
JOINS = 6
ONE, HUNDRED = "203.0.113.7/32", "203.0.113.0/25"
_TESTS = Path(__file__).parents[1]
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

# From each address of a network, so many HELLOs with the SHARE_Cs that their answers allow, and never a CONFIRM.
_BEGIN = """
import os, socket, sys, time
from ipaddress import ip_network
server, network, times = (sys.argv[1], int(sys.argv[2])), ip_network(sys.argv[3]), int(sys.argv[4])
for number in range(times):
    for address in network.hosts():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            here.bind((str(address), 0))
            here.settimeout(1)
            here.sendto(b"RGE3\\1\\0\\0\\0" + os.urandom(16) + bytes(104), server)
            answer = here.recv(2048)
            here.sendto(b"RGE3\\3\\0\\0\\0" + answer[8:60] + bytes(72), server)
            time.sleep(0.003)  # a server takes 500 per second
"""


# -- from anywhere -------------------------------------------------------------------------------------------

FLOODS = [("short", ONE), ("short", HUNDRED), ("share", ONE), ("share", HUNDRED)]


@floods
@pytest.mark.fault(42)
@pytest.mark.attack("20,000/s short or forged enrollment datagrams")
@on_the_better_engine
@pytest.mark.parametrize(("what", "sources"), FLOODS if is_long() else FLOODS[::3])
def test_a_flood_that_proves_nothing_keeps_no_hello_unanswered(
    lab: Lab, long_form: bool, row: Row, what: str, sources: str, engine: str
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
    seconds = 30.0 if long_form else 3.0
    argv = [sys.executable, "-c", _ASK, f"{near.ipv4}", f"{PORT}", f"{seconds}", "0.1"]
    took: list[float | None] = json.loads(joiner.run(argv, timeout=seconds + 60).stdout)
    flooded = flood.end()
    said, _ = plane.communicate("\n", timeout=60)
    counted = json.loads(said)
    answered = [each for each in took if each is not None]
    row.seen(
        f"{flooded.rate:,.0f}/s of `{what}` from {sources} ({engine}): {len(answered)} of {len(took)} HELLOs "
        f"answered, {max(answered) * 1000:.1f} ms at most, {counted['passed']} SHARE_Cs passed"
    )
    assert flooded.rate > MANY / 2
    assert counted["passed"] >= 0.9 * len(answered)
    assert counted["drops"][{"short": "pairing_malformed", "share": "pairing_cookie"}[what]] > flooded.datagrams / 2
    assert len(answered) >= (1.0 if engine == "native" else 0.9) * len(took)


@floods
@pytest.mark.fault(42)
@pytest.mark.attack("20,000/s short or forged enrollment datagrams")
@pytest.mark.parametrize("sources", [ONE, HUNDRED], ids=["one source", "a hundred"])
def test_six_join_at_once_beside_a_flood_that_proves_nothing(
    site: Site, long_form: bool, row: Row, sources: str
) -> None:
    home, attacked, attacker = _attacked(site)
    clients = [site.client(f"client{number}", home) for number in range(JOINS)]
    _accept_any_source(home)
    rate = MANY if long_form else MANY // 4
    floods = [Flood(attacker, attacked, PORT, rate, what, source=sources) for what in ("short", "share")]
    seconds = _join_at_once([(each, str(each.servers_end.ipv4)) for each in clients])
    flooded = [flood.end() for flood in floods]
    dropped = _dropped(home)
    said = (
        f"{flooded[0].rate:,.0f}/s of 5 bytes and {flooded[1].rate:,.0f}/s of SHARE_C from {sources}: six joins "
        f"at once in {seconds:.1f} s"
    )
    if long_form:
        quiet = _join_at_once([(_another(site, each), str(each.servers_end.ipv4)) for each in clients])
        said += f", without the flood in {quiet:.1f} s"
    row.seen(said)
    row.control("recorded before the plane guarded the pairing, 12,757/s: six joins in 35 to 57 s")
    # A machine that sends fewer is too busy to show anything.
    assert min(flood.rate for flood in flooded) > rate / 2
    assert seconds < 15
    assert dropped > sum(flood.datagrams for flood in flooded) / 2


@pytest.mark.attack("pairings that are begun and never confirmed")
def test_pairings_that_are_never_confirmed_are_counted_and_shown_and_keep_nobody_out(site: Site, row: Row) -> None:
    home, _, attacker = _attacked(site)
    client = site.client("client", home)
    attacker.host.ip(["route add local 203.0.113.0/24 dev lo"])
    home.host.ip([f"route add 203.0.113.0/24 via {attacker.ipv4}"])
    argv = [sys.executable, "-c", _BEGIN, "192.0.2.17", f"{PORT}", "203.0.113.0/24", "5"]
    attacker.host.run(argv, timeout=PATIENCE)
    eventually(lambda: home.status()["window"]["unconfirmed"] >= 1000, what="a thousand pairings")
    seconds = _join_at_once([(client, str(client.servers_end.ipv4))])
    status = home.status()
    window = status["window"]
    assert window["unconfirmed_sources"] > 200
    assert window["guesses_used"] == 0
    assert any("never confirmed" in each for each in status["warnings"])
    logged = [line for line in home.said().splitlines() if "begun and never confirmed in this window" in line]
    assert len(logged) == 4
    assert seconds < 15
    row.seen(f"{window['unconfirmed']} counted and shown, {len(logged)} lines logged; a join took {seconds:.1f} s")
    row.control("recorded when they were not counted: 40,000 from 25 addresses in two minutes, nothing logged")


# -- in a client's name --------------------------------------------------------------------------------------


@floods
@pytest.mark.fault(41)
@pytest.mark.attack("2,000/s HELLOs and SHARE_Cs in a client's name")
def test_who_is_impersonated_by_strangers_joins_six_times(site: Site, long_form: bool, row: Row) -> None:
    home, attacked, attacker = _attacked(site)
    victim = site.client("victim", home)
    _accept_any_source(home)
    source = f"{victim.own_end.ipv4}/32"
    floods = [Flood(attacker, attacked, PORT, 2000, what, source=source) for what in ("hello", "share")]
    machines = [victim, *(_another(site, victim) for _ in range(JOINS - 1))]
    joins = [(each, str(victim.servers_end.ipv4)) for each in machines]
    # At once they are the harder case for a budget of their source, and one after the other for its recovery.
    seconds = [_join_at_once([each]) for each in joins] if long_form else [_join_at_once(joins)]
    flooded = [flood.end() for flood in floods]
    status = home.status()
    row.seen(
        f"{flooded[0].rate:,.0f} and {flooded[1].rate:,.0f}/s: {JOINS} of {JOINS} joined, "
        f"{'one after the other' if long_form else 'at once'}, in {sum(seconds):.1f} s"
    )
    assert min(flood.rate for flood in flooded) > 1000
    assert len(status["peers"]) == JOINS
    assert status["window"]["guesses_used"] == 0
    assert status["window"]["blocked"] == []
    # HELLOs are answered, and not counted.
    assert _dropped(home) > flooded[1].datagrams / 2


@pytest.mark.fault(41)
@pytest.mark.attack("2,000/s HELLOs and SHARE_Cs in a client's name")
def test_control_a_budget_that_is_spent_before_the_cookie_keeps_the_client_out(row: Row) -> None:
    """The server without the plane's filter charges HELLOs to the source that they name."""
    world = World(0)
    world.open()
    joinings = [world.join(1, after=1.0)]
    victim = joinings[0].source

    def forge() -> None:
        hello = b"RGE3\1\0\0\0" + world.random(16) + bytes(104)
        world._serve(world.server.handle(hello, victim, world.now))

    for number in range(2000 * 15):
        world.at(world.now + number / 2000, forge)
    world.run(30)
    answered = [datagram for datagram, to_server in world.carried if not to_server and datagram[4] == 2]
    outcome = joinings[0].outcome
    assert isinstance(outcome, Failed)
    row.control(
        f"the server without the plane's filter: {outcome.failure.value}; its source's budget was spent on "
        f"{len(answered)} of 30,000 forged HELLOs"
    )


def _attacked(site: Site) -> tuple[Machine, End, End]:
    """Start a server whose window is open. Return it, and both ends of a stranger's link to it."""
    home = site.home()
    attacked, attacker = site.lab.link(home.host, site.lab.host("stranger"), ipv4="192.0.2.16/29")
    home.serve(f"--pool {POOL} {OPEN}")
    return home, attacked, attacker


def _accept_any_source(home: Machine) -> None:
    """Have the server's kernel pass on what comes from anywhere, as most routers do."""
    for each in ("all", "default", *(one.interface for one in home.host.ends)):
        home.host.sysctl(f"net.ipv4.conf.{each}.rp_filter", 0)


def _dropped(home: Machine) -> int:
    """Return how many enrollment datagrams the server's plane has dropped."""
    drops = home.status()["counters"]["drops"]
    return sum(count for reason, count in drops.items() if reason.startswith("pairing_"))


def _another(site: Site, machine: Machine) -> Machine:
    """Return a machine with a state of its own on the same host."""
    return site.machine(f"{machine.state.name}-{len(site.machines)}", machine.host)


def _join_at_once(joins: list[tuple[Machine, str]]) -> float:
    """Have each join a server's address, all at the same time. Return the seconds until the last one has."""
    began = time.monotonic()
    programs = [(each, each.start(f"join {address} --save-only", TOKEN)) for each, address in joins]
    for machine, program in programs:
        assert program.wait(PATIENCE) == 0, machine.said()
    return time.monotonic() - began
