"""Reads the passphrase of a backup: from a file or the terminal, never from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rustguard_py.cli import secret
from rustguard_py.model.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

# Whoever has the file can try passphrases as fast as their machines do, unlike tokens.
WEAK_LENGTH = 12
_FIX = "Give it with --passphrase-file FILE, on standard input (`--passphrase-file -`), or at a terminal."


def passphrase_options(function: Function) -> Function:
    """Add `--passphrase-file` and `--no-passphrase`; the parameters are `passphrase_file`, `no_passphrase`."""
    by_none = click.option("--no-passphrase", is_flag=True, help="The file has none: whoever has it has the keys.")
    by_file = click.option(
        "--passphrase-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Read the passphrase from a file, or with `-` from standard input.  [default: asks on a terminal]",
    )
    return by_file(by_none(function))


def read_passphrase(file: Path | None, *, none: bool, new: bool) -> str | None:
    """Return the passphrase, or None if the user wants none.

    Args:
        file: The value of `--passphrase-file`.
        none: Whether `--no-passphrase` was given.
        new: Whether it is chosen now: then it is asked for twice, and one that is easily guessed gets a warning.

    Raises:
        UsageError: There is none, two were given, or it isn't valid.
    """
    if none:
        if file is not None:
            raise UsageError("--passphrase-file and --no-passphrase exclude each other.", "Leave one out.")
        return None
    if file is not None:
        found = secret.read_file(file, "passphrase", _FIX)
    elif sys.stdin.isatty():
        again = "The same again" if new else False
        found = click.prompt("Passphrase", hide_input=True, confirmation_prompt=again, err=True)
    else:
        raise UsageError("There is no terminal to ask for the passphrase.", _FIX)
    found = secret.check_token(found, "passphrase", _FIX)
    if new and (len(found) < WEAK_LENGTH or secret.is_weak(found)):
        secret.warn("The passphrase is short. Whoever has the file can try many: take five or six random words.")
    return found
