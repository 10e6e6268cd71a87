"""Close the UDP sockets of tunnels in a forked child at once: the tunnels stay with the parent.

Otherwise their port would stay taken for as long as the child lives, even if the parent has closed the tunnel.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")

# The ports of open tunnels. The native engine has further sockets on them, whose numbers only it knows.
_held: set[int] = set()


def hold(port: int) -> Callable[[], None]:
    """Have children that are forked from now on close this UDP port. Return a function that ends that."""
    _held.add(port)
    return lambda: _held.discard(port)


def _let_go() -> None:
    """Replace the sockets by /dev/null. The numbers stay taken, so closing one later closes no other file."""
    if not _held:
        return
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in [int(each.name) for each in _DESCRIPTORS.iterdir()]:
            if _port(number) in _held:
                os.dup2(nothing, number, inheritable=False)
        os.close(nothing)
    _held.clear()


def _port(number: int) -> int | None:
    """Return the port of a UDP socket, or None if a descriptor is something else."""
    try:
        found = socket.socket(fileno=number)
    except OSError:
        return None
    try:
        is_udp = found.type == socket.SOCK_DGRAM and found.family in (socket.AF_INET, socket.AF_INET6)
        return int(found.getsockname()[1]) if is_udp else None
    finally:
        found.detach()


os.register_at_fork(after_in_child=_let_go)
