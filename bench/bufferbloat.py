"""What a tunnel adds to the round trip on a slow link that one TCP stream fills.

    scripts/in-namespace .venv/bin/python bench/bufferbloat.py [--rate MBIT] [--queue MS] [--rounds N]

Two hosts, and a token bucket (tc-tbf) each way: at the hosts' own interfaces, where a full queue is felt by the
sender's sockets, or at a router between them, which drops. In each round, every engine carries one TCP stream each
way in turn, while pings go to and fro.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

# What runs wireguard-go is shared with the tests; the engines use it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from engines import BEFORE, ENGINES, Running, add_before
from links import Pair, Way, make_pair
from measures import FAILURES
from report import BARE, REFERENCE
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from suites import able

from rustguard_py.lab.hosts import End, Lab
from rustguard_py.model.counted import counted

PLACES = ("own", "router")
WAYS = {"up": (), "down": ("-R",)}
# Seconds of the stream before the pings: slow start is over then.
_WARM_UP = 1.5
_PING_INTERVAL = 0.02
# Bytes that the bucket passes at once: a few packets, so a message of many segments is cut.
_BURST = 8_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What one stream had.

    Attributes:
        rate: Mbit/s.
        rtt: The median round trip during the stream, ms.
        rtt95: Its 95th percentile, ms.
    """

    rate: float
    rtt: float
    rtt95: float


# By place, way and engine, one a round.
Taken = dict[tuple[str, str, str], list[Figures]]


def narrow(end: End, rate: float, queue: float) -> None:
    """Have an interface send `rate` Mbit/s, and queue what takes `queue` ms to send."""
    shape = ["rate", f"{rate}mbit", "burst", str(_BURST), "latency", f"{queue}ms"]
    end.host.run(["tc", "qdisc", "add", "dev", end.interface, "root", "tbf", *shape])


def narrow_pair(lab: Lab, place: str, rate: float, queue: float) -> Pair:
    """Make two hosts and their narrow way. `place`: one of PLACES."""
    if place == "own":
        pair = make_pair(lab, Way())
        narrowed: Sequence[End] = (pair.here, pair.there)
    else:
        client, server = lab.host("client", own_run=True), lab.host("server", own_run=True)
        router = lab.host("router")
        here, *narrowed, there = lab.through(client, router, server, nets4=("192.0.2.0/25", "192.0.2.128/25"))
        pair = Pair(client, server, here, there, Way())
    for end in narrowed:
        narrow(end, rate, queue)
    return pair


def fill(pair: Pair, running: Running, seconds: float, congestion: str, *options: str) -> Figures:
    """Send one TCP stream, and pings meanwhile for `seconds`."""
    server = pair.server.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pair.server.wait_listening("tcp", 5201)
    duration = str(round(seconds + _WARM_UP + 0.5))
    argv = ["iperf3", "-J", "-c", running.target, "-t", duration, "-C", congestion, *options]
    stream = pair.client.popen(argv, stdout=subprocess.PIPE)
    time.sleep(_WARM_UP)
    count = str(int(seconds / _PING_INTERVAL))
    ping = ["ping", "-i", str(_PING_INTERVAL), "-W", "1", "-c", count, running.target]
    said = pair.client.run(ping, timeout=seconds + 15, check=False).stdout
    report = json.loads(stream.communicate(timeout=seconds + 15)[0])
    server.wait(5)
    times = [float(each) for each in re.findall(r"time=([\d.]+) ms", said)]
    rate = report["end"]["sum_received"]["bits_per_second"] / 1e6
    return Figures(rate, median(times), quantiles(times, n=20)[18])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, metavar="MBIT", help="of the link (100)")
    parser.add_argument("--queue", type=float, default=50.0, metavar="MS", help="how much its queue holds (50)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is measured (3)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="N", help="of each run of pings (3)")
    parser.add_argument("--congestion", default="cubic", metavar="NAME", help="TCP's congestion control (cubic)")
    parser.add_argument("--places", default=",".join(PLACES), metavar="A,B", help="own, router or both")
    parser.add_argument("--engines", default=f"{BARE},{REFERENCE},native", metavar="A,B")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="the native engine of another checkout too")
    given = parser.parse_args()
    if given.before is not None:
        add_before(given.before.absolute())
        given.engines += f",{BEFORE}"
    return given


def _measured(engine: str, place: str, given: argparse.Namespace) -> dict[str, Figures]:
    """Start an engine in fresh hosts; return the figures of each way."""
    with tempfile.TemporaryDirectory(prefix="rustguard-bench-") as folder, Lab() as lab:
        pair = narrow_pair(lab, place, given.rate, given.queue)
        running = ENGINES[engine].start(pair, Path(folder))
        return {way: fill(pair, running, given.seconds, given.congestion, *options) for way, options in WAYS.items()}


def _table(taken: Taken, given: argparse.Namespace) -> Table:
    table = Table(
        title=f"{given.rate:g} Mbit/s, a queue of {given.queue:g} ms, {counted(given.rounds, 'round')}",
        box=SIMPLE_HEAD,
    )
    for column in ("queue", "way", "engine", "RTT ms", "least to most", "95 %", "more than bare", "Mbit/s"):
        table.add_column(column)
    for (place, way, engine), figures in sorted(taken.items()):
        rtts = [each.rtt for each in figures]
        bare = median(each.rtt for each in taken.get((place, way, BARE), figures))
        row = (place, way, engine, f"{median(rtts):.1f}", f"{min(rtts):.1f} to {max(rtts):.1f}")
        more = (f"{median(each.rtt95 for each in figures):.1f}", f"{median(rtts) - bare:+.1f}")
        table.add_row(*row, *more, f"{median(each.rate for each in figures):.1f}")
    return table


def main() -> int:
    """Measure and print; 1 if anything failed."""
    given = _arguments()
    engines, skipped = able(given.engines.split(","))
    said, failed = Console(stderr=True), False
    for name, why in skipped.items():
        said.print(f"skipped: {name}: {why}", highlight=False)
    taken: Taken = {}
    for turn in range(given.rounds):
        first = turn % len(engines)
        for place in given.places.split(","):
            for engine in [*engines[first:], *engines[:first]]:
                try:
                    for way, figures in _measured(engine, place, given).items():
                        taken.setdefault((place, way, engine), []).append(figures)
                except FAILURES as error:
                    said.print(f"failed: {place}, {engine}: {error}", highlight=False)
                    failed = True
    Console(width=118).print(_table(taken, given))
    return 1 if failed or not taken else 0


if __name__ == "__main__":
    raise SystemExit(main())
