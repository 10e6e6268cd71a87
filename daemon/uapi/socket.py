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
from pathlib import Path

from rustguard_py.daemon.control.server import bind
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
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.peer import Peer
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)

DIRECTORY = "/var/run/wireguard"
VARIABLE = "RUSTGUARD_WG_SOCKETS"
# How often to check that the socket is still ours, seconds.
LOOK = 1.0
# Bytes of a line: each allowed IP has a line of its own.
_LONGEST_LINE = 1 << 12


class UapiSocket:
    """Answers the requests of wg(8) for one interface.

    Args:
        interface: The interface's name.
        show: Returns the current state.
        change: Makes the requested changes or raises UapiError; None if wg(8) may change nothing.
        listener: A listening socket to use instead of making one.
    """

    def __init__(
        self,
        interface: str,
        show: Callable[[], DeviceState],
        change: Callable[[DeviceChange], None] | None,
        listener: socket.socket | None = None,
    ) -> None:
        directory = os.environ.get(VARIABLE)
        self._wanted = directory != ""
        self.path = Path(directory or DIRECTORY) / f"{interface}.sock"
        self._show = show
        self._change = change
        self._given = listener
        self._inode: tuple[int, int] | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start listening. If that worked before, end with the old socket, which somebody has removed.

        Raises:
            StateError: Another program answers there.
            RustGuardError: No socket can be made there.
        """
        listener = self._given or self._make()
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_LONGEST_LINE)

    def _make(self) -> socket.socket:
        if not self._wanted:
            raise RustGuardError(f"{VARIABLE} is empty: wg(8) can't be answered.", f"Unset it: unset {VARIABLE}")
        directory = self.path.parent
        try:
            directory.mkdir(0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise RustGuardError(
                f"{directory} can't be made: {error.strerror}.", "Run as root, or without wg(8)."
            ) from error
        listener = bind(self.path, None)
        self.path.chmod(0o600)
        status = self.path.lstat()
        self._inode = (status.st_dev, status.st_ino)
        return listener

    def is_there(self) -> bool:
        """Return whether the socket is still at its path. A given listener is not checked."""
        if self._inode is None:
            return True
        try:
            status = self.path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    async def close(self) -> None:
        """Stop listening, and remove the socket if it is still ours. May be called twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if self._inode is not None and self.is_there():
                with suppress(OSError):
                    self.path.unlink()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # -- one connection -------------------------------------------------------------------------------------

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._answer_all(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
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

    def _answer(self, request: list[str]) -> str:
        try:
            match request:
                case ["get=1"]:
                    return format_device(self._show()) + ending(0)
                case ["set=1", *lines]:
                    self._set(lines)
                    return ending(0)
            log.warning("wg: a request is neither get=1 nor set=1")
            return ending(errno.EINVAL)
        except UapiError as error:
            log.warning("wg: %s", error)
            return ending(error.code)
        except Exception as error:
            log.exception("wg: internal error")
            return ending(error.errno if isinstance(error, OSError) and error.errno else errno.EIO)

    def _set(self, lines: list[str]) -> None:
        if self._change is None:
            raise UapiError(errno.EPERM, "this tunnel's peers are changed by its own commands")
        self._change(parse_set(lines))


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


def show(tunnel: Tunnel, private_key: bytes | None, port: int, fwmark: int = 0) -> DeviceState:
    """Return what wg(8) shows of a tunnel.

    Args:
        tunnel: The tunnel.
        private_key: 32 bytes, or None if there is none. wg(8) computes the public key from it.
        port: The UDP port.
        fwmark: 0 for none.
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
    return DeviceState(private_key, port, fwmark, peers)


def _wall(peer: Peer) -> int:
    """Return the Unix time of the last handshake in nanoseconds, 0 for never."""
    if peer.session_began is None:
        return 0
    return time.time_ns() - round((now() - peer.session_began) * 1e9)
