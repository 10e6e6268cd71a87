"""The helper of `up`: a process that keeps all privileges, for what the daemon gives up and a file may ask for.

It runs the file's hooks, does the steps that need another program (nftables rules and name servers), and writes the
file that asks for SaveConfig. It is forked before the daemon gives its privileges up, and ends with it. Nothing that
the daemon sends is run:

- a hook is named by its digest, and the helper runs it only if it has read that line itself, from the file or from
  what a killed tunnel left;
- a step is read into strict types again;
- a file is read into strict types again, and written only with hooks that it had, if it has SaveConfig.

A request and its answer are a line of JSON each. With a hook comes the descriptor that its output goes to: the helper
itself holds neither a terminal nor a pipe open.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rustguard_py import conf, conf_writer
from rustguard_py.daemon.forked import Forked, fork_helper
from rustguard_py.daemon.ledger import Ledger
from rustguard_py.daemon.outside import Done
from rustguard_py.daemon.steps import to_json
from rustguard_py.daemon.vouched import digest, known_of, lines_of
from rustguard_py.model.errors import RustGuardError, StateError
from rustguard_py.model.limits import THREADS
from rustguard_py.quick.helper_process import LONGEST, HelperProcess
from rustguard_py.state import paths

NAME = "rustguard-hooks"


class Helper:
    """The daemon's end.

    Args:
        channel: Connected to the helper.
        forked: The helper's process.
        interface: The tunnel's interface.
        down: The command that ends the tunnel.
    """

    def __init__(self, channel: socket.socket, forked: Forked, interface: str, down: str) -> None:
        self._channel = channel
        self._forked = forked
        self._interface = interface
        self._down = down
        # One request at a time: steps come from the keeper's thread too.
        self._lock = threading.Lock()

    @classmethod
    def start(
        cls, file: Path, interface: str, directory: Path, hooks: conf.Hooks, *, trust: bool, save: bool = False
    ) -> Helper:
        """Fork the helper, while this process has one thread and all privileges.

        Args:
            file: The wg-quick file, resolved.
            interface: Its interface.
            directory: The state directory, where a killed tunnel may have left hooks to run.
            hooks: The file's.
            trust: Whether hooks run even if other users can change the file.
            save: Whether the file has SaveConfig.
        """
        ours, theirs = socket.socketpair()
        known = [*lines_of(hooks), *_left_behind(directory)]
        helper = HelperProcess(theirs, file, interface, directory, known, [hooks] if save else [], trust=trust)
        with theirs:
            try:
                forked = fork_helper(theirs, NAME, helper.serve)
            except BlockingIOError as error:
                raise RustGuardError(THREADS.message, THREADS.fix) from error
        return cls(ours, forked, interface, paths.down_command(interface, directory))

    def close(self) -> None:
        """End the helper."""
        self._channel.close()
        self._forked.wait_for_end()

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

    async def save(self, config: conf.Config) -> None:
        """Let the helper replace the file.

        Raises:
            RustGuardError: It can't be written, or the helper hasn't read these hooks in a file with SaveConfig.
        """
        await asyncio.to_thread(self._ask, {"do": "save", "text": conf_writer.write(config)})

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
            f"End the tunnel and start it again: {self._down}",
        )


def _left_behind(directory: Path) -> Iterable[str]:
    """Return the hooks of a killed tunnel, which the start runs."""
    for path in paths.undo_files(directory):
        # An unreadable one is reported by the start itself.
        with suppress(StateError):
            if (ledger := Ledger.load(path)) is not None:
                yield from lines_of(known_of(directory, ledger.left.interface, ledger.left.hooks)[0])
