"""Where wg-quick's files lie, read and written."""

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

_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")


def interface_of(given: str) -> str:
    """Give the interface that is meant by its name or by that of its file, `NAME.conf`; nothing is looked at.

    Raises:
        UsageError: No interface can be called so.
    """
    name = Path(given).name.removesuffix(".conf") if _is_path(given) else given
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise UsageError(
            f"{given!r} can't name an interface.",
            "The file is called NAME.conf; NAME has 1 to 15 letters, digits or any of _=+.- (such as wg0.conf).",
        )
    return name


def find(given: str) -> Path:
    """Find the file that is meant: a path, or a name in /etc/wireguard or /etc/rustguard.

    Raises:
        UsageError: It isn't there, or isn't called as such a file is.
        RefusedError: We may not look.
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
                f"{given} isn't called as such a file is.", f"For an interface {name}, call it {name}.conf."
            )
        return path.resolve()
    places = [directory / f"{name}.conf" for directory in DIRECTORIES]
    for path in places:
        if path.is_file():
            return path.resolve()
    raise UsageError(
        f"There is no file for {name}: neither {' nor '.join(map(str, places))}.",
        "Put it there (mode 600), or name the file itself.",
    )


def _is_path(given: str) -> bool:
    return "/" in given or given.endswith(".conf")


def load(path: Path) -> conf.Config:
    """Read a file.

    Raises:
        UsageError: It holds something that can't be meant.
        RefusedError: We may not read it.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} isn't text in UTF-8.", f"Look at it: file {quote(str(path))}") from error
    except PermissionError as error:
        raise _not_ours(path) from error
    return conf_reader.parse(text, str(path), table_names())


def _not_ours(path: object) -> RefusedError:
    return RefusedError(f"{path} may not be read.", "Run the same command as root: `sudo rustguard …`.")


def warning(path: Path) -> str | None:
    """Say so if others can read a file, as wg-quick does; else None."""
    reachable = path.stat().st_mode & path.parent.stat().st_mode & stat.S_IRWXO
    return f"Others can read {path}, which holds keys: chmod 600 {quote(str(path))}" if reachable else None


def save(path: Path, config: conf.Config) -> None:
    """Put a file in place of what is there, mode 0600; whole or not at all.

    Raises:
        StateError: It couldn't be written.
    """
    files = Files()
    temporary = path.with_name(f".{path.name}.new")
    try:
        os.close(write_fresh(files, temporary, conf_writer.write(config).encode()))
        files.rename(temporary, path)
        sync_directory(files, path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unusable("written", path, error) from error
