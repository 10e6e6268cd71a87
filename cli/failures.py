"""The one place where an error becomes what the user sees and the program's exit code.

An error that the program foresees is printed with its fix. An error of a limit (files, threads, memory) names the
limit. Any other is a fault of the program: its traceback goes to a report file, and a message names the file.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import click

from rustguard_py import __version__
from rustguard_py.cli.secret import conceal
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.limits import limit_of
from rustguard_py.model.printable import printable

INTERRUPTED: Final = 130
# Keys as base64 or hexadecimal text.
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{43}=|[0-9A-Fa-f]{64}")
# Longer messages may hold what a peer sent.
_MESSAGE_LIMIT: Final = 500


class Program:
    """What is known of the running command.

    Attributes:
        state: The state directory that it was given, or None.
        limited: Whether a limit ended it. Objects that were half made then complain when they are erased.
    """

    state: Path | None = None
    limited = False


def settle_streams() -> None:
    """Make standard input, output and error usable, however the program was started.

    A closed one (`>&-`) becomes /dev/null, so that no socket or file gets its descriptor. What a stream's encoding
    hasn't is replaced.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                # The lowest free descriptor is this one.
                os.open(os.devnull, os.O_RDWR)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, errors="replace", closefd=False))  # noqa: SIM115
        elif number:
            with suppress(AttributeError, ValueError):
                getattr(sys, name).reconfigure(errors="replace" if number == 1 else "backslashreplace")


def install() -> None:
    """Report what no caller can catch: errors of threads, of destructors, and of `sys.excepthook`."""
    sys.excepthook = lambda _, error, trace: show_fault(error.with_traceback(trace))
    threading.excepthook = lambda failed: (
        None if failed.exc_value is None else note_fault("A thread ended early", failed.exc_value)
    )
    sys.unraisablehook = _unraisable


def _unraisable(unraisable: Any) -> None:
    error = unraisable.exc_value
    # An event loop that got no socket fails once more when it is erased.
    half_made = getattr(unraisable.object, "__qualname__", "") == "BaseEventLoop.__del__"
    if error is not None and not half_made and not Program.limited and limit_of(error) is None:
        note_fault("An error was ignored", error)


def exit_code(work: Callable[[], object]) -> int:
    """Run a command and print what it raises.

    Returns:
        What `work` returned if that is a number, else 0; after an error, its exit code.
    """
    try:
        result = work()
        _flush()
    except click.UsageError as error:
        from rustguard_py.cli.usage import asks_for_help, explain

        if (help_text := asks_for_help(error)) is not None:
            click.echo(help_text)
            return 0

        report(explain(error))
        return error.exit_code
    except click.ClickException as error:
        report(RustGuardError(error.format_message()))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except RustGuardError as error:
        report(error)
        return error.exit_code
    # Also a panic of Rust, which is no `Exception`.
    except BaseException as error:
        try:
            return show_fault(error)
        except (MemoryError, OSError):
            os.write(2, b"rustguard: There isn't enough memory.\n")
            return RustGuardError.exit_code
    return result if isinstance(result, int) else 0


def _flush() -> None:
    """Write what waits for standard output, so that a full disk is an error and not a lost result."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python would try again at its end.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        raise


def show_fault(error: BaseException) -> int:
    """Print an error that nobody foresaw, and return the exit code."""
    if limit_of(error) is not None:
        Program.limited = True
        report(RustGuardError(printable(str(error)) or type(error).__name__), error)
    elif isinstance(error, OSError) and error.errno is not None:
        if error.errno != errno.EPIPE:
            where = f": {error.filename}" if error.filename else ""
            report(RustGuardError(f"{error.strerror or error}{where}."))
    else:
        report(RustGuardError(f"This is a fault of RustGuard: {summary(error)}.", _where(error)))
    return RustGuardError.exit_code


def note_fault(what: str, error: BaseException) -> None:
    """Log an error that ends only a part of the program."""
    import logging

    if logging.getLogger().handlers:
        logging.getLogger(__name__).error("%s", what, exc_info=error)
    else:
        show_fault(error)


def report(error: RustGuardError, cause: BaseException | None = None) -> None:
    """Print an error and its fix on standard error. The fix for a limit replaces another one.

    Args:
        error: The error.
        cause: What it was made from, if its own message says nothing that the limit doesn't say.
    """
    limit = limit_of(cause or error)
    Program.limited = Program.limited or limit is not None
    message, fix = (error.message, error.fix) if limit is None else (error.message, limit.fix)
    if limit is not None and cause is not None:
        message = limit.message
    elif limit is not None and limit.message.partition(":")[0].lower() not in message.lower():
        message = f"{message} {limit.message}"
    with suppress(OSError, ValueError):
        click.echo(f"{click.style('rustguard:', fg='red', bold=True)} {printable(message)}", err=True)
        for line in fix.split("\n") if fix else ():
            click.echo(f"  {printable(line)}", err=True)


# -- reports --------------------------------------------------------------------------------------------------------


def summary(error: BaseException) -> str:
    """Return an error as one line: its class, its message without secrets, and where it was raised."""
    place = next(_frames(error.__traceback__), None)
    message = printable(_without_secrets(str(error)))[:_MESSAGE_LIMIT]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if place is None else f"{text} ({place})"


def _where(error: BaseException) -> str:
    path = write_report(error)
    if path is None:
        return "No report could be written. Run it again with a disk that has room."
    return f"A report without keys and tokens is in {path}: please send it to the project."


def describe(error: BaseException) -> str:
    """Return one line for the log. For a fault of the program, write a report and name its file."""
    if isinstance(error, RustGuardError):
        return error.message
    if (limit := limit_of(error)) is not None:
        return f"{limit.message} {limit.fix}"
    path = write_report(error)
    return summary(error) + ("; no report could be written" if path is None else f"; report: {path}")


def write_report(error: BaseException) -> Path | None:
    """Write a report and return its path, or None if nothing can be written.

    An error at the same place replaces the earlier report, so that a program that restarts doesn't fill the disk.
    """
    import platform
    import traceback
    from hashlib import sha256

    trace = "".join(traceback.format_exception(error))
    name = f"rustguard-report-{sha256(''.join(_frames(error.__traceback__)).encode()).hexdigest()[:8]}.txt"
    text = "\n".join(
        [
            f"RustGuard {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, as uid {os.geteuid()}",
            # `--token` is masked in it.
            f"command: {' '.join(sys.argv)}",
            "",
            trace,
        ]
    )
    text = "\n".join(printable(line) for line in _without_secrets(text).split("\n"))
    for directory in _places():
        with suppress(OSError):
            return _write(directory, name, text.encode())
    return None


def _write(directory: Path, name: str, content: bytes) -> Path:
    import tempfile

    descriptor, made = tempfile.mkstemp(prefix=".rustguard-report-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        # Only we can replace it in /tmp, where anybody could have made a file of this name.
        return Path(made).replace(directory / name)
    except OSError:
        Path(made).unlink(missing_ok=True)
        raise


def _places() -> Iterator[Path]:
    """Yield where a report may be written: the state directory, the one above it, and that of temporary files."""
    import tempfile

    from rustguard_py.state.paths import state_directory

    if Program.state is not None:
        yield Program.state
    with suppress(OSError, RuntimeError):
        yield state_directory("client").parent
    with suppress(OSError):
        yield Path(tempfile.gettempdir())


def _frames(trace: TracebackType | None) -> Iterator[str]:
    """Yield file and line of each call, the innermost first."""
    import traceback

    for frame in reversed(traceback.extract_tb(trace)):
        yield f"{Path(frame.filename).name}:{frame.lineno}"


def _without_secrets(text: str) -> str:
    return _KEY.sub("(a key)", conceal(text))
