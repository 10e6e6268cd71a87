"""How many examples hypothesis makes of a property."""

from __future__ import annotations

import os

_SHORT = 100


def examples(long: int) -> int:
    """Return `long` in the long run (`make soak`), else at most 100: each short run has the same ones."""
    return long if os.environ.get("RUSTGUARD_SOAK") == "1" else min(long, _SHORT)
