"""Latencies as HdrHistogram counts them, with three significant digits.

A value counts as the highest one that shares its first eleven bits. So a histogram is a set of pairs, whichever
program counted: the crate hdrhistogram, the Go program, or Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

# Resolution in bits: the 2,048 steps of three significant digits.
_BITS = 11
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)


def equivalent(value: int) -> int:
    """Return the highest value that counts as the same as `value`."""
    shift = max(0, value.bit_length() - _BITS)
    return (((value >> shift) + 1) << shift) - 1


class Histogram:
    """Counts by value.

    Args:
        pairs: Values and their counts, as `pairs` returns them.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: Counter[int] = Counter()
        for value, count in pairs:
            self._counts[value] += count

    def add(self, value: int, times: int = 1) -> None:
        """Count a value, rounded to the precision of the histogram, so many times."""
        self._counts[equivalent(value)] += times

    def merge(self, other: Histogram) -> None:
        """Count all that another one counted."""
        self._counts.update(other._counts)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return self._counts.total()

    def pairs(self) -> list[tuple[int, int]]:
        """Return the values in ascending order, each with its count."""
        return sorted(self._counts.items())

    def percentile(self, percent: float) -> int | None:
        """Return the least value that `percent` of the values don't exceed, or None if none was counted."""
        # Whole numbers, but for what a percentage like 99.9 lacks in binary.
        wanted = percent * self.count - 1e-6
        seen = 0
        for value, count in self.pairs():
            seen += count
            if 100 * seen >= wanted:
                return value
        return None
