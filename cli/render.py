"""Prints status documents, tables and progress for people. Only this module imports rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from rustguard_py.daemon.clocks import why_refused
from rustguard_py.model.counted import counted
from rustguard_py.model.printable import printable

Document = Mapping[str, Any]

# Wide enough for every row: without a terminal, no row is folded or cut.
_UNBOUNDED = 1000
_KEY_START = 8
_STATE_STYLES = {
    "active": "green",
    "idle": "yellow",
    "never": "dim",
    "never-connected": "dim",
    "has-to-join-again": "red",
}
_YET_TO = {"has-to-join-again": "has to join again", "never-connected": "has not connected yet"}
_CLOSED_BECAUSE = {
    "never-opened": "it was never opened",
    "unsaved": "it couldn't be saved",
    "time": "its time was up",
    "asked": "by `rustguard close`",
}


def show_status(documents: Sequence[Document], *, verbose: bool) -> None:
    """Print status documents for a person."""
    _console().print(statuses(documents, verbose=verbose))


def show_peers(document: Document, *, verbose: bool) -> None:
    """Print a document's peers for a person."""
    console = _console()
    console.print(peers(document["peers"], verbose=verbose))
    for text in _clock_warnings(document["peers"]):
        console.print(Text.assemble(("warning: ", "yellow"), printable(text)))


def watch_status(read: Callable[[], Sequence[Document]], wait: Callable[[], None], *, verbose: bool) -> None:
    """Show what `read` returns, again after each `wait`: in place on a terminal, else one below another.

    Ends when one of the two raises.
    """
    console = _console()
    if not console.is_terminal:
        while True:
            console.print(statuses(read(), verbose=verbose), Text())
            wait()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(statuses(read(), verbose=verbose), refresh=True)
            wait()


def statuses(documents: Sequence[Document], *, verbose: bool) -> RenderableType:
    """Return the layout of status documents, one below another; of several, each has its state directory."""
    parts: list[RenderableType] = []
    for document in documents:
        parts += [*([Text()] if parts else []), status(document, verbose=verbose, several=len(documents) > 1)]
    return Group(*parts)


def status(document: Document, *, verbose: bool, several: bool = False) -> RenderableType:
    """Return the layout of a status document: summary, one row per peer, warnings."""
    parts: list[RenderableType] = [_summary(document, verbose, several)]
    if document["peers"]:
        parts += [Text(), peers(document["peers"], verbose=verbose)]
    else:
        parts += [Text(), Text("no peers", style="dim")]
    if document.get("tunnels"):
        parts += [Text(), tunnels(document["tunnels"], to_server=document["role"] == "client")]
    warnings = [*document.get("warnings", ()), *_clock_warnings(document["peers"])]
    parts += [Text.assemble(("warning: ", "yellow"), printable(text)) for text in warnings]
    if verbose:
        parts += [
            Text.assemble(("not restricted: ", "dim"), printable(text))
            for text in document.get("sandbox", {}).get("refused", ())
        ]
        parts += [Text.assemble(("note: ", "dim"), printable(text)) for text in document.get("notes", ())]
    return Group(*parts)


def peers(rows: Sequence[Document], *, verbose: bool) -> RenderableType:
    """Return a table with one row per peer."""
    columns = [
        Column("NAME", shrinks=True),
        Column("ADDRESS"),
        Column("STATE"),
        Column("ENDPOINT", leaves=2),
        Column("↓", right=True, leaves=1),
        Column("↑", right=True, leaves=1),
        Column("KEY", leaves=3),
    ]
    return _Lines(columns, [_peer_row(peer, verbose) for peer in rows], whole=verbose)


def _peer_row(peer: Document, verbose: bool) -> list[_Cell]:
    addresses = [address for address in (peer.get("address4"), peer.get("address6")) if address]
    return [
        (_peer_names(peer, verbose), ""),
        (printable(" ".join(addresses) if verbose else (addresses or ["-"])[0]), ""),
        (peer_state(peer), _STATE_STYLES.get(peer["state"], "")),
        (printable(peer.get("endpoint") or "-"), ""),
        (size(peer["rx_bytes"]), ""),
        (size(peer["tx_bytes"]), ""),
        (key(peer["public_key"], verbose), "dim"),
    ]


def _clock_warnings(rows: Sequence[Document]) -> list[str]:
    return [why_refused(peer["name"], peer["clock_ahead"]) for peer in rows if peer.get("clock_ahead")]


def tunnels(rows: Sequence[Document], *, to_server: bool = False) -> RenderableType:
    """Return a table with one row per tunnel and its share of all bytes that were moved.

    Args:
        rows: The tunnels.
        to_server: Whether their ports are those of the server, as on a client.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("TUNNEL", "TO PORT" if to_server else "PORT", "SESSIONS", "CARRIES FOR", "↓", "↑", "SHARE"):
        table.add_column(title, justify="left" if title == "TUNNEL" else "right", no_wrap=True)
    for row in rows:
        broken = row["state"] != "running"
        table.add_row(
            Text(row["interface"] + (" (broken)" if broken else ""), style="red" if broken else ""),
            Text(str(row["port"])),
            Text(str(row["sessions"])),
            Text(str(row["carries_for"])),
            Text(size(row["rx_bytes"])),
            Text(size(row["tx_bytes"])),
            Text(f"{100 * row['share']:.0f} %"),
        )
    return table


def _peer_names(peer: Document, verbose: bool) -> str:
    """Return a peer's label, and its DNS name behind it if all is shown and they differ."""
    name, dns_name = peer["name"], peer.get("dns_name")
    return printable(f"{name} ({dns_name})" if verbose and dns_name not in (None, name) else name)


def peer_state(peer: Document) -> str:
    """Return a peer's state: `active 12s ago`, `idle 5m ago`, `never`, or what it has yet to do."""
    if peer["state"] in _YET_TO:
        return _YET_TO[peer["state"]]
    last = peer.get("last_received")
    if last is None:
        last = peer.get("last_handshake")
    return str(peer["state"]) if last is None else f"{peer['state']} {duration(last)} ago"


def window_state(window: Document) -> str:
    """Return whether the window is open, to whom and for how long, and how many wrong tokens were tried."""
    if window["open"]:
        only = f" to {', '.join(window['from'])} only" if window.get("from") else ""
        return f"open{only}, {duration(window['remaining'])} left, {guesses(window)}"
    reason = _CLOSED_BECAUSE.get(window.get("closed_because") or "")
    return f"closed ({reason}), {guesses(window)}" if reason else f"closed, {guesses(window)}"


def guesses(window: Document) -> str:
    """Return how many wrong tokens were tried in a window, and by how many sources."""
    used, allowed = window["guesses_used"], window["guesses_allowed"]
    sources = counted(window.get("guessing_sources", 0), "source")
    by = f" by {sources}" if used and window.get("guessing_sources") else ""
    if used < allowed or not window["open"]:
        count = f"{used} of {allowed} guesses used" if used <= allowed else f"{used} guesses used"
        return count + by
    return f"{used} guesses used{by}: now one is checked every 10 s"


def duration(seconds: float) -> str:
    """Return a rough duration: 12s, 3m, 5h, 8d."""
    whole = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        # Below two of a unit, the smaller unit is more precise.
        if whole >= 2 * length:
            return f"{whole // length}{unit}"
    return f"{whole}s"


def size(count: int) -> str:
    """Return a number of bytes with its unit: 0 B, 12.3 KiB, 4.0 GiB."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{count} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def key(public_key: str, whole: bool) -> str:
    """Return a key, or its start, which is enough to recognize it."""
    return public_key if whole else f"{public_key[:_KEY_START]}…"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a plain table.

    Attributes:
        title: Its heading.
        right: Whether its cells stand at the right, as numbers do.
        leaves: Where the line is too short, columns with a higher number are left out first; 0 stays.
        shrinks: Whether its cells may be cut if that isn't enough.
    """

    title: str
    right: bool = False
    leaves: int = 0
    shrinks: bool = False


# Its text and its style.
_Cell = tuple[str, str]
# What a column is cut to, at least.
_SHORTEST = 8


class _Lines:
    """A table of one line per row. rich's own takes more than a second for 2,000 rows.

    Args:
        columns: The columns.
        rows: Their cells.
        whole: Whether nothing may be left out. Where a row doesn't fit, it then takes a line for each cell.
    """

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[_Cell]], *, whole: bool = False) -> None:
        self._columns = columns
        self._rows = rows
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = [(column.title, "bold") for column in self._columns]
        lines = [heads, *self._rows]
        widths = [max(map(_width, cells)) for cells in zip(*lines, strict=True)]
        if self._whole and sum(widths) + 2 * (len(widths) - 1) > options.max_width:
            yield from self._blocks(console, options.max_width)
            return
        shown = self._fit(widths, options.max_width)
        styles = {style: console.get_style(style) for row in lines for _, style in row if style}
        for row in lines:
            for place in shown:
                text, style = row[place]
                last = place == shown[-1]
                text = set_cell_size(text, widths[place]) if _width(row[place]) > widths[place] else text
                blanks = " " * (widths[place] - cell_len(text))
                if self._columns[place].right:
                    text = blanks + text
                elif not last:
                    text += blanks
                yield Segment(text if last else f"{text}  ", styles.get(style))
            yield Segment.line()

    def _blocks(self, console: Console, room: int) -> Iterator[Segment]:
        """Yield the rows, each with its first cell as a heading and the others below it."""
        titles = [f"  {column.title.lower()}" for column in self._columns[1:]]
        indent = max(map(cell_len, titles)) + 2
        for (name, _), *cells in self._rows:
            for piece in chop_cells(name, room):
                yield Segment(f"{piece}\n", console.get_style("bold"))
            for title, (text, style) in zip(titles, cells, strict=True):
                yield Segment(title + " " * (indent - cell_len(title)))
                for place, piece in enumerate(chop_cells(text, max(_SHORTEST, room - indent))):
                    if place:
                        yield Segment(" " * indent)
                    yield Segment(f"{piece}\n", console.get_style(style) if style else None)

    def _fit(self, widths: list[int], room: int) -> list[int]:
        """Return the columns to show, and shorten in `widths` those that may be cut."""
        shown = list(range(len(widths)))

        def excess() -> int:
            return sum(widths[place] for place in shown) + 2 * (len(shown) - 1) - room

        for number in sorted({column.leaves for column in self._columns} - {0}, reverse=True):
            if excess() > 0:
                shown = [place for place in shown if self._columns[place].leaves != number]
        for place in shown:
            if self._columns[place].shrinks and excess() > 0:
                widths[place] = max(min(_SHORTEST, widths[place]), widths[place] - excess())
        return shown


def _width(cell: _Cell) -> int:
    return cell_len(cell[0])


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], lines: Sequence[str] = ()) -> None:
    """Print a table, and lines below it."""
    table = _Lines(columns, [[(printable(cell), "") for cell in row] for row in rows])
    _console().print(table, Text(), *(Text(printable(line)) for line in lines), sep="\n")


@contextmanager
def show_progress(what: str, *, quiet: bool) -> Iterator[None]:
    """Show what is being done, on a terminal, until it is done."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(printable(what)):
        yield


class Stage:
    """Prints a demonstration: its scenes, each with a spinner on a terminal, and how each ended.

    Args:
        title: What is shown.
        subtitle: What to know before.
    """

    def __init__(self, title: str, subtitle: str) -> None:
        self._console = _console()
        self._began = time.monotonic()
        self._console.print(Text(title, style="bold"), Text(subtitle, style="dim"), Text(), sep="\n")
        self.failed = False

    @contextmanager
    def scene(self, where: str, what: str) -> Iterator[Act]:
        """Show a scene. The context is an `Act` that takes the outcome; a scene without outcome has failed."""
        act = Act()
        heading = Text.assemble((f"{where:>8}  ", "cyan"), (what, "bold"))
        self._console.print(heading)
        began = time.monotonic()
        try:
            if self._console.is_terminal:
                with self._console.status(Text("…", style="dim")):
                    yield act
            else:
                yield act
        finally:
            self.failed = self.failed or not act.succeeded
            mark, style = ("✓", "green") if act.succeeded else ("✗", "red")
            elapsed = f"  ({time.monotonic() - began:.1f} s)"
            self._console.print(Text.assemble(" " * 10, (mark, style), f" {act.outcome}", (elapsed, "dim")))

    def show_text(self, text: str) -> None:
        """Print a program's output."""
        for line in text.splitlines():
            self._console.print(Text(f"{'':12}{printable(line)}", style="dim"))

    def close(self) -> None:
        """Print whether all scenes succeeded, and how long they took."""
        elapsed = time.monotonic() - self._began
        outcome = Text("failed", style="bold red") if self.failed else Text("done", style="bold green")
        self._console.print(Text(), Text.assemble(outcome, f" after {elapsed:.0f} s"), sep="\n")


@dataclass(slots=True)
class Act:
    """The outcome of a scene."""

    succeeded: bool = False
    outcome: str = "it ended without an outcome"

    def succeed(self, outcome: str) -> None:
        """Record success."""
        self.succeeded, self.outcome = True, outcome

    def fail(self, outcome: str) -> None:
        """Record failure."""
        self.succeeded, self.outcome = False, outcome


def _summary(document: Document, verbose: bool, several: bool) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    named = f" {printable(document['name'])}" if document.get("name") else ""
    for name, value in (
        (str(document["role"]), f"{document['interface']}{named}, up {duration(document['uptime'])}"),
        ("address", _addresses(document)),
        ("routes", " ".join(document.get("routes", ()))),
        ("inside", _inside(document.get("rootless"))),
        ("memif", _memif(document.get("memif"), verbose)),
        ("window", window_state(document["window"]) if document.get("window") else None),
        ("", _tries(document.get("window"), verbose)),
        ("pool", _pool(document.get("pool"))),
        ("key", f"{key(document['public_key'], verbose)}  fingerprint {document['fingerprint']}"),
        ("engine", f"{document['engine']}: {document['engine_reason']}" if verbose else None),
        # An older daemon doesn't say.
        ("sandbox", "; ".join(document.get("sandbox", {}).get("applied", ())) if verbose else None),
        ("state", document["state_directory"] if verbose or several else None),
        ("counters", _counters(document.get("counters")) if verbose else None),
        *((worker["name"], _worker(worker)) for worker in document.get("workers", ()) if verbose),
    ):
        if value:
            table.add_row(name, Text(printable(value)))
    return table


def _inside(ways: Document | None) -> str | None:
    """Return how this machine gets into a tunnel without root, or None for one with root."""
    if ways is None:
        return None
    proxies = [f"proxy at {each}" for each in ways["proxy"]]
    return "; ".join(["rustguard exec -- …", *proxies, *ways["forwards"]])


def _memif(memif: Document | None, verbose: bool) -> str | None:
    """Return what stands for the interface and how it is connected, or None for an interface."""
    if memif is None:
        return None
    queues = f", {counted(memif['queues'], 'queue')}" if verbose else ""
    what = f"{memif['socket']}, id {memif['id']}, {memif['role']}, {memif['mode']}{queues}"
    since = f"for {duration(memif['since'])}"
    if memif["connected"]:
        count = f", {counted(memif['connections'], 'connection')} so far" if verbose else ""
        return f"{what}: connected to {memif['interface']} of {memif['program']} {since}{count}"
    why = f" ({memif['why']})" if memif["why"] else ""
    return f"{what}: not connected {since}{why}"


def _addresses(document: Document) -> str:
    # A client's `port` is its server's, and an older client doesn't give its own.
    own = document.get("listen_port", None if document["role"] == "client" else document["port"])
    port = "" if own is None else f", port {own}"
    return f"{' '.join(document['addresses'])}{port}, MTU {document['mtu']}"


def _tries(window: Document | None, verbose: bool) -> str | None:
    """Return who was stopped, who waits, and who gave up in a window; None if nobody did."""
    if not window:
        return None
    blocked = window.get("blocked", ())
    parts = []
    if blocked:
        which = f": {', '.join(blocked)}" if verbose else ""
        parts.append(f"{counted(len(blocked), 'source')} blocked after three wrong tokens{which}")
    if window.get("waiting"):
        parts.append(f"{counted(window['waiting'], 'machine')} waiting for a turn")
    if count := window.get("unconfirmed"):
        sources = counted(window.get("unconfirmed_sources", 0), "source")
        parts.append(f"{counted(count, 'pairing')} begun and never confirmed, by {sources}")
    if window.get("new_peers", 0) >= window.get("new_peers_allowed", 1):
        parts.append(f"{counted(window['new_peers'], 'new peer')} admitted, so no further one is")
    return "; ".join(parts) or None


def _pool(pool: Document | None) -> str | None:
    if pool is None:
        return None
    networks = " ".join(network for network in (pool["network4"], pool.get("network6")) if network)
    return f"{networks}, {pool['used']} of {pool['size']} used"


def _counters(counters: Document | None) -> str:
    flat: dict[str, Any] = {}
    for name, value in (counters or {}).items():
        flat |= (
            {f"{name} {key}": count for key, count in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return ", ".join(f"{name} {count}" for name, count in flat.items())


def _worker(worker: Document) -> str:
    batch = worker["packets"] / max(1, worker["batches"])
    moved = f"{counted(worker['packets'], 'datagram')}, {size(worker['bytes'])}, {batch:.1f} a batch"
    return f"{moved}, {counted(worker['system_calls'], 'system call')}"


def moments(rows: Iterable[tuple[str, str]]) -> None:
    """Print what happened and when, with each sentence wrapped next to its time on a narrow terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for at, sentence in rows:
        table.add_row(Text(at), Text(printable(sentence)))
    _console().print(table)


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED)
