"""Connects to a host and listens, in the tunnel or outside of it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Coroutine
from typing import Any, Final

from rustguard_py.proxy.inside import Inside

# Seconds for one connection, over all addresses of its host.
CONNECT_SECONDS: Final = 30.0
# Seconds until the next address is tried beside one that hasn't answered (RFC 8305, section 5).
_HEAD_START: Final = 0.25
# The most addresses of a host that are tried.
_MOST_ADDRESSES: Final = 8
_BACKLOG: Final = 1024
# linux/in.h, linux/in6.h, linux/errqueue.h: what makes the kernel keep the ICMP message that ended an attempt.
_KEEP_ERRORS: Final[dict[int, tuple[int, int]]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),  # IP_RECVERR
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),  # IPV6_RECVERR
}
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_TIME_EXCEEDED: Final = {_ORIGIN_ICMP: 11, _ORIGIN_ICMP6: 3}
_EVERY: Final = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - where it is asked for
_LOOPBACK: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_FIXED: Final = {"": _EVERY, "*": _EVERY, "localhost": _LOOPBACK}


class TtlExpiredError(OSError):
    """A router on the way answered that the packet's time to live ended."""


async def dial(place: Inside, host: str, port: int, seconds: float = CONNECT_SECONDS) -> socket.socket:
    """Return a socket connected to a host. Its addresses are tried in turn, each with a head start (RFC 8305).

    Raises:
        OSError: No address could be connected to: the error of the first. A name that isn't known is a gaierror, no
            answer in time a TimeoutError, and a time to live that ended a TtlExpiredError.
    """
    async with asyncio.timeout(seconds):
        addresses = await place.resolve(host, port)
        return await _first([_connect(place, family, address) for family, address in addresses[:_MOST_ADDRESSES]])


async def _first(attempts: list[Coroutine[Any, Any, socket.socket]]) -> socket.socket:
    """Return the first socket of several attempts. The next begins when one has failed or its head start is over."""
    waiting = list(reversed(attempts))
    tasks: list[asyncio.Task[socket.socket]] = []
    try:
        while True:
            if waiting:
                tasks.append(asyncio.create_task(waiting.pop()))
            running = [task for task in tasks if not task.done()]
            if running:
                await asyncio.wait(
                    running, timeout=_HEAD_START if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
            for task in tasks:
                if task.done() and task.exception() is None:
                    tasks.remove(task)
                    return task.result()
            if not waiting and all(task.done() for task in tasks):
                return tasks[0].result()
    finally:
        for attempt in waiting:
            attempt.close()
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, socket.socket):
                result.close()


async def _connect(place: Inside, family: int, address: tuple[Any, ...]) -> socket.socket:
    made = await place.open_socket(family, socket.SOCK_STREAM)
    try:
        keep_alive(made)
        keep_errors = _KEEP_ERRORS[family]
        made.setsockopt(*keep_errors, 1)
        await asyncio.get_running_loop().sock_connect(made, address)
        # A connection that is made outlives an ICMP error.
        made.setsockopt(*keep_errors, 0)
    except OSError as error:
        expired = error.errno == errno.EHOSTUNREACH and _ttl_expired(made)
        made.close()
        if expired:
            raise TtlExpiredError(errno.EHOSTUNREACH, "the time to live ended on the way") from error
        raise
    except BaseException:
        made.close()
        raise
    return made


def keep_alive(connection: socket.socket) -> None:
    """Send small writes at once, and notice a peer that is gone though nothing is sent."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _ttl_expired(failed: socket.socket) -> bool:
    """Return whether ICMP's "time exceeded" ended an attempt. As an errno it looks like an unreachable host."""
    try:
        _, controls, _, _ = failed.recvmsg(0, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return False
    for _, _, data in controls:
        if len(data) >= _EXTENDED_ERROR.size:
            _, origin, kind, _, _, _, _ = _EXTENDED_ERROR.unpack_from(data)
            if _TIME_EXCEEDED.get(origin) == kind:
                return True
    return False


async def listen(place: Inside, host: str, port: int) -> list[socket.socket]:
    """Return listening sockets, one for each address of a host, all on one port.

    Args:
        place: Where to listen.
        host: A name or an address. The empty text or `*` means every address, and `localhost` the loopback ones,
            whatever a resolver says.
        port: 0 for any free port.

    Raises:
        OSError: An address can't be bound. A family that isn't there is left out if the other one is.
    """
    addresses: list[tuple[int, tuple[Any, ...]]]
    if hosts := _FIXED.get(host):
        addresses = [(family, (at, port)) for family, at in hosts]
    else:
        addresses = list(dict.fromkeys(await place.resolve(host, port)))
    listeners: list[socket.socket] = []
    lacking: OSError | None = None
    try:
        for family, address in addresses:
            bound = listeners[0].getsockname()[1] if listeners else port
            try:
                listeners.append(await _listen_at(place, family, (address[0], bound, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                lacking = error
    except BaseException:
        for each in listeners:
            each.close()
        raise
    if not listeners:
        raise lacking or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return listeners


async def _listen_at(place: Inside, family: int, address: tuple[Any, ...]) -> socket.socket:
    made = await place.open_socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made
