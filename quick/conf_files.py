"""wg-quick's files: where they are, how they are read and written."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from shlex import quote

from rustguard_py import conf, conf_reader, conf_writer
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.quick.routing import table_names
from rustguard_py.state.durable_files import Files, sync_directory, unusable, write_fresh

DIRECTORIES = (Path("/etc/wireguard"), Path("/etc/rustguard"))

# As wg-quick has it, but `ip` would take a hyphen in front for an option.
_NAME = re.compile(r"[a-zA-Z0-9_=+.][a-zA-Z0-9_=+.-]{0,14}")


def interface_of(given: str) -> str:
    """Return the name of the interface for a name or for the path of a file `NAME.conf`; no file is looked at.

    Raises:
        UsageError: It can't be the name of an interface.
    """
    name = Path(given).name.removesuffix(".conf") if _is_path(given) else given
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise UsageError(
            f"{given!r} can't name an interface.",
            "The file is called NAME.conf; NAME has 1 to 15 letters, digits or any of _=+.- and doesn't begin with - "
            "(such as wg0.conf).",
        )
    return name


def find(given: str) -> Path:
    """Return the path of a file given by its path, or by its name in /etc/wireguard or /etc/rustguard.

    Raises:
        UsageError: It doesn't exist, or its name doesn't end in .conf.
        RefusedError: We have no permission to look.
    """
    try:
        return _find(given, interface_of(given))
    except PermissionError as error:
        raise _not_ours(error.filename) from error


def _find(given: str, name: str) -> Path:
    if _is_path(given):
        path = Path(given)
        if not path.is_file():
            raise UsageError(f"There is no file {given}.", "Name a wg-quick file, or an interface that has one.")
        if path.suffix != ".conf":
            raise UsageError(
                f"The name of {given} doesn't end in .conf.", f"For an interface {name}, call the file {name}.conf."
            )
        return path.resolve()
    places = [directory / f"{name}.conf" for directory in DIRECTORIES]
    for path in places:
        if path.is_file():
            return path.resolve()
    raise UsageError(
        f"There is no file for {name}: neither {' nor '.join(map(str, places))}.",
        "Put it there (mode 600), or give the path of the file.",
    )


def _is_path(given: str) -> bool:
    return "/" in given or given.endswith(".conf")


def load(path: Path) -> conf.Config:
    """Read a file.

    Raises:
        UsageError: It is malformed.
        RefusedError: We have no permission to read it.
    """
    try:
        # Comments and hooks may be in any encoding.
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except PermissionError as error:
        raise _not_ours(path) from error
    return parse(text, path)


def parse(text: str, path: Path) -> conf.Config:
    """Read the text of a file. Raise UsageError if it is malformed."""
    return conf_reader.parse(text, str(path), table_names())


def load_to_run(path: Path, *, trust: bool, runs: bool = False) -> conf.Config:
    """Read a file whose hooks are to be run.

    Args:
        path: Resolved.
        trust: Whether to skip the check of who can change the file.
        runs: Whether the tunnel runs already, without that trust.

    Raises:
        UsageError: It is malformed.
        RefusedError: We have no permission to read it, or it has hooks and other users can change it.
    """
    # A daemon that reads its file again would wait for whoever writes to a FIFO.
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file.", "Put the wg-quick file itself there.")
    # Checked before it is read: what nobody else can change now stays so.
    unsafe = None if trust else _why_unsafe(path)
    config = load(path)
    if unsafe is not None and config.hooks != conf.Hooks():
        what, fix = unsafe
        raise RefusedError(
            f"{path} has hooks, which run as the user who runs `up`, and {what}.",
            f"{fix}. Or {'end the tunnel, and start it again' if runs else 'start it'} with: --trust-file",
        )
    return config


def _why_unsafe(path: Path) -> tuple[str, str] | None:
    """Return who else can change or replace a file, and the command against that; None if nobody can."""
    for place in (path, *path.parents):
        found = place.stat()
        quoted = quote(str(place))
        if found.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user", f"Take it over: chown {os.geteuid()} {quoted}"
        # In a sticky directory, such as /tmp, only the owner of a file can replace it.
        if place != path and found.st_mode & stat.S_ISVTX:
            continue
        if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != 0):
            return f"other users can write to {place}", f"Run: chmod go-w {quoted}"
    return None


def _not_ours(path: object) -> RefusedError:
    return RefusedError(f"There is no permission to read {path}.", "Run the same command as root.")


def warning(path: Path) -> str | None:
    """Return a warning if other users can read the file, as wg-quick gives one, or None."""
    reachable = path.stat().st_mode & path.parent.stat().st_mode & stat.S_IRWXO
    return f"Other users can read {path}, which contains keys: chmod 600 {quote(str(path))}" if reachable else None


def save(path: Path, config: conf.Config) -> None:
    """Replace a file, mode 0600; it is written whole or not at all.

    Raises:
        StateError: It couldn't be written.
    """
    files = Files()
    temporary = path.with_name(f".{path.name}.new")
    try:
        os.close(write_fresh(files, temporary, conf_writer.write(config).encode("utf-8", "surrogateescape")))
        files.rename(temporary, path)
        sync_directory(files, path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unusable("written", path, error) from error
