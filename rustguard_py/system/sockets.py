"""UDP sockets: one per family, all on one port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from rustguard_py.model.errors import RefusedError

# Attempts to find a port that is free in both families.
_PORT_TRIES = 16


def bind(port: int, hosts: Sequence[str] = ("0.0.0.0", "::")) -> list[socket.socket]:  # noqa: S104
    """Return a bound socket for each address of `hosts`, all on one port.

    Args:
        port: 0 for any free port.
        hosts: IPv4 and IPv6 addresses. A family that this machine lacks is left out.

    Raises:
        RefusedError: The port is taken, or the machine has neither family.
    """
    for attempt in range(_PORT_TRIES):
        sockets: list[socket.socket] = []
        try:
            for host in hosts:
                made = _bind_one(host, sockets[0].getsockname()[1] if sockets else port)
                if made is not None:
                    sockets.append(made)
        except OSError as error:
            for made in sockets:
                made.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < _PORT_TRIES:
                continue
            raise RefusedError(
                f"UDP port {port} can't be bound: {error.strerror}.",
                "See which program has it with `ss -ulnp`, or choose another --port.",
            ) from error
        if sockets:
            return sockets
        break
    raise RefusedError("This machine has neither IPv4 nor IPv6.", "Bring an interface up.")


def _bind_one(host: str, port: int) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRNOTAVAIL and host == "::":
            return None
        raise
    return made
