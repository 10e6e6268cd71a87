"""What came out: a table, JSON, and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from measures import MEASURES, Sample
from rich.console import Console
from rich.table import Table

REFERENCE = "wireguard-go"
# Others that take more of the machine's cores than this, in any turn, make a run worth little.
BUSY = 0.1
SCHEMA = 1


@dataclass(slots=True)
class Results:
    """A run.

    Attributes:
        options: What it was asked for.
        machine: What it ran on.
        samples: By engine, one a round, in order; a measurement that failed is missing in its sample.
        failures: What failed, a sentence each.
        others: The share of all cores that programs of others took, by turn.
    """

    options: dict[str, Any]
    machine: dict[str, Any]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def values(self, engine: str, name: str) -> list[float]:
        """What an engine had, by round."""
        return [sample[name] for sample in self.samples.get(engine, []) if name in sample]

    def ratios(self, engine: str, name: str) -> list[float]:
        """An engine's values over wireguard-go's of the same round."""
        pairs = zip(self.samples.get(engine, []), self.samples.get(REFERENCE, []), strict=False)
        return [own[name] / other[name] for own, other in pairs if name in own and other.get(name)]


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpus = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": len(cpus),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def others_seconds() -> float:
    """CPU seconds that this machine spent so far on anything but us and the programs that we ran to their end."""
    user, nice, system, _, _, *interrupts_and_stolen = map(int, _lines("/proc/stat")[0].split()[1:9])
    all_busy = (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")
    return all_busy - sum(os.times()[:4])


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _spread(values: Sequence[float], digits: int) -> str:
    """The median, and how far the rounds lay apart."""
    if not values:
        return "-"
    middle, low, high = (f"{each:,.{digits}f}" for each in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle}  {low}..{high}"


def _table(results: Results, engines: Sequence[str], *, ratios: bool) -> Table:
    table = Table()
    table.add_column("")
    for engine in engines:
        table.add_column(engine, justify="right")
    for name, about in MEASURES.items():
        if ratios and name.endswith("_loss"):
            continue
        read, digits = (results.ratios, 2) if ratios else (results.values, about.digits)
        label = about.title if ratios else f"{about.title}, {about.unit}"
        cells = [_spread(read(engine, name), digits) for engine in engines]
        if any(cell != "-" for cell in cells):
            table.add_row(label, *cells)
    return table


def _headline(results: Results) -> str:
    what, options = results.machine, results.options
    rounds = "1 round" if options["rounds"] == 1 else f"{options['rounds']} rounds"
    return (
        f"{what['cores']} cores of {what['cpu']}, Linux {what['kernel']}, Python {what['python']}, "
        f"{what['wireguard-go']}\n{rounds} of {options['seconds']} s, MTU 1420"
        + ("" if options["udp_segmentation"] else ", links without UDP segmentation")
        + (f"; BUSY: others took up to {max(results.others):.0%} of the cores" if max(results.others) > BUSY else "")
    )


def print_tables(results: Results, console: Console) -> None:
    """The figures, then the ratios: median, and least..most of the rounds."""
    engines = list(results.samples)
    console.print(_headline(results), highlight=False)
    console.print("Medians, and least..most of the rounds:")
    console.print(_table(results, engines, ratios=False))
    others = [engine for engine in engines if engine != REFERENCE]
    if REFERENCE in engines and others:
        console.print(f"Over {REFERENCE}'s of the same round (ping and CPU: less is better)")
        console.print(_table(results, others, ratios=True))
    for failure in results.failures:
        console.print(f"failed: {failure}")


def write(results: Results, folder: Path) -> list[Path]:
    """Write what `print_tables` prints, the samples as JSON, and the plot; gives the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "bench" if results.options["udp_segmentation"] else "bench-no-udp-segmentation"
    text, data = folder / f"{stem}.txt", folder / f"{stem}.json"
    with text.open("w") as file:
        print_tables(results, Console(file=file, width=118))
    summary = {
        engine: {
            name: {
                "median": median(values),
                "least": min(values),
                "most": max(values),
                "ratio": median(ratios) if (ratios := results.ratios(engine, name)) else None,
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

    names = [name for name in MEASURES if any(results.values(engine, name) for engine in results.samples)]
    engines = list(results.samples)
    columns = 5
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.2 * columns, 2.2 * rows), layout="constrained")
    figure.suptitle(_headline(results), fontsize=9)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, names, strict=False):
        about = MEASURES[name]
        panel.set_title(f"{about.title}, {about.unit}", fontsize=9)
        shown = [engine for engine in engines if results.values(engine, name)]
        for place, engine in enumerate(shown):
            values = results.values(engine, name)
            middle = median(values)
            reach = [[middle - min(values)], [max(values) - middle]]
            panel.barh(place, middle, xerr=reach, color=f"C{engines.index(engine)}", ecolor="0.25", height=0.7)
            panel.annotate(
                f" {middle:,.{about.digits}f}", (max(values), place), va="center", fontsize=7, annotation_clip=False
            )
        panel.set_yticks(range(len(shown)), shown, fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.25)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    written = [stem.with_suffix(suffix) for suffix in (".svg", ".png")]
    for path in written:
        figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return written
