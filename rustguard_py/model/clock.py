"""The one clock of everything that happens: seconds that go on during suspend and that nobody can set."""

from __future__ import annotations

import time

# A handshake's timestamp (TAI64N): seconds and nanoseconds, big-endian, so that timestamps sort as bytes do.
TIMESTAMP_SIZE = 12


def now() -> float:
    """Give CLOCK_BOOTTIME in seconds, as the kernel's WireGuard uses: a session ages while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
