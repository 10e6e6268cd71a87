"""The socket at which wg(8) finds a user-space WireGuard: /var/run/wireguard/INTERFACE.sock.

Clients may do everything, so the socket is only root's (mode 0600). RUSTGUARD_WG_SOCKETS names another directory. If
it is empty, no such socket is made.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from rustguard_py.daemon.control.listening import Bound, bind, make, remove
from rustguard_py.daemon.uapi import namespaces
from rustguard_py.daemon.uapi.apply import Settings
from rustguard_py.daemon.uapi.protocol import (
    DeviceChange,
    DeviceState,
    PeerState,
    UapiError,
    ending,
    format_device,
    parse_set,
)
from rustguard_py.model.clock import now
from rustguard_py.model.errors import RustGuardError, StateError
from rustguard_py.model.keys import clamp
from rustguard_py.model.peer import Peer
from rustguard_py.system.place import namespace_number
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)

DIRECTORY = "/var/run/wireguard"
VARIABLE = "RUSTGUARD_WG_SOCKETS"
# How often to check that the socket is still ours, seconds.
LOOK = 1.0
# Bytes of a line: each allowed IP has a line of its own.
_LONGEST_LINE = 1 << 12


def directory() -> Path | None:
    """Return the directory of the sockets, or None if there are to be none. It isn't made here."""
    named = os.environ.get(VARIABLE, DIRECTORY)
    return Path(named) if named else None


def bind_for_wg(path: Path) -> Bound:
    """Return a socket that listens at a path; only root may connect. Its directory is made if it isn't there.

    Raises:
        StateError: Another daemon listens there.
        RustGuardError: No socket can be made there.
    """
    try:
        path.parent.mkdir(0o755, parents=True, exist_ok=True)
    except OSError as error:
        message = f"{path.parent} can't be made: {error.strerror}."
        raise RustGuardError(message, "Run as root, or without wg(8).") from error
    return bind(path, None, 0o600)


class Answers(Protocol):
    """What wg(8) can read and change of a tunnel."""

    def show(self) -> DeviceState:
        """Return the current state."""

    def change(self, change: DeviceChange, /) -> None:
        """Make changes, all of them or none.

        Raises:
            UapiError: They can't be made.
        """


class UapiSocket:
    """Answers the requests of wg(8) for one interface.

    Args:
        interface: The interface's name.
        show: Returns the current state.
        change: Makes the requested changes or raises UapiError.
        listener: A listening socket to use instead of making one.
    """

    def __init__(
        self,
        interface: str,
        show: Callable[[], DeviceState],
        change: Callable[[DeviceChange], None],
        listener: socket.socket | None = None,
    ) -> None:
        place = directory()
        self._wanted = place is not None
        self.path = (place or Path(DIRECTORY)) / f"{interface}.sock"
        self._show = show
        self._change = change
        self._given = listener
        # The sockets that we made, with device and inode.
        self._made: dict[Path, tuple[int, int]] = {}
        self._servers: list[asyncio.Server] = []
        self._successor: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start listening.

        Raises:
            StateError: Another program answers there, and can't tell our network namespace from its own.
            RustGuardError: No socket can be made there.
        """
        if self._given is not None:
            await self._listen(self._given, shared=False)
            return
        if not self._wanted:
            raise RustGuardError(f"{VARIABLE} is empty: wg(8) can't be answered.", f"Unset it: unset {VARIABLE}")
        if (namespace := namespace_number()) is not None:
            await self._make(namespaces.path_of(self.path, namespace))
        try:
            await self._make(self.path)
        except StateError:
            other = namespaces.answers(self.path)
            if namespace is None or other in (None, namespace):
                raise
            if namespaces.answers(namespaces.path_of(self.path, other or 0)) is None:
                raise  # a program that isn't ours, which passes nothing on
            self._successor = asyncio.get_running_loop().create_task(self._succeed())

    async def _succeed(self) -> None:
        """Take the path over when the daemon of another network namespace has left it."""
        while True:
            await asyncio.sleep(LOOK)
            with suppress(RustGuardError, OSError):
                await self._make(self.path)
                return

    async def _make(self, path: Path) -> None:
        listener, self._made[path] = make(path, bind_for_wg)
        await self._listen(listener, shared=path == self.path)

    async def _listen(self, listener: socket.socket, *, shared: bool) -> None:
        serve = partial(self._serve, shared)
        self._servers.append(await asyncio.start_unix_server(serve, sock=listener, limit=_LONGEST_LINE))

    async def make_again(self) -> None:
        """Make the sockets again that somebody has removed. For errors see `start`."""
        for path in [each for each in self._made if not self._is_there(each)]:
            await self._make(path)

    def is_there(self) -> bool:
        """Return whether our sockets are still at their paths. A given listener is not checked."""
        return all(map(self._is_there, self._made))

    def _is_there(self, path: Path) -> bool:
        try:
            status = path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._made[path]

    async def close(self) -> None:
        """Stop listening, and remove the sockets that are still ours. May be called twice."""
        if self._successor is not None:
            self._successor.cancel()
            await asyncio.gather(self._successor, return_exceptions=True)
            self._successor = None
        for server in self._servers:
            server.close()
        self._servers.clear()
        for path in filter(self._is_there, self._made):
            remove(path)
        self._made.clear()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # -- one connection -------------------------------------------------------------------------------------

    def _serve(self, shared: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._answer_all(reader, writer, shared=shared))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, shared: bool) -> None:
        try:
            if shared and await self._passed_on(reader, writer):
                return
            while (request := await _read_request(reader)) is not None:
                writer.write(self._answer(request).encode())
                await writer.drain()
        except UapiError as error:
            log.warning("wg: %s", error)
            writer.write(ending(error.code).encode())
            with suppress(OSError):
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def _passed_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass a connection on if the daemon of another namespace is meant. Return whether it was."""
        caller = namespaces.of_peer(writer.get_extra_info("socket"), self.path)
        if caller is None or caller == namespace_number():
            return False
        return await namespaces.pass_on(reader, writer, namespaces.path_of(self.path, caller))

    def _answer(self, request: list[str]) -> str:
        try:
            match request:
                case ["get=1"]:
                    return format_device(self._show()) + ending(0)
                case ["set=1", *lines]:
                    self._change(parse_set(lines))
                    return ending(0)
            log.warning("wg: a request is neither get=1 nor set=1")
            return ending(errno.EINVAL)
        except UapiError as error:
            log.warning("wg: %s", error)
            return ending(error.code)
        except Exception as error:
            log.exception("wg: internal error")
            return ending(error.errno if isinstance(error, OSError) and error.errno else errno.EIO)


async def _read_request(reader: asyncio.StreamReader) -> list[str] | None:
    """Return the lines up to an empty one, or None at the end of the connection."""
    lines: list[str] = []
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if lines or error.partial:
                raise UapiError(errno.EPROTO, "a request ends without an empty line") from error
            return None
        except asyncio.LimitOverrunError as error:
            raise UapiError(errno.EPROTO, "a line is too long") from error
        if line == b"\n":
            return lines
        lines.append(line[:-1].decode(errors="replace"))


def given_listener(descriptor: int) -> socket.socket:
    """Return the listening socket of an inherited descriptor (WG_UAPI_FD)."""
    os.set_inheritable(descriptor, False)
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    return listener


# -- what any tunnel shows ------------------------------------------------------------------------------------------


def show(tunnel: Tunnel, settings: Settings) -> DeviceState:
    """Return what wg(8) shows of a tunnel.

    Args:
        tunnel: The tunnel. Its peers are shown, not those of the settings.
        settings: Its key, port and mark. wg(8) computes the public key from the private one.
    """
    counters = tunnel.plane.stats().peers
    peers = []
    for peer in tunnel.node:
        seen = counters.get(peer.id)
        peers.append(
            PeerState(
                peer.config.public_key,
                peer.config.preshared_key,
                peer.endpoint,
                _wall(peer),
                seen.rx_bytes if seen else 0,
                seen.tx_bytes if seen else 0,
                peer.config.persistent_keepalive,
                peer.config.allowed_ips,
            )
        )
    private_key = None if settings.private_key is None else clamp(settings.private_key)
    return DeviceState(private_key, settings.port, settings.fwmark, peers)


def _wall(peer: Peer) -> int:
    """Return the Unix time of the last handshake in nanoseconds, 0 for never."""
    if peer.session_began is None:
        return 0
    return time.time_ns() - round((now() - peer.session_began) * 1e9)
