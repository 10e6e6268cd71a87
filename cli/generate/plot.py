"""The plots, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rustguard_py.cli.generate.histogram import Histogram
from rustguard_py.cli.generate.report import HALF, Results

# The tail is cut where less than so many values lie beyond.
_LEAST_BEYOND = 5


def plot(results: Results, stem: Path) -> list[Path]:
    """Draw a run: throughput and latency with each size. Return the files, none without matplotlib."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot

    sizes = results.sizes
    figure, axes = pyplot.subplots(len(sizes), 2, figsize=(11, 3.4 * len(sizes)), layout="constrained", squeeze=False)
    for size, (left, right) in zip(sizes, axes, strict=True):
        _throughput(left, results, size)
        _latency(right, _curves(results, size), size)
    written = [stem.with_suffix(suffix) for suffix in (".svg", ".png")]
    for path in written:
        figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return written


def _throughput(panel: Any, results: Results, size: str) -> None:
    """A bar per contender: without loss, and behind it what arrived at saturation."""
    names = [name for name in results.contenders if results.of(name, size)]
    for place, name in enumerate(names):
        rounds = results.of(name, size)
        loads = [each.best.load / 1e3 for each in rounds if each.best is not None and each.best.load is not None]
        panel.barh(place, median(each.saturated.rate / 1e3 for each in rounds), color="0.85", height=0.7)
        if loads:
            middle = median(loads)
            reach = [[middle - min(loads)], [max(loads) - middle]]
            colour = "C1" if results.contenders[name].program else "C0"
            panel.barh(place, middle, xerr=reach, color=colour, ecolor="0.25", height=0.45)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.invert_yaxis()
    panel.set_title(f"{_bytes(size)}: 1,000 packets/s without loss (grey: arrived at saturation)", fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


def _bytes(size: str) -> str:
    return size if size == "imix" else f"{size} bytes"


def _curves(results: Results, size: str) -> dict[str, Histogram]:
    """Return the latencies to draw: of each contender at half load, or of one at each of its loads."""
    curves: dict[str, Histogram] = {}
    for name in results.contenders:
        for each in results.of(name, size):
            for share, one in each.loads.items():
                label = f"{share:.0%}" if len(results.contenders) == 1 else name
                if len(results.contenders) == 1 or share == HALF:
                    curves.setdefault(label, Histogram()).merge(one.latency)
    return curves


def _latency(panel: Any, curves: Mapping[str, Histogram], size: str) -> None:
    """A line per curve: latency over the percentile, drawn so that each further nine has the same width."""
    for label, histogram in curves.items():
        total, seen = histogram.count, 0
        places, values = [], []
        for value, count in histogram.pairs():
            beyond = total - seen
            if beyond < _LEAST_BEYOND:
                break
            places.append(total / beyond)
            values.append(value / 1e3)
            seen += count
        panel.step(places, values, where="post", label=label, linewidth=1)
    panel.set_xscale("log")
    panel.set_yscale("log")
    nines = [1, 2, 10, 100, 1000, 10000]
    panel.set_xticks(nines, ["0", "50", "90", "99", "99.9", "99.99"], fontsize=7)
    panel.minorticks_off()
    panel.tick_params(axis="y", labelsize=7)
    panel.set_title(f"{_bytes(size)}: latency in µs by percentile", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    if curves:
        panel.legend(fontsize=6, frameon=False)
