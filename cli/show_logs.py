"""`rustguard logs`: what a daemon has logged, wherever it logs to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.daemon.control.client import listener, listens
from rustguard_py.model.errors import NotRunningError, UsageError
from rustguard_py.service import systemd
from rustguard_py.state import paths


@click.command(
    "logs",
    cls=Verb,
    examples=[
        ("sudo rustguard logs", "of the daemon that runs, or of the one that ran last"),
        ("sudo rustguard logs -f", "and what it logs from now on"),
    ],
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until Ctrl-C.")
@state_option
def command(follow: bool, state: Path | None) -> None:
    """Show the log of a server or client: the journal of a service, or the file of one in the background."""
    directories = [state.expanduser().resolve()] if state is not None else _directories()
    for directory in directories:
        socket = paths.find_socket(directory)
        unit = systemd.running_unit(listener(socket)) if socket is not None and listens(socket) else None
        if unit is not None:
            from rustguard_py.cli.service import show_journal

            show_journal(unit, follow=follow)
    files = [file for each in directories for file in (each.with_suffix(".log"), each / "log") if file.exists()]
    if not files:
        raise NotRunningError(
            "No log is here: what runs in a terminal logs to that terminal.",
            "In the background: sudo rustguard serve --daemon, or join --daemon",
        )
    newest = max(files, key=lambda path: path.stat().st_mtime)
    words = ["tail", "-n", "+1", *(["-F"] if follow else []), str(newest)]
    sys.stdout.flush()
    os.execvp(words[0], words)  # noqa: S606


def _directories() -> list[Path]:
    """Return the state directory that is meant: of the daemon that runs, else all that there may be."""
    running = [each.state_directory for each in paths.running() if listens(each.socket)]
    if len(running) > 1:
        lines = [f"rustguard logs --state {each}" for each in running]
        raise UsageError(f"{len(running)} daemons run here.", "\n".join(["Choose one:", *lines]))
    return running or [paths.state_directory("server"), paths.state_directory("client")]
