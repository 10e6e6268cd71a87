"""Which run of the machine and which network namespace this is: what was set in another one isn't set here."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/net")
# Where `ip netns` keeps those that have names.
_NAMED = Path("/run/netns")
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


def namespace_number(process: int | str = "self") -> int | None:
    """Return the number of a process's network namespace, or None if it can't be seen. It may be used again later."""
    try:
        return os.stat(f"/proc/{process}/ns/net").st_ino  # noqa: PTH116 - a link to follow, not a file
    except OSError:
        return None


def namespace_name() -> str | None:
    """Return the name of our network namespace (`ip netns`), else its number; None if it's that of process 1.

    What processes share in the file system, such as state directories, needs it to be told apart by namespace. Users
    who can't see the namespace of process 1 are taken to be in it, unless theirs has a name.
    """
    number, first = namespace_number(), namespace_number(1)
    if number is None or number == first:
        return None
    for path in sorted(_NAMED.glob("*")):
        with suppress(OSError):
            if path.stat().st_ino == number:
                return path.name
    return None if first is None and os.geteuid() != 0 else str(number)


def in_namespace(name: str) -> str:
    """Return the name of a directory for something of this name that each network namespace may have."""
    place = namespace_name()
    return name if place is None else f"{name}@{place}"
