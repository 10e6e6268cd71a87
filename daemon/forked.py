"""Forking a helper: a process that keeps privileges which the daemon gives up, and serves it until it is gone."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rustguard_py.system.leash import signal_at_end

# What ends a daemon.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# How long a helper may take to end after the daemon's end of its channel, seconds.
_END_SECONDS = 1.0
_OWN_NAME = Path("/proc/self/comm")


@dataclass(slots=True)
class Forked:
    """A helper that was forked.

    Attributes:
        process: Its process id.
    """

    process: int
    # Closing this end lets a helper go on that somebody has stopped (SIGSTOP).
    _leash: int

    def wait_for_end(self) -> None:
        """Wait for a helper whose channel was closed, but not for long."""
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1
        deadline = time.monotonic() + _END_SECONDS
        with suppress(ChildProcessError):
            while os.waitpid(self.process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.002)


def fork_helper(channel: socket.socket, name: str, serve: Callable[[], None]) -> Forked:
    """Fork a helper, while this process has one thread and all privileges.

    Args:
        channel: The helper's end. No other descriptor stays open in the helper.
        name: Of the process, at most 15 bytes.
        serve: What the helper does. It returns when the daemon is gone.

    Raises:
        BlockingIOError: There may be no more processes.
    """
    its_leash, leash = os.pipe2(os.O_CLOEXEC)
    # A signal that comes before the helper handles it would end it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # The garbage collector writes to all that it looks at, and so unshares the memory of the two.
    gc.freeze()
    try:
        process = os.fork()
        if not process:
            _be_the_helper(channel, its_leash, name, serve, before)
    except BaseException:
        os.close(leash)
        raise
    finally:
        os.close(its_leash)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Forked(process, leash)


def _be_the_helper(
    channel: socket.socket, leash: int, name: str, serve: Callable[[], None], signals: Iterable[int]
) -> NoReturn:
    """Serve until the daemon is gone, and end without any clean-up of the daemon's.

    Args:
        channel: To the daemon.
        leash: The end to read from of a pipe that the daemon closes.
        name: Of the process.
        serve: Serves.
        signals: Those to block from then on.
    """
    try:
        gc.disable()
        # A session of its own, and handlers that do nothing, so that a signal meant for the daemon, or for the whole
        # service, doesn't end it before the last request. Signals that are ignored would be ignored by hooks too.
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, _nothing)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        nothing = os.open(os.devnull, os.O_RDWR)
        for each in range(3):
            os.dup2(nothing, each)
        begin = 3
        for kept in sorted((channel.fileno(), leash)):
            os.closerange(begin, kept)
            begin = kept + 1
        os.closerange(begin, os.sysconf("SC_OPEN_MAX"))
        # So that it notices the daemon's end even if somebody has stopped it. If the daemon is gone already, the
        # channel ends.
        signal_at_end(leash, signal.SIGCONT)
        with suppress(OSError):
            _OWN_NAME.write_text(name)
        serve()
    finally:
        os._exit(0)


def _nothing(*_: object) -> None:
    """Do nothing."""
