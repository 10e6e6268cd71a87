"""Which run of the machine and which network namespace this is: what was set in another one isn't set here."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/net")
# include/uapi/asm-generic/socket.h; Linux 5.14. The socket module doesn't name it.
_SO_NETNS_COOKIE = 71


def boot_id() -> str:
    """Return a text that is another one after a reboot."""
    return _BOOT_ID.read_text().strip()


def namespace_id() -> str:
    """Return a text that is another one in each network namespace, until a reboot.

    Before Linux 5.14 a new namespace may have the number of one that is gone.
    """
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return f"cookie {int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), 'little')}"
    return os.fsdecode(_NAMESPACE.readlink())
