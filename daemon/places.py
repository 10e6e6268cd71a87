"""What a daemon makes outside of its state directory: sockets, the control socket's marker, a log file.

Where Landlock keeps it from that, a helper does it. A rule of Landlock's is bound to a directory that is there: one
that is removed and made again isn't permitted. So the helper, which may write anywhere, makes the directory again and
passes the sockets on. It is forked before the daemon gives its privileges up, and ends with it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from rustguard_py.daemon.control import listening
from rustguard_py.daemon.control.protocol import error_from
from rustguard_py.daemon.forked import Forked, fork_helper
from rustguard_py.daemon.places_process import LONGEST, PlacesProcess, open_log
from rustguard_py.model.errors import RustGuardError
from rustguard_py.sandbox.privileges import Needs, give_up
from rustguard_py.sandbox.system_calls import refuse
from rustguard_py.state import paths

NAME = "rustguard-paths"
# How long an answer may take, seconds. Making a socket waits half a second for a lock at most.
_PATIENCE = 5.0
_GONE = "The process that makes sockets for this daemon is gone."


class PlacesHelper:
    """The daemon's end.

    Args:
        channel: Connected to the helper.
        forked: The helper's process.
        log: The log file that it can open, or None.
    """

    def __init__(self, channel: socket.socket, forked: Forked, log: Path | None) -> None:
        channel.settimeout(_PATIENCE)
        self._channel: socket.socket | None = channel
        self._forked = forked
        self.log = log
        self._lock = threading.Lock()

    @classmethod
    def start(
        cls,
        state: Path,
        group: int | None,
        wg: Path | None,
        log: Path | None,
        needs: Needs,
        memif: Path | None = None,
    ) -> PlacesHelper:
        """Fork the helper, while this process has one thread and all privileges.

        Args:
            state: The state directory.
            group: The control socket's group, or None.
            wg: The directory of wg(8)'s sockets, or None if there are to be none.
            log: The log file of a daemon in the background, or None.
            needs: What the helper keeps.
            memif: The socket of a memif that is a server, or None.

        Raises:
            BlockingIOError: There may be no more processes.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def serve() -> None:
            give_up(needs)
            refuse(uring=False, xdp=False)
            PlacesProcess(theirs, state, group, wg, log, memif).serve()

        with theirs:
            try:
                forked = fork_helper(theirs, NAME, serve)
            except BlockingIOError:
                ours.close()
                raise
        return cls(ours, forked, log)

    def close(self) -> None:
        """End the helper."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._forked.wait_for_end()

    def is_there(self) -> bool:
        """Return whether the helper still runs."""
        if self._channel is None:
            return False
        # It sends nothing unasked, so what can be read is the end.
        watched = select.poll()
        watched.register(self._channel, select.POLLIN)
        return not watched.poll(0)

    def announce(self) -> Path:
        """See `paths.announce`."""
        return Path(self._ask("announce")[0]["path"])

    def withdraw(self) -> None:
        """See `paths.withdraw`."""
        self._ask("withdraw")

    def bind(self, path: Path) -> listening.Bound:
        """See `listening.Maker`."""
        answer, descriptor = self._ask("bind", path)
        if descriptor is None:
            raise self._is_gone()
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)
        device, inode = answer["file"]
        return listening.Bound(listener, (device, inode))

    def remove(self, path: Path) -> None:
        """See `listening.Maker`."""
        with suppress(RustGuardError):
            self._ask("remove", path)

    def open_log(self) -> int:
        """See `places_process.open_log`."""
        _, descriptor = self._ask("log")
        if descriptor is None:
            raise self._is_gone()
        return descriptor

    def _ask(self, what: str, path: Path | None = None) -> tuple[dict[str, Any], int | None]:
        """Return the answer to a request, and the descriptor that came with it.

        Raises:
            RustGuardError: The helper's error, or that it is gone.
        """
        request = json.dumps({"do": what} if path is None else {"do": what, "path": str(path)}).encode()
        with self._lock:
            if self._channel is None:
                raise self._is_gone()
            try:
                self._channel.send(request)
                received, descriptors, _, _ = socket.recv_fds(self._channel, LONGEST, 1)
            except OSError as error:
                # An answer that came later would be taken for the next one's.
                self._channel.close()
                self._channel = None
                raise self._is_gone() from error
        if not received:
            raise self._is_gone()
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            raise error_from(answer["error"])
        for each in descriptors:
            os.set_inheritable(each, False)
        return answer, descriptors[0] if descriptors else None

    def _is_gone(self) -> RustGuardError:
        return RustGuardError(_GONE, "Restart the daemon.")


_helper: list[PlacesHelper] = []


def use(helper: PlacesHelper | None) -> None:
    """Let this helper make what this process may not, from now on; None for the process itself."""
    _helper[:] = [] if helper is None else [helper]
    listening.use(helper)


def announce(state_directory: Path) -> Path:
    """Write the control socket's marker, see `paths.announce`."""
    return _helper[0].announce() if _helper else paths.announce(state_directory)


def withdraw(state_directory: Path) -> None:
    """Remove control socket and marker, see `paths.withdraw`. A helper that is gone leaves them to the next start."""
    if not _helper:
        paths.withdraw(state_directory)
        return
    with suppress(RustGuardError):
        _helper[0].withdraw()


def log_file(path: Path) -> int:
    """Return the descriptor of a log file to append to, see `places_process.open_log`.

    Args:
        path: In the state directory, or the one that the helper knows.
    """
    return _helper[0].open_log() if _helper and _helper[0].log == path else open_log(path)


def warnings() -> list[str]:
    """Return a warning if there was a helper and it is gone."""
    if not _helper or _helper[0].is_there():
        return []
    return [f"{_GONE} Sockets that somebody removes don't come back. A restart fixes it."]
