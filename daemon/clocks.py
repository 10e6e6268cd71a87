"""Peers whose clock was once far ahead: their kept timestamp refuses every handshake with an earlier time."""

from __future__ import annotations

from datetime import UTC, datetime
from shlex import quote

from rustguard_py.protocol import tai64n

# A clock that is ahead by less is right again soon enough.
FAR_SECONDS = 86400


def time_of(timestamp: bytes) -> str:
    """Return the time of a TAI64N timestamp (12 bytes) in ISO 8601, UTC, at most the end of the year 9999."""
    seconds = tai64n.decode(timestamp) // 10**9
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime(9999, 12, 31, tzinfo=UTC) if seconds > 0 else datetime(1, 1, 1, tzinfo=UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def clock_ahead(timestamp: bytes | None, wall: float) -> str | None:
    """Return the time of a peer's greatest timestamp if it is more than a day ahead, else None.

    Args:
        timestamp: TAI64N, 12 bytes, or None if there is none.
        wall: Unix time.
    """
    if timestamp is None or tai64n.decode(timestamp) <= (wall + FAR_SECONDS) * 10**9:
        return None
    return time_of(timestamp)


def why_refused(name: str, ahead: str) -> str:
    """Return a sentence for people about a peer whose clock was at `ahead` (see `clock_ahead`)."""
    return (
        f"{name}: its clock was once at {ahead.partition('T')[0]}, so handshakes with an earlier time are refused. "
        f"If its clock is right now: rustguard peers reset {quote(name)}"
    )
