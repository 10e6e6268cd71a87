"""Reads the token, and wipes it from where others could read it: the process list and the environment."""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

import click

from rustguard_py.model.errors import UsageError

OPTION = "--token"
VARIABLE = "RUSTGUARD_TOKEN"
MAX_LENGTH = 1024
# A window allows 20 guesses (docs/internals/enrollment.md), so a token must not be among a person's first 20 ideas.
WEAK_LENGTH = 8
WEAK_CHARACTERS = 4

_STANDARD_INPUT = "-"
_SUDO_VARIABLE = "SUDO_COMMAND"
_MASK = b"***"
_FIX = f"Give it with --token-file FILE, {VARIABLE}, or on standard input (`{OPTION} -`)."
# proc(5), /proc/PID/stat, counted from the field behind the command's name: arg_start, arg_end, env_start, env_end.
_MEMORY_FIELDS = slice(45, 49)
# Tokens that were read, so that no report shows one.
_SEEN: set[str] = set()


def read_token(token_option: str | None, token_file: Path | None, *, warn_if_weak: bool = True) -> str:
    """Return the token from where the user put it, else read standard input, without echo on a terminal.

    Args:
        token_option: The value of `--token`; `-` is standard input.
        token_file: The value of `--token-file`; `-` is standard input.
        warn_if_weak: Whether to warn about a weak token. Only for the user who chooses it.

    Returns:
        The token in NFC, so that two keyboards produce the same.

    Raises:
        UsageError: There is none, or it isn't valid.
    """
    token = find_token(token_option, token_file)
    if token is None:
        token = check_token(_from_standard_input())
    if warn_if_weak and is_weak(token):
        warn_weak()
    return token


def warn_weak() -> None:
    """Warn on stderr of a token that is easily guessed."""
    warn("The token is easily guessed. A window allows 20 guesses: take three or four random words.")


def find_token(token_option: str | None, token_file: Path | None) -> str | None:
    """Return the token of option, file or variable, or None. Never asks for one.

    Raises:
        UsageError: Two were given, or the token isn't valid.
    """
    from_environment = os.environ.pop(VARIABLE, None)
    if from_environment is not None:
        _wipe_environment(VARIABLE)
    if token_option is not None and token_file is not None:
        raise UsageError("--token and --token-file are both given.", "Leave one out.")
    if token_option == _STANDARD_INPUT or token_file == Path(_STANDARD_INPUT):
        return check_token(_from_standard_input())
    if token_option is not None:
        wipe_arguments()
        sudo = "; sudo's own line still shows it" if _SUDO_VARIABLE in os.environ else ""
        warn(f"A token on the command line stays in the shell's history, and was in the process list{sudo}. {_FIX}")
        return check_token(token_option)
    if token_file is not None:
        return check_token(read_file(token_file))
    return check_token(from_environment) if from_environment is not None else None


def check_token(token: str, what: str = "token", fix: str = _FIX) -> str:
    """Return a token, or another secret that a person types, in NFC. No report shows it from then on.

    Args:
        token: As typed.
        what: What it is, for errors.
        fix: How to give one.

    Raises:
        UsageError: It's empty, too long, or holds control characters or broken UTF-8.
    """
    _SEEN.add(token)
    token = unicodedata.normalize("NFC", token)
    _SEEN.add(token)
    if not token.strip():
        raise UsageError(f"The {what} is empty.", fix)
    if len(token) > MAX_LENGTH:
        raise UsageError(f"The {what} is longer than {MAX_LENGTH} characters.", "A few random words are enough.")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in token):
        raise UsageError(f"The {what} holds a control character, a line break, or broken UTF-8.", "Take words.")
    return token


def conceal(text: str) -> str:
    """Return a text without the tokens that were read so far."""
    for token in filter(None, map(str.strip, _SEEN)):
        text = text.replace(token, _MASK.decode())
    return text


def is_weak(token: str) -> bool:
    """Return whether a token could be among a stranger's first guesses."""
    return len(token) < WEAK_LENGTH or len(set(token)) < WEAK_CHARACTERS


def wipe_arguments() -> None:
    """Overwrite the value of `--token` in the process's own argv, which `ps` reads. May be called twice.

    `sys.argv` and `sys.orig_argv` lose it too, so copy them first where the token is still needed.
    """
    if not any(argument.startswith(OPTION) for argument in sys.argv):
        return
    # sudo passes its whole command line on in a variable.
    if OPTION in os.environ.get(_SUDO_VARIABLE, ""):
        os.environ[_SUDO_VARIABLE] = _MASK.decode()
        _wipe_environment(_SUDO_VARIABLE)
    for arguments in (sys.argv, sys.orig_argv):
        for index, start in _token_places([os.fsencode(argument) for argument in arguments]):
            arguments[index] = arguments[index][:start] + _MASK.decode()
    memory = _own_memory()
    if memory is not None:
        start, end = memory[0], memory[1]
        entries = _read(start, end).split(b"\0")
        for index, inside in _token_places(entries):
            before = sum(len(entry) + 1 for entry in entries[:index])
            _overwrite(start + before + inside, len(entries[index]) - inside)


def _token_places(arguments: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the index of each argument that holds a token, and where in it the token begins."""
    option = OPTION.encode()
    for index, argument in enumerate(arguments):
        name, separator, _ = argument.partition(b"=")
        if name == option and separator:
            yield index, len(name) + 1
        elif argument == option and index + 1 < len(arguments):
            value = arguments[index + 1]
            if value != _STANDARD_INPUT.encode():
                yield index + 1, 0


def _wipe_environment(variable: str) -> None:
    # The caller has removed or replaced it in os.environ, so nothing in this process points there any more.
    memory = _own_memory()
    if memory is None:
        return
    start, end = memory[2], memory[3]
    name = variable.encode() + b"="
    offset = 0
    for entry in _read(start, end).split(b"\0"):
        if entry.startswith(name):
            _overwrite(start + offset + len(name), len(entry) - len(name))
        offset += len(entry) + 1


def _own_memory() -> tuple[int, ...] | None:
    """Return where the kernel put our arguments (start, end) and our environment (start, end), or None."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    addresses = tuple(int(field) for field in fields[_MEMORY_FIELDS])
    return addresses if len(addresses) == 4 and all(addresses) else None


def _read(start: int, end: int) -> bytes:
    import ctypes

    return ctypes.string_at(start, end - start)


def _overwrite(address: int, length: int) -> None:
    """Replace a secret by a mask that hides its length too."""
    import ctypes

    ctypes.memset(address, 0, length)
    ctypes.memmove(address, _MASK, min(length, len(_MASK)))


def _from_standard_input() -> str:
    if sys.stdin.isatty():
        token: str = click.prompt("Token", hide_input=True, err=True)
        return token
    return _one_line(sys.stdin.buffer.readline(4 * MAX_LENGTH + 2), "Standard input")


def read_file(path: Path, what: str = "token", fix: str = _FIX) -> str:
    """Return the first line of a file that holds a secret, of standard input for `-`. Warn if others may read it.

    Args:
        path: The file.
        what: What it holds, for errors.
        fix: How else to give it.

    Raises:
        UsageError: It can't be read, or isn't text.
    """
    if path == Path(_STANDARD_INPUT):
        return _one_line(sys.stdin.buffer.readline(4 * MAX_LENGTH + 2), "Standard input")
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(4 * MAX_LENGTH + 2)
    except OSError as error:
        raise UsageError(f"The {what} file {path} can't be read: {error.strerror}.", fix) from error
    if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"Others may read {path}: chmod 600 {quote(str(path))}")
    return _one_line(content, str(path))


def _one_line(content: bytes, origin: str) -> str:
    try:
        return content.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise UsageError(f"{origin} doesn't hold UTF-8 text.", "Write it as UTF-8.") from None


def warn(message: str) -> None:
    """Print a warning on standard error."""
    click.echo(f"{click.style('warning:', fg='yellow')} {message}", err=True)
