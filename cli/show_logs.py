"""`rustguard logs`: what a daemon has logged, wherever it logs to."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shlex import quote

import click

from rustguard_py.cli import complete
from rustguard_py.cli.daemon import meant, of_other_users, running
from rustguard_py.cli.stop import called
from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.daemon.control.client import listener, listens
from rustguard_py.model.errors import NotRunningError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.service import systemd
from rustguard_py.state import paths


@click.command(
    "logs",
    cls=Verb,
    examples=[
        ("sudo rustguard logs", "of the daemon that runs, or of the one that ran last"),
        ("sudo rustguard logs -f", "and what it logs from now on"),
        ("sudo rustguard logs wg0", "of the tunnel that `up wg0` brought up"),
    ],
)
@click.argument("name", required=False, shell_complete=complete.daemons)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until Ctrl-C.")
@state_option
def command(name: str | None, follow: bool, state: Path | None) -> None:
    """Show the log of a server, client or tunnel: the journal of a service, or the file of one in the background.

    NAME is its state directory or the last part of it, as for `rustguard stop`.
    """
    if name is not None and state is not None:
        raise UsageError("A name and --state exclude each other.", "Leave one out.")
    directories = [state.expanduser().resolve()] if state is not None else _directories(name)
    for directory in directories:
        socket = paths.find_socket(directory)
        process = listener(socket) if socket is not None and listens(socket) else None
        unit = None if process is None else systemd.running_unit(process)
        if process is not None and unit is not None:
            from rustguard_py.cli.service import show_journal

            show_journal(unit, systemd.manager_of(process), follow=follow)
    files = [file for each in directories for file in (paths.log_file(each), each / "log") if file.exists()]
    if not files:
        raise NotRunningError(
            f"No log{'' if name is None else f' of {name}'} is here: what runs in a terminal logs to that terminal.",
            of_other_users("logs", name)
            or f"In the background: {as_root('rustguard serve --daemon')}, or join --daemon",
        )
    newest = max(files, key=lambda path: path.stat().st_mtime)
    words = ["tail", "-n", "+1", *(["-F"] if follow else []), str(newest)]
    sys.stdout.flush()
    os.execvp(words[0], words)  # noqa: S606


def _directories(name: str | None) -> list[Path]:
    """Return the state directory that is meant: of the daemon that runs, else all that there may be."""
    candidates = running(named=name is not None)
    found = [each.state_directory for each in (meant(candidates) if name is None else called(candidates, name))]
    if len(found) > 1:
        lines = [f"rustguard logs {quote(str(each))}" for each in found]
        raise UsageError(f"{len(found)} daemons run here.", "\n".join(["Choose one:", *lines]))
    usual = [paths.state_directory("server"), paths.state_directory("client")]
    if found or name is None:
        return found or usual
    given = Path(name).expanduser().resolve()
    return [given] if "/" in name else [paths.tunnel_directory(name), *(each for each in usual if each.name == name)]
