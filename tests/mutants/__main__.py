"""Count the mutants that the unit tests notice, room by room.

Usage: make mutants; MUTANTS_ARGS="--rooms enroll/server --seed 7" chooses rooms and other mutants
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from mutants.generate import Candidate, Mutant, candidates_of, choose
from mutants.reach import ROOT, Reach, measure
from mutants.trial import is_noticed, warm_up

ACCEPTED = Path(__file__).with_name("accepted.toml")
PACKAGE = "rustguard_py"
ROOMS = (
    *("enroll", "enroll/server", "enroll/client", "enroll/pairing", "enroll/tunnels"),
    *("daemon", "daemon/control", "daemon/uapi", "state"),
    *(".", "protocol", "planes", "system", "kernel", "model"),
)
SEED, NUMBER, SHARE = 20261126, 30, 90


@dataclass(slots=True)
class Result:
    """What came of a room's mutants.

    Attributes:
        noticed: A test fails.
        same: They change nothing that anybody could notice, as the list says.
        survived: No test fails.
    """

    noticed: list[Mutant] = field(default_factory=list)
    same: list[Mutant] = field(default_factory=list)
    survived: list[Mutant] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Noticed ones, in percent of those that change something."""
        return 100 * len(self.noticed) / (len(self.noticed) + len(self.survived) or 1)


def main() -> int:
    """Run it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make mutants", description="Count the mutants that the unit tests notice.")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS, metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--seed", type=int, default=SEED, help="equal seeds give equal mutants (%(default)s)")
    parser.add_argument("--number", type=int, default=NUMBER, help="mutants per room (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the mutants, and run nothing")
    options = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [_copy(Path(folder) / str(number)) for number in range(options.jobs)]
        if options.list:
            for mutant in (each for room in options.rooms for each in _mutants(copies[0], room, options)):
                print(mutant.diff((copies[0] / mutant.path).read_text()))
            return 0
        reach = measure(copies[0], ROOT / ".venv/mutants.json", options.jobs)
        print(f"seed {options.seed}, {options.number} mutants per room, {len(reach.seconds)} tests", flush=True)
        return _judge(copies, reach, options)


def _judge(copies: list[Path], reach: Reach, options: argparse.Namespace) -> int:
    accepted = {(each["path"], each["function"], each["before"], each["after"]): each for each in _accepted()}
    results: dict[str, Result] = {}
    for room in options.rooms:
        began = time.monotonic()
        mutants = _mutants(copies[0], room, options)
        result = results[room] = Result()
        # While others are tried, a copy may hold another one.
        originals = {each.path: (copies[0] / each.path).read_text() for each in mutants}
        # Else a test that fails by itself would notice everything.
        if is_noticed(copies[0], replace(mutants[0], code=originals[mutants[0].path]), reach):
            raise RuntimeError(f"the tests fail without a mutant:\n{(copies[0].parent / 'log').read_text()}")
        for mutant, noticed in _tried(copies, reach, mutants):
            entry = accepted.get(mutant.key)
            if noticed:
                result.noticed.append(mutant)
            elif entry is not None and entry["same"]:
                result.same.append(mutant)
            else:
                result.survived.append(mutant)
                if entry is None:
                    print(mutant.diff(originals[mutant.path]), flush=True)
                    print(f"# {mutant.function}: {mutant.before!r} -> {mutant.after!r}\n", flush=True)
        print(f"{room}: {result.share:.0f} % in {time.monotonic() - began:.0f} s", flush=True)
    print("\n| room | made | noticed | the same | survived | share |\n|---|---|---|---|---|---|")
    for room, each in results.items():
        counts = [len(each.noticed), len(each.same), len(each.survived)]
        name = "rustguard_py" if room == "." else room
        print(f"| {name} | {sum(counts)} | {' | '.join(map(str, counts))} | {each.share:.0f} % |")
    if short := [room for room, each in results.items() if each.share < SHARE]:
        print(f"\nLess than {SHARE} % noticed: {', '.join(short)}", file=sys.stderr)
        return 1
    return 0


def _tried(copies: list[Path], reach: Reach, mutants: list[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def run(mutant: Mutant) -> bool:
        copy = free.get()
        try:
            return is_noticed(copy, mutant, reach)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as workers:
        yield from zip(mutants, workers.map(run, mutants), strict=True)


def _mutants(package: Path, room: str, options: argparse.Namespace) -> list[Mutant]:
    candidates: list[Candidate] = []
    for path in sorted((package / room).glob("*.py")):
        candidates += candidates_of(str(path.relative_to(package)), path.read_text())
    return choose(candidates, options.number, f"{options.seed} {room}")


def _copy(folder: Path) -> Path:
    """Return a copy of the package, compiled, that mutants are written into."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    copy = folder / PACKAGE
    shutil.copytree(Path(spec.origin).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(copy, quiet=2)
    return copy


def _accepted() -> list[dict[str, str]]:
    return tomllib.loads(ACCEPTED.read_text()).get("survivor", []) if ACCEPTED.exists() else []


if __name__ == "__main__":
    sys.exit(main())
