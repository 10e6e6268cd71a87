"""Durations as people type them: `90s`, `10m`, `12h`, `7d`."""

from __future__ import annotations

import re

from rustguard_py.model.errors import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def parse_duration(text: str) -> int:
    """Return the seconds of a duration.

    Raises:
        UsageError: It isn't one.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} isn't a duration.", "Write it like 90s, 10m, 12h or 7d.")
    return int(match[1]) * _SECONDS[match[2]]
