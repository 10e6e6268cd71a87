"""`rustguard down`: end a tunnel that `rustguard up` made."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click

from rustguard_py.cli.daemon import wait_for_socket
from rustguard_py.cli.verb import Verb
from rustguard_py.daemon.control.client import call, listens
from rustguard_py.model.errors import NotRunningError, RustGuardError
from rustguard_py.model.printable import printable
from rustguard_py.state import paths

# The file's hooks may take long.
SECONDS = 120.0


@click.command(
    "down",
    cls=Verb,
    examples=[
        ("sudo rustguard down wg0", "undo everything that `up` did"),
        ("sudo rustguard down wg0", "the same after it was killed: rules and DNS that it left are undone"),
    ],
)
@click.argument("name", metavar="FILE|NAME|INTERFACE")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="State directory.")
def command(name: str, state: Path | None) -> None:
    """Bring down a tunnel that `rustguard up` brought up: run PreDown, undo all changes, run PostDown."""
    from rustguard_py.quick.conf_files import interface_of

    interface = interface_of(name)
    directory = (state or paths.tunnel_directory(interface)).expanduser().resolve()
    socket = wait_for_socket(directory)
    if socket is not None:
        _end(socket)
    elif not _repair(directory):
        raise NotRunningError(f"{interface} isn't up.", "See what runs: rustguard status")


def _end(socket: Path) -> None:
    answer = call(socket, "down", timeout=SECONDS)
    for line in answer["changes"]:
        click.echo(printable(line), err=True)
    deadline = time.monotonic() + SECONDS
    # The daemon removes its socket a moment after it answers.
    while listens(socket) and time.monotonic() < deadline:
        time.sleep(0.01)
    if answer["failed"]:
        raise RustGuardError(
            " ".join(answer["failed"]), "Everything else is undone. Correct those lines of the file."
        )


def _repair(directory: Path) -> bool:
    """Undo what a killed daemon left; return False if it left nothing."""
    if not any(path.exists() for path in paths.undo_files(directory)):
        return False

    from rustguard_py.quick.up import repair
    from rustguard_py.state.document import Document

    document = Document.open(directory)
    try:
        return asyncio.run(repair(directory, lambda line: click.echo(printable(line), err=True)))
    finally:
        document.close()
