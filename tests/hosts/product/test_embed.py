"""A program with an embedded tunnel, on a host of its own: with our server, and with wireguard-go."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from rustguard_py import conf
from rustguard_py.conf_writer import write
from rustguard_py.lab.hosts import Lab
from rustguard_py.model.ip import interface, network
from rustguard_py.model.keys import generate_private_key, public_key
from support.embedded_program import EmbeddedProgram
from support.engines import on_both_engines
from support.product import HOME4, INNER, OPEN, POOL, TOKEN, Site, eventually
from support.wireguard_go import Peer, WireGuardGo

TOKENS = 'token=os.environ["RUSTGUARD_TOKEN"]'
PRESHARED = bytes(range(32))


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


@on_both_engines
def test_a_join_in_memory_ends_with_the_tunnel(site: Site, engine: str) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN}")
    before, files = laptop.network(), set(site.directory.rglob("*"))
    program = EmbeddedProgram(laptop.host, HOME4, ping=INNER, token=TOKEN, name="laptop", engine=engine)
    assert program.open["addresses"][0] == "10.150.0.2/24"
    assert (program.open["name"], program.open["engine"]) == ("laptop", engine)
    program.more(3)
    assert laptop.network() == before, "no interface, no address, no route"
    assert set(home.peers()) == {"laptop"}
    # Its address changes, and its traffic goes on.
    laptop.own_end.readdress("198.51.100.5/29")
    program.more(5)
    eventually(lambda: "198.51.100.5" in home.peers()["laptop"]["endpoint"], what="the new endpoint")
    stats = program.end()
    assert stats["peers"][0]["name"] == HOME4
    assert set(home.peers()) == set(), "it has left"
    assert [each for each in set(site.directory.rglob("*")) - files if "laptop" in each.name] == []


def test_the_pages_program_pairs(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN}")
    page = (Path(__file__).parents[3] / "docs/guide/embedding.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (program,) = (block for block in blocks if TOKENS in block)
    argv = [sys.executable, "-c", program.replace("home.example", HOME4)]
    said = laptop.host.run(argv, env={"RUSTGUARD_TOKEN": TOKEN}).stdout
    assert said.split()[-2] == "10.150.0.2/24"
    assert home.peers() == {}


def test_a_join_that_is_kept_needs_the_token_once(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN}")
    first = EmbeddedProgram(laptop.host, HOME4, ping=INNER, token=TOKEN, name="laptop", state=str(laptop.state))
    first.more(1)
    addresses = first.open["addresses"]
    # The state is in use.
    second = EmbeddedProgram(laptop.host, HOME4, state=str(laptop.state))
    assert second.error[0] == "InUseError"
    first.end()
    assert set(home.peers()) == {"laptop"}
    assert {each.name for each in laptop.state.iterdir()} == {"lock", "state.json", "state.json.bak", "timestamps"}
    home.run("close")
    again = EmbeddedProgram(laptop.host, HOME4, ping=INNER, state=str(laptop.state))
    assert (again.open["addresses"], again.open["name"]) == (addresses, "laptop")
    again.more(3)
    again.end()
    # The command knows the same state.
    laptop.join(token=None)


def test_what_the_server_refuses_is_an_error_of_ours(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL}")
    # Each of them waits for answers for a while.
    nobody = EmbeddedProgram(laptop.host, "192.0.2.1", token=TOKEN)
    closed = EmbeddedProgram(laptop.host, HOME4, token=TOKEN)
    assert nobody.error[0] == "UnansweredError"
    assert closed.error[0] == "UnansweredError"
    assert "the pairing window is closed" in closed.error[1]
    home.run("open 3600")
    wrong = EmbeddedProgram(laptop.host, HOME4, token="maple-comet-fiord")  # noqa: S106
    other = EmbeddedProgram(laptop.host, HOME4, token=TOKEN, fingerprint="AAAAAAAAAAAAAAAA")
    assert wrong.error == ("UnprovenError", "The other end doesn't know this token.")
    assert other.error[0] == "RefusedError"
    assert "fingerprint=" in other.first["error"]["fix"]
    # A server that lets us in and then doesn't answer: nothing of the join stays there.
    initiations = "udp dport 51820 @th,64,32 0x01000000 drop;"
    home.host.nft(f"table inet quiet {{ chain input {{ type filter hook input priority 0; {initiations} }}; }}")
    silent = EmbeddedProgram(laptop.host, HOME4, token=TOKEN, timeout=2)
    assert silent.error[0] == "UnansweredError"
    eventually(lambda: not home.peers(), what="the join taken back")


@pytest.mark.needs_wireguard_go
@on_both_engines
def test_wireguard_go_is_a_peer(lab: Lab, engine: str) -> None:
    here, there = lab.host("here"), lab.host("there", own_run=True)
    _, end = lab.link(here, there, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
    private_key = generate_private_key()
    us = Peer(public_key(private_key), ["10.9.0.1/32"], None, PRESHARED)
    # A new one for each family: one that has answered over IPv4 sends to 2001:db8:: in place of 2001:db8::1.
    for outside in (end.ipv4, end.ipv6):
        stock = WireGuardGo(there, ["10.9.0.2/24"], [us])
        server = conf.HostPort(str(outside), stock.port)
        peer = conf.PeerSection(stock.public_key, (network("10.9.0.2/32"),), PRESHARED, server, 1)
        addresses = (interface("10.9.0.1/24"),)
        text = write(conf.Config(private_key, addresses=addresses, mtu=1280, peers=(peer,)))
        program = EmbeddedProgram(here, text, ping="10.9.0.2", engine=engine)
        assert program.open["mtu"] == 1280
        program.more(3)
        # It pings us too, also with packets as large as they may be.
        for size in (56, 1280 - 28):
            there.run(["ping", "-c3", "-i0.1", "-W10", f"-s{size}", "10.9.0.1"])
        assert stock.peer(us.public_key).endpoint.endswith(f":{program.open['port']}")
        stats = program.end()
        assert stats["peers"][0]["handshakes"] == 1
        assert stats["drops"] == {}
        stock.stop()
