"""Forking a helper: a process that keeps privileges which the daemon gives up, and serves it until it is gone."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

# What ends a daemon.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# How long a helper may take to end after the daemon's end of its channel, seconds.
_END_SECONDS = 1.0
_OWN_NAME = Path("/proc/self/comm")


def fork_helper(channel: socket.socket, name: str, serve: Callable[[], None]) -> int:
    """Fork a helper, while this process has one thread and all privileges. Return its process id.

    Args:
        channel: The helper's end. No other descriptor stays open in the helper.
        name: Of the process, at most 15 bytes.
        serve: What the helper does. It returns when the daemon is gone.

    Raises:
        BlockingIOError: There may be no more processes.
    """
    # A signal that comes before the helper handles it would end it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # The garbage collector writes to all that it looks at, and so unshares the memory of the two.
    gc.freeze()
    try:
        process = os.fork()
        if not process:
            _be_the_helper(channel, name, serve, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def wait_for_end(process: int) -> None:
    """Wait for a helper whose channel was closed, but not for long."""
    deadline = time.monotonic() + _END_SECONDS
    with suppress(ChildProcessError):
        while os.waitpid(process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.002)


def _be_the_helper(channel: socket.socket, name: str, serve: Callable[[], None], signals: Iterable[int]) -> NoReturn:
    """Serve until the daemon is gone, and end without any clean-up of the daemon's.

    Args:
        channel: To the daemon.
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
        kept = channel.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        with suppress(OSError):
            _OWN_NAME.write_text(name)
        serve()
    finally:
        os._exit(0)


def _nothing(*_: object) -> None:
    """Do nothing."""
