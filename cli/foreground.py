"""How the daemons (`serve`, `join`, `up`, `rustguard-wg`) run: output, core dumps, and the background."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from rustguard_py.cli import logs
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.places import log_file
from rustguard_py.daemon.service_manager import ServiceManager
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.limits import MEMORY, THREADS
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root

_PR_SET_DUMPABLE = 4
# The same error of the event loop is logged once in so many seconds. So many different ones are remembered.
_QUIET_SECONDS, _ERRORS_KEPT = 60.0, 64


def run(work: Callable[[Voice], Coroutine[Any, Any, None]], level: int = logging.INFO) -> None:
    """Run a daemon until it ends.

    Args:
        work: What it does, given where to print its lines.
        level: The least level that is logged, where `--log-level` chose none.
    """
    _no_core_dump()
    logs.configure(level)
    manager = ServiceManager.from_environment()
    voice = Voice(change=lambda line: _print(line, dim=True), say=_print, manager=manager)
    # The coroutine is made once the loop is there: a limit may refuse it one.
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(LoopErrors())
        runner.run(work(voice))


class LoopErrors:
    """Logs errors of callbacks and tasks that nobody waits for, each one once a minute at most.

    Without a free descriptor, asyncio reports each connection that it can't accept, a hundred times a second.
    """

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log one error: `context` as `loop.call_exception_handler` takes it."""
        message, error, now = context["message"], context.get("exception"), loop.time()
        which = f"{message} {error!r}"[:200]
        if now < self._quiet_until.get(which, 0.0):
            return
        if len(self._quiet_until) >= _ERRORS_KEPT:
            self._quiet_until.clear()
        self._quiet_until[which] = now + _QUIET_SECONDS
        logging.getLogger(__name__).error("internal error: %s", message, exc_info=error)


def _print(line: str, *, dim: bool | None = None) -> None:
    if Background.left_terminal:
        line = f"{logs.timestamp(time.time())} {line}"
    # The terminal may be closed. What was changed on the system must be undone even then.
    with suppress(OSError):
        click.secho(printable(line), err=True, dim=dim)


def _no_core_dump() -> None:
    """Keep keys out of core dumps and away from debuggers of the same user (prctl(2), PR_SET_DUMPABLE)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Background:
    """The way to the background, once the daemon has something to report.

    The process forks at once. The parent keeps the terminal until the child calls `ready`, and then ends. If the
    child ends before that, the parent ends with the same exit code.

    Attributes:
        left_terminal: Whether this process writes to the log file already.

    Args:
        log: The file that the child writes to from then on. A file of more than 1 MiB is replaced by a new one.
        farewell: Returns what the parent prints at its end, given the child's process id.
    """

    left_terminal = False

    def __init__(self, log: Path, farewell: Callable[[int], str] | None = None) -> None:
        self._log = log
        readable, self._writable = os.pipe()
        try:
            child = os.fork()
        except BlockingIOError as error:
            raise RustGuardError(THREADS.message, THREADS.fix) from error
        if child:
            os.close(self._writable)
            _wait(readable, child, farewell or _in_the_background)
        os.close(readable)
        os.setsid()

    def ready(self) -> None:
        """Leave the terminal, and let the parent end."""
        log = log_file(self._log)
        sys.stdout.flush()
        sys.stderr.flush()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
        Background.left_terminal = True
        os.write(self._writable, b"r")
        os.close(self._writable)


def _in_the_background(child: int) -> str:
    return f"In the background, process {child}. To end it: {as_root('rustguard stop')}"


def _wait(readable: int, child: int, farewell: Callable[[int], str]) -> NoReturn:
    # The child is in a session of its own, so Ctrl-C at the terminal doesn't reach it.
    signal.signal(signal.SIGINT, lambda *_: os.kill(child, signal.SIGTERM))
    ready = os.read(readable, 1)
    if ready:
        click.echo(farewell(child), err=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        click.echo("rustguard: The daemon was killed while it started, perhaps because memory ran out.", err=True)
        click.echo(f"  {MEMORY.fix}", err=True)
    os._exit(os.waitstatus_to_exitcode(status) % 256)
