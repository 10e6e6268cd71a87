"""`--memif` on `serve`, `join` and `up`: another program has the addresses, and this machine's network stays."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.ethernet import EthernetOptions
from rustguard_py.model.memif import MemifOptions
from support.engines import needs_native
from support.memif_program import MemifProgram
from support.product import HOME4, INNER, OPEN, POOL, TOKEN, Site, eventually
from support.quick import PORT, Key, Quick, base64

pytestmark = needs_native
SECOND = "10.150.0.2"


@pytest.fixture
def programs() -> Iterator[list[MemifProgram]]:
    """The other programs that a test has started."""
    every: list[MemifProgram] = []
    yield every
    for each in every:
        each.close()


def test_a_server_on_a_memif_and_a_client_on_an_interface(
    tmp_path: Path, lab: Lab, programs: list[MemifProgram]
) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    first = site.client("first", home)
    memif = MemifOptions(tmp_path / "m", 5, False, b"psst")
    before = home.settings()
    words = f"--pool {POOL} {OPEN} --engine native --memif {memif.socket},id=5,secret=psst,role=server"
    serving = home.serve(words)
    assert stat.S_IMODE(memif.socket.stat().st_mode) == 0o700
    shown = home.status()["memif"]
    assert (shown["role"], shown["connected"], shown["program"], shown["id"]) == ("server", False, None, 5)
    assert "secret" not in shown
    programs.append(MemifProgram(memif, INNER))
    programs[0].wait_for_connection()
    # Both ways: `join` waits for an answer, which the other program gives.
    first.join(HOME4)
    programs[0].pings(SECOND)
    assert home.settings() == before
    assert f"{INNER}/24" in home.said()
    text = home.run("status").stdout
    assert f"{memif.socket}, id 5, server, ip: connected to wg0 of RustGuard for " in text, text
    assert "1 connection so far" in home.run("status -v").stdout
    assert json.loads(home.run("status --json").stdout)["memif"]["connected"] is True

    # The other program starts again. Sessions stay.
    programs.pop().close()
    eventually(lambda: not home.status()["memif"]["connected"], what="the end is noticed")
    assert "not connected for" in home.run("status").stdout
    assert "RustGuard ends" in home.status()["memif"]["why"]
    programs.append(MemifProgram(memif, INNER))
    programs[0].wait_for_connection()
    programs[0].pings(SECOND)
    assert home.peers()["first"]["handshakes"] == 1

    # We are killed, and start again with what was kept.
    serving.send_signal(signal.SIGKILL)
    serving.wait()
    assert memif.socket.is_socket()
    eventually(lambda: not programs[0].is_connected(), what="the end is noticed")
    serving = home.start("serve --engine native", None)
    programs[0].wait_for_connection()
    first.reaches(INNER)
    programs[0].pings(SECOND)
    assert home.saved()["data"]["memif"] == f"{memif.socket},id=5,secret=psst,role=server"

    home.run("stop", state=False)
    assert serving.wait() == 0
    assert not memif.socket.exists()
    assert home.settings() == before
    # Given up, there is an interface again.
    home.serve("--engine native --memif none", None)
    first.reaches(INNER)
    assert (home.status()["memif"], "memif" in home.saved()["data"]) == (None, False)


def test_a_client_on_a_memif_and_a_server_on_an_interface(
    tmp_path: Path, lab: Lab, programs: list[MemifProgram]
) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    first = site.client("first", home)
    memif = MemifOptions(tmp_path / "m", 0, True)
    before = first.settings()
    home.serve(f"--pool {POOL} {OPEN}")
    joining = first.start(f"join {HOME4} --name first --engine native --memif {memif.socket}", TOKEN)
    eventually(lambda: first.alive(joining) and first.status()["memif"]["why"], what="it says why")
    assert "No such file" in first.status()["memif"]["why"]
    programs.append(MemifProgram(memif, SECOND))
    programs[0].wait_for_connection()
    programs[0].pings(INNER)
    assert home.reaches(SECOND)
    assert first.settings() == before
    assert first.status()["interface"] == "rg0"
    assert "inner address, so no reports" in first.run("status -v").stdout

    first.run("stop", state=False)
    assert joining.wait() == 0
    # What was kept is used again, and given up with the network.
    joining = first.start("join --engine native", None)
    eventually(lambda: first.alive(joining) and first.status()["memif"]["connected"], what="it connects again")
    programs[0].pings(INNER)
    left = first.run("leave --yes").stderr
    assert "Left" in left
    assert "With a memif, the server can't be told. It may still list first." in left, left
    assert joining.wait() == 0
    assert first.settings() == before


def test_over_ethernet_both_ends_answer_for_where_the_tunnel_leads(
    tmp_path: Path, lab: Lab, programs: list[MemifProgram]
) -> None:
    """The programs ask for the addresses that they send to, as VPP does. Nobody names a range."""
    site = Site(lab, tmp_path)
    home = site.home()
    first = site.client("first", home)
    link = EthernetOptions(learnt=(ip_network(POOL),))
    memifs = [MemifOptions(tmp_path / name, ethernet=link) for name in ("h", "f")]
    words = "--engine native --memif {},role=server,mode=ethernet"
    home.serve(f"--pool {POOL} {OPEN} {words.format(memifs[0].socket)}")
    joining = first.start(f"join {HOME4} --name first {words.format(memifs[1].socket)}", TOKEN)
    eventually(lambda: first.alive(joining) and memifs[1].socket.exists(), what="the client's memif")
    for memif, address in zip(memifs, (INNER, SECOND), strict=True):
        programs.append(MemifProgram(memif, address))
        programs[-1].wait_for_connection()
    programs[0].pings(SECOND)
    programs[1].pings(INNER)
    pool6 = ip_network(home.saved()["data"]["pool6"])
    assert f"answered for {POOL}, {pool6}, but not for {INNER}, {pool6[1]}.\n" in home.said()
    assert f"answered for {POOL}, {pool6}, but not for {SECOND}, {pool6[2]}.\n" in first.said()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--engine portable", "The portable engine has no memif"),
        ("--engine kernel", "The kernel engine has no memif"),
        ("--queues 2", "Leave out --queues, and write --memif SOCKET,queues=2"),
        ("--tunnels 2", "A memif serves only one tunnel"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_way_out(tmp_path: Path, lab: Lab, words: str, said: str) -> None:
    home = Site(lab, tmp_path).home()
    socket = tmp_path / "m"
    result = home.run(f"serve --pool {POOL} --memif {socket},role=server {words}", check=False)
    assert (result.returncode, said in result.stderr) == (2, True), result.stderr
    assert "--memif none" in result.stderr
    assert not socket.exists()
    assert not home.state.joinpath("state.json").exists()


def test_a_socket_that_another_program_listens_at_is_left_alone(
    tmp_path: Path, lab: Lab, programs: list[MemifProgram]
) -> None:
    home = Site(lab, tmp_path).home()
    taken = MemifOptions(tmp_path / "m", server=True)
    programs.append(MemifProgram(taken, INNER))
    result = home.run(f"serve --pool {POOL} --engine native --memif {taken.socket},role=server", check=False)
    assert "can't be made: Address already in use" in result.stderr
    assert taken.socket.is_socket()


def test_a_file_on_a_memif(tmp_path: Path, lab: Lab, programs: list[MemifProgram]) -> None:
    here, there = (Quick(lab.host(name, own_files=True)) for name in ("here", "there"))
    for each in (here, there):
        each.host.run(["sh", "-c", "rm -f /etc/resolv.conf; : > /etc/resolv.conf"])
    lab.link(here.host, there.host, ipv4="192.0.2.0/30")
    memif = MemifOptions(tmp_path / "m")
    there.file(
        f"Address = 10.7.0.2/24\nListenPort = {PORT}",
        here.peer("AllowedIPs = 10.7.0.1/32\nEndpoint = 192.0.2.1:51820"),
    )
    # Routes, rules and a firewall without a memif.
    lines = there.peer("AllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.2:51820")
    interface = f"Address = 10.7.0.1/24\nListenPort = {PORT}\n"
    before = here.system()
    file = here.file(interface, lines)
    listed = here.system()
    assert set(before.splitlines()) < set(listed.splitlines())
    there.run("up wg0")
    here.run(f"up wg0 --engine native --memif {memif.socket},role=server")
    programs.append(MemifProgram(memif, "10.7.0.1"))
    programs[0].wait_for_connection()
    programs[0].pings("10.7.0.2")
    there.reaches("10.7.0.1")
    own = {"/run/rustguard", "/run/wireguard"}
    changed = set(here.system().splitlines()) ^ set(listed.splitlines())
    assert all(any(line.startswith(each) for each in own) for line in changed), changed
    assert "connected to" in here.run("status").stdout
    assert here.says("wg", "show", "wg0", "allowed-ips").split()[1:] == ["0.0.0.0/0"]

    # A change is applied, and one that can't be kept is refused; the tunnel goes on.
    other = Key()
    more = f"\n[Peer]\nPublicKey = {base64(other.public)}\nAllowedIPs = 10.8.0.0/24\n"
    here.file(interface, lines, more)
    assert "peer" in here.run("up wg0").stderr
    here.file(f"{interface}DNS = 10.7.0.2\n", lines, more)
    refused = here.run("up wg0", check=False)
    assert (refused.returncode, "this machine's names don't go through the tunnel" in refused.stderr) == (2, True)
    here.file(interface, lines)
    here.run("up wg0")
    programs[0].pings("10.7.0.2")
    # After `kill -9`, `down` removes the socket too.
    here.kill()
    eventually(lambda: not programs[0].is_connected(), what="the end is noticed")
    assert memif.socket.is_socket()
    here.run("down wg0")
    assert not memif.socket.exists()
    here.run(f"up wg0 --engine native --memif {memif.socket},role=server")
    programs[0].wait_for_connection()
    programs[0].pings("10.7.0.2")
    here.run("down wg0")
    assert not memif.socket.exists()
    assert here.system() == listed
    assert file.exists()


@pytest.mark.parametrize("line", ["DNS = 10.7.0.2", "Table = 51820"])
def test_a_file_that_asks_for_what_a_memif_cannot_have(tmp_path: Path, lab: Lab, line: str) -> None:
    here = Quick(lab.host("here", own_files=True))
    here.file(f"Address = 10.7.0.1/24\n{line}\n")
    refused = here.run(f"up wg0 --engine native --memif {tmp_path / 'm'},role=server", check=False)
    assert (refused.returncode, "Remove the line" in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "m").exists()


def test_what_is_answered_follows_the_allowed_ips_of_a_file_and_of_wg(
    tmp_path: Path, lab: Lab, programs: list[MemifProgram]
) -> None:
    here, there = (Quick(lab.host(name, own_files=True)) for name in ("here", "there"))
    lab.link(here.host, there.host, ipv4="192.0.2.0/30")
    there.file(
        f"Address = 10.7.0.2/24, 10.7.0.3/24, 10.7.0.4/24\nListenPort = {PORT}",
        here.peer("AllowedIPs = 10.7.0.1/32\nEndpoint = 192.0.2.1:51820"),
    )
    there.run("up wg0")
    # The program asks for each address. Its interface has our interface's name, so its MAC address would be ours.
    link = EthernetOptions(b"\x02A\0\0\0\1", learnt=(ip_network("10.7.0.0/24"),))
    memif = MemifOptions(tmp_path / "m", ethernet=link)
    interface = f"Address = 10.7.0.1/24\nListenPort = {PORT}\n"
    here.file(interface, there.peer("AllowedIPs = 10.7.0.2/32\nEndpoint = 192.0.2.2:51820"))
    up = f"up wg0 --engine native --memif {memif.socket},role=server,mode=ethernet"
    assert "answered for 10.7.0.2/32.\n" in here.run(up).stderr
    programs.append(MemifProgram(memif, "10.7.0.1"))
    programs[0].wait_for_connection()
    programs[0].pings("10.7.0.2")
    here.file(interface, there.peer("AllowedIPs = 10.7.0.2/32, 10.7.0.3/32\nEndpoint = 192.0.2.2:51820"))
    assert "answered for 10.7.0.2/32, 10.7.0.3/32.\n" in here.run("up wg0").stderr
    programs[0].pings("10.7.0.3")
    here.says("wg", "set", "wg0", "peer", base64(there.key.public), "allowed-ips", "10.7.0.0/29")
    programs[0].pings("10.7.0.4")
    # Not for the file's own address, which an allowed range has now.
    assert "answered for 10.7.0.0/29, but not for 10.7.0.1.\n" in here.run("logs wg0").stdout
    here.run("down wg0")
