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
from shlex import quote
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
from rustguard_py.state.paths import Role, option_for

_PR_SET_DUMPABLE = 4
# The same error of the event loop is logged once in so many seconds. So many different ones are remembered.
_QUIET_SECONDS, _ERRORS_KEPT = 60.0, 64
# They end a daemon in good order.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    ended_by: list[int] = []
    is_cancelled = False
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(LoopErrors())
        try:
            runner.run(_until_ended(work, voice, ended_by))
        except asyncio.CancelledError:
            is_cancelled = True
            if not ended_by:
                raise
    if is_cancelled:
        # Who sent the signal sees that it ended the program. The loop has put the system's handling back.
        os.kill(os.getpid(), ended_by[0])


async def _until_ended(work: Callable[[Voice], Coroutine[Any, Any, None]], voice: Voice, ended_by: list[int]) -> None:
    """Run a daemon. Until it handles SIGTERM and SIGHUP itself, they cancel it, as Ctrl-C does.

    Args:
        work: What the daemon does. It takes back what it made when it is cancelled.
        voice: Where to print its lines.
        ended_by: Gets the signal that came while the daemon started.
    """
    task = asyncio.current_task()

    def end(number: int) -> None:
        # A second signal doesn't cut short what the first one began.
        if not ended_by and task is not None:
            ended_by.append(number)
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` starts a program with this signal ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, end, number)
    await work(voice)


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
    child ends before that, the parent ends with the same exit code, or 128 and the signal's number as in a shell.

    Attributes:
        left_terminal: Whether this process writes to the log file already.

    Args:
        log: The file that the child writes to from then on. A file of more than 1 MiB is replaced by a new one.
        farewell: Returns what the parent prints at its end, given the child's process id.
    """

    left_terminal = False

    def __init__(self, log: Path, farewell: Callable[[int], str]) -> None:
        self._log = log
        readable, self._writable = os.pipe()
        # A signal that comes before the parent passes it on would end the parent alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            child = os.fork()
            if child:
                _pass_on(child)
        except BlockingIOError as error:
            raise RustGuardError(THREADS.message, THREADS.fix) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if child:
            os.close(self._writable)
            _wait(readable, child, farewell)
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


def in_the_background(role: Role, directory: Path) -> Callable[[int], str]:
    """Return what `Background` prints for a daemon on this state directory."""
    which = f" {quote(str(directory))}" if option_for(role, directory) else ""
    return lambda child: f"In the background, process {child}. To end it: {as_root(f'rustguard stop{which}')}"


def _pass_on(child: int) -> None:
    """Pass the signals that end this process on to the child, whose session no terminal's signal reaches."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))


def _wait(readable: int, child: int, farewell: Callable[[int], str]) -> NoReturn:
    ready = os.read(readable, 1)
    if ready:
        click.echo(farewell(child), err=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        click.echo("rustguard: The daemon was killed while it started, perhaps because memory ran out.", err=True)
        click.echo(f"  {MEMORY.fix}", err=True)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)
