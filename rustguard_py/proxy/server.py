"""The proxy: its listening sockets, its limits, and the way of each connection from its request to the relay."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.proxy import http, socks
from rustguard_py.proxy.association import Association, UdpStatistics, wait_for_end
from rustguard_py.proxy.dial import dial, keep_alive, listen
from rustguard_py.proxy.failures import Failures
from rustguard_py.proxy.forward import Forward
from rustguard_py.proxy.incoming import Incoming, TooLongError
from rustguard_py.proxy.inside import Inside
from rustguard_py.proxy.outside import Outside
from rustguard_py.proxy.relay import Relay, RelayStatistics, make_relay, raise_limit_of_files
from rustguard_py.proxy.request import Credentials, Refusal

_log = logging.getLogger(__name__)
# Seconds for a client's whole request.
REQUEST_SECONDS: Final = 10.0
# Seconds, and bytes, in which a client that was refused may end its stream before it is cut off.
_LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 1 << 16
# Seconds until accepting is tried again when the kernel has no descriptors or no memory for it.
_PAUSE: Final = 0.1
_LACKS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Connections accepted per wake-up, before others have their turn.
_ACCEPTED_AT_ONCE: Final = 64
_RESET: Final = struct.pack("ii", 1, 0)

Serve = Callable[[socket.socket], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """What a proxy has done so far.

    Attributes:
        requests: Clients whose request is being read or whose connection is being made, and associations.
        accepted: Connections ever accepted.
        refused: Connections closed at once because there were too many.
        failed: Requests that were refused, were malformed, or whose connection couldn't be made.
        relay: What the relay did.
        udp: What became of datagrams.
    """

    requests: int
    accepted: int
    refused: int
    failed: int
    relay: RelayStatistics
    udp: UdpStatistics


class Proxy:
    """Serves SOCKS5, HTTP CONNECT and forwarded ports. Make it inside the running loop, and `close` it.

    It raises the process's limit of open files to the hard limit, which decides how many connections there may be.

    Args:
        inside: The tunnel.
        credentials: What clients of `serve` have to name. They need it where they aren't on this host.
        idle: Seconds without a byte after which a connection ends. None: never.
        relay: What moves the bytes. None: the native relay, or the portable one where the extension isn't built.
        connections: The most connections at once. None: what the limit of open files leaves room for.

    Raises:
        OSError: The kernel refuses a descriptor or a thread.
    """

    def __init__(
        self,
        inside: Inside,
        *,
        credentials: Credentials | None = None,
        idle: float | None = None,
        relay: Relay | None = None,
        connections: int | None = None,
    ) -> None:
        self._inside = inside
        self._outside = Outside()
        self._credentials = credentials
        room = raise_limit_of_files()
        if connections is not None:
            room = replace(room, connections=min(connections, room.connections))
        self._most = room.connections
        self._relay = make_relay(room, idle) if relay is None else relay
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._relay.fileno(), self._log_ended)
        self._listeners: list[socket.socket] = []
        self._requests: set[asyncio.Task[None]] = set()
        self._udp = UdpStatistics()
        self._accepted = self._refused = self._failed = 0

    async def serve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Serve SOCKS5 and HTTP CONNECT at an address of this host. Return where it listens.

        Args:
            host: An address or a name; the empty text or `*` means every address.
            port: 0 for any free port.

        Raises:
            RefusedError: The address can't be bound.
            UsageError: Others than this host's users could use the proxy, and it has no credentials.
        """
        listeners = await _listen(self._outside, host, port)
        addresses = [each.getsockname() for each in listeners]
        if self._credentials is None and not all(
            ip_address(each[0].partition("%")[0]).is_loopback for each in addresses
        ):
            for each in listeners:
                each.close()
            raise UsageError(
                f"At {host or '*'} anyone who reaches this host could use the tunnel through the proxy.",
                "Listen at 127.0.0.1, or set a username and a password for the proxy.",
            )
        return self._start(listeners, self._serve_client)

    async def forward_in(self, forward: Forward) -> list[tuple[Any, ...]]:
        """Listen on this host, and connect what comes to a host in the tunnel (`-L`). Return where it listens.

        Raises:
            RefusedError: The address can't be bound.
        """
        failures = Failures("-L", forward.target, self._loop.time)

        async def connect(outside: socket.socket) -> None:
            self._hand_over(outside, await _dial(self._inside, forward, failures))

        return self._start(await _listen(self._outside, forward.address, forward.port), connect)

    async def forward_out(self, forward: Forward) -> list[tuple[Any, ...]]:
        """Listen in the tunnel, and connect what comes to a host outside (`-R`). Return where it listens.

        Raises:
            RefusedError: The address can't be bound.
        """
        failures = Failures("-R", forward.target, self._loop.time)

        async def connect(inside: socket.socket) -> None:
            self._hand_over(await _dial(self._outside, forward, failures), inside)

        return self._start(await _listen(self._inside, forward.address, forward.port), connect)

    def statistics(self) -> ProxyStatistics:
        """Return what was done so far."""
        return ProxyStatistics(
            requests=len(self._requests),
            accepted=self._accepted,
            refused=self._refused,
            failed=self._failed,
            relay=self._relay.statistics(),
            udp=replace(self._udp),
        )

    async def close(self) -> None:
        """Stop listening and close all connections."""
        while self._listeners:
            listener = self._listeners.pop()
            self._loop.remove_reader(listener)
            listener.close()
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        if (ended := self._relay.fileno()) >= 0:
            self._loop.remove_reader(ended)
        self._relay.close()

    def _start(self, listeners: list[socket.socket], serve: Serve) -> list[tuple[Any, ...]]:
        for listener in listeners:
            self._listeners.append(listener)
            self._loop.add_reader(listener, self._accept, listener, serve)
        return [each.getsockname() for each in listeners]

    def _accept(self, listener: socket.socket, serve: Serve) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _address = listener.accept()
            except OSError as error:
                if error.errno in _LACKS:
                    self._refused += 1
                    self._loop.remove_reader(listener)
                    self._loop.call_later(_PAUSE, self._accept_again, listener, serve)
                # Anything else than "nothing waits" is about one connection, which is gone already.
                return
            connection.setblocking(False)
            self._accepted += 1
            # An association has as many descriptors as two connections.
            busy = len(self._requests) + self._udp.associations + self._relay.statistics().active
            if busy >= self._most:
                self._refused += 1
                _reset(connection)
                connection.close()
                continue
            task = self._loop.create_task(self._handle(connection, serve))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    def _accept_again(self, listener: socket.socket, serve: Serve) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener, serve)

    async def _handle(self, connection: socket.socket, serve: Serve) -> None:
        """Serve a connection up to the relay. The relay has then detached it, and closing it does nothing."""
        with connection:
            try:
                keep_alive(connection)
                await serve(connection)
            except (OSError, EOFError) as error:
                self._failed += 1
                _log.debug("A connection to the proxy failed: %s", error or "the client closed it")
                # An ended stream would look like an answer.
                _reset(connection)

    async def _serve_client(self, connection: socket.socket) -> None:
        client = Incoming(connection)
        try:
            await self._speak(client)
        except Refusal as refusal:
            self._failed += 1
            _log.debug("A client of the proxy was refused: %s", refusal)
            await _refuse(client, refusal.answer)

    async def _speak(self, client: Incoming) -> None:
        """Serve a client of SOCKS5 or HTTP: which of the two is seen at its first byte."""
        first = await asyncio.wait_for(client.exactly(1), REQUEST_SECONDS)
        if first == bytes([socks.VERSION]):
            await self._serve_socks(client)
        elif first == b"\x04":
            raise Refusal(socks.REFUSES_VERSION_4, "it speaks SOCKS4")
        elif first.isalpha():
            await self._serve_http(client, first)
        else:
            raise Refusal(b"", "it speaks neither SOCKS5 nor HTTP")

    async def _serve_socks(self, client: Incoming) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            await socks.greet(client, self._credentials)
            request = await socks.read_request(client)
        if request.command == socks.Command.UDP_ASSOCIATE:
            await self._associate(client, request.port)
            return
        try:
            inside = await dial(self._inside, request.host, request.port)
        except OSError as error:
            raise Refusal(socks.reply(socks.reply_to(error)), f"no connection: {error!r}") from error
        await self._connected(client, inside, socks.reply(socks.Reply.SUCCEEDED, inside.getsockname()))

    async def _serve_http(self, client: Incoming, first: bytes) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = first + await client.through(http.END_OF_HEAD, http.HEAD_LIMIT)
        except TooLongError as error:
            raise http.refuse(431, f"The head of a request may have {http.HEAD_LIMIT} bytes.") from error
        except TimeoutError as error:
            raise http.refuse(408, f"A request has to come within {REQUEST_SECONDS:.0f} seconds.") from error
        host, port = http.parse_connect(head, self._credentials)
        try:
            inside = await dial(self._inside, host, port)
        except OSError as error:
            raise Refusal(http.answer_to(error, host, port), f"no connection: {error!r}") from error
        await self._connected(client, inside, http.CONNECTED)

    async def _connected(self, client: Incoming, inside: socket.socket, answer: bytes) -> None:
        with inside:
            async with asyncio.timeout(REQUEST_SECONDS):
                await client.send(answer)
            self._hand_over(client.connection, inside, client.rest())

    def _hand_over(self, outside: socket.socket, inside: socket.socket, early: bytes = b"") -> None:
        keep_alive(outside)
        self._relay.add(outside.detach(), inside.detach(), early)

    async def _associate(self, client: Incoming, port: int) -> None:
        connection = client.connection
        try:
            near, (host, *_) = connection.getsockname(), connection.getpeername()
            association = Association(self._inside, near, host, port, self._udp)
        except OSError as error:
            raise Refusal(socks.reply(socks.reply_to(error)), f"no association: {error!r}") from error
        try:
            await client.send(socks.reply(socks.Reply.SUCCEEDED, association.address))
            await wait_for_end(connection)
        finally:
            await association.close()

    def _log_ended(self) -> None:
        for each in self._relay.ended():
            _log.debug(
                "Connection %d ended (%s): %d B in, %d B out", each.number, each.how, each.bytes_in, each.bytes_out
            )


async def _listen(place: Inside, host: str, port: int) -> list[socket.socket]:
    try:
        return await listen(place, host, port)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"
        what = f"The proxy can't listen at {where}: {error.strerror or error}."
        raise RefusedError(what, _fix_for(error, port, is_inside=not isinstance(place, Outside))) from error


def _fix_for(error: OSError, port: int, *, is_inside: bool) -> str:
    """Return what helps against an error of bind(2)."""
    run = "rustguard exec -- " if is_inside else ""
    if isinstance(error, socket.gaierror):
        return "Write an address in place of the name, or leave it out."
    if error.errno == errno.EADDRINUSE:
        return f"Choose another port, or end the program that has it: `{run}ss -ltnp 'sport = {port}'` shows it."
    if error.errno == errno.EACCES:
        return (
            f"Choose a port from 1024 on. Or allow lower ones to every user: "
            f"`{as_root(f'sysctl -w net.ipv4.ip_unprivileged_port_start={port}')}`."
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        whose = "The tunnel's network" if is_inside else "This machine"
        return f"{whose} doesn't have that address: `{run}ip address` shows those that it has."
    return "Choose another address or port."


async def _dial(place: Inside, forward: Forward, failures: Failures) -> socket.socket:
    """Return a connection to where a forwarded port leads. Nobody else tells its user why there is none."""
    try:
        return await dial(place, forward.host, forward.host_port)
    except OSError as error:
        failures.report(error)
        raise


def _reset(connection: socket.socket) -> None:
    """Make the close of a connection a reset."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


async def _refuse(client: Incoming, answer: bytes) -> None:
    """Send an answer, and wait a little for the client to end its stream: closing before would reset the answer."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, EOFError):
        async with asyncio.timeout(_LINGER_SECONDS):
            await client.send(answer)
            client.connection.shutdown(socket.SHUT_WR)
            left = _LINGER_BYTES
            while left > 0 and (received := await loop.sock_recv(client.connection, left)):
                left -= len(received)
