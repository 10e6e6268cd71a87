"""The listening socket of a memif that is a server."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import stat
from contextlib import suppress
from pathlib import Path

from rustguard_py.model.errors import RefusedError

# Who may write to the socket may connect. On Linux, a bound socket's file gets the mode of the socket.
_MODE = 0o700
# A server talks to one client at a time. The next one waits.
_BACKLOG = 1

# Device and inode of a file, by which another that somebody puts there is known.
File = tuple[int, int]


def bind(path: Path) -> tuple[socket.socket, File]:
    """Return a non-blocking socket that listens at a path. A socket that no program listens on is replaced.

    Raises:
        RefusedError: Something else is there, or the system refuses.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(made.fileno(), _MODE)
        try:
            made.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_dead(path):
                raise
            path.unlink()
            made.bind(str(path))
        made.listen(_BACKLOG)
        status = path.lstat()
    except OSError as error:
        made.close()
        raise RefusedError(f"{path} can't be made: {error.strerror}.", _fix(path, error)) from error
    return made, (status.st_dev, status.st_ino)


def remove(path: Path, file: File) -> None:
    """Remove a socket from `bind`, unless somebody else has put another file there."""
    with suppress(OSError):
        status = path.lstat()
        if (status.st_dev, status.st_ino) == file:
            path.unlink()


def remove_dead(path: Path) -> None:
    """Remove a socket that a killed program has left. What else is there stays."""
    with suppress(OSError):
        if _is_dead(path):
            path.unlink()


def _fix(path: Path, error: OSError) -> str:
    other = "Or choose another path: --memif SOCKET"
    if error.errno == errno.ENOENT:
        return f"Make its directory: mkdir -p {shlex.quote(str(path.parent))}. {other}"
    if error.errno == errno.EADDRINUSE and path.is_socket():
        return f"End the program that listens there (ss -xlp). {other}"
    if error.errno == errno.EADDRINUSE:
        return f"What is there isn't a socket. Remove it. {other}"
    return "Choose another path: --memif SOCKET"


def _is_dead(path: Path) -> bool:
    """Return whether a file is a socket that no program listens on."""
    # Connecting to a file that isn't a socket is refused like connecting to a dead one.
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False
