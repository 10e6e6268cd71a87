"""The server of the control socket: who may connect, how many at once, and what each request is answered.

A connection works on one request at a time and is closed after it was idle for too long. There are two classes of
clients: root and our own user are privileged, members of the group are not. Each class has its own places. When all
are taken, the connection that was idle longest is closed, so nobody can lock others out by holding connections open.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import inspect
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rustguard_py.daemon.control.asker import ASKER
from rustguard_py.daemon.control.listening import BACKLOG, bind, make, remove
from rustguard_py.daemon.control.permission import fix_for
from rustguard_py.daemon.control.protocol import (
    BEAT_SECONDS,
    MAX_REQUEST,
    VERSION,
    WithDescriptors,
    decode,
    encode,
    error_document,
)
from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError
from rustguard_py.model.sudo import as_root

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]] | dict[str, Any]]

# Per class of clients.
MAX_CONNECTIONS = 64
IDLE_SECONDS = 30.0
# Requests for these, without parameters, share one answer if they wait at the same time: for thousands of peers it
# takes tens of milliseconds, and clients that only ask could delay everyone.
SHARED = frozenset({"status", "peers"})
# How long to stop accepting when no descriptor is left and no connection can be closed, seconds.
PAUSE_SECONDS = 1.0
# include/uapi/asm-generic/socket.h; the socket module doesn't name it.
_SO_PEERGROUPS = 59

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Connection:
    """An accepted connection.

    Attributes:
        socket: Our end.
        privileged: Whether the client is root or our own user.
        idle_since: Loop time since when it is idle, or None while a request is answered.
        task: The task that serves it.
    """

    socket: socket.socket
    privileged: bool
    idle_since: float | None
    task: asyncio.Task[None] | None = None


class ControlServer:
    """Answers requests at a Unix socket.

    Args:
        path: The socket's path, in an existing directory.
        handlers: Handlers by method. Each takes the parameters and returns the result, a JSON object, or raises a
            `RustGuardError`, which the client raises again.
        group: Name of the group whose members may connect too, or None.
        max_connections: Most connections at once per class of clients.
        idle_seconds: Time after which an idle connection is closed.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        group: str | None = None,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._group = group_id(group)
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self._listener: socket.socket | None = None
        self._ours: tuple[int, int] | None = None
        # In the order in which they came.
        self._connections: dict[_Connection, None] = {}
        # Answers that are asked for and not begun.
        self._shared: dict[str, asyncio.Task[bytes]] = {}

    async def start(self) -> None:
        """Start listening. If that worked before, end with the old socket, which somebody has removed.

        Raises:
            StateError: Another daemon listens there.
            RefusedError: The path isn't a socket, or we have no permission to make one.
            UsageError: The path is too long.
        """
        bound, before = make(self._path, lambda path: bind(path, self._group)), self._listener
        if before is not None:
            asyncio.get_running_loop().remove_reader(before)
            before.close()
        self._listener, self._ours = bound
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def is_there(self) -> bool:
        """Return whether the socket is still at its path."""
        try:
            status = self._path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._ours

    async def close(self) -> None:
        """Close all connections, stop listening, and remove the socket if it is still ours. May be called twice."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        if self.is_there():
            remove(self._path)
        self._listener.close()
        self._listener = None
        tasks = [connection.task for connection in self._connections if connection.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        # Accept all that wait before any is served, so that a crowd can't delay root.
        for _ in range(BACKLOG):
            if self._listener is None:
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                self._accept_failed(self._listener, error)
                return
            self._let_in(connection)

    def _let_in(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        privileged = _is_privileged(connection)
        if not privileged and not _is_member(connection, self._group):
            _hang_up(
                connection,
                RefusedError("You have no permission to use this daemon.", fix_for(_group_name(self._group))),
            )
            return
        places = self._max_connections - sum(other.privileged == privileged for other in self._connections)
        if places <= 0 and not self._push_out(privileged):
            _hang_up(connection, RefusedError("Too many are being answered just now.", "Try again."))
            return
        loop = asyncio.get_running_loop()
        entry = _Connection(connection, privileged, loop.time())
        self._connections[entry] = None
        entry.task = loop.create_task(self._serve(entry))
        # Not in the task itself: if it is cancelled before its first step, none of its code runs.
        entry.task.add_done_callback(lambda _: self._forget(entry))

    def _forget(self, entry: _Connection) -> None:
        entry.socket.close()
        self._connections.pop(entry, None)

    def _push_out(self, privileged: bool) -> bool:
        idle = [
            (entry.idle_since, entry)
            for entry in self._connections
            if entry.privileged == privileged and entry.idle_since is not None
        ]
        if not idle:
            return False
        _, oldest = min(idle, key=lambda pair: pair[0])
        del self._connections[oldest]
        if oldest.task:
            oldest.task.cancel()
        return True

    def _accept_failed(self, listener: socket.socket, error: OSError) -> None:
        log.warning("control socket: can't accept: %s", error.strerror)
        if error.errno in {errno.EMFILE, errno.ENFILE} and self._push_out(False):
            return
        # The listener stays readable, so watching it would keep the loop busy.
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(PAUSE_SECONDS, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if self._listener is listener:
            asyncio.get_running_loop().add_reader(listener, self._accept)

    async def _serve(self, entry: _Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            ASKER.set(_credentials(entry.socket)[1])
            received = bytearray()
            while True:
                async with asyncio.timeout(self._idle_seconds):
                    line = await _read_line(loop, entry.socket, received)
                if line is None:
                    return
                entry.idle_since = None
                answer = await self._answer(line, entry.socket)
                async with asyncio.timeout(self._idle_seconds):
                    await loop.sock_sendall(entry.socket, answer)
                entry.idle_since = loop.time()
        except UsageError as error:
            _hang_up(entry.socket, error)
        except (OSError, TimeoutError):
            pass

    async def _answer(self, line: bytes, connection: socket.socket) -> bytes:
        identity: Any = None
        method: Any = None
        try:
            request = decode(line)
            identity, method = request.get("id"), request.get("method")
            params = request.get("params", {})
            if isinstance(method, str) and method in SHARED and params == {}:
                # Shielded, because others wait for it too when this client goes away.
                body = await asyncio.shield(self._share(method))
                return encode({"v": VERSION, "id": identity}).rstrip(b"}\n") + b',"result":' + body + b"}\n"
            result = self._handle(method, params)
            if inspect.isawaitable(result):
                beat = encode({"v": VERSION, "id": identity, "beat": True}) if request.get("beats") is True else None
                result = await _beating(result, connection, beat)
            return _with_descriptors(encode({"v": VERSION, "id": identity, "result": result}), result, connection)
        except RustGuardError as error:
            return encode({"v": VERSION, "id": identity, "error": error_document(error)})
        except Exception:
            log.exception("control socket: %.40r failed", method)
            failure = RustGuardError("The daemon had an internal error.", "See its log, and please report it.")
            return encode({"v": VERSION, "id": identity, "error": error_document(failure)})

    def _share(self, method: str) -> asyncio.Task[bytes]:
        """Return the task that makes an answer. It begins after this request came, so the answer isn't old."""
        task = self._shared.get(method)
        if task is None:
            task = self._shared[method] = asyncio.get_running_loop().create_task(self._make_shared(method))
        return task

    async def _make_shared(self, method: str) -> bytes:
        del self._shared[method]
        result = self._handle(method, {})
        return encode(await result if inspect.isawaitable(result) else result).rstrip(b"\n")

    def _handle(self, method: Any, params: Any) -> Awaitable[dict[str, Any]] | dict[str, Any]:
        handler = self._handlers.get(method) if isinstance(method, str) else None
        if handler is None:
            raise UsageError(
                "This daemon doesn't know that request.",
                "The command may be newer than the daemon: restart the daemon.",
            )
        if not isinstance(params, dict):
            raise UsageError("`params` isn't a JSON object.")
        return handler(params)


async def _beating(work: Awaitable[dict[str, Any]], connection: socket.socket, beat: bytes | None) -> dict[str, Any]:
    """Await an answer, and send the beat each second until then. The work goes on if the client is gone."""
    if beat is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=BEAT_SECONDS))[0]:
            # A client that doesn't read its beats is sent no more of them.
            with suppress(OSError):
                connection.send(beat, socket.MSG_NOSIGNAL)
    finally:
        task.cancel()
    return task.result()


def _with_descriptors(answer: bytes, result: object, connection: socket.socket) -> bytes:
    """Send the open files that go with a result, with the answer's first byte. Return what is left to send."""
    if isinstance(result, WithDescriptors):
        # Without them, the client says that they are missing.
        with suppress(OSError):
            return answer[socket.send_fds(connection, [answer[:1]], result.descriptors) :]
    return answer


def group_id(group: str | None) -> int | None:
    """Return the number of a group, None for none.

    Raises:
        UsageError: There is no such group.
    """
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"There is no group {group!r}.", f"Make it: `{as_root(f'groupadd {group}')}`.") from None


def _group_name(number: int | None) -> str | None:
    with suppress(KeyError):
        return None if number is None else grp.getgrgid(number).gr_name
    return None


def _is_privileged(connection: socket.socket) -> bool:
    return _credentials(connection)[1] in {0, os.geteuid()}


def _is_member(connection: socket.socket, group: int | None) -> bool:
    if group is None:
        return False
    if _credentials(connection)[2] == group:
        return True
    # The kernel knows the other groups since Linux 4.13, so no name service is needed. Python reads at most 1,024
    # bytes, so a client in more than 256 groups isn't recognised.
    with suppress(OSError):
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
        return group in struct.unpack(f"{len(groups) // 4}I", groups)
    return False


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group of the client (unix(7), SO_PEERCRED)."""
    layout = struct.Struct("3i")
    pid, uid, gid = layout.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))
    return pid, uid, gid


async def _read_line(loop: asyncio.AbstractEventLoop, connection: socket.socket, received: bytearray) -> bytes | None:
    while (end := received.find(b"\n")) < 0:
        if len(received) > MAX_REQUEST:
            break
        piece = await loop.sock_recv(connection, MAX_REQUEST)
        if not piece:
            return None
        received += piece
    if end < 0 or end > MAX_REQUEST:
        raise UsageError(f"A request's line is longer than {MAX_REQUEST} bytes.")
    line = bytes(received[:end])
    del received[: end + 1]
    return line


def _hang_up(connection: socket.socket, error: RustGuardError) -> None:
    with suppress(OSError):
        connection.send(encode({"v": VERSION, "id": None, "error": error_document(error)}), socket.MSG_NOSIGNAL)
    connection.close()
