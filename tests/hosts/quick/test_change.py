"""What `rustguard up` does besides the tunnel: hooks, DNS, SaveConfig; and what a second `up` changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rustguard_py import conf_reader
from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import Lab
from support.product import Machine, Pinging, eventually
from support.quick import PORT, Key, Lan, Quick, base64, lan

NATIVE = pytest.mark.skipif(not has_native(), reason="no native plane")
# With what `up` is told beside `--engine`; {} is the way out of the host.
NATIVES = ["native --queues 2 --uring", "native --xdp {}"]


@pytest.fixture
def net(lab: Lab) -> Lan:
    return lan(lab)


def program(folder: Path, name: str, body: str) -> Path:
    """A program that logs how it's called and what it reads, beside it, and then does `body`; gives the log."""
    log = folder / f"{name}.log"
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{body}\n')
    path.chmod(0o755)
    return log


RESOLVCONF = """
case $1 in
  -a) cp /etc/resolv.conf /run/resolv.before; tee -a LOG > /etc/resolv.conf ;;
  -d) cp /run/resolv.before /etc/resolv.conf ;;
esac
"""


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def tunnel(quick: Quick, lines: str, *peers: str) -> Path:
    return quick.file(f"Address = 10.9.0.1/24\n{lines}", *peers)


def test_hooks_run_in_order_and_know_the_interface(net: Lan, tmp_path: Path) -> None:
    log = tmp_path / "hooks"
    there = f"; ip link show %i > /dev/null 2>&1 && echo there >> {log} || echo gone >> {log}"
    lines = [
        f"{hook} = echo {hook} {nth} %i >> {log}{there}"
        for hook in ("PostDown", "PreDown", "PostUp", "PreUp")
        for nth in (1, 2)
    ]
    tunnel(net.laptop, "\n".join(lines), net.home.peer("AllowedIPs = 10.9.0.0/24"))
    said = net.laptop.run("up wg0").stderr
    assert f"[#] echo PostUp 1 wg0 >> {log}" in said
    up = ["PreUp 1 wg0", "gone", "PreUp 2 wg0", "gone", "PostUp 1 wg0", "there", "PostUp 2 wg0", "there"]
    assert log.read_text().splitlines() == up
    log.unlink()
    said = net.laptop.run("down wg0").stderr
    assert f"[#] echo PostDown 2 wg0 >> {log}" in said
    down = ["PreDown 1 wg0", "there", "PreDown 2 wg0", "there", "PostDown 1 wg0", "gone", "PostDown 2 wg0", "gone"]
    assert log.read_text().splitlines() == down


def test_a_hook_may_use_the_tunnel_and_one_that_fails_on_the_way_down_stops_nothing(net: Lan, tmp_path: Path) -> None:
    laptop, home = net.laptop, net.home
    home.file(f"Address = 10.9.0.2/24\nListenPort = {PORT}", laptop.peer("AllowedIPs = 10.9.0.1/32"))
    home.run("up wg0")
    end = home.peer(f"AllowedIPs = 10.9.0.0/24\nEndpoint = 192.0.2.2:{PORT}")
    mark = tmp_path / "mark"
    lines = "PostUp = ping -n -c1 -w10 10.9.0.2 > /dev/null\nPreDown = exit 3\nPostDown = false\n"
    lines += f"PreDown = echo 2 > {mark}"
    tunnel(laptop, lines, end)
    before = laptop.system()
    laptop.run("up wg0")
    done = laptop.run("down wg0", check=False)
    assert done.returncode == 1
    assert "`exit 3` ended with 3" in done.stderr
    assert "`false` ended with 1" in done.stderr
    assert mark.exists()
    assert laptop.system() == before


def test_resolvconf_is_told_of_name_servers_and_again_at_the_end(net: Lan, bin_folder: Path) -> None:
    log = program(bin_folder, "resolvconf", "")
    program(bin_folder, "resolvconf", RESOLVCONF.replace("LOG", str(log)))
    laptop = net.laptop
    (laptop.root / "etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    peer = net.home.peer("AllowedIPs = 10.9.0.0/24")
    tunnel(laptop, "DNS = 10.9.0.53, lan.example, fd09::53", peer)
    before = laptop.system()
    laptop.run("up wg0", path=bin_folder)
    wanted = "nameserver 10.9.0.53\nnameserver fd09::53\nsearch lan.example\n"
    assert (laptop.root / "etc/resolv.conf").read_text() == wanted
    assert log.read_text() == f"resolvconf -a wg0 -m 0 -x\n{wanted}"
    laptop.run("down wg0")
    assert log.read_text().endswith("resolvconf -d wg0 -f\n")
    assert laptop.system() == before


@pytest.mark.parametrize("again", ["down", "up"])
def test_dns_is_put_right_after_a_kill(net: Lan, bin_folder: Path, again: str) -> None:
    log = program(bin_folder, "resolvconf", "")
    program(bin_folder, "resolvconf", RESOLVCONF.replace("LOG", str(log)))
    laptop = net.laptop
    names = laptop.root / "etc/resolv.conf"
    names.write_text("nameserver 192.0.2.53\n")
    tunnel(laptop, "DNS = 10.9.0.53", net.home.peer("AllowedIPs = 10.9.0.0/24"))
    before = laptop.system()
    laptop.run("up wg0", path=bin_folder)
    laptop.kill()
    eventually(lambda: "wg0" not in laptop.says("ip", "link"), what="the interface's end")
    assert names.read_text() == "nameserver 10.9.0.53\n"
    laptop.run(f"{again} wg0", path=bin_folder)
    if again == "up":
        assert names.read_text() == "nameserver 10.9.0.53\n"
        laptop.run("down wg0", path=bin_folder)
    assert laptop.system() == before


def test_resolved_is_told_where_it_has_charge(net: Lan, bin_folder: Path) -> None:
    log = program(bin_folder, "resolvectl", "")
    program(bin_folder, "resolvconf", "exit 9")
    laptop = net.laptop
    stub = laptop.root / "run/systemd/resolve/stub-resolv.conf"
    stub.parent.mkdir(parents=True)
    stub.write_text("nameserver 127.0.0.53\n")
    (laptop.root / "etc/resolv.conf").unlink()
    (laptop.root / "etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    tunnel(laptop, "DNS = 10.9.0.53, lan", net.home.peer("AllowedIPs = 10.9.0.0/24"))

    def told() -> list[str]:
        # Without servers it is only asked what it has.
        asked = ("resolvectl dns wg0", "resolvectl domain wg0")
        return [line for line in log.read_text().splitlines() if line not in asked]

    laptop.run("up wg0", path=bin_folder)
    assert told() == ["resolvectl dns wg0 10.9.0.53", "resolvectl domain wg0 ~. lan"]
    laptop.run("down wg0")
    assert told()[2:] == ["resolvectl revert wg0"]


def test_name_servers_that_are_not_taken_end_the_start(net: Lan, bin_folder: Path) -> None:
    program(bin_folder, "resolvconf", '[ "$1" = -d ] || { echo no such thing >&2; exit 1; }')
    tunnel(net.laptop, "DNS = 10.9.0.53", net.home.peer("AllowedIPs = 0.0.0.0/0"))
    before = net.laptop.system()
    done = net.laptop.run("up wg0", check=False, path=bin_folder)
    assert done.returncode == 1
    assert "no such thing" in done.stderr
    assert net.laptop.system() == before


def test_save_config_writes_where_peers_have_moved_to(net: Lan) -> None:
    laptop, home = net.laptop, net.home
    other = Key()
    stranger = f"[Peer]\nPublicKey = {base64(other.public)}\nAllowedIPs = 10.9.0.7/32\nEndpoint = 192.0.2.77:7\n"
    path = home.file(
        f"Address = 10.9.0.2/24\nListenPort = {PORT}\nSaveConfig = true\nPostUp = true",
        "\n# anna\n" + laptop.peer("AllowedIPs = 10.9.0.1/32\nEndpoint = 203.0.113.9:99").strip() + "\n",
        stranger,
    )
    tunnel(laptop, "ListenPort = 4242", home.peer(f"AllowedIPs = 10.9.0.0/24\nEndpoint = 192.0.2.2:{PORT}"))
    before = conf_reader.parse(path.read_text())
    home.run("up wg0")
    laptop.run("up wg0")
    laptop.reaches("10.9.0.2")
    eventually(lambda: "192.0.2.1" in home.status()["peers"][0]["endpoint"], what="the move")
    home.host.ip(["addr add 10.8.0.1/24 dev wg0"])
    home.run("down wg0")
    after = conf_reader.parse(path.read_text())
    assert [str(peer.endpoint) for peer in after.peers] == ["192.0.2.1:4242", "192.0.2.77:7"]
    assert [str(each) for each in after.addresses] == ["10.9.0.2/24", "10.8.0.1/24"]
    assert after.peers[0].name == "anna"
    assert (after.private_key, after.hooks, after.save) == (before.private_key, before.hooks, True)
    assert path.stat().st_mode & 0o777 == 0o600
    # And that file brings it up again.
    home.run("up wg0")
    home.reaches("10.9.0.1")


def test_a_second_up_changes_what_differs_and_keeps_the_session(net: Lan, tmp_path: Path) -> None:
    laptop, home = net.laptop, net.home
    home.file(
        f"Address = 10.9.0.2/24, 10.8.0.2/24\nListenPort = {PORT}",
        laptop.peer("AllowedIPs = 10.9.0.1/32, 10.8.0.1/32"),
    )
    end = f"Endpoint = 192.0.2.2:{PORT}"
    tunnel(laptop, "", home.peer(f"AllowedIPs = 10.9.0.0/24\n{end}"))
    home.run("up wg0")
    laptop.run("up wg0")
    first = laptop.system()
    pings = Pinging.begin(Machine(laptop.host, tmp_path / "laptop", tmp_path), "10.9.0.2")
    age = laptop.status()["peers"][0]["last_handshake"]
    assert "nothing in" in laptop.run("up wg0").stderr

    other = Key()
    laptop.file(
        "Address = 10.9.0.1/24, 10.8.0.1/24\nMTU = 1300\nFwMark = 0x99",
        home.peer(f"AllowedIPs = 10.9.0.0/24, 10.8.0.0/24, 0.0.0.0/0\n{end}\nPersistentKeepalive = 5"),
        f"[Peer]\nPublicKey = {base64(other.public)}\nAllowedIPs = 10.7.0.0/24\n",
    )
    said = laptop.run("up wg0").stderr
    for line in ("address add 10.8.0.1/24", "route add 10.7.0.0/24", "not fwmark 153 table 153", "mtu 1300"):
        assert line in said
    assert "address add 10.9.0.1" not in said
    status = laptop.status()
    assert len(status["peers"]) == 2
    assert status["peers"][0]["keepalive"] == 5
    assert status["mtu"] == 1300
    laptop.reaches("10.8.0.2")
    assert "dev wg0" in laptop.says("ip", "route", "get", "203.0.113.5")
    pings.more(3)

    tunnel(laptop, "", home.peer(f"AllowedIPs = 10.9.0.0/24\n{end}"))
    laptop.run("up wg0")
    assert laptop.system() == first
    pings.more(3)
    assert pings.end() == []
    now = laptop.status()["peers"]
    assert len(now) == 1
    assert now[0]["last_handshake"] > age


def test_a_change_that_is_refused_leaves_all_as_it_was(net: Lan) -> None:
    laptop, home = net.laptop, net.home
    tunnel(laptop, "ListenPort = 4242", home.peer("AllowedIPs = 10.7.0.0/24"))
    laptop.run("up wg0")
    before = laptop.system()
    taking = "import socket,sys;s=socket.socket(2,2);s.bind(('',4243));print(flush=True);sys.stdin.read()"
    taker = laptop.host.popen([sys.executable, "-c", taking], stdin=-1, stdout=-1)
    assert taker.stdout is not None
    taker.stdout.readline()
    for lines, allowed, said in (
        ("ListenPort = 4243", "10.8.0.0/24", "UDP port 4243 can't be bound"),
        ("Adress = ::1", "10.7.0.0/24", "line 4: [Interface] has no key Adress"),
        ("ListenPort = 4242", "10.6.0.0/16, 192.0.2.0/24", "it's there already"),
    ):
        tunnel(laptop, lines, home.peer(f"AllowedIPs = {allowed}"))
        done = laptop.run("up wg0", check=False)
        assert done.returncode != 0
        assert said in done.stderr
        assert laptop.system() == before
    other = laptop.root / "etc/other/wg0.conf"
    other.parent.mkdir()
    (laptop.root / "etc/wireguard/wg0.conf").rename(other)
    assert "was brought up with /etc/wireguard" in laptop.run("up /etc/other/wg0.conf", check=False).stderr


@pytest.mark.parametrize("options", ["portable", *(pytest.param(each, marks=NATIVE) for each in NATIVES)])
def test_a_second_up_changes_port_and_mtu_in_a_session_and_the_key_among_peers(net: Lan, options: str) -> None:
    laptop, home = net.laptop, net.home
    end = home.peer(f"AllowedIPs = 10.9.0.0/24\nEndpoint = 192.0.2.2:{PORT}\nPersistentKeepalive = 1")
    home.file(f"Address = 10.9.0.2/24\nListenPort = {PORT}", laptop.peer("AllowedIPs = 10.9.0.1/32"))
    tunnel(laptop, "", end)
    home.run("up wg0")
    laptop.run(f"up wg0 --engine {options.format(net.ends[0].interface)}")
    laptop.reaches("10.9.0.2")
    before = laptop.status()
    tunnel(laptop, "ListenPort = 4242\nMTU = 1480", end)
    assert "listen-port 4242" in laptop.run("up wg0").stderr
    eventually(lambda: "192.0.2.1:4242" in home.status()["peers"][0]["endpoint"], what="the new port, heard of")
    home.reaches("10.9.0.1")
    assert laptop.pings("10.9.0.2", "-M", "do", "-s", "1452")
    after = laptop.status()
    assert (after["port"], after["mtu"]) == (4242, 1480)
    assert after["peers"][0]["handshakes"] == before["peers"][0]["handshakes"]
    # None was given up, and AF_XDP is on the interface again.
    assert after["notes"] == before["notes"]
    assert f":{before['port']} " not in laptop.says("ss", "-Huln")

    laptop.key = Key()
    home.file(f"Address = 10.9.0.2/24\nListenPort = {PORT}", laptop.peer("AllowedIPs = 10.9.0.1/32"))
    home.run("up wg0")
    tunnel(laptop, "MTU = 1300", end)
    laptop.run("up wg0")
    assert laptop.status()["public_key"] == base64(laptop.key.public)
    laptop.reaches("10.9.0.2")
