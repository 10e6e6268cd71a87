"""`rustguard status`: the tunnel, its window, its peers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from rustguard_py.cli.daemon import ask
from rustguard_py.cli.verb import Verb, json_option, state_option
from rustguard_py.model.errors import RustGuardError
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
    """Show the tunnel, its window and its peers."""
    if healthy:
        _check(state)
        return
    if not watch:
        document = ask(state, "status")
        if as_json:
            click.echo(printable_json(document, indent=2))
        else:
            from rustguard_py.cli import render

            render.show_status(document, verbose=verbose)
        return
    try:
        _watch(state, as_json, verbose)
    except KeyboardInterrupt:
        # Ctrl-C is the usual end of --watch.
        return


def _check(state: Path | None) -> None:
    """Print that the daemon is healthy, or raise an error of exit code 1: a health check may have no other codes."""
    try:
        document = ask(state, "status")
    except RustGuardError as error:
        raise RustGuardError(error.message, error.fix) from error
    # A daemon of an older version doesn't say.
    if not document.get("healthy", True):
        raise RustGuardError(" ".join(["It isn't healthy.", *document.get("warnings", ())]), "Restart it.")
    click.echo(printable(f"{document['interface']} is healthy, engine {document['engine']}."))


def _watch(state: Path | None, as_json: bool, verbose: bool) -> None:
    def read() -> dict[str, Any]:
        return ask(state, "status")

    def wait() -> None:
        time.sleep(WATCH_SECONDS)

    if as_json:
        while True:
            click.echo(printable_json(read()))
            wait()
    from rustguard_py.cli import render

    render.watch_status(read, wait, verbose=verbose)
