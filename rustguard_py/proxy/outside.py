"""The host outside the tunnel, with the interface of `Inside`: where `-L` listens and `-R` connects to."""

from __future__ import annotations

import asyncio
import socket
from typing import Any


class Outside:
    """Makes plain sockets of this process, and asks the host's resolver."""

    async def open_socket(self, family: int, kind: int) -> socket.socket:
        """See `Inside.open_socket`."""
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
        """See `Inside.resolve`."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        families = (socket.AF_INET, socket.AF_INET6)
        return [(family, address) for family, _, _, _, address in found if family in families]
