"""Offloads that damage or are refused: packets arrive all the same, and what was switched off is said."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import mean, median

import pytest

from rustguard_py.lab.hosts import Lab
from support import injecting, relay
from support.numbered import arrived
from support.product import INNER, TOKEN, Machine, Site, eventually
from support.relay import Ills

_PORT = 51820
# The part of the rate that counts as all of it: streams of one run differ by as much.
_FULL = 0.8


@pytest.mark.fault(48)
def test_where_cut_messages_are_damaged_the_full_rate_comes_back_within_five_seconds(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    site = Site(lab, tmp_path)
    home, laptop, middle = site.home(), site.machine("laptop"), lab.host("middle")
    there, _ = lab.link(home.host, middle, ipv4="198.51.100.0/29")
    listening, _ = lab.link(middle, laptop.host, ipv4="192.0.2.0/29")
    relay.start(middle, (str(listening.ipv4), _PORT), (str(there.ipv4), _PORT), Ills(cut=1.0))
    home.serve("--pool 10.150.0.0/24 --open")
    laptop.join(str(listening.ipv4))
    whole = 40 if soak else 9
    ways = ((laptop, home, INNER), (home, laptop, "10.150.0.2"))
    for near, far, target in ways if soak else ways[:1]:
        listener = far.host.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        far.host.wait_listening("tcp", 5201)
        # The short form doesn't take both cores from other tests.
        limit = [] if soak else ["-b", "100M"]
        argv = ["iperf3", "-J", "-i", "0.5", "-c", target, "-t", str(whole), *limit]
        report = json.loads(near.host.run(argv, timeout=whole + 60).stdout)
        listener.wait(60)
        rates = [each["sum"]["bits_per_second"] / 1e6 for each in report["intervals"]]
        # What the path carries one by one. Two intervals are a second.
        full = median(rates[12:])
        seconds = [mean(rates[place : place + 2]) / full for place in range(11)]
        slow = next((place / 2 for place, rate in enumerate(seconds) if rate >= _FULL), math.inf)
        print(
            f"to {far.host.name}: {_FULL:.0%} of {full:.0f} Mbit/s after {slow} s: "
            f"{[round(rate) for rate in rates[:12]]}"
        )
        assert slow <= 5
        [note] = [note for note in near.status()["notes"] if "udp-segmentation" in note]
        assert note.startswith("Off towards ")
        assert "It is tried again after an hour." in " ".join(near.run("status -v").stdout.split())
        assert "UDP segmentation is off towards" in near.said()


def test_random_loss_switches_nothing_off(lab: Lab, tmp_path: Path) -> None:
    site = Site(lab, tmp_path)
    home, laptop, middle = site.home(), site.machine("laptop"), lab.host("middle")
    there, _ = lab.link(home.host, middle, ipv4="198.51.100.0/29")
    listening, _ = lab.link(middle, laptop.host, ipv4="192.0.2.0/29")
    relay.start(middle, (str(listening.ipv4), _PORT), (str(there.ipv4), _PORT), Ills(loss=0.05))
    home.serve("--pool 10.150.0.0/24 --open")
    laptop.join(str(listening.ipv4))
    listener = home.host.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    home.host.wait_listening("tcp", 5201)
    laptop.host.run(["iperf3", "-u", "-b", "100M", "-l", "1300", "-c", INNER, "-t", "4"], timeout=60)
    listener.wait(60)
    for machine in (home, laptop):
        assert not [note for note in machine.status()["notes"] if "udp-segmentation" in note]


_COUNT = 4000


def _long(soak: bool, *, short: bool) -> None:
    if not soak and not short:
        pytest.skip("in the long form alone")


def _all_arrive(site: Site, words: str, traced: list[str], engine: str) -> tuple[int, list[str], list[str]]:
    """Send from a laptop under strace; give how many arrived, what strace injected, and the laptop's notes."""
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve("--pool 10.150.0.0/24 --open")
    trace = site.directory / "trace"
    command = laptop.command(f"join 198.51.100.1 --name laptop --engine {engine} {words}")
    argv = ["strace", "-f", "-qq", "-o", str(trace), *traced, *command]
    program = laptop.host.popen(argv, log=laptop.log, env=laptop.environment(TOKEN))
    laptop.programs.append(program)
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER), what="join")
    came = arrived(laptop.host, home.host, INNER, _COUNT)
    injected = [line for line in trace.read_text().splitlines() if "(INJECTED)" in line]
    return came, injected, laptop.status()["notes"]


@pytest.mark.fault(50)
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("code", ["EINVAL", "EIO", "EMSGSIZE", "ENOPROTOOPT", "EOPNOTSUPP"])
def test_a_message_that_cannot_be_cut_is_sent_one_by_one(
    lab: Lab, tmp_path: Path, soak: bool, engine: str, code: str
) -> None:
    _long(soak, short=code == "EINVAL")
    # After the others nothing is cut any more, and one that isn't cut has nothing to fall back to.
    # The step is longer than a message (64 datagrams), so that what follows a refusal one by one gets through. It is
    # odd, because messages that are cut and others may alternate.
    when = "30+67" if code in ("EINVAL", "EMSGSIZE") else "30"
    traced = ["-e", "trace=sendmsg", "-e", f"inject=sendmsg:error={code}:when={when}"]
    came, injected, notes = _all_arrive(Site(lab, tmp_path), "", traced, engine)
    cut = [line for line in injected if "UDP_SEGMENT" in line or "0x67" in line]
    assert cut
    assert came >= _COUNT - (len(injected) - len(cut))
    # The line says whether the kernel is asked again.
    ending = "one by one. It is asked again." if code in ("EINVAL", "EMSGSIZE") else "one by one from now on."
    assert [note for note in notes if note.endswith(ending)]


@pytest.mark.fault(50)
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("code", ["EINVAL", "EIO"])
def test_a_read_that_is_refused_loses_nothing(lab: Lab, tmp_path: Path, soak: bool, engine: str, code: str) -> None:
    _long(soak, short=code == "EINVAL")
    call = "read" if engine == "native" else "readv"
    traced = ["-P", "/dev/net/tun", "-e", f"trace={call}", "-e", f"inject={call}:error={code}:when=20"]
    came, injected, notes = _all_arrive(Site(lab, tmp_path), "", traced, engine)
    assert injected
    assert came == _COUNT
    assert [note for note in notes if "refused to hand over a packet" in note]


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("offloads", ["none", "no-tun-checksum", "no-uso,no-udp-segmentation,no-udp-gro"])
def test_everything_arrives_without_offloads(
    lab: Lab, tmp_path: Path, soak: bool, engine: str, offloads: str
) -> None:
    _long(soak, short=offloads == "none")
    site = Site(lab, tmp_path)
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 --open --engine {engine} --offloads {offloads}")
    laptop.join("198.51.100.1", f"--engine {engine} --offloads {offloads}")
    for near, far, target in ((laptop, home, INNER), (home, laptop, "10.150.0.2")):
        listener = far.host.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        far.host.wait_listening("tcp", 5201)
        report = json.loads(near.host.run(["iperf3", "-J", "-c", target, "-n", "20M"], timeout=60).stdout)
        listener.wait(60)
        assert report["end"]["sum_received"]["bytes"] >= 10 << 20
        off = near.status()["notes"][0]
        assert f"(--offloads {offloads})" in off
        assert near.saved()["data"]["offloads"] == offloads
    drops = {**home.status()["counters"]["drops"], **laptop.status()["counters"]["drops"]}
    assert not [reason for reason in drops if reason.startswith(("send_", "interface_", "superpacket"))], drops


# -- refused by a seccomp filter, each time ----------------------------------------------------------------------


@pytest.mark.fault(50)
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("call", ["sendmsg", "writev"])
@pytest.mark.parametrize("code", ["EINVAL", "EIO", "EMSGSIZE", "ENOPROTOOPT", "EOPNOTSUPP"])
def test_what_a_filter_refuses_each_time_goes_one_by_one(
    lab: Lab, tmp_path: Path, soak: bool, engine: str, call: str, code: str
) -> None:
    _long(soak, short=(code, call, engine) in (("EIO", "sendmsg", "portable"), ("EOPNOTSUPP", "writev", "native")))
    site = Site(lab, tmp_path)
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve("--pool 10.150.0.0/24 --open")
    refusals = tmp_path / "refusals"
    command = laptop.command(f"join 198.51.100.1 --name laptop --engine {engine}")
    program = laptop.host.popen(
        [sys.executable, injecting.__file__, call, code, str(refusals), *command],
        log=laptop.log,
        env=laptop.environment(TOKEN),
    )
    laptop.programs.append(program)
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER), what="join")
    ends = (laptop, home, INNER) if call == "sendmsg" else (home, laptop, "10.150.0.2")
    assert arrived(ends[0].host, ends[1].host, ends[2], _COUNT) == _COUNT
    refused = refusals.read_text().splitlines()
    print(f"{engine}: {len(refused)} times {code} from {call}")
    assert set(refused) == {f"{call} {os.strerror(getattr(errno, code))}"}
    assert [note for note in laptop.status()["notes"] if "one by one" in note or "merged" in note]


# -- refused by the kernel itself, also over io_uring ------------------------------------------------------------

# The operations of io_uring are no system calls, so no filter sees them. Here the kernel has a reason of its own.
_SO_NO_CHECK, _PIDFD_GETFD = 11, 438


def _without_checksums(process: int, _machine: Machine) -> None:
    """Switch checksums off on the sockets of a process: the kernel then refuses to cut (EINVAL), and nothing else."""
    of = os.pidfd_open(process)
    for each in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            if not os.readlink(each).startswith("socket:"):  # noqa: PTH115 - what it says is no path
                continue
            number = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, of, int(each.name), 0)
            with socket.socket(fileno=number) as theirs:
                if (theirs.family, theirs.type) == (socket.AF_INET, socket.SOCK_DGRAM):
                    theirs.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
    os.close(of)


def _narrow_link(_process: int, machine: Machine) -> None:
    """Make the link narrower than the datagrams: the kernel then refuses to cut (EMSGSIZE), and divides each."""
    machine.host.ip([f"link set dev {each.interface} mtu 1200" for each in machine.host.ends])


@pytest.mark.fault(50)
@pytest.mark.parametrize("engine", ["native --uring", "native", "portable"])
@pytest.mark.parametrize("refuse", [_without_checksums, _narrow_link])
def test_what_the_kernel_will_not_cut_goes_one_by_one(
    lab: Lab, tmp_path: Path, soak: bool, engine: str, refuse: Callable[[int, Machine], None]
) -> None:
    _long(soak, short="uring" in engine)
    site = Site(lab, tmp_path)
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve("--pool 10.150.0.0/24 --open")
    laptop.join("198.51.100.1", f"--engine {engine}")
    status = laptop.status()
    assert ("io_uring" in status["engine_reason"]) is ("uring" in engine)
    assert not [note for note in status["notes"] if "one by one" in note]
    refuse(status["pid"], laptop)
    assert arrived(laptop.host, home.host, INNER, _COUNT) == _COUNT
    assert [note for note in laptop.status()["notes"] if "one by one" in note]
