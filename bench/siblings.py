"""Whether the other hardware thread of each core, its sibling, is busy: samples of a native program, and shares."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

ROOT = Path(__file__).resolve().parents[1]
# A sibling counts as busy if a core does less per cycle than this part of what it does with a free one.
FREE = 0.9


@dataclass(frozen=True, slots=True)
class Sample:
    """What one core did at a moment.

    Attributes:
        at: Seconds of `time.monotonic`.
        core: Which one.
        operations: Independent ones per cycle.
        gigahertz: Its clock.
    """

    at: float
    core: int
    operations: float
    gigahertz: float


def parse(text: str) -> list[Sample]:
    """Return the samples in what the program has printed so far, without a last line that isn't whole."""
    lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [Sample(float(at), int(core), float(done), float(clock)) for at, core, done, clock in lines]


def figures(samples: Sequence[Sample], start: float, end: float) -> dict[str, float]:
    """Return for each core, and for all, the share of samples with a busy sibling; and the median clock in GHz.

    Only samples from `start` to `end` count; without any there are no figures. What a core does with a free sibling
    is taken from all its samples, near the best of them. The best hundredth, or one at least, is left out: an
    interrupt may have made them better than is possible.
    """
    here = [each for each in samples if start <= each.at <= end]
    busy: dict[int, float] = {}
    for core in sorted({each.core for each in here}):
        all_of_it = sorted(each.operations for each in samples if each.core == core)
        limit = FREE * all_of_it[-min(len(all_of_it), 2 + len(all_of_it) // 100)]
        busy[core] = fmean(each.operations < limit for each in here if each.core == core)
    if not busy:
        return {}
    shares = {f"sibling {core} busy": share for core, share in busy.items()}
    return shares | {"siblings busy": fmean(busy.values()), "clock": median(each.gigahertz for each in here)}


@dataclass(frozen=True, slots=True)
class Siblings:
    """The samples of a running program.

    Attributes:
        file: Where it writes them, None if it can't run here.
    """

    file: Path | None

    def figures(self, start: float, end: float) -> dict[str, float]:
        """Return the figures of the seconds from `start` to `end`, none without a program."""
        return figures(parse(self.file.read_text()), start, end) if self.file else {}


def why_not() -> str | None:
    """Return why the program can't run here, None if it can."""
    if platform.machine() != "x86_64":
        return "that is measured on x86-64 only"
    return None if shutil.which("cargo") else "there is no cargo"


@contextmanager
def watching(pause: int) -> Iterator[Siblings]:
    """Sample all cores every `pause` milliseconds, if the program can run here. A sample takes a core 0.14 ms."""
    program = None if why_not() else _built()
    if program is None:
        yield Siblings(None)
        return
    with tempfile.TemporaryDirectory(prefix="rustguard-bench-") as folder:
        file = Path(folder) / "samples"
        with file.open("w") as output:
            running = subprocess.Popen([program, str(pause)], stdout=output)
        try:
            yield Siblings(file)
        finally:
            running.terminate()
            running.wait(5)


def _built() -> Path | None:
    """Return the program, or None if it can't be built; then cargo has printed why."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / ".venv/cargo"))
    argv = ["cargo", "build", "--locked", "--release", "-q", "-p", "transport", "--example", "siblings"]
    env = {**os.environ, "CARGO_TARGET_DIR": str(target)}
    done = subprocess.run(argv, cwd=ROOT / "native", env=env, check=False)
    return None if done.returncode else target / "release/examples/siblings"
