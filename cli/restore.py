"""`rustguard restore`: put back what `rustguard backup` saved."""

from __future__ import annotations

import os
import shlex
import stat
import time
from pathlib import Path

import click

from rustguard_py.cli.backup import describe, places
from rustguard_py.cli.passphrase import passphrase_options, read_passphrase
from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.model.errors import RefusedError, StateError, UsageError
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root, is_ordinary_user, need_no_root
from rustguard_py.state import restore
from rustguard_py.state.backup import Backup
from rustguard_py.state.records import ServerState
from rustguard_py.state.sealed import MOST_CONTENT, Sealed

_STARTS = {"server": "rustguard serve", "client": "rustguard join"}
# More than any header.
_HEADER = 1024


@click.command(
    "restore",
    cls=Verb,
    examples=[
        ("sudo rustguard restore home.backup", "on a new machine; it asks for the passphrase"),
        ("sudo rustguard restore home.backup --overwrite", "go back to it: what is there now is lost"),
        ("sudo rustguard restore home.backup --state /srv/vpn", "its one state, into another directory"),
    ],
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the states and settings that are there.")
@passphrase_options
@state_option
def command(
    file: Path, overwrite: bool, passphrase_file: Path | None, no_passphrase: bool, state: Path | None
) -> None:
    """Restore keys, peers, networks and settings from FILE: all of them, or nothing if anything is wrong.

    Stop what runs on them first. Afterwards, never run this machine and the one of the backup at the same time: they
    have the same keys.
    """
    if is_ordinary_user():
        need_no_root()
    sealed = Sealed.parse(_read(file))
    if sealed.cost is None and not no_passphrase:
        raise RefusedError(
            "This backup has no passphrase: anybody may have made or changed it.",
            "If you are sure of it: --no-passphrase",
        )
    passphrase = read_passphrase(passphrase_file, none=no_passphrase, new=False)
    backup = Backup.decode(sealed.open(passphrase))
    todo = restore.plan(backup, places(state), overwrite=overwrite)
    restore.carry_out(todo)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(backup.made))
    click.echo(
        printable(f"Restored the backup of {backup.host}, made {made} by RustGuard {backup.version}:"), err=True
    )
    for line in describe(backup):
        click.echo(printable(f"  {line}"), err=True)
    if todo.left_out:
        click.echo(printable(f"Not restored, because --state names one state: {', '.join(todo.left_out)}."), err=True)
    _say_next(backup, state)


def _say_next(backup: Backup, state: Path | None) -> None:
    click.echo("Before you start it: stop the machine of the backup, because both have the same keys.", err=True)
    if backup.services and state is None:
        click.echo("Its services are not installed yet:", err=True)
        for words in backup.services:
            click.echo(printable(f"  {as_root(f'rustguard service install {shlex.join(words)}')}"), err=True)
        return
    for found in backup.states().values():
        if found is not None:
            role = "server" if isinstance(found, ServerState) else "client"
            own = "" if state is None else f" --state {shlex.quote(str(state.expanduser().resolve()))}"
            click.echo(printable(f"Start it: {as_root(f'{_STARTS[role]}{own}')}"), err=True)


def _read(file: Path) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as there:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{file} is no plain file.", "Name a file that `rustguard backup` wrote.")
            content = there.read(MOST_CONTENT + _HEADER)
    except OSError as error:
        raise UsageError(
            f"{file} can't be read: {error.strerror}.", "Run it with sudo, or name another one."
        ) from error
    if len(content) >= MOST_CONTENT + _HEADER:
        raise StateError(
            f"{file} is too large to be a backup of RustGuard.", "Name a file that `rustguard backup` wrote."
        )
    return content
