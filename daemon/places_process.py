"""What runs in the helper for sockets: it makes them, one at a time, until the daemon is gone (`daemon.places`).

It knows what the daemon may ask for from before the daemon gave anything up: one control socket with its marker,
wg(8)'s sockets by the names of interfaces, a memif's socket, and one log file. The daemon names no content, mode or
owner.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rustguard_py.daemon.control.listening import Bound, bind
from rustguard_py.daemon.control.protocol import error_document
from rustguard_py.daemon.memif import bind as bind_for_memif
from rustguard_py.daemon.uapi.socket import bind_for_wg
from rustguard_py.model.errors import RustGuardError
from rustguard_py.state import paths
from rustguard_py.state.durable_files import Files, open_plain, unusable

# Bytes of the longest request and of the longest answer.
LONGEST: Final = 1 << 16
_LOG_LIMIT = 1 << 20
# An interface's name as wg-quick has it, then `.sock` or the number of a network namespace.
_WG_SOCKET = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}\.(?:sock|[0-9]{1,20})")


@dataclass(slots=True)
class PlacesProcess:
    """The helper's end.

    Attributes:
        channel: Connected to the daemon; it keeps messages apart.
        state: The state directory.
        group: The control socket's group, or None.
        wg: The directory of wg(8)'s sockets, or None if there are to be none.
        log: The log file of a daemon in the background, or None.
        memif: The socket of a memif that is a server, or None.
    """

    channel: socket.socket
    state: Path
    group: int | None
    wg: Path | None
    log: Path | None
    memif: Path | None = None
    # The sockets made, with device and inode.
    _made: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def serve(self) -> None:
        """Answer requests until the daemon is gone."""
        while request := self.channel.recv(LONGEST):
            answer, descriptor = self.answer(request)
            sent = [] if descriptor is None else [descriptor]
            try:
                socket.send_fds(self.channel, [json.dumps(answer).encode()], sent)
            finally:
                for each in sent:
                    os.close(each)

    def answer(self, request: bytes) -> tuple[dict[str, Any], int | None]:
        """Return the answer to a request, and the descriptor that goes with it."""
        try:
            wanted = json.loads(request)
            match wanted["do"]:
                case "announce":
                    return {"path": str(paths.announce(self.state))}, None
                case "withdraw":
                    paths.withdraw(self.state)
                    return {}, None
                case "bind":
                    bound = self._bind(Path(wanted["path"]))
                    return {"file": bound.file}, bound.socket.detach()
                case "remove":
                    self._remove(Path(wanted["path"]))
                    return {}, None
                case "log" if self.log is not None:
                    return {}, open_log(self.log)
        except RustGuardError as error:
            return {"error": error_document(error)}, None
        except OSError as error:
            return {"error": error_document(RustGuardError(f"{error.filename}: {error.strerror}."))}, None
        except (KeyError, TypeError, ValueError, RecursionError):
            pass
        return {"error": error_document(RustGuardError("The helper for sockets doesn't know that request."))}, None

    def _bind(self, path: Path) -> Bound:
        if path == paths.control_socket(self.state):
            bound = bind(path, self.group)
        elif path.parent == self.wg and _WG_SOCKET.fullmatch(path.name):
            bound = bind_for_wg(path)
        elif path == self.memif:
            bound = bind_for_memif(path)
        else:
            raise ValueError(path)
        self._made[path] = bound.file
        return bound

    def _remove(self, path: Path) -> None:
        made = self._made.pop(path)
        with suppress(FileNotFoundError):
            status = path.lstat()
            # A number of a file that is gone may be another one's by now.
            if stat.S_ISSOCK(status.st_mode) and (status.st_dev, status.st_ino) == made:
                path.unlink()


def open_log(path: Path) -> int:
    """Return a log file's descriptor, to append to. One of more than 1 MiB is replaced by a new one.

    Raises:
        StateError: What is there isn't a plain file, or the kernel refused.
    """
    files, flags = Files(), os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        descriptor = open_plain(files, path, flags)
        if files.stat(descriptor).st_size > _LOG_LIMIT:
            files.close(descriptor)
            files.unlink(path)
            descriptor = open_plain(files, path, flags)
    except OSError as error:
        raise unusable("written", path, error) from error
    # It becomes standard output, also of programs that we start.
    os.set_blocking(descriptor, True)
    return descriptor
