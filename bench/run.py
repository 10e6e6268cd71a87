"""Measure the engines side by side on this machine. `make bench` runs it, `make bench-full` with --suite full.

Every round takes each engine in turn, starting with another one each time: it starts, every figure is taken
once, it ends. The machine's drift falls on all alike, and only ratios within a run mean something.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# What runs wireguard-go is shared with the tests. This is not the root: that would hide the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from engines import BEFORE, ENGINES, USUAL, add_before
from links import Way, make_pair
from measures import FAILURES, STEPS, Sample, measure
from report import Results, describe_machine, others_seconds, print_tables, write
from rich.console import Console
from siblings import Siblings, watching, why_not
from suites import Table, able, full

from rustguard_py.lab.hosts import Lab

# Milliseconds between two samples of a core's sibling. They take 0.1 % of the core, so that no figure changes.
SIBLING_PAUSE = 100


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each engine is measured (3)")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="of each transfer (2)")
    parser.add_argument("--engines", metavar="A,B", help=f"all, or some of {', '.join(ENGINES)} ({','.join(USUAL)})")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help=f"the native engine of another checkout too, as `{BEFORE}`; ratios are over it",
    )
    parser.add_argument("--steps", metavar="A,B", help=f"some of {', '.join(STEPS)} (all)")
    parser.add_argument(
        "--no-udp-segmentation",
        dest="udp_segmentation",
        action="store_false",
        help="have the links cut UDP messages, as most networks do; veth would pass them whole",
    )
    parser.add_argument("--ipv6", action="store_true", help="IPv6 outside and inside the tunnel")
    parser.add_argument(
        "--loss", type=float, default=0.0, metavar="PERCENT", help="through a router that loses as much each way"
    )
    parser.add_argument(
        "--suite",
        choices=["full"],
        help="all engines with all steps, and four tables in one run: as it is, no UDP segmentation, IPv6, 1 %% loss",
    )
    parser.add_argument("--list", action="store_true", help="the engines, and why one can't run here; then end")
    results = Path(__file__).with_name("results")
    parser.add_argument(
        "--output", type=Path, default=results, metavar="FOLDER", help="for the files (bench/results)"
    )
    given = parser.parse_args()
    usual = "all" if given.suite else ",".join(USUAL)
    if given.before is not None:
        add_before(given.before.absolute())
        usual = f"{BEFORE},native"
    given.engines = _chosen(parser, given.engines or usual, list(ENGINES))
    if given.before is not None and BEFORE not in given.engines:
        given.engines.insert(0, BEFORE)
    given.steps = _chosen(parser, given.steps or "all", list(STEPS))
    if given.rounds < 1 or given.seconds < 1 or not 0 <= given.loss < 100:
        parser.error("at least 1 round of 1 second, and a loss of 0 to 100 %")
    return given


def _chosen(parser: argparse.ArgumentParser, text: str, known: list[str]) -> list[str]:
    names = known if text == "all" else text.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return names


def _tables(given: argparse.Namespace, engines: list[str]) -> list[Table]:
    if given.suite:
        return full(engines)
    return [Table(Way(given.udp_segmentation, given.ipv6, given.loss / 100), engines, given.steps)]


def _one(engine: str, table: Table, seconds: int, failed: Callable[[str], None]) -> Sample:
    """Start an engine in fresh hosts, measure it once, end it."""
    with tempfile.TemporaryDirectory(prefix="rustguard-bench-") as folder, Lab() as lab:
        pair = make_pair(lab, table.way)
        running = ENGINES[engine].start(pair, Path(folder))
        return measure(pair, running, table.steps, seconds, failed)


def _note(results: Results, said: Console, where: str, failure: str) -> None:
    results.failures.append(f"{where}: {failure}")
    said.print(f"failed: {failure}", highlight=False)


def _measured(
    table: Table, rounds: int, seconds: int, skipped: dict[str, str], said: Console, siblings: Siblings
) -> Results:
    """Take a table's rounds."""
    samples: dict[str, list[Sample]] = {engine: [] for engine in table.engines}
    results = Results(table.way, rounds, seconds, describe_machine(), samples, skipped)
    for turn in range(rounds):
        first = turn % len(table.engines)
        for engine in [*table.engines[first:], *table.engines[:first]]:
            said.print(f"round {turn + 1} of {rounds}: {engine}", highlight=False)
            failed = partial(_note, results, said, f"{engine}, round {turn + 1}")
            sample: Sample = {}
            before = time.monotonic(), others_seconds()
            try:
                sample = _one(engine, table, seconds, failed)
            except FAILURES as error:
                failed(str(error))
            results.samples[engine].append(sample)
            now = time.monotonic()
            taken = others_seconds() - before[1]
            results.others.append(taken / (now - before[0]) / results.machine["cores"])
            results.siblings.append(siblings.figures(before[0], now).get("siblings busy"))
    return results


def main() -> int:
    """Run, print, write; 1 if anything failed."""
    given = _arguments()
    said = Console(stderr=True)
    if given.list:
        for name, engine in ENGINES.items():
            why = engine.why_not()
            print(f"{name:15} {engine.about}{f'; not here: {why}' if why else ''}")
        return 0
    engines, skipped = able(given.engines)
    for name, why in skipped.items():
        said.print(f"skipped: {name}: {why}", highlight=False)
    if not engines:
        return 1
    tables = _tables(given, engines)
    minutes = sum(table.estimate(given.rounds, given.seconds) for table in tables) / 60
    said.print(f"This takes about {minutes:.0f} minutes.", highlight=False)
    if (missing := why_not()) is not None:
        said.print(f"skipped: whether the cores' siblings are busy: {missing}", highlight=False)
    started, failed = time.monotonic(), False
    for table in tables:
        said.print(str(table.way), highlight=False)
        with watching(SIBLING_PAUSE) as siblings:
            results = _measured(table, given.rounds, given.seconds, skipped, said, siblings)
        print_tables(results, Console(width=None if sys.stdout.isatty() else 118))
        for path in write(results, given.output):
            said.print(f"written: {path}", highlight=False)
        failed = failed or bool(results.failures)
    said.print(f"{time.monotonic() - started:.0f} s", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
