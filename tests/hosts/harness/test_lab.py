"""The hosts in namespaces that the other tests stand on do what they say, and leave nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rustguard_py.lab.hosts as lab_module
from rustguard_py.lab.hosts import Host, Lab
from rustguard_py.model.errors import RustGuardError, UnansweredError
from support.other_user import as_user


def _inode(host: Host) -> str:
    return str(Path(f"/proc/{host.pid}/ns/net").readlink())


def _inside(namespace: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "ns/net").readlink()) == namespace:
                found.append((entry / "comm").read_text().strip())
        except OSError:
            continue
    return found


def _eventually(condition: object, seconds: float = 60.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _received(host: Host, address: object, count: int = 200) -> int:
    said = host.run(["ping", "-q", "-i", "0.005", "-W", "1", "-c", str(count), str(address)], check=False).stdout
    received = re.search(r"(\d+) received", said)
    assert received is not None, said
    return int(received[1])


def test_hosts_reach_each_other_over_both_families_at_once(lab: Lab) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    here, there = lab.link(alice, bob, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
    assert (str(here.ipv4), str(there.ipv6)) == ("192.0.2.1", "2001:db8::2")
    for address in (there.ipv4, there.ipv6, "127.0.0.1", "::1"):
        alice.run(["ping", "-c1", "-W20", str(address)])


def test_a_router_forwards_and_its_nat_hides_who_is_behind_it(lab: Lab) -> None:
    alice, isp, bob = lab.host("alice"), lab.host("isp"), lab.host("bob")
    left, _, outside, right = lab.through(
        alice, isp, bob, nets4=("10.1.0.0/24", "192.0.2.0/24"), nets6=("fd01::/64", "2001:db8::/64")
    )
    alice.run(["ping", "-c1", "-W20", str(right.ipv4)])
    alice.run(["ping", "-c1", "-W20", str(right.ipv6)])
    isp.masquerade(outside, forget_after=2)
    bob.ip(["route del default"])
    alice.run(["ping", "-c1", "-W20", str(right.ipv4)])
    assert bob.run(["ping", "-c1", "-W1", str(left.ipv4)], check=False).returncode != 0


def test_loss_is_about_what_was_asked_and_ends(lab: Lab) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    _, there = lab.link(alice, bob, ipv4="192.0.2.0/24")
    lab.loss(bob, 0.3)
    assert 100 <= _received(alice, there.ipv4) <= 175
    lab.loss(bob, 0)
    # The last answers may come after ping has stopped waiting, on a machine that is busy.
    assert any(_received(alice, there.ipv4, 50) == 50 for _ in range(10))


def test_an_end_takes_another_address_and_mtu(lab: Lab) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    here, there = lab.link(alice, bob, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
    here.readdress("192.0.2.9/24")
    here.readdress("2001:db8::9/64")
    for address in (here.ipv4, here.ipv6):
        bob.run(["ping", "-c1", "-W20", str(address)])
    there.set("mtu", "1280")
    assert "mtu 1280" in bob.run(["ip", "link", "show", there.interface]).stdout
    here.drop_address(4)
    assert "192.0.2" not in alice.run(["ip", "addr"]).stdout


def test_udp_segmentation_can_be_switched(lab: Lab) -> None:
    alice, bob = lab.host("alice"), lab.host("bob")
    here, _ = lab.link(alice, bob)
    lab.udp_segmentation(alice, on=False)
    assert "tx-udp-segmentation: off" in alice.run(["ethtool", "-k", here.interface]).stdout


def test_a_program_that_fails_says_where_and_why(lab: Lab) -> None:
    with pytest.raises(RustGuardError, match=r"host alice, sh ended with 3: no luck"):
        lab.host("alice").run(["sh", "-c", "echo no luck >&2; exit 3"])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_waiting_for_a_listener_ends_with_it_or_says_that_there_is_none(lab: Lab, protocol: str) -> None:
    alice = lab.host("alice")
    with pytest.raises(UnansweredError, match=f"nothing listens on {protocol} port 7"):
        alice.wait_listening(protocol, 7, 0.05)
    kind, listen = ("SOCK_STREAM", "s.listen();") if protocol == "tcp" else ("SOCK_DGRAM", "")
    program = f"import socket, time; s = socket.socket(socket.AF_INET6, socket.{kind}); s.bind(('::', 7)); {listen}"
    alice.popen([sys.executable, "-c", f"{program} time.sleep(60)"])
    alice.wait_listening(protocol, 7, 60)


@pytest.mark.needs_second_uid
def test_who_may_not_make_namespaces_is_told_what_to_run() -> None:
    with pytest.raises(RustGuardError, match=r"^No network namespace could be made: .*not permitted") as told:
        as_user(lambda: Lab().host("alice"))
    assert "unshare -Urmn" in told.value.fix


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "_PATH", "/nowhere")
    with pytest.raises(RustGuardError, match="unshare is missing") as told, Lab():
        pass
    assert told.value.fix == "apt-get install util-linux"


def test_a_host_with_its_own_run_keeps_it_to_itself_and_starts_where_we_are(lab: Lab) -> None:
    alice = lab.host("alice", own_run=True)
    alice.run(["mkdir", "/run/only-here"])
    assert not Path("/run/only-here").exists()
    assert alice.run(["pwd"]).stdout.strip() == str(Path.cwd())


def test_the_end_of_the_lab_ends_every_program_daemons_too() -> None:
    with Lab() as lab:
        alice = lab.host("alice")
        stubborn = alice.popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        alice.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null &"])
        namespace = _inode(alice)
        assert _eventually(lambda: _inside(namespace).count("sleep") == 2)
        stubborn.kill()
    assert _inside(namespace) == []


def test_kill_9_of_the_maker_leaves_nothing_behind() -> None:
    script = (
        "import os, time; from rustguard_py.lab.hosts import Lab\n"
        "host = Lab().host('alice'); host.popen(['sleep', '1000'])\n"
        "print(os.readlink(f'/proc/{host.pid}/ns/net'), flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        namespace = maker.stdout.readline().strip()
        assert _eventually(lambda: "sleep" in _inside(namespace))
        maker.send_signal(signal.SIGKILL)
    assert _eventually(lambda: _inside(namespace) == [])
