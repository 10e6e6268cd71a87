"""What other programs remove or change of ours comes back: addresses, routes, rules, MTU, table, interface."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from rustguard_py.daemon.reconciler import LOOK_EACH
from rustguard_py.lab.hosts import Lab
from rustguard_py.protocol.wire import INITIATION_SIZE
from support.product import INNER, OPEN, POOL, Site, eventually
from support.quick import PORT, Lan, Quick, lan

# How soon a thing is back on a machine that isn't busy, seconds.
PROMISED = 1.0
# How soon a thing is back, seconds. A change that isn't seen at once is seen at the next look, after LOOK_EACH. On a
# busy machine the commands between take seconds. The test prints what it saw.
SOON = 20.0
assert SOON < LOOK_EACH
# Everything that the kernel has of wg0, with the numbers that change each time left out.
_KERNEL = (
    "ip -o addr show dev wg0 | sed 's/^[0-9]*: //; s/valid_lft.*//'; ip link show wg0 | grep -o 'mtu [0-9]*';"
    "ip rule; ip -6 rule; for v in -4 -6; do ip $v route show table all | grep wg0 | grep -v fe80 | sort; done;"
    "for v in ip ip6; do nft list table $v rustguard-wg0; done; cat /proc/sys/net/ipv4/conf/all/src_valid_mark"
)
# A row: what another program does, on a tunnel that has the default routes.
_REMOVALS = {
    "the addresses": "ip addr flush dev wg0",
    "the IPv6 address": "ip -6 addr flush dev wg0",
    "the routes": "ip route flush dev wg0; ip -6 route flush dev wg0; ip route flush table 51820",
    # As networkd does with the rules of others when it starts.
    "the rules": "for v in -4 -6; do ip $v rule del table 51820; ip $v rule del suppress_prefixlength 0; done",
    "one rule": "ip rule del table 51820",
    "a bounce of the link": "ip link set wg0 down; ip link set wg0 up",
    "the MTU": "ip link set wg0 mtu 1300",
    "the MTU, too small for IPv6": "ip link set wg0 mtu 1000",
    "the nft table": "nft delete table ip rustguard-wg0",
    "the rules of the nft table": "nft flush table ip6 rustguard-wg0",
    "all nft tables": "nft flush ruleset",
    "a kernel setting": "echo 0 > /proc/sys/net/ipv4/conf/all/src_valid_mark",
    "the interface": "ip link delete wg0",
    # On a busy machine it may have its name back before the last command.
    "the name": "ip link set wg0 down; ip link set wg0 name x0; ip link set x0 up || :",
    # Before Linux 6.2 this is refused.
    "the name while it is up": "ip link set wg0 name x0 || :",
}
# As openresolv has it: a record per interface, and resolv.conf made of the records where it differs.
_RESOLVCONF = """#!/bin/sh
records=/run/resolvconf/interfaces
mkdir -p $records
new=$records/.new
case $1 in
  -a) cat > $new; cmp -s $new $records/$2 && exit; mv $new $records/$2 ;;
  -d) rm -f $records/$2 ;;
esac
cat $records/* 2> /dev/null | cmp -s - /etc/resolv.conf || cat $records/* > /etc/resolv.conf 2> /dev/null || :
"""
# As systemd-resolved has it: what each interface was given is in a file named after its number.
_RESOLVECTL = """#!/bin/sh
verb=$1 name=$2 kept=/run/systemd/resolve/netif
mkdir -p $kept
number=$(ip -o link show $name | cut -d: -f1)
[ $verb = revert ] && { rm -f $kept/$number*; exit; }
shift 2
[ $# -gt 0 ] && { echo "$*" > $kept/$number.$verb; exit; }
echo "Link $number ($name): $(cat $kept/$number.$verb)"
"""
_LOOK_AT_NAMES = "cat /etc/resolv.conf /run/resolvconf/interfaces/wg0 /run/systemd/resolve/netif/* 2> /dev/null"
# A row: who has charge of names, and what another program does.
_NAMES = [
    ("resolvconf", "resolvconf -d wg0 -f"),
    ("resolvconf", "echo nameserver 192.0.2.53 > /etc/resolv.conf"),
    ("resolvconf", "echo nameserver 192.0.2.53 > /etc/new; mv /etc/new /etc/resolv.conf"),
    ("resolvconf", "rm -r /run/resolvconf"),
    ("resolvectl", "resolvectl revert wg0"),
    ("resolvectl", "resolvectl dns wg0 192.0.2.53"),
    ("resolvectl", "rm -r /run/systemd/resolve/netif"),
]


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


@pytest.fixture
def net(lab: Lab) -> Lan:
    net = lan(lab)
    net.home.file(
        f"Address = 10.9.0.2/24, fd09::2/64\nListenPort = {PORT}", net.laptop.peer("AllowedIPs = 10.9.0.1, fd09::1")
    )
    net.laptop.file(
        "Address = 10.9.0.1/24, fd09::1/64",
        net.home.peer(f"AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:{PORT}"),
    )
    return net


def _kernel(host: Quick) -> str:
    return host.host.run(["sh", "-c", _KERNEL], check=False).stdout


def _remove(host: Quick, script: str, wanted: str) -> float:
    """Remove something, and return after how many seconds the kernel is as it was."""
    host.host.run(["sh", "-c", script])
    began = time.monotonic()
    eventually(lambda: _kernel(host) == wanted, SOON, what=f"the return after {script}")
    return time.monotonic() - began


@pytest.mark.fault(44)
@pytest.mark.parametrize("engine", ["auto", "portable"])
def test_what_is_removed_comes_back_and_is_reported(net: Lan, engine: str) -> None:
    laptop = net.laptop
    before = laptop.system()
    for each in (net.home, laptop):
        each.run(f"up wg0 --engine {engine}")
    laptop.reaches("10.9.0.2")
    wanted = _kernel(laptop)
    handshakes = net.home.status()["counters"]["handshakes"]
    for what, script in _REMOVALS.items():
        took = _remove(laptop, script, wanted)
        print(f"{engine}: {what}: back after {took:.2f} s")
        assert took < SOON
        assert laptop.pings("10.9.0.2")
        assert laptop.pings("fd09::2")
    # The plane kept the sessions, also when its interface was made again.
    assert net.home.status()["counters"]["handshakes"] == handshakes
    assert any("removed" in each and "put back" in each for each in laptop.status()["warnings"])
    laptop.run("down wg0")
    assert laptop.system() == before


@pytest.mark.fault(44)
@pytest.mark.parametrize("program", ["resolvconf", "resolvectl"])
def test_name_servers_that_another_program_changes_come_back(net: Lan, tmp_path: Path, program: str) -> None:
    laptop = net.laptop
    for name, text in (("resolvconf", _RESOLVCONF), ("resolvectl", _RESOLVECTL)):
        if name == program:
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
    laptop.file("Address = 10.9.0.1/24\nDNS = 10.9.0.53, lan.example", net.home.peer("AllowedIPs = 10.9.0.0/24"))
    laptop.run("up wg0", path=tmp_path)

    def names() -> str:
        return laptop.host.run(["sh", "-c", _LOOK_AT_NAMES], check=False).stdout

    wanted = names()
    assert "10.9.0.53" in wanted
    for script in [script for who, script in _NAMES if who == program]:
        laptop.host.run(["sh", "-c", script], env=laptop.environment(tmp_path))
        began = time.monotonic()
        eventually(lambda: names() == wanted, SOON, what=f"the return after {script}")
        print(f"{script}: back after {time.monotonic() - began:.2f} s")
    assert any("the name servers of wg0" in each for each in laptop.status()["warnings"])
    laptop.run("down wg0", path=tmp_path)
    assert "10.9.0.53" not in names()


@pytest.mark.fault(44)
def test_traffic_stays_in_the_tunnel_after_networkd_deletes_the_rules(net: Lan) -> None:
    laptop = net.laptop
    for each in (net.home, laptop):
        each.run("up wg0")
    laptop.reaches("10.9.0.2")
    wanted = _kernel(laptop)
    # A second is promised. On a busy machine one of a few tries shows it.
    for what in ("the rules", "the addresses", "the interface"):
        tries: list[float] = []
        while len(tries) < (3 if what == "the rules" or min(tries, default=PROMISED) >= PROMISED else 1):
            tries.append(_remove(laptop, _REMOVALS[what], wanted))
            time.sleep(0.5)
        print(f"{what}: back after {', '.join(f'{took:.2f}' for took in tries)} s")
        assert min(tries) < PROMISED
    assert "dev wg0" in laptop.says("ip", "route", "get", "198.51.100.2")


@pytest.mark.fault(44)
def test_a_program_that_keeps_removing_a_thing_is_named_and_not_fought(net: Lan, tmp_path: Path) -> None:
    laptop = net.laptop
    program = laptop.start("up wg0 --foreground", tmp_path / "log")
    # What is gone before it is up counts as changed by a hook, and stays so.
    eventually(lambda: "wg0 is up" in (tmp_path / "log").read_text())
    # A shell stays while it works, so its netlink messages can be traced to it.
    rival = laptop.host.popen(
        ["sh", "-c", "while :; do ip rule del table 51820 2> /dev/null; sleep 0.1; done"], log=tmp_path / "rival"
    )
    [warning] = eventually(lambda: [each for each in laptop.status()["warnings"] if "keeps removing" in each])
    assert "routing rule" in warning
    assert "traffic may leave outside the tunnel" in warning
    time.sleep(3)
    log = (tmp_path / "log").read_text()
    put_back = len(re.findall(r"removed the IPv4 routing rule .*put back$", log, re.MULTILINE))
    print(f"put back {put_back} times in a minute")
    assert put_back == 6
    assert log.count("keeps removing") == 1
    rival.terminate()
    rival.wait()
    # The same file again repairs at once.
    laptop.run("up wg0")
    assert "51820" in laptop.says("ip", "rule")
    assert not [each for each in laptop.status()["warnings"] if "keeps removing" in each]
    program.terminate()
    assert program.wait(30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.fault(44)
def test_a_link_that_is_set_down_stays_down_and_what_a_hook_changed_stays_changed(net: Lan) -> None:
    laptop = net.laptop
    laptop.file(
        "Address = 10.9.0.1/24, fd09::1/64\nPostUp = ip link set %i mtu 1290; ip route del 10.77.0.0/16 dev %i",
        net.home.peer(f"AllowedIPs = 10.9.0.0/24, 10.77.0.0/16, 10.78.0.0/16\nEndpoint = 192.0.2.2:{PORT}"),
    )
    laptop.run("up wg0")
    wanted = _kernel(laptop)
    assert "10.77.0.0" not in wanted
    laptop.host.ip(["link set wg0 down", "addr add 10.99.0.1/32 dev wg0"])
    time.sleep(1.5)
    assert "UP" not in laptop.says("ip", "link", "show", "wg0").partition("mtu")[0]
    laptop.host.ip(["addr del 10.99.0.1/32 dev wg0", "link set wg0 up"])
    eventually(lambda: _kernel(laptop) == wanted, SOON)
    time.sleep(1.5)
    assert _kernel(laptop) == wanted


@pytest.mark.fault(44)
def test_server_and_client_are_repaired_too_and_keep_their_sessions(site: Site) -> None:
    home = site.home()
    home.serve(f"--pool {POOL} {OPEN}")
    laptop = site.client("laptop", home)
    laptop.join()
    eventually(lambda: laptop.pings(INNER))
    handshakes = home.status()["counters"]["handshakes"]
    # A client begins a handshake when its network changes. Here none arrives, so pings need the session from before.
    rule = f"type filter hook input priority 0; udp length {8 + INITIATION_SIZE} drop;"
    for machine in (home, laptop):
        machine.host.nft(f"table inet deaf {{ chain input {{ {rule} }}; }}")
    after = {}
    for machine in (home, laptop):
        for script in ("addr flush dev rg0", "route flush dev rg0", "link delete rg0"):
            machine.host.ip([script])
            began = time.monotonic()
            eventually(lambda: laptop.pings(INNER), what=f"a ping after {script}")
            print(f"{script} on {machine.host.name}: a ping was answered after {time.monotonic() - began:.2f} s")
            after[machine.host.name, script] = home.status()["counters"]["handshakes"]
        assert any("put back" in each for each in machine.status()["warnings"])
        assert "Traceback" not in machine.said()
    assert set(after.values()) == {handshakes}, after
