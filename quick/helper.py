"""The helper of `up`: a process that keeps all privileges, for what the daemon gives up and a file may ask for.

It runs the file's hooks, and does the steps that need another program: nftables rules and name servers. It is forked
before the daemon gives its privileges up, and ends with it. Nothing that the daemon sends is run:

- a hook is named by its digest, and the helper runs it only if it has read that line itself, from the file or from
  what a killed tunnel left;
- a step is read into strict types again.

A request and its answer are a line of JSON each. With a hook comes the descriptor that its output goes to: the helper
itself holds neither a terminal nor a pipe open.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rustguard_py import conf
from rustguard_py.daemon.ledger import Ledger
from rustguard_py.daemon.outside import Done
from rustguard_py.daemon.steps import to_json
from rustguard_py.model.errors import RustGuardError, StateError
from rustguard_py.model.limits import THREADS
from rustguard_py.quick.helper_process import LONGEST, HelperProcess, digest, lines_of
from rustguard_py.state import paths

# How long the helper may take to end after us, seconds.
_END_SECONDS = 1.0
# What ends a daemon.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Helper:
    """The daemon's end.

    Args:
        channel: Connected to the helper.
        process: Its process id.
        interface: The tunnel's interface.
    """

    def __init__(self, channel: socket.socket, process: int, interface: str) -> None:
        self._channel = channel
        self._process = process
        self._interface = interface
        # One request at a time: steps come from the keeper's thread too.
        self._lock = threading.Lock()

    @classmethod
    def start(cls, file: Path, interface: str, directory: Path, hooks: conf.Hooks, *, trust: bool) -> Helper:
        """Fork the helper, while this process has one thread and all privileges.

        Args:
            file: The wg-quick file, resolved.
            interface: Its interface.
            directory: The state directory, where a killed tunnel may have left hooks to run.
            hooks: The file's.
            trust: Whether hooks run even if other users can change the file.
        """
        ours, theirs = socket.socketpair()
        known = [*lines_of(hooks), *_left_behind(directory)]
        # A signal that comes before the helper handles it would end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process = os.fork()
            if not process:
                ours.close()
                _be_the_helper(HelperProcess(theirs, file, interface, known, trust=trust), before)
        except BlockingIOError as error:
            raise RustGuardError(THREADS.message, THREADS.fix) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return cls(ours, process, interface)

    def close(self) -> None:
        """End the helper."""
        self._channel.close()
        deadline = time.monotonic() + _END_SECONDS
        with suppress(ChildProcessError):
            while os.waitpid(self._process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.002)

    def is_there(self) -> bool:
        """Return whether the helper still runs."""
        try:
            return self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    async def run(self, hook: str) -> int:
        """Run a hook to its end and return its exit code. If this is cancelled, the hook is ended."""
        with self._lock:
            self._send({"do": "hook", "hook": digest(hook)}, sys.stderr.fileno())
            answer = asyncio.ensure_future(asyncio.to_thread(self._receive))
            try:
                return int((await asyncio.shield(answer))["code"])
            except asyncio.CancelledError:
                self._send({"do": "cancel"})
                with suppress(RustGuardError):
                    await answer
                raise

    async def read_again(self) -> None:
        """Let the helper read the file again, because its hooks may have changed.

        Raises:
            RustGuardError: The file is malformed, or other users can change it.
        """
        await asyncio.to_thread(self._ask, {"do": "read"})

    def step(self, step: Any, what: str, memo: str) -> Done:
        """Do a step (see `daemon.outside`). Blocks."""
        try:
            answer = self._ask({"do": "step", "step": to_json(step), "what": what, "memo": memo})
        except RustGuardError as fault:
            return Done(fault=fault)
        error = answer["error"]
        return Done(tuple(answer["lines"]), answer["seen"], None if error is None else RustGuardError(*error))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._send(request)
            answer = self._receive()
        if request["do"] != "step" and answer.get("error") is not None:
            raise RustGuardError(*answer["error"])
        return answer

    def _send(self, request: dict[str, Any], descriptor: int | None = None) -> None:
        line = json.dumps(request).encode() + b"\n"
        try:
            if descriptor is not None:
                socket.send_fds(self._channel, [line[:1]], [descriptor])
                line = line[1:]
            self._channel.sendall(line)
        except OSError as error:
            raise self._is_gone() from error

    def _receive(self) -> dict[str, Any]:
        received = bytearray()
        while not received.endswith(b"\n"):
            try:
                piece = self._channel.recv(LONGEST)
            except OSError as error:
                raise self._is_gone() from error
            if not piece:
                raise self._is_gone()
            received += piece
        answer: dict[str, Any] = json.loads(received)
        return answer

    def _is_gone(self) -> RustGuardError:
        return RustGuardError(
            f"The process that runs the hooks of {self._interface} is gone.",
            f"End the tunnel and start it again: rustguard down {self._interface}",
        )


def _left_behind(directory: Path) -> Iterable[str]:
    """Return the hooks of a killed tunnel, which the start runs."""
    for path in paths.undo_files(directory):
        # An unreadable one is reported by the start itself.
        with suppress(StateError):
            if (ledger := Ledger.load(path)) is not None:
                yield from lines_of(ledger.left.hooks)


def _be_the_helper(helper: HelperProcess, signals: Iterable[int]) -> NoReturn:
    """Serve until the daemon is gone, and end without any clean-up of the daemon's.

    Args:
        helper: Serves.
        signals: Those to block from then on.
    """
    try:
        # A session of its own, and handlers that do nothing, so that a signal meant for the daemon, or for the whole
        # service, doesn't end it before the last hook. Signals that are ignored would be ignored by hooks too.
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, _nothing)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        nothing = os.open(os.devnull, os.O_RDWR)
        for each in range(3):
            os.dup2(nothing, each)
        kept = helper.channel.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        helper.serve()
    finally:
        os._exit(0)


def _nothing(*_: object) -> None:
    """Do nothing."""
