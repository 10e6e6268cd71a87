"""`--uring` as a person uses it: where the kernel lets us, where a policy forbids it, and after kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support import refusing
from support.product import HOME4, INNER, TOKEN, Machine, Site, eventually

_native = pytest.importorskip(
    "rustguard_py._native", reason="the native plane isn't built here (no cargo at installation)"
)
_REFUSED = "The kernel refuses io_uring (Operation not permitted): system calls are used instead."


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def _carries_tcp(client: Machine, server: Machine) -> None:
    """Both ways, with full-size packets."""
    for direction in ([], ["-R"]):
        listening = server.host.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        server.host.wait_listening("tcp", 5201)
        argv = ["iperf3", "-J", "-c", INNER, "-n", "20M", *direction]
        report = json.loads(client.host.run(argv, timeout=60).stdout)
        assert report["end"]["sum_received"]["bytes"] >= 10 << 20
        listening.wait(60)


@pytest.mark.skipif(_native.uring_refusal() is not None, reason="this kernel refuses io_uring")
def test_traffic_passes_over_io_uring_and_a_killed_process_leaves_nothing(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve("--pool 10.150.0.0/24 --open --uring")
    program = laptop.join(HOME4, "--uring")
    for machine in (home, laptop):
        assert "io_uring" in machine.status()["engine_reason"]
        assert not [note for note in machine.status()["notes"] if "io_uring" in note]
    for address in home.status()["addresses"]:
        assert laptop.pings(address.split("/")[0])
    laptop.host.run(["ping", "-c", "20", "-i", "0.01", "-q", "-s", "1392", "-M", "do", INNER])
    _carries_tcp(laptop, home)
    program.kill()
    program.wait()
    eventually(lambda: not any("rg0" in line for line in laptop.network()), what="the interface's end")


def test_where_a_policy_forbids_io_uring_system_calls_carry_the_traffic_and_it_is_said(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve("--pool 10.150.0.0/24 --open")
    argv = [sys.executable, refusing.__file__, "io_uring", *laptop.command(f"join {HOME4} --name laptop --uring")]
    program = laptop.host.popen(argv, log=laptop.log, env=laptop.environment(TOKEN))
    laptop.programs.append(program)
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER), what="join")
    _carries_tcp(laptop, home)
    assert laptop.status()["engine"] == "native"
    assert _REFUSED in laptop.status()["notes"]
    assert "(Operation not permitted)" in laptop.status()["engine_reason"]
    said = " ".join(laptop.run("status -v").stdout.split())
    assert _REFUSED in said
