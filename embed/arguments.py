"""Checks of what a program passes: each returns the checked value, or raises a `UsageError` that names the fix."""

from __future__ import annotations

import os
from pathlib import Path

from rustguard_py.model.errors import UsageError

# Seconds; the longest wait that the kernel's poll(2) takes is a little more than twice as long.
LONGEST = 1_000_000


def check_timeout(timeout: object) -> None:
    """Check a number of seconds to wait; None waits as long as it takes.

    Raises:
        UsageError: It is no number, below 0, not finite, or above `LONGEST`.
    """
    if timeout is not None and not (isinstance(timeout, (int, float)) and 0 <= timeout <= LONGEST):
        raise UsageError(
            f"timeout={timeout!r} is no number of seconds from 0 to {LONGEST}.",
            "Pass such a number, or None to set no limit.",
        )


def check_text(name: str, given: object) -> None:
    """Check that an argument is a text or wasn't given.

    Args:
        name: The argument's.
        given: Its value; None if it wasn't given.

    Raises:
        UsageError: It is something else.
    """
    if given is not None and not isinstance(given, str):
        raise UsageError(f"{name}= is of type {type(given).__name__}.", "Pass a str, or leave it out.")


def path_of(name: str, given: object) -> Path:
    """Return the path of a file or folder.

    Args:
        name: What it is, for errors.
        given: A text or a path; `~` stands for the home directory.

    Raises:
        UsageError: It is something else, or no file can be called that.
    """
    if not isinstance(given, (str, os.PathLike)) or not isinstance(text := os.fspath(given), str):
        raise UsageError(f"{name} is of type {type(given).__name__}.", "Pass a str or a Path.")
    if not text or "\0" in text:
        why = "is empty" if not text else "holds a zero byte"
        raise UsageError(f"{name} {why}, so it names no file.", "Pass the path of one.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{name} begins with ~ and no known user.", "Write the path in full.") from error
