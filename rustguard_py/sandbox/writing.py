"""Refusing to write elsewhere than in some places: Landlock (`native/plane/src/writing.rs`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rustguard_py.sandbox.report import Report

_NO_EXTENSION = "this installation has no native engine, which brings the rules"
_NO_LANDLOCK = "there is no Landlock here; it came with Linux 5.13, may be switched off, and containers may refuse it"
# What older kernels don't refuse: the version of Landlock that brought it, and that of Linux.
_LATER = (
    (3, "6.2", "cutting off files elsewhere"),
    (5, "6.10", "settings of other devices"),
    (6, "6.12", "signals to other processes"),
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a process may write. What isn't there is left out.

    Attributes:
        directories: Files in them may be made, written, renamed and removed.
        files: Files that may be written, or directories whose files may be. None can be made.
        devices: Devices that may be written and set up.
    """

    directories: Sequence[Path] = ()
    files: Sequence[Path] = ()
    devices: Sequence[Path] = ()


def version() -> int | None:
    """Return the version of Landlock in this kernel, 0 for none; None without the native extension."""
    try:
        from rustguard_py._native import landlock_version
    except ImportError:
        return None
    return landlock_version()


def why_not() -> str | None:
    """Return why writing can't be limited here, or None if it can."""
    found = version()
    return _NO_EXTENSION if found is None else None if found else _NO_LANDLOCK


def not_limited(why: str) -> Report:
    """Return the report that writing isn't limited."""
    return Report((), (f"Writing to other files isn't refused: {why}.",))


def limit(places: Places) -> Report:
    """Refuse to write elsewhere, to this thread and all that it starts, for good. `privileges.give_up` comes first.

    What this process has open already stays as it is.

    Args:
        places: Where it may write. They stay permitted as long as they aren't removed and made again.

    Returns:
        What was applied, or why not: the process goes on.
    """
    from rustguard_py._native import restrict_writing

    opened = [_open(each) for each in (places.directories, places.files, places.devices)]
    try:
        version = restrict_writing(directories=opened[0], files=opened[1], devices=opened[2])
    except OSError as error:
        return not_limited(error.strerror or str(error))
    if not version:
        return not_limited(_NO_LANDLOCK)
    later = [f"{what} (Linux {since})" for least, since, what in _LATER if version < least]
    refused = (f"This kernel is too old to refuse: {', '.join(later)}.",) if later else ()
    return Report(("writing only to its own files",), refused)


def _open(paths: Iterable[Path]) -> list[int]:
    """Return descriptors of what is there. They stay open: /proc makes new inodes when nobody uses the old ones."""
    found = []
    for each in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            found.append(os.open(each, os.O_PATH | os.O_CLOEXEC))
    return found
