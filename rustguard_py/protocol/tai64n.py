"""TAI64N timestamps: 12 bytes, accepted only if greater than all earlier ones of a peer (whitepaper, 5.1).

The format (https://cr.yp.to/libtai/tai64.html) is 8 bytes of TAI seconds and 4 of nanoseconds, big-endian.
"""

from __future__ import annotations

from collections.abc import Callable

# TAI was 10 s ahead of UTC in 1970. As in the kernel's WireGuard, later leap seconds are not counted.
_TAI64_EPOCH = 2**62 + 10
_BILLION = 10**9
# Nanoseconds. The kernel's rounding: coarse enough to reveal nothing about the processor, finer than the 20 ms that a
# responder requires between two initiations.
GRAIN = 2**24


def encode(nanoseconds: int) -> bytes:
    """Return the TAI64N of a Unix time in nanoseconds."""
    seconds, rest = divmod(nanoseconds, _BILLION)
    return (seconds + _TAI64_EPOCH).to_bytes(8, "big") + rest.to_bytes(4, "big")


def decode(timestamp: bytes) -> int:
    """Return the Unix time in nanoseconds of a TAI64N (12 bytes)."""
    seconds = int.from_bytes(timestamp[:8], "big") - _TAI64_EPOCH
    return seconds * _BILLION + int.from_bytes(timestamp[8:], "big")


class Tai64nClock:
    """A source of timestamps that only ever rise, even if the wall clock goes back.

    Args:
        wall: Returns the Unix time in nanoseconds, as `time.time_ns`.
        greatest: The greatest timestamp that this identity ever sent, or None.
    """

    __slots__ = ("_last", "_wall")

    def __init__(self, wall: Callable[[], int], greatest: bytes | None = None) -> None:
        self._wall = wall
        self._last = None if greatest is None else decode(greatest)

    def next(self) -> bytes:
        """Return a timestamp greater than all before."""
        now = self._wall()
        now -= now % _BILLION % GRAIN
        if self._last is not None and now <= self._last:
            now = self._last + 1
        self._last = now
        return encode(now)
