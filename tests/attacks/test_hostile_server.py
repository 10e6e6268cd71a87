"""A server that knows the token and means harm, and one that doesn't and tries to find it out."""

from __future__ import annotations

import time
from base64 import b64decode
from ipaddress import IPv6Interface
from typing import Any

import pytest

from rustguard_py.lab.hosts import Host
from rustguard_py.model.keys import encode_key
from rustguard_py.state import envelope
from support.attack_table import Row
from support.hostile_pairing import hostile_server, impostor
from support.product import OPEN, PATIENCE, POOL, TOKEN, Machine, Site, eventually

OK: dict[str, Any] = {
    "status": "ok",
    "name": "laptop",
    "address4": "10.150.0.2/24",
    "address6": "fd00::2/64",
    "server_key": encode_key(bytes([7]) * 32),
    "port": 51820,
    "mtu": 1420,
    "keepalive": 25,
    "routes": [],
    "gateway4": "10.150.0.1",
    "gateway6": "fd00::1",
}
HOOK = "\nPreUp = reboot\n#"
# By the name that the client asks for.
HOSTILE: dict[str, dict[str, Any]] = {
    "hook": {"address6": f"fd00::2%x{HOOK}/64"},
    "gateway": {"gateway6": f"fd00::1%{HOOK}"},
    "escape": {"routes": ["fd01::%\x1b]0;owned\x07/64"]},
    "label": {"name": "\x1b[2Jlaptop"},
    "nameless": {"name": ""},
    "long": {"name": "x" * 46},
    "many": {"routes": [f"{number:x}::/16" for number in range(65)]},
    "internet": {"address4": "203.0.113.2/2", "gateway4": "203.0.113.1"},
}
# What may be refused, but not saved so that it can't be loaded. The first few are tried in the short form too.
ODD: list[dict[str, Any]] = [
    {"name": "x" * 45},
    {"name": "\u00e4" * 22 + "x"},
    {"name": "\u00e4" * 23},
    {"routes": ["0.0.0.0/0", "10.150.0.0/25", "::/0"], "mtu": 1280},
    {"address4": "10.150.0.2/30", "address6": None, "gateway6": None, "keepalive": 0},
    {"name": "\u202elaptop"},
    {"name": encode_key(bytes(32))},
    {"name": "--help"},
    {"name": " laptop"},
    {"name": "\u65e5\u672c\u8a9e" * 5},
    {"name": "e\u0301" * 15},
    {"name": "\ufb01le", "routes": []},
    {"name": 7},
    {"address4": "10.150.0.0/24"},
    {"address4": "10.150.0.255/24"},
    {"address4": "10.150.0.1/24"},
    {"address4": "10.150.0.2/32"},
    {"address4": "10.0.0.2/8", "gateway4": "10.0.0.1"},
    {"address4": "127.0.0.2/8", "gateway4": "127.0.0.1"},
    {"address4": "0.0.0.2/24", "gateway4": "0.0.0.1"},
    {"address6": "fd00::2/128"},
    {"address6": "fe80::2/64", "gateway6": "fe80::1"},
    {"address6": "::ffff:10.0.0.2/96", "gateway6": "::ffff:10.0.0.1"},
    {"address6": None},
    {"gateway4": "10.150.0.2"},
    {"gateway4": None},
    {"mtu": 65000},
    {"mtu": 65535},
    {"mtu": 1420.0},
    {"mtu": 10**400},
    {"port": 0},
    {"port": 65535},
    {"keepalive": 65535},
    {"keepalive": True},
    {"routes": ["10.0.0.1/8"]},
    {"routes": ["10.7.0.0/16"] * 40},
    {"routes": [f"{number}.0.0.0/8" for number in range(1, 65)]},
    {"server_key": encode_key(bytes(32))},
    {"tunnels": [{"key": encode_key(bytes([8]) * 32), "port": 51821}]},
    {"tunnels": [{"key": OK["server_key"], "port": 51820}] * 8},
    {"further": "\x1b[2J"},
]


def _hostile(site: Site, outcomes: dict[str, dict[str, Any]]) -> tuple[Host, Machine, str]:
    """Return the hostile server's host, a client of it, and where the client reaches it."""
    host, client = site.lab.host("hostile"), site.machine("client")
    there, client.end = site.lab.link(host, client.host, ipv4="198.51.100.0/29")
    hostile_server(host, TOKEN, {name: {**OK, **changed} for name, changed in outcomes.items()})
    return host, client, f"{there.ipv4}"


@pytest.mark.fault(39)
@pytest.mark.attack("a server's words as commands and escapes")
def test_what_a_hostile_server_says_is_refused_and_nothing_of_it_kept_or_shown(site: Site, row: Row) -> None:
    _, client, address = _hostile(site, {**HOSTILE, "laptop": {}})
    machines = {name: site.machine(name, client.host) for name in HOSTILE}
    programs = {
        name: each.start(f"join {address} --save-only --name {name}", TOKEN) for name, each in machines.items()
    }
    for name, program in programs.items():
        assert program.wait(PATIENCE) not in (0, None), name
        said, kept = machines[name].said(), (machines[name].state / "state.json").read_text()
        assert "Traceback" not in said
        assert not any(character in said + kept for character in "\x1b\x07")
        assert "PreUp" not in said + kept
        assert _kept(machines[name])["networks"] == []
    # The same server is believed when it makes sense.
    client.run(f"join {address} --save-only --name laptop", TOKEN)
    assert len(_kept(client)["networks"]) == 1
    row.seen(f"{len(HOSTILE)} of {len(HOSTILE)} refused, nothing saved or shown")


@pytest.mark.fault(39)
@pytest.mark.attack("a server's words that its client can't load")
def test_a_client_starts_again_whatever_a_server_has_said(site: Site, row: Row, *, long_form: bool) -> None:
    outcomes = {f"c{number}": each for number, each in enumerate(ODD if long_form else ODD[:6])}
    _, client, address = _hostile(site, {**outcomes, "laptop": {}})
    saved = 0
    # A few at once, because stretching a token takes memory.
    for first in range(0, len(outcomes), 6):
        names = list(outcomes)[first : first + 6]
        machines = {name: site.machine(name, client.host) for name in names}
        programs = [each.start(f"join {address} --save-only --name {name}", TOKEN) for name, each in machines.items()]
        joined = [program.wait(PATIENCE) == 0 for program in programs]
        kept = [_kept(each)["networks"] for each in machines.values()]
        assert [len(each) for each in kept] == joined, dict(zip(names, joined, strict=True))
        again = [each.start("join --save-only") for each in machines.values()]
        assert [program.wait(PATIENCE) == 0 for program in again] == joined
        assert [_kept(each)["networks"] for each in machines.values()] == kept
        for name, each in machines.items():
            assert "Traceback" not in each.said(), (outcomes[name], each.said())
            assert "can't be trusted" not in each.said(), (outcomes[name], each.said())
            assert "is damaged" not in each.said(), (outcomes[name], each.said())
        saved += sum(joined)
    assert 0 < saved < len(outcomes)
    # The server still answers, so it was its words that were refused.
    client.run(f"join {address} --save-only --name laptop", TOKEN)
    row.seen(f"of {len(outcomes)} answers {saved} were saved and loaded again, the others refused")
    row.control("recorded before names were checked: '' and 46 bytes were saved, and not loaded again")


@pytest.mark.fault(39)
@pytest.mark.attack("a server's words as commands and escapes")
def test_control_an_address_of_the_standard_library_carries_a_hook_into_a_file(row: Row) -> None:
    address = IPv6Interface(HOSTILE["hook"]["address6"])
    text = f"[Interface]\nPrivateKey = {encode_key(bytes(32))}\nAddress = {address}\n"
    hooks = [line for line in text.split("\n") if line.startswith("PreUp")]
    assert hooks == ["PreUp = reboot"]
    row.control("an address as the standard library parses and writes it puts a PreUp line into a file")


@pytest.mark.attack("a server that routes the Internet through itself")
def test_networks_that_nobody_accepted_are_shown_and_not_routed(site: Site, row: Row) -> None:
    offered = ["0.0.0.0/2", "8.8.8.8/32", "2000::/3"]
    _, client, address = _hostile(site, {"laptop": {"routes": offered}, "accepts": {"routes": offered}})
    program = client.start(f"join {address} --name laptop", TOKEN)
    eventually(lambda: client.alive(program) and client.status(), what="the tunnel")
    eventually(lambda: "10.150.0.0/24 dev rg0" in _routes(client.host), what="the pool's route")
    routes = _routes(client.host)
    assert [each for each in ("0.0.0.0/2", "8.8.8.8", "2000::/3") if each in routes] == []
    assert all(each in client.said() for each in offered)
    row.seen(f"{len(offered)} offered, 0 routed, all shown")
    program.terminate()
    assert program.wait(PATIENCE) == 0
    accepting = site.machine("accepts", client.host)
    program = accepting.start(f"join {address} --name accepts --routes all", TOKEN)
    eventually(lambda: accepting.alive(program) and "8.8.8.8 dev rg0" in _routes(client.host), what="the routes")
    row.control("with `--routes all` the same server's networks are routed")


def _routes(host: Host) -> str:
    return host.run(["ip", "route"]).stdout + host.run(["ip", "-6", "route"]).stdout


# -- an impostor ---------------------------------------------------------------------------------------------

# Each is stretched at the start.
GUESSES = [f"guess-{number}" for number in range(4)]


@pytest.mark.attack("an impostor that tries tokens on those who join")
def test_an_impostor_learns_nothing_of_a_client_that_knows_the_server(site: Site, row: Row) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    server = home.serve(f"--pool {POOL} {OPEN}")
    address = f"{laptop.servers_end.ipv4}"
    laptop.run(f"join {address} --save-only", TOKEN)
    server_id = b64decode(_kept(home)["server_id"])
    server.terminate()
    assert server.wait(PATIENCE) == 0
    # In the same place, under the same id, with the right token among its guesses.
    false = impostor(home.host, [TOKEN, *GUESSES], server_id)
    done = laptop.run(f"join {address} --save-only", TOKEN, check=False)
    lines = false.end()
    assert len(lines) > 3
    assert not any(line["right"] for line in lines)
    assert done.returncode == 4
    assert "Or it isn't the server joined before" in done.stderr
    assert len(_kept(laptop)["networks"]) == 1
    row.seen(f"a client that joined before: {len(lines)} CONFIRMs, the right token's not told from the others'")


@pytest.mark.attack("an impostor that tries tokens on those who join")
def test_control_an_impostor_tests_three_tokens_of_a_first_join_and_no_more(site: Site, row: Row) -> None:
    host, client = site.lab.host("hostile"), site.machine("client")
    there, client.end = site.lab.link(host, client.host, ipv4="198.51.100.0/29")
    false = impostor(host, [*GUESSES, TOKEN], bytes(32))
    program = client.start(f"join {there.ipv4} --save-only", "another-token")
    lines = [false.line() for _ in range(3)]
    # Time for more, which don't come.
    time.sleep(3)
    program.terminate()
    lines += false.end()
    assert (len(lines), any(line["right"] for line in lines)) == (3, False)
    false = impostor(host, [TOKEN], bytes(32))
    client.start(f"join {there.ipv4} --save-only", TOKEN)
    assert false.line() == {"confirmed": TOKEN, "right": True}
    row.control(f"a first join: {len(lines)} tokens tested of {len(GUESSES) + 1}, and a right one is recognized")


def _kept(machine: Machine) -> dict[str, Any]:
    return envelope.decode((machine.state / "state.json").read_bytes())[1]
