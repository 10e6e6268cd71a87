"""Running `serve` and `join`: what goes to stderr, what a crash may leave, and going to the background."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from rustguard_py.daemon.console import Voice
from rustguard_py.model.printable import PrintableFormatter, printable

_PR_SET_DUMPABLE = 4
_LOG_LIMIT = 1 << 20


def run(work: Callable[[Voice], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; errors are the caller's."""
    _no_core_dump()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # pyroute2 and asyncio have nothing to say to a user.
    for name in ("pyroute2", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "pyroute2" else logging.WARNING)
    voice = Voice(change=lambda line: _say(line, dim=True), say=_say)
    asyncio.run(work(voice))


def _say(line: str, *, dim: bool | None = None) -> None:
    # A terminal that was closed hears no more, and what is to be taken back must be all the same.
    with suppress(OSError):
        click.secho(printable(line), err=True, dim=dim)


def _no_core_dump() -> None:
    """Keep keys out of core dumps and away from debuggers of the same user (prctl(2), PR_SET_DUMPABLE)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Background:
    """Going to the background once there is something to report.

    The process forks at once; the parent waits, with the terminal, until the child calls `ready`, and ends then. If
    the child ends before, the parent ends with the same exit code.

    Args:
        log: Where the child writes from then on; begun anew when it has grown over 1 MiB.
        said: What the parent says at its end, given the child's process id.
    """

    def __init__(self, log: Path, said: Callable[[int], str] | None = None) -> None:
        self._log = log
        readable, self._writable = os.pipe()
        child = os.fork()
        if child:
            os.close(self._writable)
            _wait(readable, child, said or _in_the_background)
        os.close(readable)
        os.setsid()

    def ready(self) -> None:
        """Let the parent end, and leave the terminal."""
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            self._log.unlink()
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
        os.write(self._writable, b"r")
        os.close(self._writable)


def _in_the_background(child: int) -> str:
    return f"In the background, process {child}. To end it: kill {child}"


def _wait(readable: int, child: int, said: Callable[[int], str]) -> NoReturn:
    # A Ctrl-C at the terminal doesn't reach the child, which is in a session of its own.
    signal.signal(signal.SIGINT, lambda *_: os.kill(child, signal.SIGTERM))
    ready = os.read(readable, 1)
    if ready:
        click.echo(said(child), err=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) % 256)
