"""One tunnel against several, engine by engine: throughput, what each core does, and how the flows are spread.

    scripts/in-namespace .venv/bin/python bench/tunnels.py [--rounds 3] [--seconds 2]

Two hosts on this machine, `rustguard serve --tunnels N` and `rustguard join`, TCP streams from the client to the
server. Each round takes every engine with every number of tunnels in turn, beginning with another one each time, and
ratios are those of one round. The kernel's engine needs a kernel with WireGuard; nothing that is written in the
virtual machine stays, so what it prints is kept:

    scripts/kernel-vm -t 3600 -- .venv/bin/python bench/tunnels.py --engines kernel,native,portable \
      --start-seconds 120 --json > kernel.json
    .venv/bin/python bench/tunnels.py --from kernel.json

Where the processor can't help that machine everything in it is emulated: the flows go where they go, but no speed
means anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

# The tests' support: report.py needs it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import engines as starting
from engines import Running, rustguard
from links import Pair, Way, make_pair
from measures import FAILURES
from report import BUSY, describe_machine, others_seconds
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rustguard_py.engine import has_native, why_no_kernel
from rustguard_py.lab.hosts import Host, Lab
from rustguard_py.model.counted import counted

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs/internals"
STREAMS_PORT = 5202
ENGINES = ("portable", "native", "kernel")
TUNNELS = (1, 2, 4)
FLOWS = (64, 8)
SCHEMA = 1
# What an engine takes to start, and a transfer beside its seconds, about.
START, EXTRA = 4.0, 2.5
Sample = dict[str, Any]


def interfaces(tunnels: int) -> list[str]:
    """What the tunnels are called at either end."""
    return ["rg0", *(f"rg0-{number}" for number in range(1, tunnels))]


def _wait_for_all(host: Host, tunnels: int) -> None:
    """Wait until flows are spread over all tunnels from this end."""
    seconds = starting.START_SECONDS
    deadline = time.monotonic() + seconds
    while host.run(["ip", "-4", "route"]).stdout.count("nexthop dev rg0") < tunnels:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{host.name} did not use all of {tunnels} tunnels within {seconds:.0f} s")
        time.sleep(0.1)


def _sent(host: Host, tunnels: int) -> list[int]:
    """Bytes that went out by each tunnel."""
    lines = host.run(["cat", "/proc/net/dev"]).stdout.replace(":", " ").splitlines()
    fields = {words[0]: words for words in map(str.split, lines)}
    return [int(fields[name][9]) for name in interfaces(tunnels)]


def _transfer(pair: Pair, running: Running, flows: int, tunnels: int, seconds: int) -> Sample:
    """Send on so many flows; what came of it, by `streams.py`, and each tunnel's share of the bytes."""
    streams, port = HERE / "streams.py", str(STREAMS_PORT)
    processes = [str(running.client_pid), str(running.server_pid)]
    taker = pair.server.popen(
        [sys.executable, streams, "take", port, str(flows), str(seconds), *processes], stdout=subprocess.PIPE
    )
    pair.server.wait_listening("tcp", STREAMS_PORT)
    before = _sent(pair.client, tunnels)
    own = json.loads(pair.client.run(["ip", "-j", "-4", "address", "show", "rg0"]).stdout)[0]["addr_info"][0]["local"]
    sender = pair.client.popen([sys.executable, streams, "send", port, *[f"{own}-{running.target}"] * flows])
    said, _ = taker.communicate(timeout=seconds + 60)
    sender.wait(10)
    if taker.returncode:
        raise OSError(f"{flows} flows over {tunnels} tunnels failed")
    figures: Sample = json.loads(said)
    sent = [late - early for early, late in zip(before, _sent(pair.client, tunnels), strict=True)]
    gigabytes = figures["mbit"] * seconds / 8e3
    client, server = figures.pop("processes")
    return {
        **figures,
        "shares": [each / sum(sent) for each in sent],
        "cpu_out": client / gigabytes,
        "cpu_in": server / gigabytes,
        # Both programs, the kernel's part, and the programs that send and take.
        "cpu_all": sum(figures["cores"]) * seconds / gigabytes,
    }


def _one(engine: str, tunnels: int, flows: Sequence[int], seconds: int) -> dict[int, Sample]:
    """Start an engine with so many tunnels in fresh hosts, and send once with each number of flows."""
    with tempfile.TemporaryDirectory(prefix="rustguard-bench-") as folder, Lab() as lab:
        pair = make_pair(lab, Way())
        running = rustguard(pair, Path(folder), ["--engine", engine], serving=["--tunnels", str(tunnels)])
        if tunnels > 1:
            for host in (pair.client, pair.server):
                _wait_for_all(host, tunnels)
        return {number: _transfer(pair, running, number, tunnels, seconds) for number in flows}


def why_not(engine: str) -> str:
    """Return why an engine can't be measured here, or nothing."""
    if engine == "native" and not has_native():
        return "this installation has no native engine"
    if engine == "kernel":
        if (absent := why_no_kernel()) is not None:
            return absent
        try:
            _one(engine, 2, [], 0)
        except FAILURES as error:
            return f"not with several tunnels: {error}"
    return ""


def spread(flows: int, sets: int) -> list[dict[str, Any]]:
    """What `spread.py` says of so many flows: the kernel's hash beside chance."""
    argv: list[str | Path] = [
        sys.executable,
        HERE / "spread.py",
        "--flows",
        str(flows),
        "--sets",
        str(sets),
        "--json",
    ]
    rows: list[dict[str, Any]] = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    return rows


def rounds(given: argparse.Namespace, engines: Sequence[str], said: Console) -> dict[str, Any]:
    """Take the rounds; give the whole document."""
    turns = [(engine, tunnels) for engine in engines for tunnels in given.tunnels]
    samples: dict[tuple[str, int, int], list[Sample | None]] = {}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": describe_machine(),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "failures": [],
        "others": [],
    }
    for turn in range(given.rounds):
        first = turn % len(turns)
        for engine, tunnels in turns[first:] + turns[:first]:
            said.print(f"round {turn + 1} of {given.rounds}: {engine}, {counted(tunnels, 'tunnel')}", highlight=False)
            began, before = time.monotonic(), others_seconds()
            try:
                taken = _one(engine, tunnels, given.flows, given.seconds)
            except FAILURES as error:
                document["failures"].append(f"{engine}, {counted(tunnels, 'tunnel')}, round {turn + 1}: {error}")
                said.print(f"failed: {error}", highlight=False)
                taken = {}
            for flows in given.flows:
                samples.setdefault((engine, tunnels, flows), []).append(taken.get(flows))
            elapsed = (time.monotonic() - began) * document["machine"]["cores"]
            document["others"].append((others_seconds() - before) / elapsed)
    document["rows"] = [_row(samples, *place) for place in samples if any(samples[place])]
    return document


def _row(
    samples: dict[tuple[str, int, int], list[Sample | None]], engine: str, tunnels: int, flows: int
) -> dict[str, Any]:
    """What the rounds gave for one engine, number of tunnels and number of flows."""
    all_turns = samples[engine, tunnels, flows]
    taken = [each for each in all_turns if each]
    base = samples.get((engine, 1, flows), [])
    ratios = [one["mbit"] / other["mbit"] for one, other in zip(all_turns, base, strict=False) if one and other]
    row: dict[str, Any] = {"engine": engine, "tunnels": tunnels, "flows": flows, "samples": taken}
    row["ratio"] = _three(ratios) if ratios else None
    for name in ("mbit", "least", "most", "cpu_out", "cpu_in", "cpu_all"):
        row[name] = _three([each[name] for each in taken])
    row["cores"] = [median(each) for each in zip(*(each["cores"] for each in taken), strict=True)]
    row["farthest"] = median(max(abs(share * tunnels - 1) for share in each["shares"]) for each in taken)
    return row


def _three(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def _spread(three: dict[str, float] | None, digits: int) -> str:
    if three is None:
        return "-"
    middle, low, high = (f"{three[name]:,.{digits}f}" for name in ("median", "least", "most"))
    return middle if low == high else f"{middle}  {low}..{high}"


def headline(document: dict[str, Any]) -> str:
    """What the figures depend on."""
    what = document["machine"]
    most = max(document["others"], default=0.0)
    return (
        f"{counted(what['cores'], 'core')} of {what['cpu']}, Linux {'.'.join(what['kernel'].split('.')[:2])}, "
        f"Python {what['python']}; "
        f"{counted(document['rounds'], 'round')} of {document['seconds']} s"
        + (f"; BUSY: others took up to {most:.0%} of the cores" if most > BUSY else "")
    )


def print_tables(document: dict[str, Any], console: Console) -> None:
    """The figures: median, and least..most of the rounds; then how flows are spread."""
    console.print(headline(document), highlight=False)
    cores = document["machine"]["cores"]
    table = Table("engine", box=SIMPLE_HEAD, pad_edge=False)
    for name in (
        *("tunnels", "flows", "TCP Mbit/s", "÷ one tunnel's", "CPU out, in s/GB", "all s/GB"),
        *(f"core {core}" for core in range(cores)),
        "farthest from even",
    ):
        table.add_column(name, justify="right")
    for row in document["rows"]:
        table.add_row(
            row["engine"],
            str(row["tunnels"]),
            str(row["flows"]),
            _spread(row["mbit"], 0),
            _spread(row["ratio"], 2),
            f"{row['cpu_out']['median']:.2f}, {row['cpu_in']['median']:.2f}",
            f"{row['cpu_all']['median']:.2f}",
            *(f"{share:.0%}" for share in row["cores"]),
            f"{row['farthest']:.0%}",
        )
    console.print(table)
    if document["spread"]:
        some = document["spread"][0]
        console.print(f"Which tunnel each of {some['flows']} flows has, {some['sets']} sets of random ports:")
        table = Table("", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("tunnels", "farthest from even", "sets within 20 %", "mean of all"):
            table.add_column(name, justify="right")
        for each in document["spread"]:
            mean = ", ".join(map(str, each["mean"]))
            within, farthest = f"{each['within']:.0%}", f"{each['farthest_off']:.0%}"
            table.add_row(each["way"], str(each["tunnels"]), farthest, within, mean)
        console.print(table)
    for engine, why in document["skipped"].items():
        console.print(f"skipped: {engine}: {why}", highlight=False)
    for failure in document["failures"]:
        console.print(f"failed: {failure}", highlight=False)


def markdown(document: dict[str, Any]) -> str:
    """The figures for the most flows, as docs/internals/performance.md has them."""
    cores = range(document["machine"]["cores"])
    titles = [
        *("engine", "tunnels", "TCP, Mbit/s", "÷ one tunnel's", "CPU s/GB: sender, receiver, whole machine"),
        *(f"core {core} busy" for core in cores),
        "farthest from even",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in _most_flows(document):
        ratio = row["ratio"] or {"median": 1.0, "least": 1.0, "most": 1.0}
        cells = [
            row["engine"],
            str(row["tunnels"]),
            f"{row['mbit']['median']:,.0f}",
            "1" if row["tunnels"] == 1 else "{median:.2f} ({least:.2f}\N{EN DASH}{most:.2f})".format(**ratio),
            ", ".join(f"{row[name]['median']:.2f}" for name in ("cpu_out", "cpu_in", "cpu_all")),
            *(f"{share:.0%}" for share in row["cores"]),
            f"{row['farthest']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    flows = _most_flows(document)[0]["flows"]
    return f"{flows} TCP flows; {headline(document)}.\n\n" + "\n".join(lines) + "\n"


def _most_flows(document: dict[str, Any]) -> list[dict[str, Any]]:
    most = max(row["flows"] for row in document["rows"])
    return [row for row in document["rows"] if row["flows"] == most]


def publish(document: dict[str, Any], docs: Path) -> list[Path]:
    """Draw the plot that docs/internals/performance.md shows, and put the table there; return the files written.

    A run with the kernel's engine is another machine's, and has a plot and a table of its own.
    """
    name = "tunnels-kernel" if any(row["engine"] == "kernel" for row in document["rows"]) else "tunnels"
    page, drawing = docs / "performance.md", docs / f"{name}.png"
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, rest = page.read_text().split(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}{markdown(document)}{end}{after}")
    return [page, drawing] if plot(document, drawing) else [page]


def plot(document: dict[str, Any], path: Path) -> bool:
    """Draw throughput, the cores' load and CPU time, a bar for each engine and number of tunnels.

    Returns:
        False where there is no matplotlib to do it.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    rows = _most_flows(document)
    names = [f"{row['engine']}, {row['tunnels']}" for row in rows]
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 1.2 + 0.3 * len(rows)), layout="constrained")
    figure.suptitle(f"Engine and number of tunnels, {rows[0]['flows']} TCP flows; {headline(document)}", fontsize=9)

    def bars(panel: Any, title: str, values: list[dict[str, float]], digits: int, colour: str = "C0") -> None:
        middle = [each["median"] for each in values]
        reach = [
            [each["median"] - each["least"] for each in values],
            [each["most"] - each["median"] for each in values],
        ]
        panel.barh(range(len(rows)), middle, xerr=reach, color=colour, ecolor="0.25", height=0.7)
        for place, each in enumerate(values):
            panel.annotate(f" {each['median']:,.{digits}f}", (each["most"], place), va="center", fontsize=7)
        panel.set_title(title, fontsize=9)
        panel.margins(x=0.2)

    bars(panels[0], "TCP, Mbit/s (line: least to most)", [row["mbit"] for row in rows], 0)
    left = [0.0] * len(rows)
    for core in range(document["machine"]["cores"]):
        shares = [row["cores"][core] for row in rows]
        panels[1].barh(range(len(rows)), shares, left=left, color=f"C{core % 10}", height=0.7, alpha=0.8)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    panels[1].set_title("cores busy, one colour a core", fontsize=9)
    bars(panels[2], "CPU seconds a gigabyte, all of the machine", [row["cpu_all"] for row in rows], 2, "C7")
    for panel in panels:
        panel.set_yticks(range(len(rows)), names, fontsize=7)
        panel.invert_yaxis()
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def some(known: Sequence[str] | None) -> Callable[[str], list[Any]]:
        def read(text: str) -> list[Any]:
            names = text.split(",")
            if known is None:
                return [int(each) for each in names]
            if unknown := set(names) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
            return names

        return read

    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each point is measured (3)")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="of each transfer (2)")
    parser.add_argument(
        "--engines", type=some(ENGINES), default=["portable", "native"], metavar="A,B", help="(portable,native)"
    )
    parser.add_argument("--tunnels", type=some(None), default=list(TUNNELS), metavar="N,M", help="(1,2,4)")
    parser.add_argument("--flows", type=some(None), default=list(FLOWS), metavar="N,M", help="TCP streams (64,8)")
    parser.add_argument("--sets", type=int, default=100, metavar="N", help="of flows whose spread is looked at (100)")
    parser.add_argument("--output", type=Path, default=HERE / "results", metavar="FOLDER", help="(bench/results)")
    parser.add_argument(
        "--start-seconds",
        type=float,
        default=starting.START_SECONDS,
        metavar="N",
        help="that an engine may take to start (20; an emulated machine needs 120)",
    )
    parser.add_argument("--docs", action="store_true", help="put table and plot into docs/internals/ as well")
    parser.add_argument("--from", dest="kept", type=Path, metavar="FILE", help="what an earlier run gave as JSON")
    parser.add_argument("--json", action="store_true", help="print the document instead of tables")
    given = parser.parse_args()
    if given.rounds < 1 or given.seconds < 1 or min(given.tunnels + given.flows) < 1:
        parser.error("at least 1 round of 1 second, 1 tunnel and 1 flow")
    return given


def _kept(file: Path) -> dict[str, Any]:
    """Read what an earlier run printed. What it said before and after that comes out of the virtual machine too."""
    text = file.read_text()
    document: dict[str, Any]
    document, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
    return document


def _measured(given: argparse.Namespace, said: Console) -> dict[str, Any]:
    """Measure what can be measured here."""
    starting.START_SECONDS = given.start_seconds
    skipped = {engine: why for engine in given.engines if (why := why_not(engine))}
    engines = [engine for engine in given.engines if engine not in skipped]
    for engine, why in skipped.items():
        said.print(f"skipped: {engine}: {why}", highlight=False)
    turn = START + sum(given.seconds + EXTRA for _ in given.flows)
    minutes = given.rounds * len(engines) * len(given.tunnels) * turn / 60
    said.print(f"This takes about {minutes:.0f} minutes.", highlight=False)
    document = rounds(given, engines, said)
    document["skipped"] = skipped
    document["spread"] = spread(max(given.flows), given.sets) if given.sets else []
    return document


def _write(document: dict[str, Any], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    text, data, drawing = (folder / f"tunnels.{suffix}" for suffix in ("txt", "json", "png"))
    data.write_text(json.dumps(document, indent=1) + "\n")
    with text.open("w") as file:
        print_tables(document, Console(file=file, width=140))
    return [text, data, drawing] if plot(document, drawing) else [text, data]


def main() -> int:
    """Measure, print, write; 1 if anything failed."""
    given, said = _arguments(), Console(stderr=True)
    document = _kept(given.kept) if given.kept else _measured(given, said)
    if given.json:
        print(json.dumps(document))
    else:
        print_tables(document, Console(width=None if sys.stdout.isatty() else 140))
    if not document["rows"]:
        return 1
    written = [*_write(document, given.output), *(publish(document, DOCS) if given.docs else [])]
    said.print(f"written: {', '.join(map(str, written))}", highlight=False)
    return 1 if document["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
