"""Our tunnel talks to wireguard-go: as initiator and responder, over IPv4 and IPv6, with and without a PSK."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.lab.hosts import End, Host, Lab
from support.engines import on_both_engines
from support.our_tunnel import OurTunnel
from support.wireguard_go import Peer, WireGuardGo

pytestmark = pytest.mark.needs_wireguard_go

OURS, THEIRS = ["10.9.0.1", "fd09::1"], ["10.9.0.2", "fd09::2"]
PORT = 51820
PRESHARED = bytes(range(32))


def _addresses(hosts: list[str]) -> list[str]:
    return [f"{hosts[0]}/32", f"{hosts[1]}/128"]


def _joined(
    ends: tuple[End, End], folder: Path, engine: str, *, outside: int, preshared: bytes | None, we_know_them: bool
) -> tuple[OurTunnel, WireGuardGo]:
    """Both tunnels; only one of them knows where the other is, and so is the one that begins."""
    here, there = ends
    our_key, their_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    us = f"{here.ipv4}:{PORT}" if outside == 4 else f"[{here.ipv6}]:{PORT}"
    them = f"{there.ipv4}:{PORT}" if outside == 4 else f"[{there.ipv6}]:{PORT}"
    stock = WireGuardGo(
        there.host,
        _addresses(THEIRS),
        [
            Peer(
                our_key.public_key().public_bytes_raw(),
                _addresses(OURS),
                None if we_know_them else us,
                preshared,
            )
        ],
        private_key=their_key.private_bytes_raw(),
        port=PORT,
    )
    ours = OurTunnel(
        here.host,
        _addresses(OURS),
        [Peer(stock.public_key, _addresses(THEIRS), them if we_know_them else None, preshared)],
        folder=folder,
        private_key=our_key.private_bytes_raw(),
        port=PORT,
        engine=engine,
    )
    return ours, stock


def _link(lab: Lab) -> tuple[End, End]:
    ours, stock = lab.host("ours"), lab.host("stock", own_run=True)
    return lab.link(ours, stock, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")


def _ping(host: Host, address: str, *options: str) -> None:
    host.run(["ping", "-c", "3", "-i", "0.05", "-W", "20", *options, address])


@on_both_engines
@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("preshared", [None, PRESHARED], ids=["no-psk", "psk"])
@pytest.mark.parametrize("we_begin", [True, False], ids=["initiator", "responder"])
def test_pings_pass_over_both_families(
    lab: Lab, tmp_path: Path, soak: bool, engine: str, outside: int, preshared: bytes | None, we_begin: bool
) -> None:
    # Half of them have every choice together with every two others.
    if not soak and (engine == "native", outside == 4, preshared is None, we_begin).count(True) % 2:
        pytest.skip("in the long form alone")
    ours, stock = _joined(_link(lab), tmp_path, engine, outside=outside, preshared=preshared, we_know_them=we_begin)
    first, second = (ours.host, stock.host) if we_begin else (stock.host, ours.host)
    for address in THEIRS if we_begin else OURS:
        _ping(first, address)
    for address in OURS if we_begin else THEIRS:
        _ping(second, address)
    ours.wait_for("session", 30)
    assert len(ours.said("session")) == 1


@on_both_engines
def test_full_size_packets_and_tcp_pass_both_ways(lab: Lab, tmp_path: Path, engine: str) -> None:
    ours, stock = _joined(_link(lab), tmp_path, engine, outside=4, preshared=PRESHARED, we_know_them=True)
    _ping(ours.host, THEIRS[0], "-M", "do", "-s", "1392")
    for options in (["-n", "8M"], ["-n", "8M", "-R"], ["-n", "8M", "-u", "-b", "100M"], ["-n", "8M", "-6", "-R"]):
        target = THEIRS[1] if "-6" in options else THEIRS[0]
        # One for each: it tells who comes before it is through with the one before that it is busy.
        server = stock.host.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stock.host.wait_listening("tcp", 5201, 60)
        command = ["iperf3", "-c", target, *options, "--connect-timeout", "30000"]
        said = ours.host.run(command).stdout
        assert re.search(r"[1-9]\d*\S* [KMG]Bytes .*receiver", said), said
        server.wait(60)
    drops = ours.stats()["drops"]
    print(f"interop on the {engine} plane, drops of ours after TCP both ways: {drops}")
    assert not {reason for reason in drops if "auth" in reason or "replay" in reason}


@on_both_engines
def test_a_packet_longer_than_the_pad_boundary_arrives_whole(lab: Lab, tmp_path: Path, engine: str) -> None:
    ours, stock = _joined(_link(lab), tmp_path, engine, outside=6, preshared=None, we_know_them=True)
    for size in (*range(1, 34), 1375, 1376, 1377, 1391, 1392):
        ours.host.run(["ping", "-c1", "-W20", "-M", "do", "-s", str(size), THEIRS[0]])
    assert stock.peer(ours.public_key).received > 0


@on_both_engines
def test_we_follow_a_stock_peer_that_roams_and_it_follows_us(lab: Lab, tmp_path: Path, engine: str) -> None:
    here, there = ends = _link(lab)
    ours, stock = _joined(ends, tmp_path, engine, outside=4, preshared=None, we_know_them=True)
    _ping(ours.host, THEIRS[0])
    there.readdress("192.0.2.77/24")
    _ping(stock.host, OURS[0])
    ours.wait_moved("192.0.2.77", PORT)
    _ping(ours.host, THEIRS[0])
    here.readdress("192.0.2.88/24")
    _ping(ours.host, THEIRS[0])
    assert stock.peer(ours.public_key).endpoint == f"192.0.2.88:{PORT}"


@on_both_engines
def test_we_roam_from_ipv4_to_ipv6(lab: Lab, tmp_path: Path, engine: str) -> None:
    _, there = ends = _link(lab)
    ours, stock = _joined(ends, tmp_path, engine, outside=4, preshared=None, we_know_them=True)
    _ping(ours.host, THEIRS[0])
    peer = Peer(stock.public_key, _addresses(THEIRS), f"[{there.ipv6}]:{PORT}")
    ours.set_peer(peer)
    _ping(ours.host, THEIRS[0])
    assert stock.peer(ours.public_key).endpoint.startswith("[2001:db8::1]")


@on_both_engines
def test_the_session_is_renewed_after_120_seconds_without_losing_a_ping(
    tmp_path: Path, lab: Lab, engine: str, soak: bool
) -> None:
    if not soak:
        pytest.skip("takes 130 s: make soak")
    runs = []
    for we_begin in (True, False):
        ours, stock = _joined(_link(lab), tmp_path, engine, outside=4, preshared=PRESHARED, we_know_them=we_begin)
        sender, target = (ours.host, THEIRS[0]) if we_begin else (stock.host, OURS[0])
        command = ["ping", "-q", "-i", "0.1", "-c", "1300", "-W", "2", target]
        runs.append((we_begin, ours, sender.popen(command, stdout=subprocess.PIPE)))
    for we_begin, ours, pings in runs:
        said, _ = pings.communicate(timeout=200)
        began = [line["at"] for line in ours.said("session")]
        summary = re.search(r"(\d+) received", said)
        assert summary is not None, said
        received = int(summary[1])
        role = "initiator" if we_begin else "responder"
        print(f"rekey, ours as {role} on the {engine} plane: {received} of 1300 pings, {len(began)} sessions")
        assert received == 1300
        assert len(began) == 2
        assert 119 <= began[1] - began[0] <= 126
