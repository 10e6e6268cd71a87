"""A client's connection while its request is read."""

from __future__ import annotations

import asyncio
import socket


class TooLongError(Exception):
    """The mark that ends a message didn't come within the most that is read."""


class Incoming:
    """Reads a request from a socket that doesn't block.

    Args:
        connection: The socket. The caller keeps it.

    Attributes:
        connection: The socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._waiting = b""

    async def exactly(self, count: int) -> bytes:
        """Return the next bytes. No more is read from the socket.

        Raises:
            EOFError: The stream ends before.
            OSError: The connection is lost.
        """
        while len(self._waiting) < count:
            await self._receive(count - len(self._waiting))
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def through(self, mark: bytes, most: int) -> bytes:
        """Return everything up to a mark, and the mark.

        Raises:
            EOFError: The stream ends before.
            OSError: The connection is lost.
            TooLongError: The mark isn't within the first `most` bytes.
        """
        while (end := self._waiting.find(mark)) < 0:
            if len(self._waiting) >= most:
                raise TooLongError
            await self._receive(most - len(self._waiting))
        return await self.exactly(end + len(mark))

    def rest(self) -> bytes:
        """Return what was read and isn't used: the client sent it before it had an answer."""
        return self._waiting

    async def send(self, answer: bytes) -> None:
        """Send an answer to the client.

        Raises:
            OSError: The connection is lost.
        """
        await asyncio.get_running_loop().sock_sendall(self.connection, answer)

    async def _receive(self, most: int) -> None:
        received = await asyncio.get_running_loop().sock_recv(self.connection, most)
        if not received:
            raise EOFError
        self._waiting += received
