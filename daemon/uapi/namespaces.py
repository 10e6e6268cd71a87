"""One path for wg(8), several network namespaces.

wg(8) looks for an interface's socket by name alone, at /var/run/wireguard/NAME.sock. Network namespaces usually share
that directory, also those of `ip netns`, though each may have an interface of that name. So each daemon also listens
at NAME.N, where N is the number of its network namespace. The one that has NAME.sock passes a connection on to the
daemon of the caller's namespace, and answers itself if there is none.

A process's namespace can be seen by those who may trace it. A daemon that gave up its privileges may not trace root's
programs. It finds a daemon's socket NAME.N among those of the caller's namespace, which /proc shows to everybody.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path

from rustguard_py.system.place import namespace_number

_PIECE = 1 << 16
# proc_pid_net(5): the flags of a socket that listens.
_LISTENING = "00010000"


def of_peer(connection: socket.socket, path: Path) -> int | None:
    """Return the number of the network namespace of the process at the other end of a Unix socket, or None.

    Args:
        connection: Connected to that process.
        path: The socket for all namespaces. None is also returned if the number can't be seen and no daemon there has
            a socket next to it.
    """
    layout = struct.Struct("3i")
    pid = layout.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))[0]
    if not pid:
        return None
    number = namespace_number(pid)
    return _beside(path, pid) if number is None else number


def _beside(path: Path, pid: int) -> int | None:
    """Return N of the daemon socket NAME.N next to `path` in a process's network namespace, or None."""
    # A socket keeps the name that it was bound to: `path_of`, a dot and the daemon's process id. Connections have
    # their listener's name, but are listed where they come from, so they don't count.
    wanted = re.compile(rf"(?:\S+ ){{3}}{_LISTENING} .* {re.escape(str(path.with_suffix('')))}\.(\d+)\.\d+\n?")
    with suppress(OSError), open(f"/proc/{pid}/net/unix", errors="replace") as sockets:  # noqa: PTH123
        return next((int(found[1]) for line in sockets if (found := wanted.fullmatch(line))), None)
    return None


def answers(path: Path) -> int | None:
    """Return the number of the network namespace of the program that listens at a path, or None."""
    kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as probe, suppress(OSError):
        probe.connect(str(path))
        return of_peer(probe, path)
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
