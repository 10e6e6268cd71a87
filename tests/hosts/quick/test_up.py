"""`rustguard up` and `down`: tunnels between hosts from wg-quick files, and nothing left of them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import eventually
from support.quick import PORT, Lan, base64, lan
from support.wireguard_go import Peer, WireGuardGo

PSK = bytes(range(32))


@pytest.fixture
def net(lab: Lab) -> Lan:
    return lan(lab)


def pair(net: Lan, *, inside: str = "", theirs: str = "10.9.0.1/32, fd09::1/128", outer: str = "192.0.2.2") -> None:
    """Write both files: laptop (10.9.0.1) and home (10.9.0.2, reached over `outer`)."""
    net.home.file(
        f"Address = 10.9.0.2/24, fd09::2/64\nListenPort = {PORT}",
        net.laptop.peer(f"AllowedIPs = {theirs}", PSK),
    )
    net.laptop.file(
        f"Address = 10.9.0.1/24, fd09::1/64\n{inside}",
        net.home.peer(f"AllowedIPs = 10.9.0.0/24, fd09::/64\nEndpoint = {outer}:{PORT}", PSK),
    )


def test_of_four_starts_at_once_one_starts_and_the_others_find_it(net: Lan, tmp_path: Path) -> None:
    pair(net)
    logs = [tmp_path / str(number) for number in range(4)]
    starts = [net.laptop.start("up wg0", log) for log in logs]
    assert [each.wait(60) for each in starts] == [0] * 4, [log.read_text() for log in logs]
    said = [log.read_text() for log in logs]
    assert sum("wg0 is up, engine" in each for each in said) == 1
    assert sum("wg0 is up, and nothing in " in each for each in said) == 3
    net.laptop.run("down wg0")


def test_a_tunnel_with_a_state_directory_of_its_own_is_named_with_it(net: Lan, tmp_path: Path) -> None:
    pair(net)
    directory = tmp_path / "a state"
    directory.mkdir()
    link = Path("/run/a-state")
    (net.laptop.root / "run/a-state").symlink_to(directory)
    up = net.laptop.run(f"up wg0 --state {link}").stderr
    assert f"rustguard down wg0 --state '{directory}'" in up
    assert net.laptop.status()["peers"][0]["state"] == "never"
    for words in ("down wg0", "up wg0"):
        refused = net.laptop.run(words, check=False)
        assert refused.returncode != 0
        assert f"--state '{directory}'" in refused.stderr
    # What only a server has isn't called an older daemon's.
    assert "only `rustguard serve` has a window" in net.laptop.run("open", check=False).stderr
    net.laptop.run(f"down wg0 --state {link}")


@pytest.mark.parametrize(("engine", "outer"), [("portable", "192.0.2.2"), ("auto", "[2001:db8:1::2]")])
def test_two_hosts_with_a_preshared_key_over_either_family(net: Lan, engine: str, outer: str) -> None:
    pair(net, outer=outer)
    before = [each.system() for each in (net.laptop, net.home)]
    for each in (net.home, net.laptop):
        each.run(f"up wg0 --engine {engine}")
    for address in ("10.9.0.2", "fd09::2"):
        net.laptop.reaches(address)
    status = net.laptop.status()
    assert (status["role"], status["interface"]) == ("tunnel", "wg0")
    assert engine in (status["engine"], "auto")
    assert status["peers"][0]["state"] == "active"
    assert outer in status["peers"][0]["endpoint"]
    for each in (net.laptop, net.home):
        each.run("down wg0")
    assert [each.system() for each in (net.laptop, net.home)] == before


@pytest.mark.needs_wireguard_go
def test_against_wireguard_go_set_up_with_wg(net: Lan) -> None:
    peer = Peer(net.laptop.key.public, ["10.9.0.1/32", "fd09::1/128"], preshared_key=PSK)
    theirs = WireGuardGo(net.home.host, ["10.9.0.2/24", "fd09::2/64"], [peer], port=PORT)
    net.laptop.file(
        "Address = 10.9.0.1/24, fd09::1/64",
        f"\n[Peer]\nPublicKey = {base64(theirs.public_key)}\nPresharedKey = {base64(PSK)}\n"
        f"AllowedIPs = 10.9.0.2/32, fd09::2/128\nEndpoint = 192.0.2.2:{PORT}\nPersistentKeepalive = 25\n",
    )
    net.laptop.run("up wg0")
    # Nobody sends anything: the keepalive makes the session.
    eventually(lambda: theirs.peer(net.laptop.key.public).last_handshake, what="a handshake")
    for address in ("10.9.0.2", "fd09::2"):
        net.laptop.reaches(address)
    assert theirs.peer(net.laptop.key.public).received > 0


def test_all_traffic_takes_the_tunnel_but_that_of_the_lan_and_the_outer_packets(net: Lan) -> None:
    laptop, home = net.laptop, net.home
    net.office.ip(["route add 10.9.0.0/24 via 198.51.100.1", "route add fd09::/64 via 2001:db8:2::1"])
    # A strict reverse-path filter, as some distributions have it: it must not drop the outer answers.
    for name in ("all", "default", net.ends[0].interface):
        laptop.host.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
    pair(net)
    files = laptop.system()
    home.run("up wg0")
    laptop.file(
        "Address = 10.9.0.1/32, fd09::1/128",
        home.peer(f"AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:{PORT}", PSK),
    )
    # Each queue has sockets of its own, and what each of them sends must be marked.
    laptop.run("up wg0 --queues 2")
    more = [f"198.51.100.{number}" for number in range(3, 11)]
    net.office.ip([f"addr add {address}/24 dev {net.ends[3].interface}" for address in more])
    for address in ("198.51.100.2", "2001:db8:2::2", *more):
        laptop.reaches(address)
        assert "dev wg0" in laptop.says("ip", "route", "get", address)
    for address in ("192.0.2.2", "2001:db8:1::2"):
        assert f"dev {net.ends[0].interface}" in laptop.says("ip", "route", "get", address)
        laptop.reaches(address)
    # The office sees the tunnel's address: that is the way it went.
    seen = home.status()["peers"][0]
    assert seen["state"] == "active"
    assert seen["endpoint"].startswith("192.0.2.1:")
    assert laptop.says("cat", "/proc/sys/net/ipv4/conf/all/src_valid_mark").strip() == "1"
    drops = laptop.status()["counters"]["drops"]
    assert not {name for name in drops if name.startswith("send_")}
    laptop.run("down wg0")
    assert laptop.system() == files


def test_who_sits_on_the_same_link_can_not_talk_to_the_tunnels_address(net: Lan) -> None:
    laptop, home = net.laptop, net.home
    pair(net)
    laptop.file("Address = 10.9.0.1/32", home.peer("AllowedIPs = 0.0.0.0/0", PSK))
    home.host.ip(["route add 10.9.0.1/32 via 192.0.2.1"])
    laptop.host.ip([f"addr add 10.9.0.1/32 dev {net.ends[0].interface}"])
    assert home.pings("10.9.0.1")
    laptop.host.ip([f"addr del 10.9.0.1/32 dev {net.ends[0].interface}"])
    laptop.run("up wg0")
    assert not home.pings("10.9.0.1")


@pytest.mark.parametrize(("table", "where"), [("off", None), ("1234", "1234"), ("main", "main")])
def test_table_says_where_routes_go(net: Lan, table: str, where: str | None) -> None:
    pair(net, inside=f"Table = {table}")
    net.laptop.file(
        f"Address = 10.9.0.1/32\nTable = {table}",
        net.home.peer("AllowedIPs = 10.7.0.0/16, fd07::/32\n"),
    )
    rules = net.laptop.says("ip", "rule")
    net.laptop.run("up wg0")
    every = net.laptop.says("sh", "-c", "ip route show table all; ip -6 route show table all")
    routes = {line for line in every.splitlines() if line.startswith(("10.7.0.0/16", "fd07::/32"))}
    assert len(routes) == (0 if where is None else 2)
    assert all((f"table {where}" in line) == (where == "1234") for line in routes)
    assert net.laptop.says("ip", "rule") == rules


def test_a_default_route_in_a_table_of_ones_own_needs_no_rules(net: Lan) -> None:
    net.laptop.file("Address = 10.9.0.1/32\nTable = 77", net.home.peer("AllowedIPs = 0.0.0.0/0"))
    rules = net.laptop.says("ip", "rule")
    net.laptop.run("up wg0")
    assert "default dev wg0" in net.laptop.says("ip", "route", "show", "table", "77")
    assert net.laptop.says("ip", "rule") == rules


def test_fwmark_mtu_and_listen_port_are_the_files(net: Lan) -> None:
    net.laptop.file(
        "Address = 10.9.0.1/32\nFwMark = 0x77\nMTU = 1300\nListenPort = 4242", net.home.peer("AllowedIPs = 0.0.0.0/0")
    )
    net.laptop.run("up wg0")
    assert "fwmark 0x77 lookup 119" in net.laptop.says("ip", "rule")
    assert "mtu 1300" in net.laptop.says("ip", "link", "show", "wg0")
    assert net.laptop.status()["port"] == 4242
    net.laptop.host.wait_listening("udp", 4242)


def test_the_mtu_fits_the_link_to_the_peer(net: Lan) -> None:
    net.laptop.host.ip([f"link set {net.ends[0].interface} mtu 1400"])
    pair(net)
    net.laptop.run("up wg0")
    assert "mtu 1320" in net.laptop.says("ip", "link", "show", "wg0")


def test_two_default_routes_come_and_go_in_any_order(net: Lan) -> None:
    laptop = net.laptop
    before = laptop.says("sh", "-c", "ip rule; cat /proc/sys/net/ipv4/conf/all/src_valid_mark")
    for number in (1, 2):
        laptop.file(f"Address = 10.9.{number}.1/32", net.home.peer("AllowedIPs = 0.0.0.0/0"), name=f"wg{number}")
        laptop.run(f"up wg{number}")
    assert "lookup 51821" in laptop.says("ip", "rule")
    laptop.run("down wg1")
    assert laptop.says("cat", "/proc/sys/net/ipv4/conf/all/src_valid_mark").strip() == "1"
    laptop.run("down wg2")
    assert laptop.says("sh", "-c", "ip rule; cat /proc/sys/net/ipv4/conf/all/src_valid_mark") == before


@pytest.mark.parametrize(
    ("lines", "behind", "said"),
    [
        ("Adress = 10.0.0.1", "::/0", "line 3: [Interface] has no key Adress"),
        ("PreUp = false", "::/0", "`false` ended with 1"),
        ("Address = 10.9.0.1/32\nPostUp = ip link show %i && exit 3", "::/0, 0.0.0.0/0", "ended with 3"),
        pytest.param(
            *("Address = 10.9.0.1/32\nDNS = 10.9.0.2", "0.0.0.0/0", "neither resolvconf nor systemd-resolved"),
            marks=pytest.mark.skipif(
                any(map(shutil.which, ("resolvconf", "resolvectl"))), reason="this machine has one of them"
            ),
        ),
        ("Address = 10.9.0.1/32", "192.0.2.0/24, 0.0.0.0/0", "it's there already"),
        (f"Address = 10.9.0.1/32\nListenPort = {PORT + 1}", "::/0", "can't be bound"),
    ],
)
def test_a_failed_start_leaves_nothing(net: Lan, lines: str, behind: str, said: str) -> None:
    laptop = net.laptop
    taken = f"import socket, time; s = socket.socket(2, 2); s.bind(('', {PORT + 1})); time.sleep(60)"
    laptop.host.popen([sys.executable, "-c", taken])
    laptop.host.wait_listening("udp", PORT + 1)
    laptop.file(lines, net.home.peer(f"AllowedIPs = {behind}\nEndpoint = 192.0.2.2:{PORT}"))
    before = laptop.system()
    done = laptop.run("up wg0", check=False)
    assert done.returncode not in (0, 3)
    assert said in done.stderr
    assert laptop.system() == before


def test_what_a_killed_one_left_is_taken_back_by_the_next_down_or_up(net: Lan, tmp_path: Path) -> None:
    laptop = net.laptop
    marks = tmp_path / "marks"
    laptop.file(
        f"Address = 10.9.0.1/32, fd09::1/128\nPostUp = echo up >> {marks}\nPreDown = echo pre >> {marks}\n"
        f"PostDown = echo %i >> {marks}",
        net.home.peer(f"AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:{PORT}"),
    )
    before = laptop.system()
    for again in (False, True):
        laptop.run("up wg0")
        pid = laptop.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: "wg0" not in laptop.says("ip", "link"), what="the interface's end")
        assert "lookup 51820" in laptop.says("ip", "rule")
        if again:
            assert "wg0 was killed" in laptop.run("up wg0").stderr
        laptop.run("down wg0")
        assert laptop.system() == before
    assert marks.read_text().split() == ["up", "pre", "wg0", "up", "pre", "wg0", "up", "pre", "wg0"]
    done = laptop.run("down wg0", check=False)
    assert done.returncode == 3
    assert "wg0 isn't up" in done.stderr


@pytest.mark.parametrize("options", ["", " --no-sandbox"])
def test_the_hooks_of_a_tunnel_that_is_killed_twice_are_run_each_time(net: Lan, tmp_path: Path, options: str) -> None:
    laptop, marks = net.laptop, tmp_path / "marks"
    laptop.file(f"Address = 10.9.0.1/32\nPostDown = echo %i >> {marks}")
    for again in (1, 2):
        laptop.run(f"up wg0{options}")
        status = laptop.status()
        os.kill(status["pid"], signal.SIGKILL)
        eventually(lambda: "wg0" not in laptop.says("ip", "link"), what="the interface's end")
        assert marks.exists() is (again == 2)
    laptop.run("down wg0")
    assert marks.read_text() == "wg0\nwg0\n"
    assert ".hooks" not in laptop.says("ls", str(Path(status["state_directory"]).parent))


def test_an_interface_that_is_there_already_is_left_alone(net: Lan) -> None:
    net.laptop.host.ip(["tuntap add mode tun name wg0"])
    net.laptop.file("Address = 10.9.0.1/32", net.home.peer("AllowedIPs = 0.0.0.0/0"))
    before = net.laptop.system()
    done = net.laptop.run("up wg0", check=False)
    assert done.returncode == 4
    assert "There is an interface wg0 already" in done.stderr
    assert net.laptop.system() == before


def test_in_the_foreground_it_ends_on_sigterm(net: Lan, tmp_path: Path) -> None:
    laptop, log = net.laptop, tmp_path / "said"
    laptop.file("Address = 10.9.0.1/32", net.home.peer("AllowedIPs = 0.0.0.0/0"))
    before = laptop.system()
    program = laptop.start("up wg0 --foreground", log)
    eventually(lambda: "wg0 is up" in log.read_text(), what="the tunnel")
    program.terminate()
    assert program.wait(20) == 0
    assert laptop.system() == before


def test_a_signal_while_it_starts_takes_everything_back(net: Lan, tmp_path: Path) -> None:
    laptop, log = net.laptop, tmp_path / "said"
    laptop.file(
        f"Address = 10.9.0.1/32\nPostUp = echo $$ > {log}.pid; exec sleep 60", net.home.peer("AllowedIPs = 0.0.0.0/0")
    )
    before = laptop.system()
    program = laptop.start("up wg0 --foreground", log)
    pid = eventually(lambda: Path(f"{log}.pid").exists() and Path(f"{log}.pid").read_text().strip(), what="the hook")
    program.terminate()
    assert program.wait(20) == 1
    assert "Stopped before wg0 was up" in log.read_text()
    assert laptop.system() == before
    eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the hook's end")


def test_an_interface_that_is_taken_away_comes_back_and_ends_in_good_order(net: Lan, tmp_path: Path) -> None:
    laptop, log = net.laptop, tmp_path / "said"
    laptop.file("Address = 10.9.0.1/32", net.home.peer("AllowedIPs = 0.0.0.0/0"))
    before = laptop.system()
    program = laptop.start("up wg0 --foreground", log)
    eventually(lambda: "wg0 is up" in log.read_text(), what="the tunnel")
    laptop.host.ip(["link del wg0"])
    eventually(lambda: " 10.9.0.1/32 " in laptop.says("ip", "-o", "address"), what="the interface and its address")
    eventually(lambda: "dev wg0" in laptop.says("ip", "route", "show", "table", "all"), what="its routes")
    assert program.poll() is None
    program.terminate()
    assert program.wait(20) == 0
    assert laptop.system() == before


def test_a_name_is_looked_up_again_until_it_is_there_and_when_it_no_longer_answers(net: Lan) -> None:
    laptop = net.laptop
    pair(net, outer="gate.example")
    hosts = laptop.root / "etc/hosts"
    (laptop.root / "etc/resolv.conf").write_text("")
    hosts.write_text("127.0.0.1 localhost\n")
    net.home.run("up wg0")
    done = laptop.run("up wg0")
    assert "gate.example can't be resolved now" in done.stderr
    hosts.write_text("192.0.2.77 gate.example\n")
    eventually(lambda: laptop.status()["peers"][0]["endpoint"] == f"192.0.2.77:{PORT}", what="a first address")
    hosts.write_text("192.0.2.2 gate.example\n")
    laptop.reaches("10.9.0.2")
    assert laptop.status()["peers"][0]["endpoint"] == f"192.0.2.2:{PORT}"
