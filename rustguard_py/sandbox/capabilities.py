"""Capabilities of this thread (capabilities(7)): reading them, and giving up all but some.

They belong to a thread, and a new thread inherits those of the one that starts it. So a process gives them up while
it has one thread. The C library's wrappers are called: no binding on PyPI is maintained and has the bounding set.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection
from enum import IntEnum


class Capability(IntEnum):
    """Capabilities that a daemon may need (linux/capability.h)."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    SYS_ADMIN = 21
    BPF = 39

    def __str__(self) -> str:
        return f"CAP_{self.name}"


# linux/capability.h and linux/prctl.h.
_VERSION_3 = 0x20080522
_MOST = 64
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_library = ctypes.CDLL(None, use_errno=True)


def exist(capability: Capability) -> bool:
    """Return whether this kernel has a capability: CAP_BPF came with Linux 5.8."""
    return int(_library.prctl(_PR_CAPBSET_READ, int(capability), 0, 0, 0)) >= 0


def held() -> frozenset[Capability]:
    """Return the capabilities that this thread can use."""
    _, permitted, _ = _read()
    return frozenset(each for each in Capability if permitted >> each & 1)


def use_only(keep: Collection[Capability]) -> None:
    """Use no others for now. `keep_only` makes it final, and until then more may be kept."""
    _, permitted, inheritable = _read()
    _write(permitted & _mask(keep), permitted, inheritable)


def keep_only(keep: Collection[Capability]) -> str | None:
    """Give up all others for good, so that no program that this thread starts gets them either.

    Returns:
        Why the bounding set stays as it is, or None. What can't be dropped from it can't be used all the same.

    Raises:
        OSError: The kernel refused.
    """
    wanted, refused = _mask(keep), None
    _, permitted, inheritable = _read()
    # Dropping from the bounding set needs CAP_SETPCAP.
    _write(permitted, permitted, inheritable)
    for each in range(_MOST):
        # Negative: the kernel doesn't have it.
        if wanted >> each & 1 or _library.prctl(_PR_CAPBSET_READ, each, 0, 0, 0) <= 0:
            continue
        if _library.prctl(_PR_CAPBSET_DROP, each, 0, 0, 0) < 0:
            refused = os.strerror(ctypes.get_errno())
            break
    _write(permitted & wanted, permitted & wanted, inheritable & wanted)
    return refused


def drop_all() -> None:
    """Give up all, but leave the bounding set. Call `gain_nothing` too.

    The kernel doesn't start a program that has a capability in its file, such as ping, without it in that set.

    Raises:
        OSError: The kernel refused.
    """
    _write(0, 0, 0)


def gain_nothing() -> None:
    """Let no program that this thread starts gain privileges: no setuid bits, no file capabilities (no_new_privs).

    Raises:
        OSError: The kernel refused.
    """
    _check(_library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _mask(capabilities: Collection[Capability]) -> int:
    return sum(1 << each for each in capabilities)


def _read() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets."""
    sets = (_Sets * 2)()
    _check(_library.capget(ctypes.byref(_Header(_VERSION_3, 0)), sets))
    low, high = sets
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def _write(effective: int, permitted: int, inheritable: int) -> None:
    words = [tuple(each >> shift & 0xFFFFFFFF for each in (effective, permitted, inheritable)) for shift in (0, 32)]
    sets = (_Sets * 2)(*(_Sets(*each) for each in words))
    _check(_library.capset(ctypes.byref(_Header(_VERSION_3, 0)), sets))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number))
