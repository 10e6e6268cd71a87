"""What the proxy needs of the tunnel: sockets that are made inside it, and its resolver."""

from __future__ import annotations

import socket
from typing import Any, Protocol


class Inside(Protocol):
    """The inside of a tunnel. Each method may be called again before an earlier call has returned.

    The proxy connects, binds and listens on the sockets itself: a socket belongs to the network namespace it was made
    in, whichever process uses it.
    """

    async def open_socket(self, family: int, kind: int) -> socket.socket:
        """Return a new socket made in the tunnel's namespace: not bound, not blocking, closed on exec.

        The caller owns it. A call that is cancelled leaves no socket behind.

        Args:
            family: AF_INET or AF_INET6.
            kind: SOCK_STREAM or SOCK_DGRAM, without flags.

        Raises:
            OSError: The kernel refuses a socket, or the tunnel is gone (ENETDOWN).
        """
        ...

    async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
        """Return (family, address as the socket module wants it) of a host, best first, by the tunnel's resolver.

        An address instead of a name is returned as it is, without asking anyone. The list is never empty.

        Raises:
            socket.gaierror: There is no such name, it has no address, or the resolver doesn't answer.
            OSError: The tunnel is gone (ENETDOWN).
        """
        ...
