"""Internet checksums (RFC 1071) of many packets at once.

One's complement sums of 16-bit words are sums modulo 65535. So the words can be added in any order and any width,
and the sum of little-endian words times 256 is the sum of the same words read as big-endian. numpy adds the rows of a
buffer in little-endian order. The functions here return big-endian sums that aren't reduced: add all parts, then
take `% 65535`.

A checksum field is 65535 minus the sum, which is never 0. For UDP a field of 0 means "no checksum"; for TCP and IPv4,
0 and 0xffff are the same number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Buffer = bytearray | memoryview
Int64 = NDArray[np.int64]
# From this size on, numpy is faster than one division of a big integer.
_WORTH_NUMPY = 256


def sum_bytes(data: bytes | Buffer) -> int:
    """Return the big-endian sum of `data`, below 2**48. A zero is assumed after an odd last byte."""
    if len(data) < _WORTH_NUMPY:
        return int.from_bytes(data, "little") % 65535 * 256
    words = np.frombuffer(data, "<u2", len(data) // 2)
    total = int(np.add.reduce(words, dtype=np.uint64))
    return (total + data[-1] if len(data) & 1 else total) * 256


class RowSums:
    """Sums over the same columns of consecutive rows of a buffer.

    Make it once per layout: making a view costs as much as summing a row.

    Args:
        buffer: The rows.
        offset: Where the first row's columns begin.
        size: Bytes per row, below 128 KiB, because 16-bit words are added in 32 bits.
        stride: Bytes from row to row.
        rows: The greatest number of rows.
    """

    __slots__ = ("_odd", "_words")

    def __init__(self, buffer: Buffer, offset: int, size: int, stride: int, rows: int) -> None:
        self._words = np.ndarray((rows, size // 2), "<u2", buffer, offset, (stride, 2))
        self._odd = np.ndarray((rows,), "u1", buffer, offset + size - 1, (stride,)) if size & 1 else None

    def big_endian(self, first: int, stop: int) -> Int64:
        """Return the big-endian sums of rows `first` to `stop`, below 2**40."""
        sums: Int64 = np.add.reduce(self._words[first:stop], axis=1, dtype=np.uint32).astype(np.int64)
        if self._odd is not None:
            sums += self._odd[first:stop]
        sums *= 256
        return sums
