"""Which unit tests reach which lines, by coverage's contexts, kept between runs.

A test file is run again only if it changed, and all of them if the code or what the tests share did.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "tests/unit"


@dataclass(frozen=True, slots=True)
class Reach:
    """What the tests reach.

    Attributes:
        seconds: Each test that passes, by its id, and how long it takes.
        lines: For each file below the package, the tests that run each of its lines.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]

    def tests(self, path: str, first: int, last: int, *, imported: bool) -> set[str]:
        """Return the tests that run a line from `first` to `last`.

        For lines that the import runs, these are the tests that run any line of the file, and for a file of such
        lines all tests: the import counts for whichever test comes first, if for any.
        """
        known = self.lines.get(path, {})
        lines = () if imported else range(first, last + 1)
        found = set().union(*(known.get(line, set()) for line in lines))
        return found or set().union(*known.values()) or set(self.seconds)


def measure(package: Path, kept: Path, workers: int) -> Reach:
    """Return what the unit tests reach in this copy of the package; `kept` holds what an earlier run found."""
    support = [path for path in sorted((ROOT / "tests").rglob("*.py")) if not path.is_relative_to(UNIT)]
    shared = _digest([*sorted(package.rglob("*.py")), *(path for path in support if "mutants" not in path.parts)])
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("shared") != shared:
        known = {"shared": shared, "files": {}}
    digests = {path.name: _digest([path]) for path in sorted(UNIT.glob("test_*.py"))}
    files = {name: each for name, each in known["files"].items() if digests.get(name) == each["digest"]}
    if missing := sorted(digests.keys() - files.keys()):
        print(f"Finding out which lines {len(missing)} test files reach", flush=True)
        found = _run(package, missing, workers)
        files |= {name: {"digest": digests[name], **found[name]} for name in missing}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"shared": shared, "files": files}))
    seconds = {test: taken for each in files.values() for test, taken in each["seconds"].items()}
    lines: dict[str, dict[int, set[str]]] = {}
    for each in files.values():
        for path, tests in each["lines"].items():
            for test, numbers in tests.items():
                for number in numbers if test in seconds else ():
                    lines.setdefault(path, {}).setdefault(number, set()).add(test)
    return Reach(seconds, lines)


def environment(package: Path) -> dict[str, str]:
    """Return the environment in which tests, and programs that they start, use this copy of the package."""
    places = [str(package.parent), str(ROOT / "tests")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Else the folder that `python -m pytest` begins in comes first, and that is the checkout.
        "PYTHONSAFEPATH": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _run(package: Path, names: list[str], workers: int) -> dict[str, dict[str, dict[str, object]]]:
    with tempfile.TemporaryDirectory() as folder:
        data, times = Path(folder) / "coverage", Path(folder) / "times"
        settings = Path(folder) / "settings"
        settings.write_text(f"[run]\ndata_file = {data}\n")
        subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "--tb=line",
                    "-p",
                    "mutants.plugin",
                    "-p",
                    "no:cacheprovider",
                ),
                *("-n", str(workers), f"--cov={package}", f"--cov-config={settings}", "--cov-context=test"),
                *("--cov-report=", *(f"tests/unit/{name}" for name in names)),
            ],
            cwd=ROOT,
            env={**environment(package), "MUTANTS_TIMES": str(times)},
            check=False,
            stdout=sys.stderr,
        )
        seconds: dict[str, float] = json.loads(times.read_text())
        coverage = CoverageData(str(data))
        coverage.read()
        found: dict[str, dict[str, dict[str, object]]] = {name: {"seconds": {}, "lines": {}} for name in names}
        for test, taken in seconds.items():
            found[_file(test)]["seconds"][test] = taken
        for path in coverage.measured_files():
            below = str(Path(path).relative_to(package))
            for number, contexts in coverage.contexts_by_lineno(path).items():
                for test in {context.rpartition("|")[0] for context in contexts if context}:
                    reached = found[_file(test)]["lines"].setdefault(below, {})
                    reached.setdefault(test, []).append(number)  # type: ignore[attr-defined]
        return found


def _file(test: str) -> str:
    return Path(test.partition("::")[0]).name


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
