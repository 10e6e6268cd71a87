"""`rustguard down`: end a tunnel that `rustguard up` made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any

import click

from rustguard_py.cli import complete, stop
from rustguard_py.cli.daemon import ask_or_do, daemons_of
from rustguard_py.cli.verb import Verb
from rustguard_py.daemon.control.client import call, listens
from rustguard_py.model.errors import NotRunningError, RefusedError, RustGuardError, UsageError
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root
from rustguard_py.state import paths

# The file's hooks may take long. The daemon gives a sign of life each second.
SILENCE_SECONDS = 20.0
# Between its answer and its end, seconds.
END_SECONDS = 120.0
# After so many signs of life, a second apart, a line says that the work goes on.
SLOW = 5


@click.command(
    "down",
    cls=Verb,
    examples=[
        ("sudo rustguard down wg0", "undo everything that `up` did"),
        ("sudo rustguard down wg0", "the same after it was killed: rules and DNS that it left are undone"),
    ],
)
@click.argument("name", metavar="FILE|NAME|INTERFACE", shell_complete=complete.tunnels)
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="State directory.")
def command(name: str, state: Path | None) -> None:
    """Bring down a tunnel that `rustguard up` brought up: run PreDown, undo all changes, run PostDown.

    It also ends a client that runs with --rootless, by its interface.
    """
    from rustguard_py.quick.conf_files import interface_of

    interface = interface_of(name)
    directory = (state or paths.tunnel_directory(interface)).expanduser().resolve()

    def end(socket: Path) -> bool:
        failed = _end(socket)
        # What the daemon couldn't undo, because the helper that runs its hooks was gone.
        ask_or_do(directory, lambda _: False, lambda: _repair(directory, interface))
        if failed:
            raise RustGuardError(" ".join(failed), "Everything else is undone. Correct those lines of the file.")
        return True

    if not ask_or_do(directory, end, lambda: _repair(directory, interface)):
        statuses = daemons_of(interface)
        clients = [Path(each["state_directory"]) for each in statuses if each.get("rootless") is not None]
        if not clients:
            raise _not_ours(interface, statuses[0] if statuses else None)
        _end_client(interface, clients)


def _end_client(interface: str, directories: Sequence[Path]) -> None:
    """End a client without root: nothing of it is outside, so there is nothing else to undo.

    Raises:
        UsageError: Several have an interface of this name, each in a namespace of its own.
    """
    if len(directories) > 1:
        lines = [f"rustguard stop {quote(str(each))}" for each in directories]
        raise UsageError(f"{len(directories)} clients have an {interface}.", "\n".join(["Choose one:", *lines]))
    for each in paths.running():
        if each.state_directory == directories[0]:
            stop.end(each)


def _not_ours(interface: str, status: dict[str, Any] | None) -> RustGuardError:
    """Return the error for an interface that `up` didn't make; it names the daemon that did.

    Args:
        interface: The interface's name.
        status: The status of the daemon, or None if it is none of ours.
    """
    if status is None:
        return NotRunningError(f"{interface} isn't up.", "See what runs: rustguard status")
    directory = quote(status["state_directory"])
    if status["role"] == "tunnel":
        return UsageError(
            f"{interface} was brought up with another state directory, {status['state_directory']}.",
            f"To bring it down: {as_root(f'rustguard down {interface} --state {directory}')}",
        )
    verb = "serve" if status["role"] == "server" else "join"
    return RefusedError(
        f"{interface} belongs to `rustguard {verb}`, process {status['pid']}; `down` ends only what `up` brought up.",
        f"To end it: {as_root(f'rustguard stop {directory}')}",
    )


def _end(socket: Path) -> list[str]:
    """End the daemon, and return what failed."""
    beats = count(1)

    def on_beat() -> None:
        if next(beats) == SLOW:
            click.echo("The daemon is still at work on it, most likely in a hook of the file.", err=True)

    answer = call(socket, "down", None, SILENCE_SECONDS, on_beat)
    for line in answer["changes"]:
        click.echo(printable(line), err=True)
    deadline = time.monotonic() + END_SECONDS
    # The daemon removes its socket a moment after it answers.
    while listens(socket) and time.monotonic() < deadline:
        time.sleep(0.01)
    failed: list[str] = answer["failed"]
    return failed


def _repair(directory: Path, interface: str) -> bool:
    """Undo what a killed daemon left; return False if it left nothing."""
    if not any(path.exists() for path in paths.undo_files(directory)):
        return False

    from rustguard_py.daemon.vouched import forget
    from rustguard_py.quick.up import repair
    from rustguard_py.state.document import Document

    document = Document.open(directory)
    try:
        return asyncio.run(repair(directory, interface, lambda line: click.echo(printable(line), err=True)))
    finally:
        forget(directory)
        document.close()
