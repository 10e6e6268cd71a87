"""UDP ASSOCIATE: the datagrams of one client of SOCKS5 (RFC 1928, section 7).

They go through Python, unlike the bytes of connections: each has a header of its own, often with a name to resolve,
and the client ends its association by its TCP connection, which Python holds anyway. Up to a batch is moved per
wake-up.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from rustguard_py.proxy.inside import Inside
from rustguard_py.proxy.socks import Datagram, parse_datagram, wrap_datagram

# Datagrams moved per wake-up, before others have their turn.
_BATCH: Final = 64
_LARGEST: Final = 65535
# Datagrams that wait for a name or a socket.
_WAITING: Final = 64
# Names of one association that are remembered, and for how many seconds.
_NAMES: Final = 256
_NAME_SECONDS: Final = 60.0
# Seconds for the resolver: other datagrams of the association wait for it.
_RESOLVE_SECONDS: Final = 5.0

Target = tuple[int, tuple[Any, ...]]


@dataclass(slots=True)
class UdpStatistics:
    """What became of datagrams, over all associations.

    Attributes:
        associations: Associations now.
        datagrams_in: Sent into the tunnel.
        datagrams_out: Sent to a client.
        fragments: Dropped: pieces of a datagram, which this proxy doesn't put together.
        malformed: Dropped: without a header that can be read.
        strangers: Dropped: not from the client that associated.
        dropped: Dropped: refused by the kernel, to a name that can't be resolved, or while too many waited.
    """

    associations: int = 0
    datagrams_in: int = 0
    datagrams_out: int = 0
    fragments: int = 0
    malformed: int = 0
    strangers: int = 0
    dropped: int = 0


class Association:
    """One client's way into the tunnel for datagrams. Make it inside the running loop.

    Args:
        inside: The tunnel.
        near: The address on this host that the client's TCP connection came to.
        client: The client's address, without a port.
        port: The port that the client says it sends from, or 0: then that of its first datagram is taken.
        statistics: Counts what becomes of datagrams.

    Attributes:
        address: Where the client is to send datagrams to.

    Raises:
        OSError: The kernel refuses a socket.
    """

    def __init__(
        self, inside: Inside, near: tuple[Any, ...], client: str, port: int, statistics: UdpStatistics
    ) -> None:
        self._inside = inside
        self._host, self._port = client, port
        self._statistics = statistics
        self._loop = asyncio.get_running_loop()
        self._far: dict[int, socket.socket] = {}
        self._names: dict[tuple[str, int], tuple[Target, float]] = {}
        self._client: tuple[Any, ...] | None = None
        self._slow: asyncio.Queue[Datagram] = asyncio.Queue(_WAITING)
        family = socket.AF_INET6 if ":" in near[0] else socket.AF_INET
        self._near = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._near.bind((near[0], 0, *near[2:]))
            self.address: tuple[Any, ...] = self._near.getsockname()
            self._loop.add_reader(self._near, self._take, self._near, self._from_client)
        except BaseException:
            self._near.close()
            raise
        self._task = self._loop.create_task(self._send_slow())
        statistics.associations += 1

    async def close(self) -> None:
        """End the association and close its sockets."""
        self._statistics.associations -= 1
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for each in (self._near, *self._far.values()):
            self._loop.remove_reader(each)
            each.close()

    def _take(self, source: socket.socket, handle: Callable[[bytes, tuple[Any, ...]], None]) -> None:
        """Handle what waits at a socket, up to a batch."""
        for _ in range(_BATCH):
            try:
                data, address = source.recvfrom(_LARGEST)
            except OSError as error:
                # An ICMP error that waited is reported once; another call may find a datagram.
                if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                    return
                continue
            handle(data, address)

    def _from_client(self, data: bytes, source: tuple[Any, ...]) -> None:
        if source[0] != self._host or source[1] != (self._port or source[1]):
            self._statistics.strangers += 1
            return
        datagram = parse_datagram(data)
        if datagram is None:
            self._statistics.malformed += 1
        elif datagram.fragment:
            self._statistics.fragments += 1
        else:
            self._port, self._client = source[1], source
            target = self._known(datagram.host, datagram.port)
            if target is None or target[0] not in self._far:
                try:
                    self._slow.put_nowait(datagram)
                except asyncio.QueueFull:
                    self._statistics.dropped += 1
            else:
                self._send(target, datagram.payload)

    def _known(self, host: str, port: int) -> Target | None:
        found = self._names.get((host, port))
        return found[0] if found is not None and self._loop.time() < found[1] else None

    async def _send_slow(self) -> None:
        """Send datagrams whose name isn't resolved or whose socket isn't made yet, one by one."""
        while True:
            datagram = await self._slow.get()
            try:
                target = self._known(datagram.host, datagram.port) or await self._resolve(datagram)
                if target[0] not in self._far:
                    made = await self._inside.open_socket(target[0], socket.SOCK_DGRAM)
                    self._far[target[0]] = made
                    self._loop.add_reader(made, self._take, made, self._from_tunnel)
            except OSError:
                self._statistics.dropped += 1
            else:
                self._send(target, datagram.payload)

    async def _resolve(self, datagram: Datagram) -> Target:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            target = (await self._inside.resolve(datagram.host, datagram.port))[0]
        if len(self._names) >= _NAMES:
            del self._names[next(iter(self._names))]
        self._names[datagram.host, datagram.port] = (target, self._loop.time() + _NAME_SECONDS)
        return target

    def _send(self, target: Target, payload: bytes) -> None:
        try:
            self._far[target[0]].sendto(payload, target[1])
            self._statistics.datagrams_in += 1
        except OSError:
            self._statistics.dropped += 1

    def _from_tunnel(self, data: bytes, source: tuple[Any, ...]) -> None:
        if self._client is None:
            return
        try:
            self._near.sendto(wrap_datagram(source, data), self._client)
            self._statistics.datagrams_out += 1
        except OSError:
            self._statistics.dropped += 1


async def wait_for_end(connection: socket.socket) -> None:
    """Return when a client has closed its connection. What it sends there has no meaning and is thrown away."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while await loop.sock_recv(connection, 4096):
            pass
