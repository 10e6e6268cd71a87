"""The native plane over AF_XDP in real namespaces: traffic, what stays the kernel's, changes, its end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.lab.hosts import End, Host, Lab
from support.our_tunnel import OurTunnel
from support.wireguard_go import Peer, WireGuardGo

pytest.importorskip("rustguard_py._native", reason="the native plane isn't built here (no cargo at installation)")

ALICE, BOB = ["10.9.0.1/32", "fd09::1/128"], ["10.9.0.2/32", "fd09::2/128"]
PORT = 51820
# iperf3 ends when the sender has written everything; what the receiver has by then is most of it.
SENT, RECEIVED = "30M", 15 << 20


def _is_noted(tunnel: OurTunnel) -> bool:
    return "is gone" in str(tunnel.stats()["notes"])


def _keys() -> tuple[bytes, bytes]:
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def _link(lab: Lab, mtu: int = 1500) -> tuple[End, End]:
    alice, bob = lab.host("alice", own_run=True), lab.host("bob", own_run=True)
    return lab.link(alice, bob, ipv4="192.0.2.0/24", ipv6="2001:db8::/64", mtu=mtu)


def _joined(
    ends: tuple[End, End],
    folder: Path,
    *,
    over_xdp: tuple[bool, bool] = (True, True),
    version: int = 4,
    endpoint: str | None = None,
    **options: Any,
) -> tuple[OurTunnel, OurTunnel]:
    """Alice knows where Bob is: `endpoint`, or his address of IP version 4 or 6."""
    (key, public), (their_key, their_public) = _keys(), _keys()
    at = endpoint or (f"{ends[1].ipv4}:{PORT}" if version == 4 else f"[{ends[1].ipv6}]:{PORT}")
    options |= {"folder": folder, "port": PORT, "engine": "native"}
    interfaces = [end.interface if wanted else None for end, wanted in zip(ends, over_xdp, strict=True)]
    bob = OurTunnel(ends[1].host, BOB, [Peer(public, ALICE)], private_key=their_key, xdp=interfaces[1], **options)
    peer = Peer(their_public, BOB, at)
    alice = OurTunnel(ends[0].host, ALICE, [peer], private_key=key, xdp=interfaces[0], **options)
    for tunnel, interface in zip((alice, bob), interfaces, strict=True):
        assert bool(interface) == any("UDP goes over AF_XDP" in note for note in tunnel.stats()["notes"])
    return alice, bob


def _host_of(address: str) -> str:
    return address.partition("/")[0]


def _ping(host: Host, addresses: list[str], *options: str, count: int = 3) -> None:
    for address in addresses:
        host.run(["ping", "-c", str(count), "-i", "0.05", "-W", "20", *options, _host_of(address)])


def _transfer(
    client: Host, server: Host, address: str, *options: str, sent: str = SENT, least: int = RECEIVED
) -> None:
    with_server = server.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server.wait_listening("tcp", 5201)
    done = client.run(["iperf3", "-J", "-c", _host_of(address), "-n", sent, *options], timeout=120)
    with_server.wait(20)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["end"]["sum_received"]["bytes"] >= least


def _udp(host: Host) -> Counter[str]:
    """What this host's kernel counted of UDP, both families."""
    said = host.run(["cat", "/proc/net/snmp", "/proc/net/snmp6"]).stdout
    names, values = (line.split()[1:] for line in re.findall(r"^Udp: .*$", said, re.MULTILINE))
    counted = Counter(dict(zip(names, map(int, values), strict=True)))
    counted.update({name: int(value) for name, value in re.findall(r"^Udp6(\w+)\s+(\d+)$", said, re.MULTILINE)})
    return counted


def _by_sockets(host: Host) -> tuple[int, int]:
    """UDP datagrams that this host's sockets took and sent."""
    counted = _udp(host)
    return counted["InDatagrams"], counted["OutDatagrams"]


def _wait(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        time.sleep(0.05)


def _wait_for_xdp(here: Host, address: str) -> None:
    """Wait until what goes into the tunnel leaves over AF_XDP: sockets are used until the way is known."""

    def is_used() -> bool:
        before = _by_sockets(here)[1]
        _ping(here, [address], count=5)
        return _by_sockets(here)[1] - before <= 2

    _wait(is_used, "sending over AF_XDP")


def _has_program(end: End) -> bool:
    return "xdp" in end.host.run(["ip", "link", "show", end.interface]).stdout


@pytest.mark.parametrize("version", [4, 6])
def test_traffic_passes_over_xdp_and_not_through_the_sockets(lab: Lab, tmp_path: Path, version: int) -> None:
    ends = _link(lab)
    tunnels = _joined(ends, tmp_path, version=version)
    assert all("native mode" in str(tunnel.stats()["notes"]) for tunnel in tunnels)
    _ping(ends[0].host, BOB)
    _ping(ends[1].host, ALICE, "-s", "5000")
    _wait_for_xdp(ends[0].host, BOB[0])
    for direction in ([], ["-R"]):
        _transfer(ends[0].host, ends[1].host, BOB[direction == []], *direction)
    for end, tunnel in zip(ends, tunnels, strict=True):
        stats = tunnel.stats()
        taken, sent = _by_sockets(end.host)
        moved = {name: packets for name, (packets, *_) in stats["workers"].items()}
        # Sockets only send what comes while the way is looked up again.
        least = min(packets for name, packets in moved.items() if name != "gate")
        assert least > 1000, moved
        assert max(taken, sent) < least // 2, (taken, sent, moved)
        assert not {"bad_tag", "inner_length", "inner_source"} & {*stats["drops"]}


@pytest.mark.parametrize("mtu", [1500, 9000], ids=["native-mode", "generic-mode"])
@pytest.mark.parametrize("over_xdp", [(True, False), (False, True)], ids=["sends", "takes"])
def test_a_peer_with_sockets_and_superpackets_understands(
    lab: Lab, tmp_path: Path, over_xdp: tuple[bool, bool], mtu: int
) -> None:
    # veth's driver runs no program for frames as long as 9,000 bytes.
    ends = _link(lab, mtu)
    tunnels = _joined(ends, tmp_path, over_xdp=over_xdp)
    mode = "native mode" if mtu == 1500 else "generic mode"
    assert mode in str([tunnel.stats()["notes"] for tunnel in tunnels])
    _ping(ends[0].host, BOB)
    _transfer(ends[0].host, ends[1].host, BOB[0])
    _transfer(ends[0].host, ends[1].host, BOB[1], "-R", "-M", "200")
    assert not any("bad_tag" in tunnel.stats()["drops"] for tunnel in tunnels)


def test_two_queues_share_the_memory(lab: Lab, tmp_path: Path) -> None:
    ends = _link(lab)
    for end in ends:
        end.host.run(["ethtool", "-L", end.interface, "rx", "2", "tx", "2"])
    alice, bob = _joined(ends, tmp_path, queues=2)
    assert "2 queues" in str(alice.stats()["notes"])
    assert "2 queues" in str(bob.stats()["notes"])
    _ping(ends[0].host, BOB)
    _transfer(ends[0].host, ends[1].host, BOB[0], "-P", "4")


@pytest.mark.needs_wireguard_go
def test_traffic_passes_to_and_from_wireguard_go(lab: Lab, tmp_path: Path) -> None:
    here, there = _link(lab)
    (key, public), (their_key, _) = _keys(), _keys()
    stock = WireGuardGo(there.host, BOB, [Peer(public, ALICE)], private_key=their_key, port=PORT)
    peer = Peer(stock.public_key, BOB, f"{there.ipv4}:{PORT}")
    options: dict[str, Any] = {"engine": "native", "xdp": here.interface, "private_key": key, "port": PORT}
    OurTunnel(here.host, ALICE, [peer], folder=tmp_path, **options)
    _ping(here.host, BOB)
    for direction in ([], ["-R"]):
        _transfer(here.host, there.host, BOB[0], *direction)


def _capture(end: End, folder: Path, options: list[str]) -> subprocess.Popen[str]:
    """Have tcpdump write what comes to an end into `seen`; it ends by itself, with 0, once it has seen enough."""
    log = folder / "log"
    with (folder / "seen").open("w") as out, log.open("w") as errors:
        capture = end.host.popen(["tcpdump", "-n", "-l", "-i", end.interface, *options], stdout=out, stderr=errors)
    _wait(lambda: "listening" in log.read_text() or capture.poll() is not None, "tcpdump's start")
    assert capture.poll() is None, log.read_text()
    return capture


@pytest.mark.parametrize("version", [4, 6])
def test_frames_have_right_checksums(lab: Lab, tmp_path: Path, version: int) -> None:
    here, there = _link(lab)
    # Otherwise the kernel leaves the checksums of its own datagrams to a device that isn't there.
    here.host.run(["ethtool", "-K", here.interface, "tx", "off"])
    _joined((here, there), tmp_path, over_xdp=(True, False), version=version)
    _wait_for_xdp(here.host, BOB[0])
    filtered = f"udp and src host {here.ipv4 if version == 4 else here.ipv6} and dst port {PORT}"
    capture = _capture(there, tmp_path, ["-vv", "-p", "-c", "40", filtered])
    for size in ("0", "1", "333", "1300"):
        _ping(here.host, BOB, "-s", size, count=6)
    assert capture.wait(20) == 0
    said = (tmp_path / "seen").read_text()
    assert said.count("udp sum ok") == 40, said
    assert "bad" not in said


def test_what_is_not_ours_stays_the_kernels(lab: Lab, tmp_path: Path) -> None:
    ends = _link(lab)
    _joined(ends, tmp_path)
    outside = [str(ends[1].ipv4), str(ends[1].ipv6)]
    _ping(ends[0].host, outside)
    _ping(ends[0].host, outside, "-s", "4000")
    for address in outside:
        _transfer(ends[0].host, ends[1].host, address)
        _transfer(ends[0].host, ends[1].host, address, "-u", "-b", "20M", "-l", "1200", sent="4M", least=1 << 20)
    # To our port, but to another host: it is forwarded, not taken.
    _, far = lab.link(ends[1].host, lab.host("carol"), ipv4="198.51.100.0/24")
    ends[1].host.forward()
    ends[0].host.ip([f"route add {far.ipv4} via {ends[1].ipv4}"])
    before = _by_sockets(far.host)
    program = f"import socket; socket.socket(2, 2).sendto(b'x', ('{far.ipv4}', {PORT}))"
    ends[0].host.run([sys.executable, "-c", program])
    # Nobody listens there, and its kernel says so.
    _wait(lambda: _without_port(far.host) > 0, "a datagram for another host")
    assert _by_sockets(far.host) == before


def _without_port(host: Host) -> int:
    return _udp(host)["NoPorts"]


def test_a_neighbour_that_changes_its_address_is_found_again(lab: Lab, tmp_path: Path) -> None:
    here, there = _link(lab)
    _joined((here, there), tmp_path, over_xdp=(True, False))
    _wait_for_xdp(here.host, BOB[0])
    there.set("address", "02:00:00:00:00:77")
    # Asking for ours it tells its own.
    _ping(there.host, [str(here.ipv4)])
    _wait(
        lambda: "02:00:00:00:00:77" in here.host.run(["ip", "neigh", "show", str(there.ipv4)]).stdout,
        "the new neighbour",
    )
    _ping(here.host, BOB)
    _wait_for_xdp(here.host, BOB[0])


def test_a_route_that_changes_is_followed(lab: Lab, tmp_path: Path) -> None:
    here, there = _link(lab)
    second = lab.link(here.host, there.host, ipv4="203.0.113.0/24")
    # He answers from the address that he is called by, or else Alice would follow him.
    there.host.ip(["addr add 198.51.100.1/32 dev lo"])
    for end, network in ((there, "192.0.2.0/24"), (second[1], "203.0.113.0/24")):
        there.host.ip([f"route replace {network} dev {end.interface} src 198.51.100.1"])
    here.host.ip([f"route add 198.51.100.1 via {there.ipv4}"])
    endpoint = f"198.51.100.1:{PORT}"
    alice, _ = _joined((here, there), tmp_path, over_xdp=(True, False), endpoint=endpoint)
    _wait_for_xdp(here.host, BOB[0])
    # Another gateway on the same link: its frames carry the other's address.
    other = "02:00:00:00:00:99"
    here.host.ip([f"neigh add 192.0.2.99 lladdr {other} dev {here.interface} nud permanent"])
    here.host.ip(["route replace 198.51.100.1 via 192.0.2.99"])
    capture = _capture(there, tmp_path, ["-c", "5", f"ether dst {other} and udp port {PORT}"])
    _wait(lambda: _sent_once(here.host) and capture.poll() is not None, "frames to the other gateway")
    assert capture.returncode == 0
    # Another link: the sockets serve it, from when the thread that follows the routes has read of it.
    here.host.ip([f"route replace 198.51.100.1 via {second[1].ipv4}"])

    def is_sent_by_sockets() -> bool:
        before = _by_sockets(here.host)[1]
        _ping(here.host, BOB)
        return _by_sockets(here.host)[1] - before >= 6

    _wait(is_sent_by_sockets, "sending over the sockets")
    here.host.ip([f"route replace 198.51.100.1 via {there.ipv4}"])
    _wait_for_xdp(here.host, BOB[0])
    assert alice.process.poll() is None


def _sent_once(host: Host) -> bool:
    host.run(["ping", "-c", "1", "-W", "0.2", _host_of(BOB[0])], check=False)
    return True


def test_a_datagram_longer_than_the_mtu_is_cut_by_the_kernel(lab: Lab, tmp_path: Path) -> None:
    ends = _link(lab)
    _joined(ends, tmp_path, mtu=1500)
    _wait_for_xdp(ends[0].host, BOB[0])
    before = _by_sockets(ends[0].host)[1]
    # 28 bytes of headers inside, 60 outside.
    for inside in (1412, 1413, 1472):
        _ping(ends[0].host, BOB[:1], "-M", "do", "-s", str(inside))
    assert _by_sockets(ends[0].host)[1] - before >= 6
    for end in ends:
        end.set("mtu", "1300")
    _ping(ends[0].host, BOB, "-s", "1280")


def test_no_program_stays_behind_however_it_ends(lab: Lab, tmp_path: Path) -> None:
    ends = _link(lab)
    ways: tuple[Callable[[OurTunnel], object], ...] = (lambda one: one.process.kill(), lambda one: one.stop())
    for end_it in ways:
        tunnels = _joined(ends, tmp_path)
        _ping(ends[0].host, BOB)
        assert _has_program(ends[0])
        assert _has_program(ends[1])
        for tunnel in tunnels:
            end_it(tunnel)
            tunnel.process.wait(20)
        _wait(lambda: not _has_program(ends[0]) and not _has_program(ends[1]), "an interface without a program")
        _ping(ends[0].host, [str(ends[1].ipv4)])


def test_an_interface_that_goes_under_load_leaves_the_sockets(lab: Lab, tmp_path: Path) -> None:
    here, there = _link(lab)
    second = lab.link(here.host, there.host, ipv4="203.0.113.0/24")
    alice, bob = _joined((here, there), tmp_path)
    _ping(here.host, BOB)
    load = here.host.popen(
        ["ping", "-f", "-s", "1300", _host_of(BOB[0])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait_for_xdp(here.host, BOB[0])
    here.host.ip([f"link del {here.interface}"])
    for tunnel in (alice, bob):
        _wait(partial(_is_noted, tunnel), "the note")
    alice.set_peer(Peer(bob.public_key, BOB, f"{second[1].ipv4}:{PORT}"))
    _ping(here.host, BOB)
    load.terminate()
    assert alice.process.poll() is None
    assert bob.process.poll() is None


def test_what_is_refused_is_said_and_the_sockets_carry_all(lab: Lab, tmp_path: Path) -> None:
    ends = _link(lab)
    _joined(ends, tmp_path)
    # The interface has a program already.
    options: dict[str, Any] = {"engine": "native", "xdp": ends[0].interface, "interface": "rg1"}
    second = OurTunnel(ends[0].host, ["10.8.0.1/32"], folder=tmp_path, **options)
    assert "another XDP program" in str(second.stats()["notes"])
    program = (
        "from rustguard_py.planes.native import NativePlane\n"
        "from rustguard_py.system.sockets import bind\n"
        f"plane = NativePlane(b'k' * 32, interface='rg2', sockets=bind(0), xdp={ends[1].interface!r})\n"
        "print(*plane.stats().notes)\n"
    )
    without = ["setpriv", "--bounding-set=-sys_admin,-bpf", sys.executable, "-c", program]
    assert "CAP_BPF" in ends[1].host.run(without).stdout
