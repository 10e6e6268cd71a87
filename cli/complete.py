"""What a shell offers for a word: peers, networks, daemons, files and services.

A key is pressed meanwhile, so each answer is quick, and anything that fails offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rustguard_py.model.printable import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from rustguard_py.state.paths import Candidate

# How long a daemon is waited for, seconds.
PATIENCE = 0.5

Offer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def _offering(words: Callable[[click.Context], Iterable[tuple[str, str]]]) -> Offer:
    """Return the function that click calls, of one that yields words and what they are."""

    @wraps(words)
    def offer(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found: dict[str, str] = {}
        with suppress(Exception):
            for word, about in words(context):
                # A shell would take a line end in it for the next word.
                if word.startswith(incomplete) and printable(word) == word:
                    found.setdefault(word, about)
        return [CompletionItem(word, help=printable(about)) for word, about in found.items()]

    return offer


@_offering
def peers(context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the names of the peers."""
    from rustguard_py.daemon.control.client import call

    for candidate in _running(context):
        with suppress(Exception):
            for peer in call(candidate.socket, "peers", timeout=PATIENCE)["peers"]:
                yield str(peer["name"]), str(peer.get("address4") or peer.get("address6") or "")


@_offering
def networks(context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the servers that were joined."""
    from rustguard_py.state import paths
    from rustguard_py.state.client_records import ClientState
    from rustguard_py.state.document import Document

    kept = Document.peek(paths.state_directory("client", _state(context)))
    for network in () if kept is None else reversed(ClientState.from_json(kept).networks):
        yield network.host, f"joined as {network.name}"


@_offering
def daemons(context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the names of the state directories of what runs, as `stop` and `logs` take them."""
    for candidate in _running(context):
        yield candidate.state_directory.name, str(candidate.state_directory)


@_offering
def directories(context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the state directories of what runs."""
    for candidate in _running(context):
        yield str(candidate.state_directory), ""


@_offering
def tunnels(context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the interfaces that `up` brought up."""
    from rustguard_py.daemon.control.client import call

    for candidate in _running(context):
        with suppress(Exception):
            status = call(candidate.socket, "status", timeout=PATIENCE)
            if status["role"] == "tunnel":
                yield str(status["interface"]), str(status["file"])


@_offering
def services(_: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the services that were installed."""
    from rustguard_py.service import systemd

    for service in systemd.installed():
        yield service.name, ""


@_offering
def _names_of_files(_: click.Context) -> Iterator[tuple[str, str]]:
    from rustguard_py.quick.conf_files import DIRECTORIES

    for directory in DIRECTORIES:
        with suppress(OSError):
            for path in sorted(directory.glob("*.conf")):
                yield path.stem, str(path)


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of wg-quick's files in their directories, or let the shell offer files by their path."""
    from click.shell_completion import CompletionItem

    found = [] if "/" in incomplete else _names_of_files(context, parameter, incomplete)
    return found or [CompletionItem(incomplete, type="file")]


def _state(context: click.Context) -> Path | None:
    """Return what `--state` has, also in front of a command of `peers`."""
    place: click.Context | None = context
    while place is not None:
        if (state := place.params.get("state")) is not None:
            return Path(state)
        place = place.parent
    return None


def _running(context: click.Context) -> list[Candidate]:
    from rustguard_py.daemon.control.client import listens
    from rustguard_py.state import paths

    state = _state(context)
    wanted = None if state is None else state.expanduser().resolve()
    return [
        each
        for each in paths.running()
        if (wanted is None or each.state_directory == wanted) and listens(each.socket)
    ]
