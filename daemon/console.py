"""Output of `serve` and `join` for the person at the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Voice:
    """Two functions that print a line.

    Attributes:
        change: Prints a change to the system, `[#] ip …`.
        say: Prints anything else.
    """

    change: Callable[[str], None]
    say: Callable[[str], None]
