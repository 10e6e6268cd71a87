"""The memif device against DPDK's testpmd, in both roles."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.ethernet import EthernetOptions
from support import rustguard_wg
from support.channel_pair import ALICE4, BOB4, PEER, eventually, to_alice
from support.engines import needs_native
from support.memif_pair import MAC, QUIET, MemifPair, options
from support.packets import ip_header, naive_sum
from support.testpmd import INTERFACE, Testpmd

# testpmd spins, so one of them at a time.
pytestmark = [needs_native, pytest.mark.needs_testpmd, pytest.mark.xdist_group("testpmd"), pytest.mark.timeout(600)]
KILLS = 50 if os.environ.get("RUSTGUARD_SOAK") else 2
ROLES = pytest.mark.parametrize("server", [False, True], ids=["client", "server"])
PACKETS = 3000
# Each port has an even chance of either queue.
MOST_MOVES = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The control channel's socket, with a short name."""
    return tmp_path / "m"


def _connect(path: Path, started: list[Testpmd], *, server: bool, queues: int = 1) -> tuple[MemifPair, Testpmd]:
    """Start both, the one that listens first."""
    ours = options(path, server=server, queues=queues)
    pair = MemifPair(ours) if server else None
    started.append(Testpmd(path, server=not server, queues=queues))
    pair = pair or MemifPair(ours)
    pair.wait_for_connection()
    return pair, started[-1]


@pytest.mark.parametrize("queues", [1, 2])
@ROLES
def test_every_frame_crosses_unchanged_both_ways(
    path: Path, started: list[Testpmd], server: bool, queues: int
) -> None:
    pair, testpmd = _connect(path, started, server=server, queues=queues)
    assert f"connected to {INTERFACE} of DPDK" in pair.alice.stats().device
    testpmd.start()
    came = pair.echo(PACKETS)
    counts = testpmd.stop()
    print(f"{came} of {PACKETS} came back; testpmd: {counts}; dropped: {pair.drops()}")
    assert (came, counts.received, counts.sent, counts.dropped) == (PACKETS, PACKETS, PACKETS, 0)
    assert pair.drops() == {}
    pair.close()


@ROLES
def test_each_of_two_queues_carries_packets_both_ways(path: Path, started: list[Testpmd], server: bool) -> None:
    """Packets of one peer take the queue that its UDP port leads to, and testpmd answers on the same one."""
    pair, testpmd = _connect(path, started, server=server, queues=2)
    testpmd.start()
    sent = 0
    for _ in range(MOST_MOVES):
        assert pair.echo(100, sent) == 100
        sent += 100
        if all(min(each) for each in testpmd.queues()):
            break
        pair.move_bob()
    counted = testpmd.queues()
    ours = {each.name: each.packets for each in pair.alice.stats().workers}
    print(f"{sent} packets; testpmd's queues received and sent {counted}; ours: {ours}")
    assert len(counted) == 2
    assert all(received == back >= 100 for received, back in counted), counted
    assert [sum(each) for each in zip(*counted, strict=True)] == [sent, sent]
    assert [ours["out-0"], ours["out-1"]] == [back for _, back in counted]
    assert pair.drops() == {}
    pair.close()


@ROLES
def test_what_is_lost_is_counted_where_it_is_lost(path: Path, started: list[Testpmd], server: bool) -> None:
    """testpmd doesn't look into its ring, so the ring fills; then it sends all that it has back."""
    pair, testpmd = _connect(path, started, server=server)
    sent = 6000
    for _ in range(sent // 100):
        pair.bob.write([to_alice() for _ in range(100)])
        time.sleep(0.002)
    # One more confirmed the session.
    eventually(lambda: pair.alice.stats().peers[PEER].rx_packets == sent + 1, str(pair.alice.stats()))
    lost = pair.drops()
    testpmd.start()
    back = pair.read_all()
    counts = testpmd.stop()
    print(f"{sent} sent, {lost['memif_full']} found no room in the ring, {len(back)} came back; testpmd: {counts}")
    assert lost == {"memif_full": sent - counts.received}
    assert counts.sent + counts.dropped == counts.received
    assert len(back) == counts.sent
    pair.close()


@ROLES
def test_testpmd_answers_arp_for_a_learnt_range_and_then_a_ping(
    path: Path, started: list[Testpmd], server: bool
) -> None:
    ethernet = EthernetOptions(MAC, gateway=b"\x02\0\0\0\0\x63", learnt=(ip_network("10.9.0.0/24"),))
    ours = replace(options(path, server=server), ethernet=ethernet)
    pair = MemifPair(ours) if server else None
    started.append(Testpmd(path, server=not server, mode="icmpecho"))
    pair = pair or MemifPair(ours)
    pair.wait_for_connection()
    started[-1].start()
    pair.bob.write([_ping(1)])
    eventually(lambda: pair.drops() == {"memif_unresolved": 1}, str(pair.drops()))
    time.sleep(QUIET)
    pair.bob.write([_ping(2)])
    (reply,) = pair.bob.read(1)
    counts = started[-1].stop()
    assert (reply[12:20], reply[20], reply[26:28]) == (_ping(2)[16:20] + _ping(2)[12:16], 0, b"\0\2")
    assert (counts.received, counts.sent) == (2, 2)
    assert pair.drops() == {"memif_unresolved": 1}
    pair.close()


@pytest.mark.fault(51)
@ROLES
def test_sessions_outlast_a_killed_testpmd(path: Path, started: list[Testpmd], server: bool) -> None:
    pair, testpmd = _connect(path, started, server=server)
    for kill in range(1, KILLS + 1):
        if kill % 5 == 0:
            # Before REJECT-AFTER-TIME. There is no Python here that would do a handshake.
            pair.connect()
        testpmd.start()
        assert pair.echo(100, kill) == 100
        testpmd.kill()
        eventually(lambda: not pair.is_connected(), "the end isn't noticed")
        assert pair.echo(10, kill, QUIET) == 0
        assert pair.drops() == {"memif_disconnected": 10 * kill}
        testpmd = Testpmd(path, server=not server)
        started.append(testpmd)
        pair.wait_for_connection()
    testpmd.start()
    assert pair.echo(100) == 100
    stats = pair.alice.stats()
    print(f"killed {KILLS} times: {stats.device}, {pair.drops()}, {stats.peers[PEER].handshakes} handshakes")
    assert f"({KILLS + 1} connections so far)" in stats.device
    assert stats.peers[PEER].handshakes == 1 + KILLS // 5
    pair.close()


@pytest.mark.fault(51)
@ROLES
def test_a_testpmd_that_runs_on_meets_our_next_end(path: Path, started: list[Testpmd], server: bool) -> None:
    """We are killed while packets are on their way, and start again.

    testpmd's own thread is stopped meanwhile: DPDK 22.11 frees the rings of a lost connection in one thread while
    another one looks into them, and crashes.
    """
    came = 0
    for _ in range(KILLS + 1):
        command = [sys.executable, "-m", "support.memif_pair", str(path), "server" if server else "client"]
        if not (server or started):
            started.append(Testpmd(path, server=True))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()) as ours:
            try:
                assert ours.stdout is not None
                assert ours.stdout.readline() == "open\n"
                if not started:
                    started.append(Testpmd(path, server=False))
                elif server:
                    started[0].connect_again()
                started[0].start()
                # Before testpmd looks, it offers us no buffers. So the first round may be shorter.
                answers = [ours.stdout.readline() for _ in range(3)]
                counts = started[0].stop()
            finally:
                ours.kill()
        assert answers[1:] == ["100\n"] * 2, answers
        assert counts.received >= 200
        came += counts.received
        # Killed, we leave our socket. The next of us replaces it.
        assert path.exists()
    print(f"killed {KILLS + 1} times; testpmd received {came} packets")


def test_rustguard_wg_says_who_is_at_its_memif_or_why_nobody_is(lab: Lab, path: Path, started: list[Testpmd]) -> None:
    """testpmd has Ethernet only, and says so."""
    host = lab.host("one", own_run=True)
    said = path.with_name("said")
    more = ["--memif", f"{path},id=5,secret=psst", "wg0"]
    running = host.popen([*rustguard_wg.argv(path.parent, engine="native"), *more], log=said)
    eventually(lambda: "client: not connected (No such file" in said.read_text(), "it says that there is nobody")
    started.append(Testpmd(path, server=True))
    eventually(lambda: "Only ethernet mode supported" in said.read_text(), "it says why it is refused")
    links = host.run(["ip", "-o", "link"]).stdout
    assert "wg0" not in links
    assert "listening port" in host.run(["wg", "show", "wg0"]).stdout
    running.terminate()
    assert running.wait(10) == 0


def _ping(sequence: int) -> bytes:
    """An echo request (RFC 792) from Bob to Alice's network."""
    message = struct.pack(">BBHHH", 8, 0, 0, 1, sequence) + bytes(16)
    message = message[:2] + struct.pack(">H", 0xFFFF - naive_sum(message)) + message[4:]
    return ip_header(BOB4, ALICE4, 1, len(message)) + message


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
