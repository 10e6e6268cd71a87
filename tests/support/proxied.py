"""What the tests of the proxy share: a stand-in for the tunnel, servers behind it, and clients of raw bytes.

The stand-in makes plain sockets of this process. So "in the tunnel" is loopback here, and nothing needs privileges.
The tests of the rootless join do the same through a real namespace.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from rustguard_py.engine import has_native
from rustguard_py.proxy.outside import Outside
from rustguard_py.proxy.portable_relay import PortableRelay
from rustguard_py.proxy.relay import Ended, Relay
from rustguard_py.proxy.request import Credentials
from rustguard_py.proxy.server import Proxy

Kind = Literal["native", "portable"]
KINDS = [
    pytest.param("native", marks=pytest.mark.skipif(not has_native(), reason="the native plane isn't built")),
    "portable",
]
PATIENCE = 20.0


class Loopback(Outside):
    """A tunnel that is none: this host's own sockets.

    Args:
        names: What the tunnel's resolver knows. Other names are unknown, as no test may depend on DNS.

    Attributes:
        asked: The names that were asked for.
        opened: The sockets that were made.
        refuses: Raised instead of making a socket.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        self.names = names or {}
        self.asked: list[str] = []
        self.opened: list[socket.socket] = []
        self.refuses: OSError | None = None

    async def open_socket(self, family: int, kind: int) -> socket.socket:
        if self.refuses is not None:
            raise self.refuses
        made = await super().open_socket(family, kind)
        self.opened.append(made)
        return made

    async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
        self.asked.append(host)
        try:
            family = socket.AF_INET6 if ":" in (found := self.names.get(host, host)) else socket.AF_INET
            socket.inet_pton(family, found)
        except OSError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
        return [(family, (found, port, 0, 0) if family == socket.AF_INET6 else (found, port))]


def make(kind: Kind, connections: int = 4096, pipes: int = 256, idle: float | None = None) -> Relay:
    """Return a relay of a kind, in the running loop."""
    if kind == "portable":
        return PortableRelay(connections=connections, idle=idle)
    from rustguard_py.proxy.native_relay import NativeRelay

    return NativeRelay(threads=2, connections=connections, pipes=pipes, idle=idle)


@asynccontextmanager
async def proxy(
    kind: Kind = "portable",
    inside: Loopback | None = None,
    *,
    credentials: Credentials | None = None,
    connections: int | None = None,
) -> AsyncIterator[tuple[Proxy, int]]:
    """A proxy at a port of 127.0.0.1."""
    made = Proxy(inside or Loopback(), credentials=credentials, relay=make(kind), connections=connections)
    try:
        [(_, port)] = await made.serve("127.0.0.1", 0)
        yield made, port
    finally:
        await made.close()


@asynccontextmanager
async def served(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A TCP server at a port of loopback."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, host, 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, to its end."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def talk(port: int, *sends: bytes, end: bool = False) -> bytes:
    """Send pieces to the proxy, and return all that it answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in sends:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()


async def until(what: str, is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not is_so():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.005)


async def ends(relay: Relay, count: int = 1) -> list[Ended]:
    """Wait for connections to end."""
    found: list[Ended] = []

    def enough() -> bool:
        found.extend(relay.ended())
        return len(found) >= count

    await until(f"{count} connections end", enough)
    return found


def tcp() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a TCP connection on loopback, which don't block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for each in (one, other):
        each.setblocking(False)
    return one, other


def descriptors() -> dict[str, str]:
    """Return what this process has open, by number."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[link.name] = str(link.readlink())
        except FileNotFoundError:  # the one that reads the directory
            continue
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if descriptors are open afterwards that weren't before."""
    before = descriptors()
    yield
    left = {number: what for number, what in descriptors().items() if before.get(number) != what}
    assert left == {}
