"""Durations as people type them: `90` (seconds), `90s`, `10m`, `1h30m`, `7d`, `1w`."""

from __future__ import annotations

import re

from rustguard_py.model.errors import UsageError

EXAMPLES = "90s, 10m, 1h, 7d or 1w; a number alone is seconds"

_SECONDS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_FRACTION = r"(?:\.[0-9]{1,6})?"
# Greater units first, each once; seconds may do without theirs.
_DURATION = re.compile(
    "".join(rf"(?:([0-9]{{1,9}}{_FRACTION}){unit})?" for unit in list(_SECONDS)[:-1])
    + rf"(?:([0-9]{{1,20}}{_FRACTION})s?)?"
)


def parse_duration(text: str) -> float:
    """Return the seconds of a duration.

    Raises:
        UsageError: It isn't one.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not match[0]:
        raise UsageError(f"{text!r} isn't a duration.", f"Write it like {EXAMPLES}.")
    counts = zip(match.groups(), _SECONDS.values(), strict=True)
    # Whole numbers stay exact, however large.
    return sum((float(count) if "." in count else int(count)) * seconds for count, seconds in counts if count)
