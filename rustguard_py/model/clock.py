"""The project's one monotonic clock. It counts during suspend, and nobody can set it."""

from __future__ import annotations

import time

# A handshake's timestamp (TAI64N): seconds and nanoseconds, big-endian, so that timestamps sort as bytes do.
TIMESTAMP_SIZE = 12


def now() -> float:
    """Return CLOCK_BOOTTIME in seconds. As in the kernel's WireGuard, sessions age while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
