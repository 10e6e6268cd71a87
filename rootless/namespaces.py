"""System calls for namespaces and mounts, which Python has from 3.12 on or not at all (namespaces(7), mount(2)).

Namespaces belong to a thread. So a process enters them while it has one thread.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

# linux/sched.h, linux/mount.h and linux/prctl.h
NEW_MOUNTS, NEW_USER, NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_MNT_DETACH = 2
_PR_SET_DUMPABLE = 4

_library = ctypes.CDLL(None, use_errno=True)


def unshare(what: int) -> None:
    """Move this process to a new namespace.

    Args:
        what: NEW_USER, NEW_NETWORK or NEW_MOUNTS.

    Raises:
        OSError: The kernel refused.
    """
    _check(_library.unshare(what))


def join(descriptor: int, what: int) -> None:
    """Move this process to an existing namespace.

    Args:
        descriptor: An open file of `/proc/PID/ns`.
        what: The kind of namespace that it must be.

    Raises:
        OSError: The kernel refused.
    """
    _check(_library.setns(descriptor, what))


def map_own_ids(user: int, group: int) -> None:
    """Map one user and one group of the namespace above to the same numbers in this one.

    Args:
        user: The effective user before `unshare`.
        group: The effective group before it.

    Raises:
        OSError: The kernel refused.
    """
    own = Path("/proc/self")
    # Without this an ordinary user may not map a group (user_namespaces(7)).
    (own / "setgroups").write_text("deny")
    (own / "gid_map").write_text(f"{group} {group} 1")
    (own / "uid_map").write_text(f"{user} {user} 1")


def own_mounts() -> None:
    """Give this process mounts of its own. What is mounted outside later shows up in here, not the other way round.

    Raises:
        OSError: The kernel refused.
    """
    unshare(NEW_MOUNTS)
    _mount(None, "/", None, _MS_REC | _MS_SLAVE, None)


def mount_memory(place: Path) -> None:
    """Mount an empty file system in memory over a directory.

    Raises:
        OSError: The kernel refused.
    """
    _mount("tmpfs", str(place), "tmpfs", 0, "mode=755")


def bind(source: Path, target: Path) -> None:
    """Show a file in the place of another one.

    Raises:
        OSError: The kernel refused.
    """
    _mount(str(source), str(target), None, _MS_BIND, None)


def unmount(place: Path) -> None:
    """Unmount; what is bound from there stays.

    Raises:
        OSError: The kernel refused.
    """
    _check(_library.umount2(os.fsencode(place), _MNT_DETACH))


def keep_memory_private() -> None:
    """Keep other processes of this user out of this one, and its memory out of core dumps.

    Raises:
        OSError: The kernel refused.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _check(_library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    source_, target_, kind_, data_ = (
        None if each is None else os.fsencode(each) for each in (source, target, kind, data)
    )
    _check(_library.mount(source_, target_, kind_, ctypes.c_ulong(flags), data_))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
