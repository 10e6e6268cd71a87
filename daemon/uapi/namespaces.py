"""One path for wg(8), several network namespaces.

wg(8) looks for an interface's socket by name alone, at /var/run/wireguard/NAME.sock. Network namespaces usually share
that directory, also those of `ip netns`, though each may have an interface of that name. So each daemon also listens
at NAME.N, where N is the number of its network namespace. The one that has NAME.sock passes a connection on to the
daemon of the caller's namespace, and answers itself if there is none.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_SELF = "/proc/self/ns/net"
_PIECE = 1 << 16


def own() -> int | None:
    """Return the number of our network namespace, or None if it isn't known."""
    return _number(_SELF)


def name() -> str | None:
    """Return the name of our network namespace (`ip netns`), else its number; None if it's that of process 1."""
    number = own()
    if number is None or number == _number("/proc/1/ns/net"):
        return None
    for path in sorted(Path("/run/netns").glob("*")):
        with suppress(OSError):
            if path.stat().st_ino == number:
                return path.name
    return str(number)


def of_peer(connection: socket.socket) -> int | None:
    """Return the number of the network namespace of the process at the other end of a Unix socket, or None."""
    layout = struct.Struct("3i")
    pid = layout.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))[0]
    return _number(f"/proc/{pid}/ns/net") if pid else None


def answers(path: Path) -> int | None:
    """Return the number of the network namespace of the program that listens at a path, or None."""
    kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as probe, suppress(OSError):
        probe.connect(str(path))
        return of_peer(probe)
    return None


def path_of(path: Path, namespace: int) -> Path:
    """Return the path of the socket for one namespace. The one for all, whose name ends in `.sock`, is next to it."""
    return path.with_name(f"{path.stem}.{namespace}")


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> bool:
    """Pass a connection on to the program that listens at a path, until it ends. Return False if nobody listens."""
    try:
        their_reader, their_writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    try:
        with suppress(OSError):
            await asyncio.gather(_pump(reader, their_writer), _pump(their_reader, writer))
    finally:
        their_writer.close()
    return True


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


def _number(path: str) -> int | None:
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - a link to follow, not a file
    except OSError:
        return None
