"""Gives this process a network of its own, in which it sees no interface of the machine."""

from __future__ import annotations

import ctypes
import subprocess

# linux/sched.h
_CLONE_NEWNET = 0x40000000


def enter() -> bool:
    """Move this thread, and all that it starts from now on, into a new network namespace with loopback up.

    Returns:
        Whether the system allowed it. If not, nothing has changed.
    """
    # The C library's, as Python has unshare(2) only since 3.12.
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return True
