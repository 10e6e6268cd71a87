"""The native plane in real namespaces: traffic to itself and to the portable one, faults, its end.

How it gets on with wireguard-go is test_interop.py's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.lab.hosts import End, Host, Lab
from support import machine
from support.our_tunnel import OurTunnel
from support.wireguard_go import Peer

_native = pytest.importorskip(
    "rustguard_py._native", reason="the native plane isn't built here (no cargo at installation)"
)
# Refused, the plane would do without, and the test would look at system calls once more.
_OVER_A_RING = pytest.mark.skipif(_native.uring_refusal() is not None, reason="this kernel refuses io_uring")
_BOTH_WAYS = [False, pytest.param(True, marks=_OVER_A_RING)]

ALICE, BOB = ["10.9.0.1/32", "fd09::1/128"], ["10.9.0.2/32", "fd09::2/128"]
PORT = 51820


def _keys() -> tuple[bytes, bytes]:
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def _tunnel(
    end: End, addresses: list[str], peers: list[Peer], key: bytes, folder: Path, *, native: int, uring: bool = False
) -> OurTunnel:
    """A tunnel on the native plane with so many queues, or (0) on the portable one."""
    engine: dict[str, Any] = {"engine": "native", "queues": native, "uring": uring} if native else {}
    return OurTunnel(end.host, addresses, peers, folder=folder, private_key=key, port=PORT, **engine)


def _joined(
    ends: tuple[End, End], folder: Path, *, native: tuple[int, int], uring: bool = False
) -> tuple[OurTunnel, OurTunnel]:
    """Alice knows where Bob is."""
    (key, public), (their_key, their_public) = _keys(), _keys()
    bob = _tunnel(ends[1], BOB, [Peer(public, ALICE)], their_key, folder, native=native[1], uring=uring)
    to_bob = Peer(their_public, BOB, f"{ends[1].ipv4}:{PORT}")
    alice = _tunnel(ends[0], ALICE, [to_bob], key, folder, native=native[0], uring=uring)
    return alice, bob


def _link(lab: Lab) -> tuple[End, End]:
    alice, bob = lab.host("alice", own_run=True), lab.host("bob", own_run=True)
    return lab.link(alice, bob, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")


def _host_of(address: str) -> str:
    return address.partition("/")[0]


def _ping(host: Host, addresses: list[str], *options: str) -> None:
    for address in addresses:
        host.run(["ping", "-c", "3", "-i", "0.05", "-W", "20", *options, _host_of(address)])


# iperf3 ends when the sender has written everything; of that, a buffer's worth of each stream may still be under way.
SENT, BUFFER, RECEIVED = "12M", "256K", 8 << 20


def _transfer(client: Host, server: Host, address: str, *options: str) -> dict[str, Any]:
    with_server = server.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server.wait_listening("tcp", 5201, 60)
    done = client.run(["iperf3", "-J", "-c", _host_of(address), *options], timeout=300)
    with_server.wait(60)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    ("native", "uring"),
    [
        *(((1, 1), False), ((1, 0), False), ((0, 1), False), ((2, 2), False)),
        *(pytest.param(queues, True, marks=_OVER_A_RING) for queues in ((1, 1), (2, 2))),
    ],
    ids=["both", "alice", "bob", "two-queues", "uring", "uring-two-queues"],
)
def test_traffic_passes_between_native_and_portable_planes(
    lab: Lab, tmp_path: Path, native: tuple[int, int], uring: bool
) -> None:
    ends = _link(lab)
    alice, bob = _joined(ends, tmp_path, native=native, uring=uring)
    _ping(ends[0].host, BOB)
    _ping(ends[1].host, ALICE, "-s", "5000")
    for address in BOB:
        for direction in ([], ["-R"], ["-P", "4"]):
            report = _transfer(ends[0].host, ends[1].host, address, "-n", SENT, "-w", BUFFER, *direction)
            assert report["end"]["sum_received"]["bytes"] >= RECEIVED
        report = _transfer(ends[0].host, ends[1].host, address, "-u", "-b", "20M", "-l", "1300", "-t", "1")
        assert report["end"]["sum"]["lost_percent"] < 90
    for tunnel, queues in zip((alice, bob), native, strict=True):
        stats = tunnel.stats()
        assert not {"bad_tag", "inner_length", "inner_source", "replayed"} & {*stats["drops"]}
        _check_workers(stats, queues)


def _check_workers(stats: dict[str, Any], queues: int) -> None:
    """What the workers of a plane of so many queues (0: portable) say fits what its one peer's counters say."""
    names = [f"{way}-{queue}" for queue in range(queues) for way in ("out", "in")]
    names = [*names, "gate"] if names else ["loop-0"]
    assert list(stats["workers"]) == names
    (peer,) = stats["peers"].values()
    assert peer["handshakes"] >= 1
    packets, size, batches, calls = (sum(worker) for worker in zip(*stats["workers"].values(), strict=True))
    # Keepalives and packets that waited for the session aren't from a batch, handshakes and damaged datagrams are.
    assert abs(size - peer["rx_bytes"] - peer["tx_bytes"]) < 20_000
    assert 0 < batches < packets
    # A call to take and one to give a batch, at least.
    assert calls >= 2 * batches


def test_a_flow_keeps_its_order_while_two_threads_read_the_device(lab: Lab, tmp_path: Path) -> None:
    """Bob's thread for what arrives answers the pings, and so sends some of the flow as well."""
    ends = _link(lab)
    _joined(ends, tmp_path, native=(1, 1))
    _ping(ends[0].host, BOB)
    pinging = ends[0].host.popen(["ping", "-q", "-i", "0.001", _host_of(BOB[0])], stdout=subprocess.DEVNULL)
    report = _transfer(ends[0].host, ends[1].host, BOB[0], "-R", "-u", "-b", "300M", "-l", "1300", "-t", "2")
    pinging.terminate()
    pinging.wait(10)
    flow = report["end"]["streams"][0]["udp"]
    assert flow["packets"] > 1000
    assert flow["out_of_order"] == 0


def _thread(tunnel: OurTunnel, name: str) -> Path:
    """The folder of a thread in /proc."""
    tasks = Path(f"/proc/{tunnel.process.pid}/task").iterdir()
    (task,) = (each for each in tasks if (each / "comm").read_text().strip() == name)
    return task


def _sleeps(tunnel: OurTunnel, thread: str) -> int:
    """How often a thread has slept so far."""
    status = (_thread(tunnel, thread) / "status").read_text()
    (sleeps,) = re.findall(r"^voluntary_ctxt_switches:\s*(\d+)$", status, re.MULTILINE)
    return int(sleeps)


def test_while_little_flows_one_thread_carries_both_ways(lab: Lab, tmp_path: Path) -> None:
    ends = _link(lab)
    tunnels = _joined(ends, tmp_path, native=(1, 1))

    def out() -> list[tuple[int, int]]:
        """Packets out of each end, and how often the thread for that has slept."""
        return [(tunnel.stats()["workers"]["out-0"][0], _sleeps(tunnel, "rg-out-0")) for tunnel in tunnels]

    for _ in range(2):
        # Much may have flowed a moment ago, so the first packets are still the way out's.
        _ping(ends[0].host, BOB[:1])
        before = out()
        ends[0].host.run(["ping", "-c", "20", "-i", "0.02", "-W", "20", _host_of(BOB[0])])
        for (packets, sleeps), (packets_before, sleeps_before) in zip(out(), before, strict=True):
            assert packets >= packets_before + 20
            assert sleeps < sleeps_before + 10
        before = out()
        _transfer(ends[0].host, ends[1].host, BOB[0], "-n", SENT, "-w", BUFFER)
        for (_, sleeps), (_, sleeps_before) in zip(out(), before, strict=True):
            assert sleeps > sleeps_before + 10


def _slice_of(tunnel: OurTunnel, thread: str) -> int:
    """How long the scheduler lets a thread run before it prefers others, in nanoseconds; 0 if it doesn't say."""
    sched = (_thread(tunnel, thread) / "sched").read_text()
    found = re.search(r"^se\.slice\s*:\s*(\d+)$", sched, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.skipif(bool(machine.why_no_slices()), reason=machine.why_no_slices())
@pytest.mark.parametrize("uring", _BOTH_WAYS)
def test_while_much_udp_comes_its_readers_go_before_the_thread_that_writes_it(
    lab: Lab, tmp_path: Path, uring: bool
) -> None:
    ends = _link(lab)
    _, bob = _joined(ends, tmp_path, native=(1, 1), uring=uring)
    _ping(ends[0].host, BOB)
    usual = _slice_of(bob, "rg-in-0")
    assert _slice_of(bob, "rg-out-0") == usual
    with ends[1].host.popen(["iperf3", "-s"], stdout=subprocess.DEVNULL) as server:
        ends[1].host.wait_listening("tcp", 5201, 60)
        options = ["-u", "-b", "0", "-l", "1372", "-t", "60"]
        with ends[0].host.popen(["iperf3", "-c", _host_of(BOB[0]), *options], stdout=subprocess.DEVNULL) as flood:
            deadline = time.monotonic() + 60
            while _slice_of(bob, "rg-in-0") <= 2 * usual:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert _slice_of(bob, "rg-out-0") == usual
            flood.terminate()
        server.terminate()
    ends[0].host.run(["ping", "-c", "40", "-i", "0.01", "-W", "20", _host_of(BOB[0])])
    assert _slice_of(bob, "rg-in-0") == usual


def test_a_peer_that_moves_is_found_at_its_next_packet(lab: Lab, tmp_path: Path) -> None:
    ends = _link(lab)
    _, bob = _joined(ends, tmp_path, native=(1, 1))
    _ping(ends[0].host, BOB)
    ends[0].readdress("192.0.2.77/24")
    _ping(ends[0].host, BOB)
    bob.wait_moved("192.0.2.77", PORT)
    _ping(ends[1].host, ALICE)


_PROGRAM = """
import os, select, socket, subprocess, sys, time
from pathlib import Path
from rustguard_py.model.errors import RustGuardError
from rustguard_py.planes.native import NativePlane
from rustguard_py.system.sockets import bind

def threads():
    return sorted(Path(f"/proc/self/task/{each}/comm").read_text().strip() for each in os.listdir("/proc/self/task"))

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def interfaces():
    return {name for _, name in socket.if_nameindex()}

def make(name="rg9", **options):
    return NativePlane(b"k" * 32, interface=name, sockets=bind(0), **options)

def flood(address):
    send = f"any(out.sendto(b'x', ('{address}', 9)) < 0 for _ in iter(int, 1))"
    code = f"import socket; out = socket.socket(type=socket.SOCK_DGRAM); {send}"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

def until(what, attempt, seconds=60):
    deadline = time.monotonic() + seconds
    while not attempt():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)

def wait_for(plane, kind, seconds=60):
    deadline = time.monotonic() + seconds
    seen = []
    while time.monotonic() < deadline:
        select.select([plane], [], [], 0.5)
        seen += plane.poll_events()
        if found := [event for event in seen if type(event).__name__ == kind]:
            return found
    raise SystemExit(f"no {kind}: {seen}")
"""


def _run(lab: Lab, program: str, *, uring: bool = False) -> str:
    host = lab.host("alice", own_run=True)
    return host.run([sys.executable, "-c", f"{_PROGRAM}\nuring = {uring}\n{textwrap.dedent(program)}"]).stdout


def test_closing_leaves_no_interface_thread_or_descriptor(lab: Lab) -> None:
    said = _run(
        lab,
        """
        # The first plane leaves what the process keeps: imported modules and the like.
        make().close()
        before = threads(), descriptors(), interfaces()
        for queues, uring in ((1, False), (2, False), (1, True), (2, True)):
            plane = make(queues=queues, uring=uring)
            until(f"its threads: {threads()}", lambda: len(threads()) == 1 + 2 * queues + 2)
            assert "rg9" in interfaces()
            plane.close()
            plane.close()
            plane.send(("192.0.2.1", 1), b"into the void")
            del plane
        # A thread that was joined may be seen for a moment yet.
        until("the end of all", lambda: (threads(), descriptors(), interfaces()) == before)
        print("clean")
        """,
    )
    assert said == "clean\n"


@pytest.mark.parametrize("uring", _BOTH_WAYS, ids=["calls", "uring"])
def test_an_interface_that_is_taken_away_is_a_fault_and_ends_every_thread(lab: Lab, uring: bool) -> None:
    said = _run(
        lab,
        """
        plane = make(uring=uring)
        subprocess.run(["ip", "address", "add", "10.9.0.1/24", "dev", "rg9"], check=True)
        subprocess.run(["ip", "link", "set", "rg9", "up"], check=True)
        # Packets for nobody keep the threads busy until there is no way to the interface.
        load = flood("10.9.0.2")
        until("its packets", lambda: plane.stats().drops.get("no_peer", 0) >= 1000)
        subprocess.run(["ip", "link", "del", "rg9"], check=True)
        fault = wait_for(plane, "Fault")[-1]
        load.kill()
        load.wait()
        assert fault.fatal, fault
        until("the end of its threads", lambda: len(threads()) == 1)
        plane.close()
        print(fault.message)
        """,
        uring=uring,
    )
    assert "os error" in said


def test_a_name_that_is_taken_or_impossible_is_refused_and_the_sockets_stay_ours(lab: Lab) -> None:
    said = _run(
        lab,
        """
        first = make()
        for name in ("rg9", "", "x" * 16, "a/b"):
            sockets = bind(0)
            try:
                NativePlane(b"k" * 32, interface=name, sockets=sockets)
            except RustGuardError as error:
                print(type(error).__name__, bool(error.fix))
            assert all(each.fileno() >= 0 for each in sockets)
        """,
    )
    assert said == "NameTakenError True\nUsageError True\nUsageError True\nUsageError True\n"


@pytest.mark.fault(30)
@pytest.mark.parametrize("uring", _BOTH_WAYS, ids=["calls", "uring"])
def test_datagrams_of_any_length_end_nothing(lab: Lab, uring: bool) -> None:
    said = _run(
        lab,
        """
        sockets = bind(0)
        port = sockets[0].getsockname()[1]
        plane = NativePlane(b"k" * 32, interface="rg9", sockets=sockets, uring=uring)
        sent = 0
        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            stranger = socket.socket(family, socket.SOCK_DGRAM)
            for size in [*range(0, 200), 1500, 9000, 65507]:
                for head in (b"", bytes([1, 0, 0, 0]), bytes([2, 0, 0, 0]), bytes([3, 0, 0, 0]), bytes([4, 0, 0, 0])):
                    stranger.sendto((head + os.urandom(size))[:size], (host, port))
                    sent += 1
                # A full socket would drop what is to be counted here.
                until(f"{sent} drops", lambda: sum(plane.stats().drops.values()) == sent)
            stranger.sendto(b"RGE still here", (host, port))
        found = []
        while len(found) < 2:
            found += wait_for(plane, "ForeignReceived")
        assert {event.datagram for event in found} == {b"RGE still here"}
        dropped = sum(plane.stats().drops.values())
        assert dropped == sent, plane.stats().drops
        print(f"row 30: {dropped} of {sent} malformed datagrams dropped, reception goes on")
        """,
        uring=uring,
    )
    assert said.startswith("row 30")
    print(said, end="")


def test_timers_run_out_without_traffic(lab: Lab) -> None:
    said = _run(
        lab,
        """
        from ipaddress import ip_network
        from rustguard_py.planes.contract import Reason
        plane = make()
        # While it is down, nothing is due.
        subprocess.run(["ip", "link", "set", "rg9", "up"], check=True)
        began = time.monotonic()
        plane.set_peer(1, ("127.0.0.1", 9), [ip_network("10.0.0.0/24")], 1)
        assert wait_for(plane, "HandshakeWanted")[0].reason is Reason.NO_SESSION
        assert wait_for(plane, "HandshakeWanted")[0].peer == 1
        took = time.monotonic() - began
        # A second; how much later we look is the machine's business.
        assert 0.9 < took < 20.0, took
        print("in time")
        """,
    )
    assert said == "in time\n"


def test_10000_idle_peers_cost_4_kib_each_and_no_cpu(lab: Lab) -> None:
    said = _run(
        lab,
        """
        import gc
        from ipaddress import ip_network
        from rustguard_py.planes.contract import Keypair
        plane = make()

        def resident():
            gc.collect()
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def add(peers):
            for peer in peers:
                networks = [ip_network((0x0A000000 + peer, 32)), ip_network((0xFD << 120 | peer, 128))]
                plane.set_peer(peer, ("127.0.0.1", 9), networks, 0)
                for initiator in (True, True, False):
                    index = plane.reserve_index(peer)
                    plane.install_keypair(peer, Keypair(index, 1, b"s" * 32, b"r" * 32, initiator, time.monotonic()))

        add(range(100))
        before = resident()
        add(range(100, 10_100))
        each = (resident() - before) / 10_000
        began, used = time.monotonic(), time.process_time()
        time.sleep(2)
        idle = (time.process_time() - used) / (time.monotonic() - began)
        print(f"memory: {each:.0f} bytes an idle peer with two networks and three sessions; idle CPU {idle:.2%}")
        assert each < 4096
        assert idle < 0.1
        plane.close()
        """,
    )
    print(said, end="")
    assert said.startswith("memory: ")
