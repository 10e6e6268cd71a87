"""Numbers of things, as people read them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: `1 peer`, `2 peers`, `0 peers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
