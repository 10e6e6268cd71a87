"""`serve` and `join` with the kernel's engine, and with it on one end: enrollment, status, peers, the end."""

from __future__ import annotations

import signal
import subprocess
from base64 import b64encode
from functools import partial
from pathlib import Path

import pytest

from rustguard_py.model.keys import generate_private_key, public_key
from support.forked import ForkedSite
from support.product import HOME4, INNER, Machine, eventually

PATIENCE = 60.0


def _started_clean(machine: Machine, program: subprocess.Popen[str]) -> bool:
    return machine.alive(program) and "Removed the interface" in machine.said()


def _has_route(home: Machine, running: subprocess.Popen[str]) -> bool:
    return home.alive(running) and "10.9.0.0/16 dev office" in home.host.run(["ip", "route"]).stdout


def reaches(machine: Machine, address: str) -> None:
    eventually(lambda: machine.pings(address, 2.0), PATIENCE, f"a ping to {address}")


@pytest.mark.parametrize(("server", "client"), [("kernel", "portable"), ("portable", "kernel"), ("auto", "auto")])
def test_a_client_joins_and_both_clean_up(site: ForkedSite, server: str, client: str) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    before = home.network(), laptop.network()
    serving = home.start(f"serve --pool 10.150.0.0/24 --open --engine {server}", "maple-comet-fjord")
    eventually(lambda: home.alive(serving) and home.sockets(), PATIENCE, "the server")
    joining = laptop.start(f"join {HOME4} --name laptop --engine {client}", "maple-comet-fjord")
    eventually(lambda: laptop.alive(joining) and laptop.pings(INNER, 2.0), PATIENCE, "the join")
    eventually(lambda: "Connected to" in laptop.said(), PATIENCE, "that it says so")

    mine, theirs = home.status(), laptop.status()
    for status, asked in ((mine, server), (theirs, client)):
        assert status["engine"] == ("kernel" if asked == "auto" else asked)
        assert status["port"] == 51820
        peer = status["peers"][0]
        assert peer["state"] == "active"
        assert peer["last_handshake"] < 120
        assert peer["rx_bytes"] > 0
        assert peer["tx_bytes"] > 0
    assert mine["peers"][0]["name"] == "laptop"
    assert mine["peers"][0]["endpoint"].startswith("198.51.100.2:")
    assert theirs["peers"][0]["endpoint"] == f"{HOME4}:51820"
    if server == "kernel":
        assert "UDP port 51821" in home.said()

    # The server reaches the client as well; then it is renamed, and shut out at once.
    reaches(home, "10.150.0.2")
    home.run("peers rename laptop desk")
    assert set(home.peers()) == {"desk"}
    home.run("peers revoke desk")
    assert home.peers() == {}
    assert not laptop.pings(INNER, 2.0)

    for program in (joining, serving):
        program.terminate()
        assert program.wait() == 0
    assert (home.network(), laptop.network()) == before
    assert home.sockets() == []


def test_what_a_killed_server_left_is_replaced_and_its_peers_come_back(site: ForkedSite) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    before = home.network(), laptop.network()
    serving = home.start("serve --pool 10.150.0.0/24 --open --engine kernel", "maple-comet-fjord")
    eventually(lambda: home.alive(serving) and home.sockets(), PATIENCE, "the server")
    joining = laptop.start(f"join {HOME4} --name laptop --engine kernel", "maple-comet-fjord")
    reaches(laptop, INNER)
    for program in (serving, joining):
        program.send_signal(signal.SIGKILL)
        program.wait()
    # The kernel goes on without us.
    assert laptop.pings(INNER, 2.0)

    serving = home.start("serve --engine kernel")
    joining = laptop.start("join --engine kernel")
    for machine, program in ((home, serving), (laptop, joining)):
        eventually(partial(_started_clean, machine, program), PATIENCE, "a clean start")
    reaches(laptop, INNER)
    reaches(home, "10.150.0.2")
    for program in (joining, serving):
        program.terminate()
        assert program.wait() == 0
    assert (home.network(), laptop.network()) == before


def test_an_interface_that_somebody_removes_is_made_again(site: ForkedSite) -> None:
    home = site.home()
    serving = home.start("serve --pool 10.150.0.0/24 --engine kernel", "maple-comet-fjord")
    eventually(lambda: home.alive(serving) and home.sockets(), PATIENCE, "the server")
    home.host.ip(["link del rg0"])
    eventually(lambda: "removed the interface rg0; put back" in home.said(), PATIENCE, "the interface again")
    eventually(lambda: "10.150.0.1" in home.host.run(["ip", "addr", "show", "rg0"]).stdout, PATIENCE, "its address")
    serving.terminate()
    assert serving.wait(PATIENCE) == 0


def test_a_wg_quick_tunnel_is_the_kernels_and_a_killed_one_is_taken_back(site: ForkedSite, tmp_path: Path) -> None:
    home = site.home()
    before = home.network()
    mine, other = generate_private_key(), public_key(generate_private_key())
    file = tmp_path / "office.conf"
    file.write_text(
        f"[Interface]\nPrivateKey = {b64encode(mine).decode()}\nAddress = 10.8.0.1/24\nListenPort = 4444\n"
        f"FwMark = 0x77\n[Peer]\nPublicKey = {b64encode(other).decode()}\nAllowedIPs = 10.8.0.2/32, 10.9.0.0/16\n"
    )
    file.chmod(0o600)
    words = f"up {file} --foreground --engine kernel"
    for end in ("down", "kill"):
        running = home.start(words)
        eventually(partial(_has_route, home, running), PATIENCE, "the tunnel")
        shown = home.host.run(["wg", "show", "office", "dump"]).stdout.split()
        assert shown[1:4] == [b64encode(public_key(mine)).decode(), "4444", "0x77"]
        assert shown[4] == b64encode(other).decode()
        assert "10.8.0.2/32,10.9.0.0/16" in shown
        assert home.status()["engine"] == "kernel"
        if end == "kill":
            running.kill()
            running.wait()
            assert "office" in home.host.run(["ip", "-br", "link"]).stdout
        home.run("down office")
        running.wait()
        assert home.network() == before
