"""What slow runs of one TCP stream have in common: many short runs, and what the scheduler did with each thread.

    scripts/in-namespace .venv/bin/python bench/scheduling.py [--runs N] [--seconds N] [--engines A,B]

Every run is one iperf3 stream through a pair of hosts that all runs of an engine share. Meanwhile it samples from
/proc which core each of the six busy threads is on; before and after, it reads the scheduler's counts of each. Every
run is preceded by loops of hashing and copying, which tell how fast the machine is just then. All the time, another
program samples whether the other hardware thread of each core is busy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

# What runs wireguard-go is shared with the tests; the engines use it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from engines import BEFORE, ENGINES, Running, add_before
from links import Pair, Way, make_pair
from siblings import Siblings, watching, why_not
from suites import able

from rustguard_py.lab.hosts import Lab

# Between two samples of the threads' cores.
PAUSE = 0.01
# Of each loop that measures the machine.
PROBE_SECONDS = 0.04
# Milliseconds between two samples of a core's sibling. They take 1.4 % of the core.
SIBLING_PAUSE = 10
_BLOCK = bytes(1 << 18)
# The threads that carry the stream, besides iperf3's: the names the scheduler knows, of the client and the server.
CLIENT, SERVER = ("rg-out-0", "rg-in-0"), ("rg-in-0", "rg-out-0")


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of the path: what it is called in tables, and its folder in /proc."""

    name: str
    folder: Path

    def core(self) -> int | None:
        """Return the core it runs on or waits for, None if it sleeps."""
        words = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return int(words[36]) if words[0] == "R" else None

    def counts(self) -> dict[str, float]:
        """Return what the scheduler counted of it so far, times in seconds."""
        ran, waited, _ = map(int, (self.folder / "schedstat").read_text().split())
        said = dict(line.split(":", 1) for line in (self.folder / "status").read_text().splitlines())
        counts = {
            "ran": ran / 1e9,
            "waited": waited / 1e9,
            "slept": float(said["voluntary_ctxt_switches"]),
            "pushed": float(said["nonvoluntary_ctxt_switches"]),
        }
        # Only some kernels tell it.
        if (detail := self.folder / "sched").exists():
            lines = [line for line in detail.read_text().splitlines() if "nr_migrations" in line]
            counts["moves"] = float(lines[0].rpartition(":")[2]) if lines else 0.0
        return counts


@dataclass(slots=True)
class Watch:
    """Samples which core each of some threads is on, until it is stopped."""

    threads: list[Thread]
    seen: list[dict[str, int | None]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Sample."""
        while not self.ended.wait(PAUSE):
            try:
                self.seen.append({thread.name: thread.core() for thread in self.threads})
            except (FileNotFoundError, ProcessLookupError):
                return

    def together(self, one: str, other: str) -> float:
        """Return the share of samples in which both wanted to run and had the same core."""
        both = [(each[one], each[other]) for each in self.seen]
        return sum(a is not None and a == b for a, b in both) / max(1, len(both))

    def home(self, name: str) -> float:
        """Return the share of samples on the core where the thread was most often."""
        cores = Counter(core for each in self.seen if (core := each[name]) is not None)
        return max(cores.values(), default=0) / max(1, cores.total())


def _threads(pid: int, names: tuple[str, ...], whose: str) -> Iterator[Thread]:
    for folder in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
        name = (folder / "comm").read_text().strip()
        if name in names:
            yield Thread(f"{whose} {name.removeprefix('rg-').removesuffix('-0')}", folder)


def _machine_counts() -> dict[str, float]:
    """Return the seconds that all cores together spent so far: niced programs, idle, taken by a host, ksoftirqd."""
    _, _, nice, _, idle, wait, _, _, stolen, *_ = Path("/proc/stat").read_text().split()
    tick = os.sysconf("SC_CLK_TCK")
    counts = {"niced": int(nice) / tick, "idle": (int(idle) + int(wait)) / tick, "stolen": int(stolen) / tick}
    return counts | {"ksoftirqd": _ksoftirqd()}


def _ksoftirqd() -> float:
    """Return the seconds that the kernel's threads for deferred network work ran so far, on all cores together."""
    names = [f"ksoftirqd/{core}" for core in range(os.cpu_count() or 1)]
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text().strip() in names:
                total += int((folder / "schedstat").read_text().split()[0]) / 1e9
    return total


def _rate(work: Callable[[], int]) -> float:
    """Return what `work` gets done per second, by the bytes it returns, in GB/s."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < PROBE_SECONDS:
        done += work()
    return done / (time.perf_counter() - start) / 1e9


def _hash() -> int:
    hashlib.blake2b(_BLOCK)
    return len(_BLOCK)


def _copying(size: int) -> Callable[[], int]:
    source, target = memoryview(bytes(size)), memoryview(bytearray(size))

    def work() -> int:
        target[:] = source
        return size

    work()  # so that it counts no page faults
    return work


def machine_speed() -> dict[str, float]:
    """Return GB/s: hashing on all cores at once, and copying on one, within the cache and beyond it."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        hashed: list[float] = list(pool.map(_rate, [_hash] * cores))
    return {"hash": sum(hashed), "copy 2 MB": _rate(_copying(1 << 21)), "copy 64 MB": _rate(_copying(1 << 26))}


@contextmanager
def _watched(threads: list[Thread]) -> Iterator[Watch]:
    watch = Watch(threads)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join()


def _stream_figures(report: dict[str, Any]) -> dict[str, float]:
    """Return the rate in Mbit/s, and what iperf3 read of the sender's TCP: retransmits a second, KB, ms."""
    sender = report["end"]["streams"][0]["sender"]
    return {
        "rate": report["end"]["sum_received"]["bits_per_second"] / 1e6,
        "retransmits": sender["retransmits"] / sender["seconds"],
        "window": sender["max_snd_cwnd"] / 1e3,
        "round trip": sender["mean_rtt"] / 1e3,
    }


def one_run(pair: Pair, running: Running, seconds: int, siblings: Siblings) -> dict[str, float]:
    """Return the rate of a stream in Mbit/s, and what the scheduler did with each thread."""
    idle = time.monotonic()
    figures = machine_speed()
    figures |= {f"{what} before": value for what, value in siblings.figures(idle, time.monotonic()).items()}
    server = pair.server.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    pair.server.wait_listening("tcp", 5201)
    argv = ["iperf3", "-J", "-c", running.target, "-t", str(seconds), "-O", "1"]
    client = pair.client.popen(argv, stdout=subprocess.PIPE)
    time.sleep(1.1)
    threads = [
        Thread("iperf out", Path(f"/proc/{client.pid}/task/{client.pid}")),
        Thread("iperf in", Path(f"/proc/{server.pid}/task/{server.pid}")),
    ]
    for pid, names, whose in ((running.client_pid, CLIENT, "client"), (running.server_pid, SERVER, "server")):
        threads += _threads(pid, names, whose) if pid else []
    before, start, machine = [thread.counts() for thread in threads], time.monotonic(), _machine_counts()
    with _watched(threads) as watch:
        time.sleep(seconds - 0.2)
        after = [thread.counts() for thread in threads]
        elapsed = time.monotonic() - start
        figures |= {what: (late - machine[what]) / elapsed for what, late in _machine_counts().items()}
    figures |= siblings.figures(start, start + elapsed)
    report, _ = client.communicate(timeout=20)
    server.wait(10)
    figures |= _stream_figures(json.loads(report))
    for thread, early, late in zip(threads, before, after, strict=True):
        figures |= {f"{thread.name} {what}": (late[what] - early[what]) / elapsed for what in early}
        figures[f"{thread.name} home"] = watch.home(thread.name)
    for one, other in combinations([thread.name for thread in threads[2:]], 2):
        figures[f"{one} with {other}"] = watch.together(one, other)
    figures |= _costs(figures)
    return figures


def _costs(figures: dict[str, float]) -> dict[str, float]:
    """Return CPU seconds per gigabyte of the path's parts, and the time of all cores that went to anything else."""
    ran = {name.removesuffix(" ran"): value for name, value in figures.items() if name.endswith(" ran")}
    parts = {
        "s/GB out": ("client out",),
        "s/GB in": ("server in",),
        "s/GB acknowledging": ("client in", "server out"),
        "s/GB iperf3": ("iperf out", "iperf in"),
    }
    gigabytes = figures["rate"] / 8e3
    costs = {what: sum(ran.get(name, 0.0) for name in names) / gigabytes for what, names in parts.items()}
    known = sum(ran.values()) + figures["idle"] + figures["stolen"] + figures["ksoftirqd"]
    return costs | {"others": (os.cpu_count() or 1) - known}


def _ranks(values: list[float]) -> list[float]:
    order = sorted(values)
    return [(order.index(value) + len(order) - 1 - order[::-1].index(value)) / 2 for value in values]


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Return Spearman's rank correlation of two series, 0 if one never changes."""
    a, b = _ranks(one), _ranks(other)
    middle = (len(a) - 1) / 2
    spread = (sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)) ** 0.5
    return sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True)) / spread if spread else 0.0


def print_engine(engine: str, runs: list[dict[str, float]]) -> None:
    """Print the rates, and each figure in the slow and in the fast runs; first what goes with the rate most."""
    rates = [run["rate"] for run in runs]
    worst, best, middle = min(rates), max(rates), median(rates)
    print(f"\n{engine}, Mbit/s of {len(runs)} runs in their order: {' '.join(f'{rate:.0f}' for rate in rates)}")
    print(f"median {middle:.0f}, worst ÷ median {worst / middle:.2f}, best ÷ median {best / middle:.2f}")
    ordered = sorted(runs, key=lambda run: run["rate"])
    part = max(1, len(runs) // 3)
    slow, fast = ordered[:part], ordered[-part:]
    with_rate = {name: rank_correlation(rates, [run[name] for run in runs]) for name in runs[0] if name != "rate"}
    print(f"{'':32}{'slow third':>12}{'fast third':>12}{'correlation':>12}")
    for name in sorted(with_rate, key=lambda name: -abs(with_rate[name])):
        here = [median(run[name] for run in some) for some in (slow, fast)]
        print(f"{name:32}{here[0]:12.4g}{here[1]:12.4g}{with_rate[name]:12.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, metavar="N", help="of each engine (12)")
    parser.add_argument("--seconds", type=int, default=1, metavar="N", help="of each run (1)")
    parser.add_argument("--engines", default="native", metavar="A,B", help=f"some of {', '.join(ENGINES)} (native)")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help=f"another checkout's, as `{BEFORE}`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for all figures of all runs")
    given = parser.parse_args()
    given.engines = given.engines.split(",")
    if given.before:
        add_before(given.before.absolute())
        given.engines.insert(0, BEFORE)
    if unknown := set(given.engines) - set(ENGINES):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(ENGINES)}")
    if given.runs < 2 or given.seconds < 1:
        parser.error("at least 2 runs of 1 second")
    return given


def main() -> int:
    """Measure the engines in turns and print; 1 if none can run here."""
    given = _arguments()
    engines, skipped = able(given.engines)
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}", file=sys.stderr)
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    if (missing := why_not()) is not None:
        print(f"skipped: whether the cores' siblings are busy: {missing}", file=sys.stderr)
    with ExitStack() as stack:
        siblings = stack.enter_context(watching(SIBLING_PAUSE))
        pairs = {}
        for engine in engines:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rustguard-bench-")))
            pair = make_pair(stack.enter_context(Lab()), Way())
            pairs[engine] = pair, ENGINES[engine].start(pair, folder)
        for turn in range(given.runs):
            first = turn % max(1, len(engines))
            for engine in [*engines[first:], *engines[:first]]:
                runs[engine].append(one_run(*pairs[engine], given.seconds, siblings))
    for engine in engines:
        print_engine(engine, runs[engine])
    if given.json:
        given.json.write_text(json.dumps(runs, indent=1))
    return 0 if engines else 1


if __name__ == "__main__":
    raise SystemExit(main())
