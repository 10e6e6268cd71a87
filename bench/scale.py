"""What many peers cost a plane: throughput, CPU time, memory and a look-up, as the number of peers grows.

    scripts/in-namespace .venv/bin/python bench/scale.py [--rounds 9] [--seconds 2]

Two hosts, a plane in each, both with so many peers; one of the peers sends, or 64 do. `end.py` says how. Each
round has fresh tunnels, takes every number of peers under every load in an order of its own, and ratios are those of
one round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

# The tests' support: report.py needs it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from end import OTHER, address
from process import cpu_seconds
from report import describe_machine
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import Host, Lab
from rustguard_py.lab.stream import WARM_UP
from rustguard_py.model.counted import counted

HERE = Path(__file__).parent
ROOT = HERE.parent
STREAMS_PORT = 5202
MANY = 64
IDLE_PEERS = 10_000
# A round has to end before its sessions are due for new keys, which nobody makes here.
MAX_SECONDS = 5
COUNTS = {"native": (1, 10, 100, 1_000, 10_000), "portable": (1, 100, 10_000)}


@dataclass(frozen=True, slots=True)
class Load:
    """Who sends.

    Attributes:
        senders: How many peers.
        streams: How many TCP streams, spread over them.
    """

    senders: int
    streams: int

    def __str__(self) -> str:
        who = "one peer" if self.senders == 1 else f"{self.senders} peers"
        return f"{who}, {self.streams} stream{'s' if self.streams > 1 else ''}"


ONE, MANY_OF_ONE, MANY_OF_MANY = Load(1, 1), Load(1, MANY), Load(MANY, MANY)
# What each load is compared with: the same number of streams where only one peer is configured.
BASE = {ONE: ONE, MANY_OF_ONE: MANY_OF_ONE, MANY_OF_MANY: MANY_OF_ONE}


def _reply(end: subprocess.Popen[str]) -> dict[str, Any]:
    line = end.stdout.readline() if end.stdout else ""
    if not line:
        raise SystemExit("an end of the tunnel gave up; what it said is above")
    said: dict[str, Any] = json.loads(line)
    return said


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Two hosts with a plane in each.

    Attributes:
        hosts: `client` and `server`.
        ends: The process at either side.
    """

    hosts: dict[str, Host]
    ends: dict[str, subprocess.Popen[str]]


@contextmanager
def _tunnel(engine: str, peers: int) -> Iterator[Tunnel]:
    """Start a plane at either end, with sessions."""
    with Lab() as lab:
        hosts = {side: lab.host(side) for side in OTHER}
        here, there = lab.link(hosts["client"], hosts["server"], ipv4="192.0.2.0/24")
        active = min(peers, MANY)
        ends = {
            side: hosts[side].popen(
                [sys.executable, HERE / "end.py", engine, side, str(peers), str(active), str(other.ipv4)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for side, other in (("client", there), ("server", here))
        }
        indices = {side: _reply(end)["indices"] for side, end in ends.items()}
        # The server first: the client's keepalives then find their sessions.
        for side in ("server", "client"):
            _tell(ends[side], json.dumps(indices[OTHER[side]]))
            _reply(ends[side])
        yield Tunnel(hosts, ends)
        for end in ends.values():
            _tell(end, "")
            _reply(end)
            end.wait(10)


def _tell(end: subprocess.Popen[str], line: str) -> None:
    print(line, file=end.stdin, flush=True)


def _transfer(tunnel: Tunnel, load: Load, seconds: int) -> dict[str, float]:
    """Send from client to server; gives Mbit/s, and the CPU seconds of both planes a gigabyte."""
    hosts, ends = tunnel.hosts, tunnel.ends
    streams, port = HERE / "streams.py", str(STREAMS_PORT)
    taker = hosts["server"].popen(
        [sys.executable, streams, "take", port, str(load.streams), str(seconds)], stdout=subprocess.PIPE
    )
    hosts["server"].wait_listening("tcp", STREAMS_PORT)
    peers = [number % load.senders + 1 for number in range(load.streams)]
    ways = [f"{address('client', peer)}-{address('server', peer)}" for peer in peers]
    before = sum(cpu_seconds(end.pid) for end in ends.values())
    sender = hosts["client"].popen([sys.executable, streams, "send", port, *ways])
    said, _ = taker.communicate(timeout=seconds + 60)
    spent = sum(cpu_seconds(end.pid) for end in ends.values()) - before
    sender.wait(10)
    if taker.returncode:
        raise SystemExit(f"{load} of {len(ways)} streams failed")
    told = json.loads(said)
    figures: dict[str, float] = {name: told[name] for name in ("mbit", "least", "most")}
    # The rate of the seconds that count stands for the one before.
    figures["cpu"] = spent / (figures["mbit"] / 8e3 * (seconds + WARM_UP))
    return figures


def throughput(engine: str, rounds: int, seconds: int, said: Console) -> list[dict[str, Any]]:
    """Every number of peers under every load, in rounds; gives a row each.

    In a round all tunnels are there at once, so that what is compared is measured within seconds.
    """
    points = [(peers, load) for load in BASE for peers in COUNTS[engine] if peers >= load.senders]
    samples: dict[tuple[int, Load], list[dict[str, float]]] = {point: [] for point in points}
    for turn in range(rounds):
        with ExitStack() as stack:
            tunnels = {peers: stack.enter_context(_tunnel(engine, peers)) for peers in COUNTS[engine]}
            for peers, load in Random(turn).sample(points, len(points)):
                said.print(f"round {turn + 1} of {rounds}: {engine}, {peers:,} peers, {load}", highlight=False)
                samples[peers, load].append(_transfer(tunnels[peers], load, seconds))
    rows = []
    for peers, load in points:
        taken = samples[peers, load]
        base = samples[1, BASE[load]]
        row: dict[str, Any] = {"engine": engine, "peers": peers, "load": str(load), "samples": taken}
        for name in ("mbit", "cpu"):
            ratios = [one[name] / other[name] for one, other in zip(taken, base, strict=True)]
            row[name] = median(one[name] for one in taken)
            row[f"{name}_ratio"] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
        rows.append(row)
    return rows


def idle(engine: str, seconds: int) -> dict[str, float]:
    """Memory of an idle peer in bytes, and the share of a core that 10,000 idle ones take."""
    with Lab() as lab:
        argv: list[str | Path] = [sys.executable, HERE / "end.py", engine, "idle", str(IDLE_PEERS), str(seconds)]
        figures: dict[str, float] = json.loads(lab.host("idle").run(argv, timeout=120 + seconds).stdout)
        return figures


def look_ups() -> list[dict[str, Any]]:
    """Nanoseconds of a look-up in allowed-IPs, as the native plane does it; nothing without cargo."""
    if shutil.which("cargo") is None:
        return []
    argv = ["cargo", "run", "--locked", "--release", "-q", "-p", "transport", "--example", "allowed_ips"]
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / ".venv/cargo"))
    done = subprocess.run(
        argv, cwd=ROOT / "native", env={**os.environ, "CARGO_TARGET_DIR": target}, stdout=subprocess.PIPE, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _spread(three: dict[str, float]) -> str:
    return f"{three['median']:.2f}  {three['least']:.2f}..{three['most']:.2f}"


def print_tables(document: dict[str, Any], console: Console) -> None:
    """The figures, and ratios over those of one configured peer: median, least..most of the rounds."""
    what = document["machine"]
    console.print(
        f"{counted(what['cores'], 'core')} of {what['cpu']}, Linux {what['kernel']}, Python {what['python']}; "
        f"{counted(document['rounds'], 'round')} of {document['seconds']} s",
        highlight=False,
    )
    table = Table("engine", "who sends", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("peers", "Mbit/s", "÷ one peer's", "CPU s/GB", "÷ one peer's"):
        table.add_column(name, justify="right")
    for row in document["throughput"]:
        rates = [f"{row['mbit']:,.0f}", _spread(row["mbit_ratio"]), f"{row['cpu']:.2f}", _spread(row["cpu_ratio"])]
        table.add_row(row["engine"], row["load"], f"{row['peers']:,}", *rates)
    console.print(table)
    for engine, figures in document["idle"].items():
        console.print(
            f"{engine}: {figures['bytes_a_peer']:,.0f} bytes an idle peer (two networks, three sessions); "
            f"{figures['idle_cpu']:.2%} of a core with {figures['peers']:,} idle peers",
            highlight=False,
        )
    for row in document["look_ups"]:
        console.print(
            f"look-up among {row['prefixes']:,} prefixes, {row['name']}: "
            f"{median(row['ns']):.0f} ns ({min(row['ns']):.0f} to {max(row['ns']):.0f})",
            highlight=False,
        )


def main() -> None:
    """Measure, print, write."""
    engines = [engine for engine in COUNTS if engine != "native" or has_native()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="how often each point is measured (9)")
    parser.add_argument(
        "--seconds", type=int, default=2, metavar="N", help=f"of each transfer, 1 to {MAX_SECONDS} (2)"
    )
    parser.add_argument("--idle-seconds", type=int, default=10, metavar="N", help="to watch an idle plane (10)")
    parser.add_argument("--engines", default=",".join(engines), metavar="A,B", help=f"of {','.join(engines)} (all)")
    parser.add_argument("--output", type=Path, default=HERE / "results", metavar="FOLDER", help="(bench/results)")
    given = parser.parse_args()
    chosen = given.engines.split(",")
    if unknown := set(chosen) - set(engines):
        parser.error(f"not here: {', '.join(sorted(unknown))}")
    if not 1 <= given.seconds <= MAX_SECONDS:
        parser.error(f"--seconds is 1 to {MAX_SECONDS}, not {given.seconds}")
    said = Console(stderr=True)
    document = {
        "machine": describe_machine(),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "throughput": [row for each in chosen for row in throughput(each, given.rounds, given.seconds, said)],
        "idle": {each: idle(each, given.idle_seconds) for each in chosen},
        "look_ups": look_ups(),
    }
    print_tables(document, Console(width=None if sys.stdout.isatty() else 118))
    given.output.mkdir(parents=True, exist_ok=True)
    with (given.output / "scale.txt").open("w") as file:
        print_tables(document, Console(file=file, width=118))
    (given.output / "scale.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
