"""The client of the control socket.

It imports little, because every short command of the command line goes through it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rustguard_py.daemon.control.permission import fix_for_strangers
from rustguard_py.daemon.control.protocol import MAX_RESPONSE, VERSION, check_length, decode, encode, error_from
from rustguard_py.model.errors import (
    NotRunningError,
    RefusedError,
    RustGuardError,
    UnansweredError,
)
from rustguard_py.model.sudo import as_root

# With one answer.
_MOST_DESCRIPTORS = 4


def call(
    path: Path,
    method: str,
    params: Mapping[str, Any] | None = None,
    timeout: float = 5.0,
    on_beat: Callable[[], None] | None = None,
    descriptors: list[int] | None = None,
) -> dict[str, Any]:
    """Send one request to a daemon and return its result.

    Args:
        path: The control socket.
        method: The method's name.
        params: The method's parameters.
        timeout: Seconds for the whole call; with `on_beat`, seconds without a sign of life.
        on_beat: Called each second while the daemon works on the request.
        descriptors: Takes the open files that come with the answer; None if none are expected.

    Raises:
        NotRunningError: No daemon listens there.
        RefusedError: No permission to connect, or the daemon refused.
        UnansweredError: No answer in time. With `on_beat` the daemon is stopped or dead, not just slow.
        RustGuardError: The daemon's error, with the class that it has there.
    """
    deadline = time.monotonic() + timeout
    beats = {} if on_beat is None else {"beats": True}
    request = encode({"v": VERSION, "id": 1, "method": method, "params": dict(params or {}), **beats})
    with _connect(path, deadline) as connection:
        try:
            connection.settimeout(_left(deadline))
            connection.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon hung up, probably after sending the reason, which can still be read.
            pass
        except TimeoutError:
            raise _unanswered(path) from None
        received = bytearray()
        if descriptors is not None:
            connection.settimeout(_left(deadline))
            first, found, _, _ = socket.recv_fds(connection, 1, _MOST_DESCRIPTORS)
            received += first
            descriptors += found
        answer = decode(_read_line(connection, received, path, deadline))
        while on_beat is not None and "beat" in answer:
            on_beat()
            answer = decode(_read_line(connection, received, path, time.monotonic() + timeout))
    if "error" in answer:
        raise error_from(answer["error"])
    result = answer.get("result")
    if not isinstance(result, dict):
        raise RustGuardError("The daemon answered with something that can't be read.")
    return result


def listens(path: Path) -> bool:
    """Return whether a daemon listens on this socket, even if it is too busy or refuses us."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False
        return True


def listener(path: Path) -> int:
    """Return the process id of the daemon that listens on a socket; it need not answer (unix(7), SO_PEERCRED).

    Raises:
        RustGuardError: See `call`.
    """
    with _connect(path, time.monotonic() + 5.0) as connection:
        return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _connect(path: Path, deadline: float) -> socket.socket:
    check_length(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # SO_SNDTIMEO waits in the kernel's queue. settimeout would fail at once if the listener's backlog is full.
        microseconds = int(_left(deadline) * 1e6)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *divmod(microseconds, 1_000_000))
        )
        connection.connect(str(path))
    except (TimeoutError, BlockingIOError):
        connection.close()
        raise _unanswered(path) from None
    except PermissionError:
        connection.close()
        raise RefusedError(
            f"{path} belongs to another user: you have no permission to use this daemon.", fix_for_strangers(path)
        ) from None
    except OSError:
        connection.close()
        raise _not_running(path) from None
    return connection


def _read_line(connection: socket.socket, received: bytearray, path: Path, deadline: float) -> bytes:
    """Return the next line. `received` has what was read so far, and then what was read beyond it."""
    searched = 0
    while (end := received.find(b"\n", searched)) < 0:
        searched = len(received)
        try:
            connection.settimeout(_left(deadline))
            piece = connection.recv(256 * 1024)
        except TimeoutError:
            raise _unanswered(path) from None
        except ConnectionResetError:
            piece = b""
        if not piece:
            raise RustGuardError(f"The daemon at {path} hung up without an answer.", "Try again, then read its log.")
        received += piece
        if len(received) > MAX_RESPONSE:
            raise RustGuardError("The daemon's answer is too long.", "Restart the daemon.")
    line = bytes(received[: end + 1])
    del received[: end + 1]
    return line


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _not_running(path: Path) -> NotRunningError:
    return NotRunningError(
        f"No daemon answers at {path}.",
        f"Start one: `{as_root('rustguard serve …')}` or `{as_root('rustguard join …')}`.",
    )


def _unanswered(path: Path) -> UnansweredError:
    return UnansweredError(f"The daemon at {path} doesn't answer.", "Check whether it is stopped or overloaded.")
