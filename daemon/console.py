"""How `serve` and `join` talk to the person in front of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Voice:
    """Each takes a line of prose.

    Attributes:
        change: A change to the system, `[#] ip …`.
        say: Anything else.
    """

    change: Callable[[str], None]
    say: Callable[[str], None]
