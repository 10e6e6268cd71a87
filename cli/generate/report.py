"""The report: JSON, and the cells of the tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rustguard_py.cli.generate.histogram import PERCENTILES, Histogram
from rustguard_py.cli.generate.measure import Measured, Traffic
from rustguard_py.cli.generate.pair import Contender
from rustguard_py.cli.generate.stages import stages
from rustguard_py.cli.generate.trial import Cpu, Trial

SCHEMA = 1
HALF = 0.5
# Shares of the throughput without loss at which a comparison measures latency, too.
SHARES = (0.25, HALF, 0.75)
NONE = "-"
# Of a line of Markdown.
_COLUMNS = 100
REFERENCE = "wireguard-go"


@dataclass(slots=True)
class Results:
    """What came of a run.

    Attributes:
        traffic: What was sent, with the size of each part in `rounds`.
        about: What each contender says of itself, by name.
        notes: What it does without, by name.
        rounds: What was measured of a contender, by name; each size once in a round.
        contenders: Those that were measured, by name.
        left_out: Why others weren't measured, or not in every round, by name.
    """

    traffic: Traffic
    contenders: dict[str, Contender] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def of(self, name: str, size: str) -> list[Measured]:
        """Return a contender's rounds with one size."""
        return [each for each in self.rounds.get(name, []) if each.size == size]

    @property
    def sizes(self) -> list[str]:
        """The sizes that were measured."""
        return list(dict.fromkeys(each.size for rounds in self.rounds.values() for each in rounds))


# -- JSON -----------------------------------------------------------------------------------------------------------


def document(results: Results) -> dict[str, Any]:
    """Return all of a run for JSON."""
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "traffic": {
            "flows": results.traffic.flows,
            "seconds": results.traffic.seconds,
            "most_loss": results.traffic.most_loss,
            "udp_segmentation": results.traffic.segmentation,
        },
        "contenders": [
            {
                "name": name,
                "device": contender.device,
                "udp": contender.side,
                "offloads": contender.offloads or "auto",
                "about": results.about.get(name, ""),
                "notes": results.notes.get(name, []),
                "rounds": [_measured(each) for each in results.rounds.get(name, [])],
            }
            for name, contender in results.contenders.items()
        ],
        "left_out": results.left_out,
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
    }


def _measured(measured: Measured) -> dict[str, Any]:
    return {
        "size": measured.size,
        "saturated": trial(measured.saturated),
        "throughput": measured.best and measured.best.load,
        "best": measured.best and trial(measured.best),
        "ended": measured.ended,
        "loads": [{"share": share, **trial(each)} for share, each in measured.loads.items()],
        "searched": [{"load": each.load, "loss": each.loss, "kept_up": each.kept_up} for each in measured.searched],
    }


def trial(one: Trial) -> dict[str, Any]:
    """Return a trial for JSON."""
    return {
        "load": one.load,
        "seconds": one.seconds,
        "arriving": one.arriving,
        "offered": one.offered,
        "refused": one.refused,
        "sent": one.sent,
        "received": one.received,
        "lost": one.lost,
        "loss": one.loss,
        "duplicates": one.duplicates,
        "reordered": one.reordered,
        "extent": one.extent,
        "invalid": one.invalid,
        "drops": dict(one.drops),
        "packets_per_second": one.rate,
        "bits_per_second": one.bits,
        "latency_ns": _histogram(one.latency),
        "lateness_ns": _histogram(one.lateness),
        "cpu_ns": {
            "out": {name: asdict(cpu) for name, cpu in one.out.items()},
            "in": {name: asdict(cpu) for name, cpu in one.inward.items()},
            "generator": asdict(one.generator),
            "sink": asdict(one.sink),
        },
        "ns_per_packet": stages(one),
    }


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {
        "percentiles": {f"{percent:g}": histogram.percentile(percent) for percent in PERCENTILES},
        "counts": histogram.pairs(),
    }


# -- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text.

    Attributes:
        headings: Of its columns; the first is on the left, the others on the right.
        rows: Their cells.
        keys: How many of the first columns say what a row is of.
    """

    headings: list[str]
    rows: list[list[str]]
    keys: int = 1

    def markdown(self) -> str:
        """Return it as Markdown, in several tables where its lines would be long."""
        columns = list(zip(self.headings, *self.rows, strict=True))
        keys, parts = columns[: self.keys], [columns[: self.keys]]
        for column in columns[self.keys :]:
            if max(map(len, _lines([*parts[-1], column]))) > _COLUMNS:
                parts.append(keys)
            parts[-1] = [*parts[-1], column]
        return "\n".join("".join(f"{line}\n" for line in _lines(part)) for part in parts)

    def text(self) -> str:
        """Return it in lines of equal columns."""
        lines = [self.headings, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() + "\n"
            for line in lines
        )


def _lines(columns: Sequence[tuple[str, ...]]) -> list[str]:
    """Return columns with their headings as lines of Markdown."""
    heading, *rows = zip(*columns, strict=True)
    return [f"| {' | '.join(line)} |" for line in [heading, ["---"] * len(columns), *rows]]


def loads_table(measured: Measured) -> Table:
    """Return one contender's trials: at shares of its throughput without loss, and saturated."""
    headings = ["LOAD", "offered k/s", "arrived k/s", "Mbit/s", "lost", "reordered", *_LATENCIES]
    rows = [_load_row(f"{share:.0%}", each) for share, each in measured.loads.items()]
    return Table(headings, [*rows, _load_row("saturated", measured.saturated)])


def one_table(one: Trial) -> Table:
    """Return one trial as a table."""
    headings = ["LOAD", "offered k/s", "arrived k/s", "Mbit/s", "lost", "reordered", *_LATENCIES]
    return Table(headings, [_load_row("as asked", one)])


_LATENCIES = ["p50 µs", "p99 µs", "p99.9 µs", "generator p99 µs"]


def _load_row(name: str, one: Trial) -> list[str]:
    return [
        name,
        f"{one.offered / one.seconds / 1e3:,.1f}",
        f"{one.rate / 1e3:,.1f}",
        f"{one.bits / 1e6:,.1f}",
        f"{one.loss:.3%}",
        f"{one.reordered:,}",
        *(_microseconds(one.latency, percent) for percent in (50, 99, 99.9)),
        _microseconds(one.lateness, 99),
    ]


def _microseconds(histogram: Histogram, percent: float) -> str:
    value = histogram.percentile(percent)
    return NONE if value is None else f"{value / 1e3:,.0f}"


def stage_table(columns: Mapping[str, Sequence[Trial]]) -> Table:
    """Return nanoseconds per packet by stage, a column per contender, its trials together."""
    costs = {name: _pooled(trials) for name, trials in columns.items()}
    names = sorted({stage for each in costs.values() for stage in each}, key=_ORDER.index)
    rows = [
        [stage, *(f"{each[stage]:,.0f}" if stage in each else NONE for each in costs.values())] for stage in names
    ]
    return Table(["NS PER PACKET", *columns], rows)


def _pooled(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the stages of all packets of these trials: clock ticks divide much time better than little."""
    whole = sum(one.received for one in trials)
    pooled: dict[str, float] = {}
    for one in trials:
        for stage, cost in stages(one).items():
            pooled[stage] = pooled.get(stage, 0.0) + cost * one.received / whole
    return pooled


_ORDER = (
    *("generator", "sending end", "device read", "seal", "device read, send", "send"),
    *("receive", "receive, device write", "open", "device write", "receiving end", "other threads", "sink"),
)


def comparison(results: Results, size: str) -> Table:
    """Return the contenders side by side with one size: medians of the rounds."""
    headings = ["DEVICE", "UDP SIDE", "no loss k/s", "least to most", f"\N{DIVISION SIGN} {REFERENCE}"]
    headings += ["saturated k/s", "CPU ns out", "in"]
    headings += ["p50 µs", "p99 µs", "p99.9 µs"]
    rows = []
    for name, contender in results.contenders.items():
        rounds = results.of(name, size)
        if not rounds:
            continue
        best = [each.best for each in rounds if each.best is not None]
        latency = Histogram()
        for each in rounds:
            if HALF in each.loads:
                latency.merge(each.loads[HALF].latency)
        loads = [one.load / 1e3 for one in best if one.load is not None]
        rows.append(
            [
                contender.device,
                contender.side,
                _middle(loads, ",.0f"),
                f"{min(loads):,.0f} to {max(loads):,.0f}" if len(loads) > 1 else "",
                "" if name == REFERENCE else _middle(_ratios(rounds, results.of(REFERENCE, size)), ".2f"),
                _middle((each.saturated.rate / 1e3 for each in rounds), ",.0f"),
                _middle(_costs(best, lambda one: one.out), ",.0f"),
                _middle(_costs(best, lambda one: one.inward), ",.0f"),
                *(_microseconds(latency, percent) for percent in (50, 99, 99.9)),
            ]
        )
    return Table(headings, rows, keys=2)


def latencies(results: Results, size: str) -> Table:
    """Return the latency of each contender with one size, from low load to saturation, all rounds together."""
    rows = []
    for name, contender in results.contenders.items():
        by_load: dict[str, Histogram] = {name: Histogram() for name in _LOADS}
        for each in results.of(name, size):
            trials = {f"{share:.0%}": one for share, one in each.loads.items()}
            for load, one in {**trials, "100%": each.best, "saturated": each.saturated}.items():
                if one is not None and load in by_load:
                    by_load[load].merge(one.latency)
        cells = (
            " / ".join(_microseconds(histogram, percent) for percent in (50, 99, 99.9)) if histogram.count else NONE
            for histogram in by_load.values()
        )
        rows.append([contender.device, contender.side, *cells])
    return Table(["DEVICE", "UDP SIDE", *_LOADS], rows, keys=2)


_LOADS = (*(f"{share:.0%}" for share in SHARES), "100%", "saturated")


def _ratios(own: Sequence[Measured], reference: Sequence[Measured]) -> list[float]:
    """Return the throughput over the reference's in the same round."""
    pairs = [
        (one.best and one.best.load, other.best and other.best.load)
        for one, other in zip(own, reference, strict=False)
    ]
    return [one / other for one, other in pairs if one and other]


def _costs(trials: Iterable[Trial], side: Callable[[Trial], Mapping[str, Cpu]]) -> list[float]:
    return [cost for one in trials if (cost := one.cost(side(one))) is not None]


def _middle(values: Iterable[float], style: str) -> str:
    values = list(values)
    return format(median(values), style) if values else NONE
