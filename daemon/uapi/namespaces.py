"""One path for wg(8), several network namespaces.

wg(8) looks for an interface's socket by name alone, at /var/run/wireguard/NAME.sock. Network namespaces usually share
that directory, also those of `ip netns`, though each may have an interface of that name. So each daemon also listens
at NAME.N, where N is the number of its network namespace. The one that has NAME.sock passes a connection on to the
daemon of the caller's namespace, and answers itself if there is none.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from pathlib import Path

from rustguard_py.system.place import namespace_number

_PIECE = 1 << 16


def of_peer(connection: socket.socket) -> int | None:
    """Return the number of the network namespace of the process at the other end of a Unix socket, or None."""
    layout = struct.Struct("3i")
    pid = layout.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))[0]
    return namespace_number(pid) if pid else None


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
