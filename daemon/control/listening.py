"""Listening Unix sockets of a daemon: making them and removing them, here or by a helper.

A daemon that may not write where they are has a helper that may (`daemon/places.py`).
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from rustguard_py.daemon.control.protocol import check_length
from rustguard_py.model.errors import RefusedError, StateError

# Of the control socket; its group may be one that is named.
SOCKET_MODE = 0o660
BACKLOG = 128
# How often the lock on the socket's directory is tried, and the seconds between.
_LOCK_TRIES, _LOCK_PAUSE = 50, 0.01


class Bound(NamedTuple):
    """A non-blocking socket that listens at a path.

    Attributes:
        socket: The socket.
        file: Device and inode of what is at the path, by which one that somebody else puts there is known.
    """

    socket: socket.socket
    file: tuple[int, int]


class Maker(Protocol):
    """Makes listening sockets, and removes those that it made."""

    def bind(self, path: Path) -> Bound:
        """Return a socket that listens at a path. Raise a RustGuardError if there can't be one."""

    def remove(self, path: Path) -> None:
        """Remove a socket, if that is possible."""


_maker: list[Maker] = []


def use(maker: Maker | None) -> None:
    """Let this maker make and remove all sockets from now on; None for this process itself."""
    _maker[:] = [] if maker is None else [maker]


def has_maker() -> bool:
    """Return whether a maker makes all sockets."""
    return bool(_maker)


def make(path: Path, here: Callable[[Path], Bound]) -> Bound:
    """Return a socket that listens at a path, from the maker or, if there is none, from `here`."""
    if not _maker:
        return here(path)
    bound = _maker[0].bind(path)
    # The process at the other end of a connection is the one that called this last.
    bound.socket.listen(BACKLOG)
    return bound


def remove(path: Path) -> None:
    """Remove a socket, if that is possible."""
    if _maker:
        _maker[0].remove(path)
        return
    with suppress(OSError):
        path.unlink()


def bind(path: Path, group: int | None, mode: int = SOCKET_MODE) -> Bound:
    """Return a socket that listens at a path where no other daemon listens.

    The socket gets its mode and group under a temporary name before it listens, and is then renamed. So nobody
    that its mode excludes can ever connect. Only a dead socket is replaced.

    Args:
        path: The socket's path.
        group: The socket's group, or None for the process's own.
        mode: Its mode.

    Raises:
        StateError: Another daemon listens there.
        RefusedError: The path isn't a socket, or we have no permission to make one.
        UsageError: The path is too long.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    check_length(temporary)
    with _alone_in(path.parent):
        _check_place(path)
        return _bind(path, temporary, group, mode)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory, so that of two daemons that start at once, one sees the other's socket.

    Anyone who can read the directory can hold the lock, so nobody waits for it for long.
    """
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield  # binding says what is wrong with it
        return
    try:
        for _ in range(_LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(held)


def _bind(path: Path, temporary: Path, group: int | None, mode: int) -> Bound:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # On Linux, a bound socket's file gets the mode of the socket.
        os.fchmod(listener.fileno(), 0o600)
        with suppress(FileNotFoundError):
            temporary.unlink()
        listener.bind(str(temporary))
        if group is not None:
            os.chown(temporary, -1, group)
        temporary.chmod(mode)
        listener.listen(BACKLOG)
        # Somebody may remove it as soon as it has its name.
        status = temporary.lstat()
        temporary.rename(path)
    except OSError as error:
        listener.close()
        with suppress(OSError):
            temporary.unlink()
        message = f"The control socket {path} can't be made: {error.strerror}."
        raise RefusedError(message, f"Check who may write there: `ls -ld {path.parent}`.") from error
    return Bound(listener, (status.st_dev, status.st_ino))


def _check_place(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise RefusedError(
            f"{path} isn't a socket. RustGuard didn't make it, so it's neither followed nor removed.",
            f"Look at it, `ls -l {path}`, and move it away.",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            # Its queue is full, so somebody listens.
            pass
        except OSError as error:
            message = f"{path} is a socket that can't be tried: {error.strerror}."
            raise RefusedError(message, f"Look at it: `ls -l {path}`.") from error
    raise StateError(
        f"Another daemon answers at {path} already.",
        "See it with `rustguard status`, or choose another `--state DIR`.",
    )
