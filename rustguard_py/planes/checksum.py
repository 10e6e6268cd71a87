"""Internet checksums (RFC 1071) of many packets at once.

One's complement sums of 16-bit words are sums modulo 65535, so they may be added in any order and any word
width, and a sum over words read little-endian times 256 is the sum over the same words read big-endian. numpy
adds rows of a buffer in the machine's order; the results here are plain big-endian sums, modulo nothing yet:
reduce them by `% 65535` when all parts are added.

A field is 65535 less the sum, which never gives 0: to UDP a zero field means "no checksum", to TCP and IPv4 0 and
0xffff are the same number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Buffer = bytearray | memoryview
Int64 = NDArray[np.int64]
# From this size on numpy's fixed cost is less than that of one big integer division.
_WORTH_NUMPY = 256


def sum_bytes(data: bytes | Buffer) -> int:
    """Give the big-endian sum of one piece, below 2**48; an odd last byte counts as if a zero followed."""
    if len(data) < _WORTH_NUMPY:
        return int.from_bytes(data, "little") % 65535 * 256
    words = np.frombuffer(data, "<u2", len(data) // 2)
    total = int(np.add.reduce(words, dtype=np.uint64))
    return (total + data[-1] if len(data) & 1 else total) * 256


class RowSums:
    """The sums over the same columns of consecutive rows of a buffer.

    Made once a layout, since making a view costs as much as summing a row.

    Args:
        buffer: Where the rows lie.
        offset: Of the first byte of the first row's columns.
        size: Bytes a row, below 128 KiB: 16-bit words are added up in 32 bits.
        stride: From row to row.
        rows: How many there are at most.
    """

    __slots__ = ("_odd", "_words")

    def __init__(self, buffer: Buffer, offset: int, size: int, stride: int, rows: int) -> None:
        self._words = np.ndarray((rows, size // 2), "<u2", buffer, offset, (stride, 2))
        self._odd = np.ndarray((rows,), "u1", buffer, offset + size - 1, (stride,)) if size & 1 else None

    def big_endian(self, first: int, stop: int) -> Int64:
        """Give the big-endian sums of rows `first` to `stop`, below 2**40."""
        sums: Int64 = np.add.reduce(self._words[first:stop], axis=1, dtype=np.uint32).astype(np.int64)
        if self._odd is not None:
            sums += self._odd[first:stop]
        sums *= 256
        return sums
