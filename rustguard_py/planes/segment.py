"""Cuts a superpacket from the TUN device into packets.

Stages, each for all rows at once:

1. The header is copied to every row, and the payload behind it.
2. Lengths, IPv4 identifications, sequence numbers and flags are set.
3. Checksums are the sum of the payload's sums and a base that all rows share.

Views into the buffers depend only on the shape of the superpacket. They are kept per shape, because making a numpy
view costs about as much as a row's checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rustguard_py.planes.checksum import RowSums, sum_bytes
from rustguard_py.planes.inner_packet import padded
from rustguard_py.planes.offload import (
    GSO_ECN,
    GSO_TCP4,
    GSO_TCP6,
    GSO_UDP,
    MAX_MESSAGE,
    MAX_SEGMENTS,
    SHAPES_KEPT,
    TCP_CHECKSUM_OFFSET,
    UDP_CHECKSUM_OFFSET,
    Vnet,
    segments_in_message,
)
from rustguard_py.protocol.wire import DATA_OVERHEAD

_INDEX = np.arange(MAX_SEGMENTS, dtype=np.int64)
FIN, PSH, CWR = 0x01, 0x08, 0x80
# In the first byte of the IPv4 fragment field.
DONT_FRAGMENT = 0x40


class Rows(NamedTuple):
    """Packets in the staging buffer: row i is at i * stride, padded with zeros to the stride.

    Attributes:
        rows: Number of rows.
        stride: The padded size of each but the last.
        last: The padded size of the last, at most the stride.
    """

    rows: int
    stride: int
    last: int


class _CutShape:
    """Views for one shape of superpacket, from one of its rows on."""

    __slots__ = (
        "capacity",
        "headers",
        "identification",
        "ip_checksum",
        "padding",
        "sequence",
        "size",
        "source",
        "start",
        "steps",
        "stride",
        "sums",
        "target",
        "transport_checksum",
    )

    def __init__(self, segmenter: Segmenter, key: tuple[int, int, int, int, int]) -> None:
        start, header, transport, checksum, mss = key
        self.start = start
        self.size = header + mss
        self.stride = stride = padded(self.size, segmenter.mtu)
        self.capacity = rows = segments_in_message(stride + DATA_OVERHEAD)
        staging, buffer = segmenter.staging, segmenter.buffer

        def column(kind: str, offset: int) -> NDArray[np.generic]:
            return np.ndarray((rows,), kind, staging, offset, (stride,))

        self.headers = np.ndarray((rows, header), "u1", staging, 0, (stride, 1))
        self.target = np.ndarray((rows, mss), "u1", staging, header, (stride, 1))
        self.padding = np.ndarray((rows, stride - self.size), "u1", staging, self.size, (stride, 1))
        self.source = np.ndarray((rows, mss), "u1", buffer, start, (mss, 1))
        self.sums = RowSums(buffer, start, mss, mss, rows)
        self.identification = column(">u2", 4)
        self.ip_checksum = column(">u2", 10)
        self.sequence = column(">u4", transport + 4)
        self.transport_checksum = column(">u2", transport + checksum)
        # In 32 bits, so sequence numbers wrap by themselves.
        self.steps = _INDEX[:rows].astype(np.uint32) * np.uint32(mss)


class _Superpacket(NamedTuple):
    """Where a superpacket is in the buffer, and its layout."""

    at: int
    size: int
    transport: int
    header: int
    mss: int
    tcp: bool
    v4: bool


class Segmenter:
    """Cuts superpackets in `buffer` into rows of `staging`.

    Args:
        buffer: Where superpackets are read to. At least 64 KiB must follow each superpacket.
        mtu: Padding doesn't exceed it.
    """

    def __init__(self, buffer: bytearray, mtu: int) -> None:
        self.buffer = buffer
        self.mtu = mtu
        self.staging = bytearray(2 * MAX_MESSAGE)
        self._view = memoryview(buffer)
        self._staging_view = memoryview(self.staging)
        self._shapes: dict[tuple[int, int, int, int, int], _CutShape] = {}

    def segment(self, at: int, size: int, vnet: Vnet) -> Iterator[Rows]:
        """Cut the superpacket of `size` bytes at `at`. Use each `Rows` before asking for the next.

        Raises:
            ValueError: The headers are inconsistent.
        """
        whole = self._examine(at, size, vnet)
        total = -(-(size - whole.header) // whole.mss)
        done = 0
        while done < total:
            shape = self._shape(whole, done)
            count = min(total - done, shape.capacity)
            last = whole.mss
            if done + count == total:
                last = size - whole.header - (total - 1) * whole.mss
            self._cut(whole, shape, done, count, last, final=done + count == total)
            ends_short = last != whole.mss
            yield Rows(count, shape.stride, padded(whole.header + last, self.mtu) if ends_short else shape.stride)
            done += count

    def _examine(self, at: int, size: int, vnet: Vnet) -> _Superpacket:
        kind = vnet.gso_type & ~GSO_ECN
        tcp = kind in (GSO_TCP4, GSO_TCP6)
        transport, mss = vnet.checksum_start, vnet.gso_size
        if not tcp and kind != GSO_UDP:
            raise ValueError("unknown kind of superpacket")
        if transport < 20 or size < transport + (20 if tcp else 8) or mss == 0:
            raise ValueError("superpacket without headers")
        header = transport + (self.buffer[at + transport + 12] >> 4) * 4 if tcp else transport + 8
        if not transport < header < size or header + mss + 48 > MAX_MESSAGE:
            raise ValueError("superpacket whose segments don't fit")
        return _Superpacket(at, size, transport, header, mss, tcp, self.buffer[at] >> 4 == 4)

    def _shape(self, whole: _Superpacket, done: int) -> _CutShape:
        start = whole.at + whole.header + done * whole.mss
        checksum = TCP_CHECKSUM_OFFSET if whole.tcp else UDP_CHECKSUM_OFFSET
        key = (start, whole.header, whole.transport, checksum, whole.mss)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= SHAPES_KEPT:
                self._shapes.clear()
            shape = self._shapes[key] = _CutShape(self, key)
        return shape

    def _cut(self, whole: _Superpacket, shape: _CutShape, done: int, count: int, last: int, *, final: bool) -> None:
        """Fill `count` rows with segments from number `done` on. The last has `last` bytes of payload."""
        mss, transport = whole.mss, whole.transport
        full = count if last == mss else count - 1
        head = bytearray(self._view[whole.at : whole.at + whole.header])
        identification, sequence, flags, base = self._make_header(whole, shape, head)

        shape.headers[:count] = np.frombuffer(head, "u1")
        if shape.stride != shape.size:
            shape.padding[:count] = 0
        shape.target[:full] = shape.source[:full]
        sums = np.empty(count, np.int64)
        sums[:full] = shape.sums.big_endian(0, full)
        if full != count:
            sums[full] = self._copy_last(whole, shape, full, last)
        sums += base
        if identification is not None:
            identifications = _INDEX[:count] + (identification + done)
            identifications &= 0xFFFF
            shape.identification[:count] = identifications
            identifications += sum_bytes(head[:transport])
            np.subtract(65535, identifications % 65535, out=shape.ip_checksum[:count], casting="unsafe")
        if whole.tcp:
            numbers = shape.steps[:count] + np.uint32(sequence + done * mss & 0xFFFFFFFF)
            shape.sequence[:count] = numbers
            sums += numbers
            self._flag(shape, transport + 13, flags, sums, first=done == 0, final=final)
        if full != count:
            self._shorten(whole, shape, full, mss - last, sums)
        np.subtract(65535, sums % 65535, out=shape.transport_checksum[:count], casting="unsafe")

    @staticmethod
    def _make_header(whole: _Superpacket, shape: _CutShape, head: bytearray) -> tuple[int | None, int, int, int]:
        """Turn `head` into the header that all rows share, with zeros where rows differ.

        Returns:
            The IPv4 identification if rows must differ in it, TCP sequence number, TCP flags, and the sum of the
            transport header and the pseudo-header of a full row.
        """
        transport, length = whole.transport, shape.size - whole.transport
        identification = None
        sequence = flags = 0
        if whole.v4:
            head[2:4] = shape.size.to_bytes(2, "big")
            head[10:12] = b"\0\0"
            if head[6] & DONT_FRAGMENT:
                # A packet that can't be fragmented needs no identification (RFC 6864), so all rows keep the same.
                head[10:12] = (65535 - sum_bytes(head[:transport]) % 65535).to_bytes(2, "big")
            else:
                identification = head[4] << 8 | head[5]
                head[4:6] = b"\0\0"
        else:
            head[4:6] = (shape.size - 40).to_bytes(2, "big")
        if whole.tcp:
            flags = head[transport + 13]
            head[transport + 13] = flags & ~(FIN | PSH | CWR)
            sequence = int.from_bytes(head[transport + 4 : transport + 8], "big")
            head[transport + 4 : transport + 8] = b"\0\0\0\0"
        else:
            head[transport + 4 : transport + 6] = length.to_bytes(2, "big")
        checksum = transport + (TCP_CHECKSUM_OFFSET if whole.tcp else UDP_CHECKSUM_OFFSET)
        # The field holds the sum of the pseudo-header, with the superpacket's length.
        pseudo = (head[checksum] << 8 | head[checksum + 1]) - (whole.size - transport) + length
        head[checksum : checksum + 2] = b"\0\0"
        return identification, sequence, flags, pseudo + sum_bytes(head[transport:])

    def _copy_last(self, whole: _Superpacket, shape: _CutShape, row: int, last: int) -> int:
        """Copy the payload of the short last row, with zeros up to the stride. Return its sum."""
        begin = shape.start + row * whole.mss
        source = self._view[begin : begin + last]
        begin = row * shape.stride + whole.header
        end = (row + 1) * shape.stride
        self._staging_view[begin : begin + last] = source
        self._staging_view[begin + last : end] = bytes(end - begin - last)
        return sum_bytes(source)

    def _flag(
        self, shape: _CutShape, offset: int, flags: int, sums: NDArray[np.int64], *, first: bool, final: bool
    ) -> None:
        """Set CWR only in the first segment, FIN and PSH only in the last."""
        if first and flags & CWR:
            self.staging[offset] |= CWR
            sums[0] += CWR
        if final and flags & (FIN | PSH):
            self.staging[(len(sums) - 1) * shape.stride + offset] |= flags & (FIN | PSH)
            sums[-1] += flags & (FIN | PSH)

    def _shorten(self, whole: _Superpacket, shape: _CutShape, row: int, less: int, sums: NDArray[np.int64]) -> None:
        """Correct the lengths of the last row, which is `less` bytes shorter, and the sums that include them."""
        staging, begin = self.staging, row * shape.stride

        def lower(place: int) -> None:
            value = (staging[place] << 8 | staging[place + 1]) - less
            staging[place : place + 2] = value.to_bytes(2, "big")

        lower(begin + (2 if whole.v4 else 4))
        if whole.v4:
            # The field is a complement, so a smaller length makes it larger.
            field = (staging[begin + 10] << 8 | staging[begin + 11]) + less
            staging[begin + 10 : begin + 12] = ((field - 1) % 65535 + 1).to_bytes(2, "big")
        sums[row] -= less
        if not whole.tcp:
            lower(begin + whole.transport + 4)
            sums[row] -= less
