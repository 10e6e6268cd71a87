"""`rustguard backup`: save what this machine needs in one file, under a passphrase."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import click

from rustguard_py import __version__
from rustguard_py.cli.passphrase import passphrase_options, read_passphrase
from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.printable import printable
from rustguard_py.service import systemd
from rustguard_py.state import paths
from rustguard_py.state.backup import Backup, Places, take
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.records import ServerState
from rustguard_py.state.sealed import MAGIC, seal


@click.command(
    "backup",
    cls=Verb,
    examples=[
        ("sudo rustguard backup home.backup", "all of this machine; it asks for a passphrase"),
        ("sudo rustguard backup home.backup --passphrase-file /root/passphrase", "the same, from a timer"),
        ("sudo rustguard backup one.backup --state /srv/vpn", "one state directory"),
    ],
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@passphrase_options
@state_option
def command(file: Path, passphrase_file: Path | None, no_passphrase: bool, state: Path | None) -> None:
    """Save keys, peers, networks, audit logs, timestamps, and the settings in /etc/rustguard in FILE.

    Daemons may go on running. FILE is encrypted, and replaced if it is an older backup. Not in it: wg-quick files of
    /etc/wireguard, and state directories elsewhere, which --state DIR backs up.
    """
    _check_output(file)
    installed = () if state is not None else tuple(words for each in systemd.installed() if (words := _words(each)))
    backup = take(places(state), __version__, socket.gethostname(), installed)
    passphrase = read_passphrase(passphrase_file, none=no_passphrase, new=True)
    write(file, seal(backup.encode(), passphrase))
    for line in describe(backup):
        click.echo(printable(f"Saved {line}."), err=True)
    kept = "Whoever has it has the keys" if passphrase is None else "Without its passphrase nobody can open it"
    click.echo(printable(f"Written to {file}. {kept}."), err=True)


def places(state: Path | None) -> Places:
    """Return where the files of this machine lie, or those of the state directory that was named."""
    if state is not None:
        return Places(state.expanduser().resolve(), single=True)
    if os.geteuid() == 0:
        return Places(paths.state_root(), systemd.TOKENS, Path("/etc/default"))
    return Places(paths.state_root())


def describe(backup: Backup) -> list[str]:
    """Return a line for each thing in a backup."""
    lines = []
    for name, state in backup.states().items():
        match state:
            case ServerState():
                lines.append(f"{name}: a server of {state.pool4} with {counted(len(state.peers), 'peer')}")
            case ClientState():
                hosts = ", ".join(each.host for each in state.networks) or "no network yet"
                lines.append(f"{name}: a client of {hosts}")
            case None:
                lines.append(f"{name}: the timestamps of a tunnel")
    settings = [each.name for each in backup.files if each.area != "state"]
    return [*lines, f"settings: {', '.join(settings)}"] if settings else lines


def write(file: Path, content: bytes) -> None:
    """Write a file (0600) durably, or leave what is there."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(descriptor)
        fresh.replace(file)
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise RustGuardError(
            f"{file} can't be written: {error.strerror}.", "Name a file in a directory that you can write, with room."
        ) from error


def _check_output(file: Path) -> None:
    """Refuse to replace something else than a backup."""
    try:
        with file.open("rb") as there:
            begins = there.read(len(MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise RustGuardError(f"{file} can't be read: {error.strerror}.", "Name another file.") from error
    if begins != MAGIC:
        raise RefusedError(f"{file} is there, and is no backup of RustGuard.", "Name another file, or move it away.")


def _words(service: systemd.Service) -> tuple[str, ...]:
    with suppress(OSError, ValueError):
        return service.install_words()
    return ()
