"""`rustguard bench generate`: measure an engine and its UDP side alone, with generated packets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rustguard_py.cli.generate import compare, plot, report
from rustguard_py.cli.generate.layout import LEAST_SIZE, MOST_FLOWS, MOST_SIZE, sizes
from rustguard_py.cli.generate.measure import Measured, Traffic, measure
from rustguard_py.cli.generate.pair import Contender, running
from rustguard_py.cli.generate.report import HALF, Results, Table
from rustguard_py.cli.generate.search import Limits
from rustguard_py.cli.generate.trial import Trial
from rustguard_py.cli.render import Column, show_progress, show_table
from rustguard_py.cli.values import BadValueError, Duration, Number, OneOf
from rustguard_py.cli.verb import Verb, json_option, offloads_option
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import UsageError
from rustguard_py.system.interface import check_interface_name

# Shares of the throughput without loss that latency is measured at.
SHARES = (0.1, 0.25, HALF, 0.75, 0.9)
SEARCH = Limits()
_RATE_LIMIT = 100_000_000
_LOSS_LIMIT = 50.0
_ROUNDS = 3
# What files in the folder of --output are called, without the suffix.
_STEM = "generate"


class Size(click.ParamType[str]):
    """A size of packets in bytes, or `imix`."""

    name = "size"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it was typed."""
        if value == "imix" or (
            value.isascii() and value.isdecimal() and LEAST_SIZE <= int(value[:9]) <= MOST_SIZE and len(value) < 9
        ):
            return value
        message = f"{value!r} isn't a size from {LEAST_SIZE} to {MOST_SIZE} bytes, nor imix."
        raise BadValueError(message, f"Write it like: --size {MOST_SIZE}, or --size imix", ctx, param)


class Percent(click.ParamType[float]):
    """A percentage from 0 to `most`."""

    name = "percent"

    def __init__(self, most: float) -> None:
        self._most = most

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        # Not a number fails this, too.
        if not 0 <= number <= self._most:
            message = f"{value!r} isn't a percentage from 0 to {self._most:g}."
            raise BadValueError(message, "Write it like: --loss 0.1", ctx, param)
        return number


@click.command(
    "generate",
    cls=Verb,
    examples=[
        ("sudo rustguard bench generate --size 1420", "the throughput without loss, and latency below it"),
        ("sudo rustguard bench generate --size imix --uring --output results", "over io_uring, with files and plots"),
        ("sudo rustguard bench generate --rate 50000 --seconds 10", "one load"),
        ("sudo rustguard bench generate --compare --output results", "each device with each UDP side"),
    ],
)
@click.option(
    "--size",
    type=Size(),
    metavar="64|imix|1420",
    help=f"Bytes of the IP packets, {LEAST_SIZE} to {MOST_SIZE}, or imix: 7 of 64, 4 of 594, 1 of {MOST_SIZE}.  "
    "[default: 64]",
)
@click.option(
    "--flows", type=Number(1, MOST_FLOWS), metavar="N", default=16, show_default=True, help="Number of UDP flows."
)
@click.option(
    "--rate", type=Number(1, _RATE_LIMIT), metavar="N", help="Send so many packets per second, and search nothing."
)
@click.option("--seconds", type=Duration(0.1, 60), default=1.0, show_default=True, help="Length of each trial.")
@click.option(
    "--loss",
    type=Percent(_LOSS_LIMIT),
    default=0.0,
    show_default=True,
    metavar="PERCENT",
    help="Packets that a load may lose and still count as without loss.",
)
@click.option(
    "--engine",
    type=OneOf(["auto", "kernel", "native", "portable"]),
    default="auto",
    show_default=True,
    help="Engine to measure; not the kernel's, whose packets come from a device of the kernel.",
)
@click.option("--uring", is_flag=True, help="Measure the native engine over io_uring.")
@click.option(
    "--xdp", metavar="IFACE", help="Measure the native engine over AF_XDP; the link's interfaces get this name."
)
@click.option(
    "--no-udp-segmentation",
    "udp_segmentation",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Have the link cut UDP messages into datagrams, as most networks do; veth passes them whole.",
)
@offloads_option
@click.option(
    "--compare",
    "all_of_them",
    is_flag=True,
    help=f"Measure all that run here, {compare.MOST_MINUTES} minutes at most.",
)
@click.option(
    "--rounds",
    type=Number(1, 100),
    metavar="N",
    help=f"With --compare: number of turns of each.  [default: {_ROUNDS}]",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write files there: table, JSON, plots.",
)
@json_option
def command(
    size: str | None,
    flows: int,
    rate: int | None,
    seconds: float,
    loss: float,
    engine: str,
    uring: bool,
    xdp: str | None,
    udp_segmentation: bool,
    offloads: str | None,
    all_of_them: bool,
    rounds: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure an engine and its UDP side alone: no TUN device, no kernel TCP.

    Two engines in network namespaces, a veth pair between them, and a channel in memory as the device of each. A
    generator puts UDP packets into one, a sink takes them out of the other and checks each. The highest load
    without loss is found by halving, as in RFC 2544, in at most 16 trials. Both ends share this machine's cores:
    compare rows with each other, not with what a network can do.
    """
    if xdp is not None:
        check_interface_name(xdp)
        if xdp == "lo":
            raise UsageError(
                "--xdp lo: the link's ends get this name, and each network namespace has a lo already.",
                "Choose another name, such as: --xdp xdp0",
            )
    text = size or "64"
    traffic = Traffic(text, sizes(text), flows, seconds, loss / 100, udp_segmentation)
    if all_of_them:
        for given, option in ((rate, "--rate"), (size, "--size"), (uring, "--uring"), (xdp, "--xdp")):
            if given:
                raise UsageError(f"--compare measures all, so {option} has no meaning.", "Leave one of the two out.")
        if seconds > compare.MOST_SECONDS:
            raise UsageError(
                f"--compare takes trials of {compare.MOST_SECONDS} s at most.",
                "Leave out --seconds, or make it shorter.",
            )
        if engine != "auto":
            raise UsageError("--compare measures all, so --engine has no meaning.", "Leave one of the two out.")
        results = _compared(traffic, rounds or _ROUNDS, offloads, as_json)
        tables = _comparison(results)
    else:
        if rounds is not None:
            raise UsageError("--rounds has no meaning without --compare.", "Add --compare, or leave it out.")
        contender = replace(compare.ours(engine, uring=uring, xdp=xdp), offloads=offloads)
        if rate is not None:
            _one(contender, traffic, float(rate), xdp, output, as_json)
            return
        results = _measured(contender, traffic, xdp, as_json)
        tables = _single(results)
    lines = _lines(results)
    written = _write(results, tables, lines, output) if output is not None else []
    if as_json:
        click.echo(json.dumps(report.document(results)))
        return
    for title, table in tables.items():
        click.echo(title)
        _show(table)
    for line in [*lines, *(f"Written: {path}" for path in written)]:
        click.echo(line)


# -- runs -----------------------------------------------------------------------------------------------------------


def _one(
    contender: Contender, traffic: Traffic, rate: float, interface: str | None, output: Path | None, as_json: bool
) -> None:
    """Measure one load, show it, and write it down."""
    with (
        show_progress(f"{contender.name}: {rate:,.0f} packets/s", quiet=as_json),
        running(contender, interface, segmentation=traffic.segmentation) as pair,
    ):
        trial = pair.trial(rate, traffic.seconds, traffic.sizes, traffic.flows)
        notes = pair.notes
    document = {"schema": report.SCHEMA, "trial": report.trial(trial), "notes": notes}
    title = f"{contender.name}, {_described(traffic, traffic.size)}, {rate:,.0f} packets/s"
    tables = {title: report.one_table(trial), "Its stages": report.stage_table({contender.name: [trial]})}
    lines = [*_kept_up(trial), *notes]
    written = _write_texts(document, tables, lines, output / _STEM) if output is not None else []
    if as_json:
        click.echo(json.dumps(document))
        return
    for table in tables.values():
        _show(table)
    for line in [*lines, *(f"Written: {path}" for path in written)]:
        click.echo(line)


def _kept_up(trial: Trial) -> list[str]:
    if trial.kept_up:
        return []
    return ["The generator offered less than asked for: it had too little of the processor."]


def _measured(contender: Contender, traffic: Traffic, interface: str | None, as_json: bool) -> Results:
    results = Results(traffic, {contender.name: contender})
    with running(contender, interface, segmentation=traffic.segmentation) as pair:
        results.about[contender.name], results.notes[contender.name] = pair.about, pair.notes
        with show_progress(f"{contender.name}: {traffic.size}", quiet=as_json):
            results.rounds[contender.name] = [measure(pair, traffic, SHARES, SEARCH)]
    return results


def _compared(traffic: Traffic, rounds: int, offloads: str | None, as_json: bool) -> Results:
    here, missing = compare.contenders()
    here = [replace(each, offloads=offloads) for each in here]

    def doing(what: str, act: Callable[[], None]) -> None:
        with show_progress(what, quiet=as_json):
            act()

    return compare.run(traffic, rounds, doing, time.monotonic, (here, missing))


# -- what is shown --------------------------------------------------------------------------------------------------


def _single(results: Results) -> dict[str, Table]:
    (name, (measured,)), *_ = results.rounds.items()
    tables = {f"{name}, {_described(results.traffic, measured.size)}": report.loads_table(measured)}
    if measured.best is not None:
        tables["At the throughput without loss"] = report.stage_table({name: [measured.best]})
    return tables


def _comparison(results: Results) -> dict[str, Table]:
    tables = {}
    for size in results.sizes:
        title = _described(results.traffic, size)
        tables[f"{title}; latency at half of the load without loss"] = report.comparison(results, size)
        tables[f"{title}; µs at p50 / p99 / p99.9, by share of the load without loss"] = report.latencies(
            results, size
        )
        best = {
            name: [each.best for each in results.of(name, size) if each.best is not None]
            for name in results.contenders
            if results.of(name, size)
        }
        tables[f"{title}; at the throughput without loss"] = report.stage_table(best)
    return tables


def _described(traffic: Traffic, size: str) -> str:
    link = "" if traffic.segmentation else ", a link that cuts UDP messages"
    length = size if size == "imix" else f"{size} bytes"
    return f"{length}, {counted(traffic.flows, 'flow')}, trials of {traffic.seconds:g} s{link}"


def _lines(results: Results) -> list[str]:
    lines = []
    if len(results.contenders) == 1:
        ((measured,),) = results.rounds.values()
        lines.append(_throughput(results.traffic, measured))
    if (reference := results.about.get(report.REFERENCE)) is not None:
        lines.append(f"{report.REFERENCE} is {reference}.")
    for name, notes in results.notes.items():
        lines += [f"{name}: {note}" for note in notes]
    return [*lines, *(f"{name} is left out: {why}" for name, why in results.left_out.items())]


def _throughput(traffic: Traffic, measured: Measured) -> str:
    trials = counted(len(measured.searched), "trial")
    loss = "no loss" if not traffic.most_loss else f"a loss of {traffic.most_loss:.4g}"
    if measured.best is None or measured.best.load is None:
        return f"No load passed with {loss}, in {trials} (ended by {measured.ended}); try --loss 0.1."
    return f"Throughput with {loss}: {measured.best.load:,.0f} packets/s, in {trials} (ended by {measured.ended})."


def _show(table: Table) -> None:
    first, *others = table.headings
    show_table([Column(first), *(Column(each, right=True) for each in others)], table.rows)


def _write(results: Results, tables: dict[str, Table], lines: list[str], folder: Path) -> list[Path]:
    stem = folder / _STEM
    return [*_write_texts(report.document(results), tables, lines, stem), *plot.plot(results, stem)]


def _write_texts(document: dict[str, Any], tables: dict[str, Table], lines: list[str], stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    data, text, page = (stem.with_suffix(suffix) for suffix in (".json", ".txt", ".md"))
    data.write_text(json.dumps(document, indent=1) + "\n")
    parts = [f"{title}\n{table.text()}" for title, table in tables.items()]
    text.write_text("\n".join([*parts, *lines]) + "\n")
    page.write_text("\n".join(f"{title}:\n\n{table.markdown()}" for title, table in tables.items()))
    return [data, text, page]
