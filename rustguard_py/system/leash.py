"""A pipe between a daemon and its helper, by which the kernel signals the helper when the daemon is gone.

A daemon that gave its rights up may not signal its helper, because of Landlock. This signal counts as one of the
helper's own, and reaches it even while it is stopped.
"""

from __future__ import annotations

import fcntl
import os
import select


def signal_at_end(leash: int, number: int) -> bool:
    """Have the kernel send this process a signal when the other end of a pipe is closed.

    Args:
        leash: The pipe's end to read from. It stays open.
        number: The signal.

    Returns:
        Whether the other end is open. Otherwise there is no signal.
    """
    fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(leash, fcntl.F_SETSIG, number)
    fcntl.fcntl(leash, fcntl.F_SETFL, os.O_RDONLY | os.O_ASYNC)
    # No signal comes for an end that was closed before.
    watched = select.poll()
    watched.register(leash, 0)
    return not watched.poll(0)
