"""Measure how long a sleeping process takes to wake, which is what a ping through a tunnel waits for.

One process sleeps in poll(2) on a pipe. Another writes the time to it, after a pause as long as between pings, in
which the cores fall idle. It prints the time from the write until the sleeper has read, in µs.

With `--tunnels` it measures the same between two threads without Python. Then it takes pings through tunnels in
turns: through null tunnels, which do nothing but wait, read and write, and through engines.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# What runs wireguard-go is shared with the tests. This is not the root: that would hide the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import null_tunnel
from engines import ENGINES, Engine
from links import Way, make_pair
from measures import PING_INTERVAL, measure

from rustguard_py.lab.hosts import Lab

PAUSE = PING_INTERVAL
TIME = struct.Struct("q")


def delays(times: int, writer: int, sleeper: int) -> list[float]:
    """Return the time that each of so many wake-ups took, in µs; the two processes stay on these cores."""
    readable, writable = os.pipe()
    results, results_writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writable)
        os.sched_setaffinity(0, {sleeper})
        _sleep(readable, results_writable)
    os.close(readable)
    os.close(results_writable)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {writer})
    taken = []
    try:
        for _ in range(times):
            time.sleep(PAUSE)
            os.write(writable, TIME.pack(time.monotonic_ns()))
            taken.append(TIME.unpack(os.read(results, TIME.size))[0] / 1000)
    finally:
        os.sched_setaffinity(0, allowed)
        for each in (writable, results):
            os.close(each)
        os.waitpid(child, 0)
    return taken


def _sleep(readable: int, results: int) -> None:
    """Send how long each wake-up took, until the other end is closed."""
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    while True:
        poll.poll()
        written = os.read(readable, TIME.size)
        now = time.monotonic_ns()
        if not written:
            os._exit(0)
        os.write(results, TIME.pack(now - TIME.unpack(written)[0]))


def engines(names: Sequence[str], core: int) -> dict[str, Engine]:
    """Return the bare link, null tunnels, two of them also on one core, and the engines with these names."""
    alone = {f"null, {layout}": null_tunnel.null_tunnel(layout) for layout in null_tunnel.LAYOUTS}
    pinned = {f"null, {layout}, one core": null_tunnel.null_tunnel(layout, core) for layout in ("answer", "one")}
    return {"veth": ENGINES["veth"], **alone, **pinned, **{name: ENGINES[name] for name in names}}


def pings(taken: dict[str, Engine], rounds: int) -> dict[str, list[float]]:
    """Return the median ping of each round, in ms."""
    medians: dict[str, list[float]] = {name: [] for name in taken}
    for turn in range(rounds):
        first = turn % len(taken)
        for name in [*list(taken)[first:], *list(taken)[:first]]:
            with tempfile.TemporaryDirectory(prefix="rustguard-waking-") as folder, Lab() as lab:
                pair = make_pair(lab, Way())
                running = taken[name].start(pair, Path(folder))
                sample = measure(pair, running, ["ping"], 1, lambda why: print(why, file=sys.stderr))
            medians[name] += [sample["ping"]] if sample else []
    return medians


def _print_delays(what: str, taken: list[float]) -> None:
    each = sorted(taken)
    print(f"{what}: median {statistics.median(each):.1f} µs, 95 % {each[int(0.95 * len(each))]:.1f} µs")


def main() -> None:
    """Print the delay on the writer's core and on another one, and the pings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=500, metavar="N", help="wake-ups of each kind (500)")
    parser.add_argument("--tunnels", action="store_true", help="threads and tunnels too (needs cargo and root)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each tunnel is measured (3)")
    parser.add_argument(
        "--engines", default="wireguard-go,native", metavar="A,B", help="besides null tunnels (wireguard-go,native)"
    )
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    where = list(zip(("same core", "another core"), cores, strict=False))
    for what, sleeper in where:
        _print_delays(what, delays(given.times, cores[0], sleeper))
    if not given.tunnels:
        return
    for what, sleeper in where:
        _print_delays(f"threads, {what}", null_tunnel.delays(given.times, cores[0], sleeper, PAUSE))
    for name, medians in pings(engines(given.engines.split(","), cores[0]), given.rounds).items():
        if medians:
            print(f"{name}: {statistics.median(medians):.3f} ms ({min(medians):.3f} to {max(medians):.3f})")


if __name__ == "__main__":
    main()
