"""`rustguard status`: the tunnel, its window, its peers."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rustguard_py.cli.daemon import ask, statuses
from rustguard_py.cli.verb import Verb, json_option, state_option
from rustguard_py.model.errors import RustGuardError, UsageError
from rustguard_py.model.printable import printable, printable_json

WATCH_SECONDS = 2.0


@click.command(
    "status",
    cls=Verb,
    examples=[
        ("rustguard status", "a summary, and one row per peer"),
        ("rustguard status --watch", "refresh every two seconds, until Ctrl-C"),
        ("rustguard status --healthy", "for a container's health check: exit code 0 or 1"),
        ("rustguard status --json | jq '.peers[].name'", "for scripts"),
    ],
)
@json_option
@click.option("--watch", is_flag=True, help="Refresh every two seconds, until Ctrl-C.")
@click.option("--healthy", is_flag=True, help="Only check that daemon and data plane answer: exit code 0 or 1.")
@click.option("-v", "--verbose", is_flag=True, help="Show whole keys, all addresses, engine, counters and notes.")
@state_option
def command(as_json: bool, watch: bool, healthy: bool, verbose: bool, state: Path | None) -> None:
    """Show the tunnel, its window and its peers.

    Where several daemons run, it shows all of them, and --healthy checks all. --json prints one: that of the only
    server or client next to tunnels of `up`.
    """
    if healthy:
        if other := next((name for name, given in (("--json", as_json), ("--watch", watch)) if given), None):
            raise UsageError(f"--healthy and {other} exclude each other.", "Leave one out.")
        _check(state)
        return
    if not watch:
        if as_json:
            click.echo(printable_json(ask(state, "status"), indent=2))
        else:
            from rustguard_py.cli import render

            documents, errors = statuses(state)
            render.show_status(documents, verbose=verbose)
            if errors:
                raise errors[0]
        return
    try:
        _watch(state, as_json, verbose)
    except KeyboardInterrupt:
        # Ctrl-C is the usual end of --watch.
        return


def _check(state: Path | None) -> None:
    """Print what is healthy, or raise an error of exit code 1: a health check may have no other codes."""
    try:
        documents, errors = statuses(state)
        if errors:
            raise errors[0]
    except RustGuardError as error:
        raise RustGuardError(error.message, error.fix) from error
    for document in documents:
        # A daemon of an older version doesn't say.
        if not document.get("healthy", True):
            which = "It" if len(documents) == 1 else str(document["interface"])
            raise RustGuardError(" ".join([f"{which} isn't healthy.", *document.get("warnings", ())]), "Restart it.")
    for document in documents:
        click.echo(printable(f"{document['interface']} is healthy, engine {document['engine']}."))


def _watch(state: Path | None, as_json: bool, verbose: bool) -> None:
    def wait() -> None:
        time.sleep(WATCH_SECONDS)

    if as_json:
        while True:
            click.echo(printable_json(ask(state, "status")))
            wait()
    from rustguard_py.cli import render

    render.watch_status(lambda: statuses(state)[0], wait, verbose=verbose)
