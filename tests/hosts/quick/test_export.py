"""Export to and import from stock WireGuard: both sides then carry traffic."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.sudo import as_root
from support import machine
from support.product import HOME4, INNER, TOKEN, Site, eventually
from support.quick import PORT, Quick, lan


@pytest.mark.needs_wireguard_go
def test_a_stock_wireguard_comes_in_with_an_exported_file(lab: Lab, tmp_path: Path) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    phone = site.machine("phone", lab.host("phone", own_files=True))
    lab.link(home.host, phone.host, ipv4="198.51.100.0/29")
    home.serve("--pool 10.150.0.0/24")
    path = tmp_path / "wgphone.conf"
    # The window is closed: a person at the server lets it in.
    home.run(f"export --new phone --endpoint {HOME4} -o {path}")
    program = machine.wireguard_go()
    assert program is not None
    phone.host.run(["wg-quick", "up", path], env={"WG_QUICK_USERSPACE_IMPLEMENTATION": program})
    addresses = home.status()["addresses"]
    for address in addresses:
        eventually(partial(phone.pings, address.split("/")[0]), what="the phone's ping")
    peers = home.peers()
    assert peers["phone"]["state"] == "active"
    assert peers["phone"]["address4"] == "10.150.0.2"
    home.run("peers revoke phone")
    assert not phone.pings(INNER, 0.3)


def test_an_export_waits_for_a_server_that_is_just_starting(lab: Lab, tmp_path: Path) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    home.start("serve --pool 10.150.0.0/24 --open", TOKEN)
    # From here on the directory is in use, and there is no state and no control socket yet.
    eventually((home.state / "lock").exists, what="the lock")
    home.run(f"export --new phone --endpoint {HOME4} -o {tmp_path}/phone.conf")
    assert "phone" in home.peers()


def test_a_client_runs_its_exported_file_in_place_of_join(lab: Lab, tmp_path: Path) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve("--pool 10.150.0.0/24 --open")
    program = laptop.join(HOME4)
    path = tmp_path / "stock.conf"
    laptop.run(f"export -o {path}")
    program.terminate()
    assert program.wait(20) == 0
    laptop.start(f"up {path} --foreground")
    eventually(lambda: laptop.pings(INNER), what="traffic")
    status = json.loads(laptop.run("status --json").stdout)
    assert (status["role"], status["interface"]) == ("tunnel", "stock")


def test_the_peers_of_an_imported_file_go_on(lab: Lab) -> None:
    net = lan(lab)
    laptop, home = net.laptop, net.home
    lines = f"Address = 10.9.0.1/24, fd09::1/64\nListenPort = {PORT}"
    theirs = "AllowedIPs = 10.9.0.2/32, fd09::2/128\nEndpoint = 192.0.2.1:4242"
    home.file(lines, laptop.peer(theirs, bytes(range(32))))
    end = f"AllowedIPs = 10.9.0.0/24, fd09::/64\nEndpoint = 192.0.2.2:{PORT}"
    laptop.file("Address = 10.9.0.2/24, fd09::2/64\nListenPort = 4242", home.peer(end, bytes(range(32))))
    for each in (home, laptop):
        each.run("up wg0")
    laptop.reaches("10.9.0.1")
    home.run("import /etc/wireguard/wg0.conf")
    home.run("down wg0")
    home.host.popen(home.command("serve"))
    # It knows where the laptop was, and greets it.
    eventually(lambda: has_session(home), what="the laptop's answer")
    for address in ("10.9.0.1", "fd09::1"):
        laptop.reaches(address)


def has_session(home: Quick) -> bool:
    done = home.run("peers --json", check=False)
    return done.returncode == 0 and json.loads(done.stdout)["peers"][0]["last_handshake"] is not None


def test_a_new_peers_file_that_can_not_be_written_is_an_error_with_the_way_back(lab: Lab, tmp_path: Path) -> None:
    home = Site(lab, tmp_path).home()
    home.serve("--pool 10.150.0.0/24")

    def export(output: str) -> subprocess.CompletedProcess[str]:
        argv = ["sh", "-c", f'"$@" {output}', "sh", *home.command("export --new phone")]
        return home.host.run(argv, env=home.environment(None), check=False)

    # Nothing is admitted for an output that keeps nothing.
    for closed in (">&-", "> /dev/null"):
        done = export(closed)
        assert done.returncode == 2, done.stderr
        assert "-o FILE" in done.stderr
    assert home.peers() == {}
    done = export("> /dev/full")
    assert done.returncode == 1
    assert as_root("rustguard peers revoke phone") in done.stderr
