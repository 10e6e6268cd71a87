"""Measure the engines side by side on this machine. `make bench` runs it.

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

from engines import ENGINES, make_pair
from measures import FAILURES, Sample, measure
from report import Results, describe_machine, others_seconds, print_tables, write
from rich.console import Console

from rustguard_py.lab import Lab
from support import machine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each engine is measured (3)")
    parser.add_argument("--seconds", type=int, default=3, metavar="N", help="of each transfer (3)")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"some of {','.join(ENGINES)} (all)")
    parser.add_argument(
        "--no-udp-segmentation",
        dest="udp_segmentation",
        action="store_false",
        help="have the links cut UDP messages, as most networks do; veth would pass them whole",
    )
    results = Path(__file__).with_name("results")
    parser.add_argument(
        "--output", type=Path, default=results, metavar="FOLDER", help="for the files (bench/results)"
    )
    given = parser.parse_args()
    given.engines = given.engines.split(",")
    if unknown := set(given.engines) - set(ENGINES):
        parser.error(f"no such engine: {', '.join(sorted(unknown))}")
    if given.rounds < 1 or given.seconds < 2:
        parser.error("at least 1 round of 2 seconds")
    return given


def _one(engine: str, seconds: int, failed: Callable[[str], None], *, udp_segmentation: bool) -> Sample:
    """Start an engine in fresh hosts, measure it once, end it."""
    with tempfile.TemporaryDirectory(prefix="rustguard-bench-") as folder, Lab() as lab:
        pair = make_pair(lab, udp_segmentation=udp_segmentation)
        running = ENGINES[engine](pair, Path(folder))
        return measure(pair, running, seconds, failed)


def _note(results: Results, said: Console, where: str, failure: str) -> None:
    results.failures.append(f"{where}: {failure}")
    said.print(f"failed: {failure}", highlight=False)


def main() -> int:
    """Run, print, write; 1 if anything failed."""
    given = _arguments()
    said = Console(stderr=True)
    about = {**describe_machine(), "wireguard-go": machine.wireguard_go_version()}
    options = {name: value for name, value in vars(given).items() if name != "output"}
    results = Results(options, about, {engine: [] for engine in given.engines})
    started = time.monotonic()
    for turn in range(given.rounds):
        first = turn % len(given.engines)
        for engine in given.engines[first:] + given.engines[:first]:
            said.print(f"round {turn + 1} of {given.rounds}: {engine}", highlight=False)
            failed = partial(_note, results, said, f"{engine}, round {turn + 1}")
            sample: Sample = {}
            before = time.monotonic(), others_seconds()
            try:
                sample = _one(engine, given.seconds, failed, udp_segmentation=given.udp_segmentation)
            except FAILURES as error:
                failed(str(error))
            results.samples[engine].append(sample)
            elapsed, taken = time.monotonic() - before[0], others_seconds() - before[1]
            results.others.append(taken / elapsed / results.machine["cores"])
    print_tables(results, Console(width=None if sys.stdout.isatty() else 118))
    for path in write(results, given.output):
        said.print(f"written: {path}", highlight=False)
    said.print(f"{time.monotonic() - started:.0f} s", highlight=False)
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
