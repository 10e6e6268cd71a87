"""The results: a table, JSON, and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from engines import BEFORE
from links import Way
from measures import MEASURES, Sample
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rustguard_py.model.counted import counted
from support import machine

REFERENCE = "wireguard-go"
BARE = "veth"
# RustGuard's own are C0.
_COLOURS = {BARE: "0.85", REFERENCE: "C1", "gotatun": "0.65", "boringtun": "0.65", "portable": "C9"}
# Others that take more of the machine's cores than this, in any turn, make a run worth little.
BUSY = 0.1
SCHEMA = 2
# Side by side in one table: what fits beside the engines' names, with its spread.
_GROUPS = (
    ("tcp1", "tcp4", "tcp1r", "tcp4r"),
    ("udp1372", "udp1372_loss", "udp64", "udp64_loss"),
    ("ping", "ping_p99", "loaded_ping", "loaded_ping_p99"),
    ("cpu_out", "cpu_in"),
)


@dataclass(slots=True)
class Results:
    """A table's run.

    Attributes:
        way: What lay between the hosts.
        rounds: How many.
        seconds: Of each transfer.
        machine: What it ran on.
        samples: By engine, one a round, in order; a measurement that failed is missing in its sample.
        skipped: Engines that can't run here, and why.
        failures: What failed, a sentence each.
        others: The share of all cores that programs of others took, by turn.
        siblings: The share of the time in which the cores' other hardware threads were busy, by turn; None where
            that wasn't measured.
    """

    way: Way
    rounds: int
    seconds: int
    machine: dict[str, Any]
    samples: dict[str, list[Sample]]
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    siblings: list[float | None] = field(default_factory=list)

    def values(self, engine: str, name: str) -> list[float]:
        """What an engine had, by round."""
        return [sample[name] for sample in self.samples.get(engine, []) if name in sample]

    @property
    def reference(self) -> str:
        """The engine that ratios are over: another checkout's if it was measured, wireguard-go otherwise."""
        return BEFORE if BEFORE in self.samples else REFERENCE

    def ratios(self, engine: str, name: str) -> list[float]:
        """An engine's values over the reference's of the same round."""
        pairs = zip(self.samples.get(engine, []), self.samples.get(self.reference, []), strict=False)
        return [own[name] / other[name] for own, other in pairs if name in own and other.get(name)]


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpus = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": len(cpus),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "wireguard-go": machine.wireguard_go_version(),
    }


def others_seconds() -> float:
    """CPU seconds that this machine spent so far on anything but us and the programs that we ran to their end."""
    user, nice, system, _, _, *interrupts_and_stolen = map(int, _lines("/proc/stat")[0].split()[1:9])
    all_busy = (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")
    return all_busy - sum(os.times()[:4])


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _three(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": median(values), "least": min(values), "most": max(values)} if values else None


def _spread(values: Sequence[float], digits: int) -> str:
    """The median, and how far the rounds lay apart."""
    if not values:
        return "-"
    middle, low, high = (f"{each:,.{digits}f}" for each in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle}  {low}..{high}"


def _table(results: Results, names: Sequence[str], engines: Sequence[str], *, ratios: bool) -> Table | None:
    """A row an engine, a column a measure; None where nothing was measured."""
    read = results.ratios if ratios else results.values
    shown = [name for name in names if any(read(engine, name) for engine in engines)]
    if not shown:
        return None
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"÷ {results.reference}" if ratios else "", no_wrap=True)
    for name in shown:
        about = MEASURES[name]
        table.add_column(about.title if ratios else f"{about.title}, {about.unit}", justify="right", no_wrap=True)
    for engine in engines:
        cells = [_spread(read(engine, name), 2 if ratios else MEASURES[name].digits) for name in shown]
        table.add_row(engine, *cells)
    return table


def _headline(results: Results) -> str:
    what = results.machine
    rounds = counted(results.rounds, "round")
    return (
        f"{counted(what['cores'], 'core')} of {what['cpu']}, Linux {what['kernel']}, Python {what['python']}, "
        f"{what['wireguard-go']}\n{rounds} of {results.seconds} s, MTU 1420; {results.way}"
        + (f"; BUSY: others took up to {max(results.others):.0%} of the cores" if max(results.others) > BUSY else "")
        + _about_siblings(results)
    )


def _about_siblings(results: Results) -> str:
    shares = [share for share in results.siblings if share is not None]
    if not shares:
        return ""
    return (
        f"\nThe cores' siblings were busy {median(shares):.0%} of the time, "
        f"{min(shares):.0%} in the quietest turn and {max(shares):.0%} in the busiest"
    )


def print_tables(results: Results, console: Console) -> None:
    """The figures, then the ratios: median, and least..most of the rounds."""
    engines = list(results.samples)
    console.print(_headline(results), highlight=False)
    console.print("\nMedians, and least..most of the rounds")
    for names in _GROUPS:
        if table := _table(results, names, engines, ratios=False):
            console.print(table)
    others = [engine for engine in engines if engine != results.reference]
    if results.reference in engines and others:
        console.print(
            f"Over {results.reference}'s of the same round: median, least..most (ping and CPU: less is better)"
        )
        for names in _GROUPS:
            if table := _table(results, [each for each in names if not each.endswith("_loss")], others, ratios=True):
                console.print(table)
    for engine, why in results.skipped.items():
        console.print(f"skipped: {engine}: {why}", highlight=False)
    for failure in results.failures:
        console.print(f"failed: {failure}", highlight=False)


def write(results: Results, folder: Path) -> list[Path]:
    """Write what `print_tables` prints, the samples as JSON, and the plot; gives the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = results.way.stem
    text, data = folder / f"{stem}.txt", folder / f"{stem}.json"
    with text.open("w") as file:
        print_tables(results, Console(file=file, width=118))
    summary = {
        engine: {
            name: {
                **(_three(values) or {}),
                "ratio": _three(results.ratios(engine, name)),
            }
            for name in MEASURES
            if (values := results.values(engine, name))
        }
        for engine in results.samples
    }
    data.write_text(json.dumps({"schema": SCHEMA, **asdict(results), "summary": summary}, indent=1) + "\n")
    return [text, data, *_plot(results, folder / stem)]


def _plot(results: Results, stem: Path) -> list[Path]:
    """A panel a measure, a bar an engine: the median, with a line from the least to the most."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot

    rates = [name for name in MEASURES if not name.endswith("_loss")]
    names = [name for name in rates if any(results.values(engine, name) for engine in results.samples)]
    engines = list(results.samples)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    size = 4.0 * columns, (0.8 + 0.21 * len(engines)) * rows + 0.5
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(_headline(results), fontsize=9)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, names, strict=False):
        about = MEASURES[name]
        panel.set_title(f"{about.title}, {about.unit}", fontsize=9)
        here = [engine for engine in engines if results.values(engine, name)]
        # The bare link would leave the tunnels a corner: its bar is cut, its figure stands.
        tunnels = [max(results.values(engine, name)) for engine in here if engine != BARE]
        limit = 1.45 * max(tunnels or results.values(BARE, name)) or 1.0
        for place, engine in enumerate(here):
            values, ratios = results.values(engine, name), results.ratios(engine, name)
            middle = median(values)
            reach = [[middle - min(values)], [max(values) - middle]]
            panel.barh(place, middle, xerr=reach, color=_COLOURS.get(engine, "C0"), ecolor="0.25", height=0.7)
            times = (
                f"  \N{MULTIPLICATION SIGN} {median(ratios):.2f}"
                if ratios and engine not in (BARE, results.reference)
                else ""
            )
            panel.annotate(
                f" {middle:,.{about.digits}f}{times}",
                (min(max(values), 0.7 * limit), place),
                va="center",
                fontsize=7,
                annotation_clip=False,
            )
        panel.set_xlim(0, limit)
        panel.set_yticks(range(len(here)), here, fontsize=7)
        panel.invert_yaxis()
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    written = [stem.with_suffix(suffix) for suffix in (".svg", ".png")]
    for path in written:
        figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return written
