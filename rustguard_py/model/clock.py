"""The one clock of everything that happens: seconds that go on during suspend and that nobody can set."""

from __future__ import annotations

import time


def now() -> float:
    """Give CLOCK_BOOTTIME in seconds, as the kernel's WireGuard uses: a session ages while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
