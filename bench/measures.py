"""The measurements: what is sent through a running tunnel, for how long, and what is read from it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from engines import Running
from links import Pair
from process import cpu_seconds

from rustguard_py.model.errors import RustGuardError

# What iperf3 may take beyond the seconds it measures.
PATIENCE = 15.0
PING_INTERVAL = 0.005
# TCP's first second isn't counted.
_WARM_UP = ("-O", "1")


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that is reported.

    Attributes:
        title: What it is called in tables and plots.
        unit: Of its values.
        more_is_better: Which way a ratio points.
        digits: After the decimal point.
    """

    title: str
    unit: str
    more_is_better: bool
    digits: int


MEASURES = {
    "tcp1": Measure("TCP 1", "Mbit/s", True, 0),
    "tcp4": Measure("TCP 4", "Mbit/s", True, 0),
    "tcp1r": Measure("TCP 1 -R", "Mbit/s", True, 0),
    "tcp4r": Measure("TCP 4 -R", "Mbit/s", True, 0),
    "udp1372": Measure("UDP 1372", "Mbit/s", True, 0),
    "udp1372_loss": Measure("UDP 1372 loss", "%", False, 1),
    "udp64": Measure("UDP 64", "Mbit/s", True, 1),
    "udp64_loss": Measure("UDP 64 loss", "%", False, 1),
    "ping": Measure("ping", "ms", False, 3),
    "ping_p99": Measure("ping p99", "ms", False, 2),
    "loaded_ping": Measure("ping, loaded", "ms", False, 2),
    "loaded_ping_p99": Measure("ping p99, loaded", "ms", False, 2),
    "cpu_out": Measure("CPU out", "s/GB", False, 2),
    "cpu_in": Measure("CPU in", "s/GB", False, 2),
}
Sample = dict[str, float]
# What going wrong looks like: a program that fails or hangs, a process that is gone, a report that lacks a part.
FAILURES = (RustGuardError, OSError, subprocess.SubprocessError, ValueError, KeyError, AssertionError)


@dataclass(frozen=True, slots=True)
class Step:
    """One transfer or run of pings, and what is read from it.

    Attributes:
        take: Gives the figures.
        extra: Seconds that it takes beside those of a transfer, about.
    """

    take: Callable[[Pair, Running, int], Sample]
    extra: float


def _pings(pair: Pair, running: Running, _: int) -> Sample:
    return _ping(pair, running, "ping", 1.0)


STEPS = {
    "ping": Step(_pings, 1.2),
    "tcp1": Step(lambda pair, running, seconds: _tcp_with_cpu(pair, running, seconds), 1.4),
    "tcp4": Step(lambda pair, running, seconds: _tcp(pair, running, seconds, "tcp4", "-P", "4"), 1.4),
    "tcp1r": Step(lambda pair, running, seconds: _tcp(pair, running, seconds, "tcp1r", "-R"), 1.4),
    "tcp4r": Step(lambda pair, running, seconds: _tcp(pair, running, seconds, "tcp4r", "-P", "4", "-R"), 1.4),
    "udp1372": Step(lambda pair, running, seconds: _udp(pair, running, seconds, "udp1372", 1372), 0.4),
    "udp64": Step(lambda pair, running, seconds: _udp(pair, running, seconds, "udp64", 64), 0.4),
    "loaded-ping": Step(lambda pair, running, seconds: _ping_under_load(pair, running, seconds), 1.6),
}
# What it takes to make the hosts, start an engine, and end both.
START = 2.0


def estimate(steps: Sequence[str], seconds: int) -> float:
    """About how many seconds an engine takes for these steps."""
    return START + sum(STEPS[name].extra + (0 if name == "ping" else seconds) for name in steps)


def measure(
    pair: Pair, running: Running, steps: Sequence[str], seconds: int, failed: Callable[[str], None]
) -> Sample:
    """Take each step once through a running tunnel; a figure that can't be had is left out, and `failed` gets why."""
    sample: Sample = {}
    for name in steps:
        with _iperf_server(pair):
            try:
                sample |= STEPS[name].take(pair, running, seconds)
            except FAILURES as error:
                failed(f"{name}: {error}")
    return sample


@contextmanager
def _iperf_server(pair: Pair) -> Iterator[None]:
    program = pair.server.popen(["iperf3", "-s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pair.server.wait_listening("tcp", 5201)
    try:
        yield
    finally:
        program.terminate()
        program.wait(5)


def _iperf(pair: Pair, running: Running, seconds: int, *options: str) -> dict[str, Any]:
    argv = ["iperf3", "-J", "-c", running.target, "-t", str(seconds), *options]
    done = pair.client.run(argv, timeout=seconds + 1 + PATIENCE, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    if "error" in report:
        raise TimeoutError(f"{' '.join(argv)}: {report['error']}")
    return report


def _tcp(pair: Pair, running: Running, seconds: int, name: str, *options: str) -> Sample:
    report = _iperf(pair, running, seconds, *_WARM_UP, *options)
    return {name: report["end"]["sum_received"]["bits_per_second"] / 1e6}


def _tcp_with_cpu(pair: Pair, running: Running, seconds: int) -> Sample:
    """One stream, and what the two processes spent on what it carried, the second that isn't counted included."""
    pids = (running.client_pid, running.server_pid)
    before = [cpu_seconds(pid) if pid else 0.0 for pid in pids]
    report = _iperf(pair, running, seconds, *_WARM_UP)
    after = [cpu_seconds(pid) if pid else 0.0 for pid in pids]
    gigabytes = sum(interval["sum"]["bytes"] for interval in report["intervals"]) / 1e9
    sample = {"tcp1": report["end"]["sum_received"]["bits_per_second"] / 1e6}
    for name, pid, start, end in zip(("cpu_out", "cpu_in"), pids, before, after, strict=True):
        if pid:
            sample[name] = (end - start) / gigabytes
    return sample


def _udp(pair: Pair, running: Running, seconds: int, name: str, size: int) -> Sample:
    """As fast as the sender can; the rate is what the receiver got.

    No second is left out first: UDP has no slow start, and iperf3 would count that second's losses all the same.
    """
    end = _iperf(pair, running, seconds, "-u", "-b", "0", "-l", str(size))["end"]["sum_received"]
    return {name: end["bits_per_second"] / 1e6, f"{name}_loss": end["lost_percent"]}


def _ping(pair: Pair, running: Running, name: str, seconds: float) -> Sample:
    count = int(seconds / PING_INTERVAL)
    argv = ["ping", "-i", str(PING_INTERVAL), "-W", "1", "-c", str(count), running.target]
    said = pair.client.run(argv, timeout=seconds + PATIENCE, check=False).stdout
    times = [float(each) for each in re.findall(r"time=([\d.]+) ms", said)]
    if len(times) < count / 2:
        raise TimeoutError(f"{count - len(times)} of {count} pings lost")
    return {name: median(times), f"{name}_p99": quantiles(times, n=100)[98]}


def _ping_under_load(pair: Pair, running: Running, seconds: int) -> Sample:
    """Pings while one TCP stream goes as fast as it can."""
    load = pair.client.popen(
        ["iperf3", "-c", running.target, "-t", str(seconds + 1)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.5)
    sample = _ping(pair, running, "loaded_ping", seconds - 0.5)
    load.wait(seconds + PATIENCE)
    return sample
