"""What runs in the helper of `up`: it takes requests, one at a time, until the daemon is gone (`quick.helper`)."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from rustguard_py import conf
from rustguard_py.daemon.dns import MANAGERS, Dns
from rustguard_py.daemon.steps import Firewall, from_json
from rustguard_py.daemon.vouched import digest, lines_of, vouch
from rustguard_py.model.errors import RustGuardError
from rustguard_py.quick import conf_files
from rustguard_py.system.netlink_library import IPRoute

# Bytes read at once, and of the longest request: a file of thousands of peers.
LONGEST: Final = 1 << 20
_LONGEST_REQUEST = 1 << 26
# What a program shows is compared with what it showed before; more of it than this is compared by its digest.
_LONGEST_LOOK = 1 << 15
# Seconds between two looks at a hook where the kernel has no pidfd (before Linux 5.3).
_LOOK = 0.02
# One word, which no program takes for an option.
_DOMAIN = re.compile(r"[^\s\x00-\x1f-][^\s\x00-\x1f]*")


class HelperProcess:
    """The helper's end.

    Args:
        channel: Connected to the daemon.
        file: The wg-quick file, resolved.
        interface: Its interface.
        directory: Its state directory.
        known: Hooks that may be run.
        saved: Hooks that the file may be saved with.
        trust: Whether hooks run even if other users can change the file.
    """

    def __init__(
        self,
        channel: socket.socket,
        file: Path,
        interface: str,
        directory: Path,
        known: Iterable[str],
        saved: Iterable[conf.Hooks] = (),
        *,
        trust: bool,
    ) -> None:
        self.channel = channel
        self._file = file
        self._interface = interface
        self._directory = directory
        self._known = {digest(each): each for each in known}
        self._saved = set(saved)
        self._trust = trust

    def serve(self) -> None:
        """Answer requests until the daemon is gone."""
        received, descriptors = bytearray(), list[int]()
        while True:
            piece, new, _, _ = socket.recv_fds(self.channel, LONGEST, 4)
            if not piece or len(received) > _LONGEST_REQUEST:
                return
            received += piece
            descriptors += new
            while (end := received.find(b"\n")) >= 0:
                line = bytes(received[:end])
                del received[: end + 1]
                if (answer := self.answer(line, descriptors)) is not None:
                    self.channel.sendall(json.dumps(answer).encode() + b"\n")
                while descriptors:
                    os.close(descriptors.pop())

    def answer(self, line: bytes, descriptors: list[int]) -> dict[str, Any] | None:
        """Return the answer to a request; None if it wants none.

        Args:
            line: The request.
            descriptors: What came with it.
        """
        try:
            request = json.loads(line)
            match request["do"]:
                case "hook":
                    return {"code": self._run(self._known[request["hook"]], descriptors[0])}
                case "read":
                    return self._read()
                case "save":
                    return self._save(request["text"])
                case "step":
                    return self._step(self._parse(request["step"]), request["what"], request["memo"])
                case "cancel":
                    return None  # it came when the hook had ended
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            pass
        return {
            "code": 127,
            "lines": [],
            "seen": None,
            "error": ["The helper of `up` doesn't know that request.", ""],
        }

    def _read(self) -> dict[str, Any]:
        try:
            config = conf_files.load_to_run(self._file, trust=self._trust, runs=True)
        except RustGuardError as error:
            return {"error": [error.message, error.fix]}
        # Those of the file before may be needed if the change is refused.
        self._known |= {digest(each): each for each in lines_of(config.hooks)}
        vouch(self._directory, self._interface, lines_of(config.hooks))
        if config.save:
            self._saved.add(config.hooks)
        return {"error": None}

    def _save(self, text: str) -> dict[str, Any]:
        try:
            config = conf_files.parse(text, self._file)
            if not config.save or config.hooks not in self._saved:
                raise ValueError(text)
            conf_files.save(self._file, config)
        except RustGuardError as error:
            return {"error": [error.message, error.fix]}
        return {"error": None}

    def _run(self, hook: str, output: int) -> int:
        # A session of its own, so that the whole process group can be ended.
        command = hook.replace("%i", self._interface).encode("utf-8", "surrogateescape")
        process = subprocess.Popen(  # noqa: S603 - a line of the file, which only its owner can change
            [shutil.which("bash") or "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        watched = select.poll()
        watched.register(self.channel, select.POLLIN)
        pidfd = -1
        with suppress(OSError):
            pidfd = os.pidfd_open(process.pid)
            watched.register(pidfd, select.POLLIN)
        try:
            while (code := process.poll()) is None:
                ready = watched.poll(None if pidfd >= 0 else 1000 * _LOOK)
                if any(each == self.channel.fileno() for each, _ in ready):
                    # `cancel`, which is the only request meanwhile; or the daemon is gone, and the hook goes on.
                    if self.channel.recv(LONGEST):
                        with suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGTERM)
                        return -signal.SIGTERM
                    os._exit(0)
            return code
        finally:
            if pidfd >= 0:
                os.close(pidfd)

    def _parse(self, value: Any) -> Firewall | Dns:
        """Return the step in a request. ValueError, TypeError or KeyError if it isn't one for this interface."""
        step = from_json({"Firewall": Firewall, "Dns": Dns}, value)
        match step:
            case Firewall(self._interface, version, addresses, int(mark)):
                if all(ip_address(each).version == version for each in addresses) and 0 < mark < 1 << 32:
                    return step
            case Dns(self._interface, servers, search):
                if all(map(ip_address, servers)) and all(map(_DOMAIN.fullmatch, search)):
                    return step
        raise ValueError(value)

    def _step(self, step: Firewall | Dns, what: str, memo: str) -> dict[str, Any]:
        lines: list[str] = []
        seen, error = None, None
        if isinstance(step, Dns) and memo not in MANAGERS:
            raise ValueError(memo)
        # Neither of the two uses netlink.
        netlink: IPRoute = None
        try:
            match what:
                case "apply":
                    step.apply(netlink, memo, lines.append)
                case "undo":
                    step.undo(netlink, memo, lines.append)
                case "put_back" if isinstance(step, Dns):
                    step.put_back(netlink, memo, lines.append)
                case "look":
                    seen = step.look(memo)
                case _:
                    raise ValueError(what)
        except RustGuardError as fault:
            error = [fault.message, fault.fix]
        if seen is not None and len(seen) > _LONGEST_LOOK:
            seen = digest(seen)
        return {"lines": lines, "seen": seen, "error": error}
