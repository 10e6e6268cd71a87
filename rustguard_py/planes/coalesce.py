"""Merges the packets of one batch into superpackets for the TUN device, as GRO does in the kernel.

Stages, from some row on:

1. The first packet's headers determine which rows can follow: the same flow, and the same header except for lengths,
   sequence number, identification and checksums.
2. The rows that do follow are found for all rows at once.
3. The checksums of that run are verified, because the kernel will trust a superpacket.
4. One header is made for the run.

A packet that can't be merged is passed on as it is, and the kernel verifies it. No packet is held for the next batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rustguard_py.model.offloads import ALL, Offloads
from rustguard_py.planes.checksum import RowSums, sum_bytes
from rustguard_py.planes.offload import (
    GSO_TCP4,
    GSO_TCP6,
    GSO_UDP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    MAX_SEGMENTS,
    NEEDS_CHECKSUM,
    SHAPES_KEPT,
    TCP_CHECKSUM_OFFSET,
    UDP_CHECKSUM_OFFSET,
    Vnet,
)

_INDEX = np.arange(MAX_SEGMENTS, dtype=np.uint32)
ACK, PSH = 0x10, 0x08


class Run(NamedTuple):
    """Rows that are written together.

    Attributes:
        first: The first row.
        stop: The row after the last.
        source: The inner source address (4 or 16 bytes) of all rows, or b"" for a single packet.
        parts: The superpacket for one write: virtio_net_hdr with headers, then payloads. Empty for a single packet.
    """

    first: int
    stop: int
    source: bytes
    parts: list[bytes | memoryview]


class _Kind(NamedTuple):
    """The shape of a packet that can be merged."""

    transport: int
    header: int
    size: int
    tcp: bool

    @property
    def v4(self) -> bool:
        return self.transport == 20


class _MergeShape:
    """Views over packets of one kind in rows of one stride, and masks of the columns in which they may differ."""

    __slots__ = (
        "exact_mask",
        "headers",
        "ip_sums",
        "kind",
        "loose_mask",
        "payloads",
        "sequence",
        "steps",
        "stride",
        "transport_sums",
        "vnet",
    )

    def __init__(self, buffer: bytearray, stride: int, kind: _Kind) -> None:
        rows = min(len(buffer) // stride - 1, MAX_SEGMENTS)
        transport, header, size, tcp = kind
        view = memoryview(buffer)
        self.kind = kind
        self.stride = stride
        # Compared four bytes at a time: all header sizes are multiples of four.
        self.headers = np.ndarray((rows, header // 4), "<u4", buffer, 0, (stride, 4))
        exact = bytearray(b"\xff" * header)
        # IPv4 identification and checksum; sequence number and checksum.
        for at in (4, 5, 10, 11) if kind.v4 else ():
            exact[at] = 0
        for at in (4, 5, 6, 7, 16, 17) if tcp else (6, 7):
            exact[transport + at] = 0
        loose = bytearray(exact)
        for at in (2, 3) if kind.v4 else (4, 5):
            loose[at] = 0
        if tcp:
            loose[transport + 13] &= ~PSH
        else:
            loose[transport + 4] = loose[transport + 5] = 0
        # What all rows of full size share, and what the last row shares with them.
        self.exact_mask = np.frombuffer(exact, "<u4")
        self.loose_mask = int.from_bytes(loose, "little")
        self.sequence = np.ndarray((rows,), ">u4", buffer, transport + 4, (stride,))
        # In 32 bits, so sequence numbers wrap by themselves.
        self.steps = _INDEX[:rows] * np.uint32(size - header)
        self.ip_sums = RowSums(buffer, 0, 20, stride, rows)
        self.transport_sums = RowSums(buffer, transport, size - transport, stride, rows)
        self.payloads = [view[row * stride + header : row * stride + size] for row in range(rows)]
        gso = (GSO_TCP4 if kind.v4 else GSO_TCP6) if tcp else GSO_UDP
        checksum = TCP_CHECKSUM_OFFSET if tcp else UDP_CHECKSUM_OFFSET
        self.vnet = Vnet(NEEDS_CHECKSUM, gso, header, size - header, transport, checksum)


class Coalescer:
    """Finds the rows of `buffer` that can be merged.

    Args:
        buffer: The packets, one per row. Padding or old bytes may follow each packet in its row. The buffer must
            have room for one more row than is used.
        offloads: What may be merged.

    Attributes:
        short_tail: Whether the last packet of a run may be shorter than the others.
    """

    def __init__(self, buffer: bytearray, offloads: Offloads = ALL) -> None:
        self.buffer = buffer
        self.tcp, self.udp, self.short_tail = offloads.tcp_merging, offloads.udp_merging, offloads.short_tail
        self._view = memoryview(buffer)
        self._shapes: dict[tuple[int, _Kind], _MergeShape] = {}

    def runs(self, count: int, stride: int, last: int) -> list[Run]:
        """Divide `count` rows into runs, in order.

        Args:
            count: Number of rows, at most MAX_SEGMENTS, `stride` bytes apart.
            stride: The size of each row but the last.
            last: The size of the last.
        """
        runs = []
        first = 0
        while first < count:
            run = self._run(first, count, stride, last)
            runs.append(run)
            first = run.stop
        return runs

    def _run(self, first: int, count: int, stride: int, last: int) -> Run:
        single = Run(first, first + 1, b"", [])
        at = first * stride
        if first + 1 == count or not self._same_flow(at, at + stride):
            return single
        kind = self._examine(at, stride)
        if kind is None:
            return single
        shape = self._shapes.get((stride, kind))
        if shape is None:
            if len(self._shapes) >= SHAPES_KEPT:
                self._shapes.clear()
            shape = self._shapes[stride, kind] = _MergeShape(self.buffer, stride, kind)
        stop, tail = self._extent(shape, first, count, last)
        if stop < first + 2:
            return single
        addresses = self._view[at + 12 : at + 20] if kind.v4 else self._view[at + 8 : at + 40]
        addresses_sum = sum_bytes(addresses)
        if not self._verified(shape, first, stop, tail, addresses_sum):
            return single
        return self._merge(shape, first, stop, tail, addresses_sum)

    def _examine(self, at: int, room: int) -> _Kind | None:
        """Return the kind of the packet at `at`, or None if it can't begin a superpacket.

        It can't if it isn't TCP or UDP, is a fragment, has no payload, or has IP options, extension headers or TCP
        flags other than ACK.
        """
        packet = self.buffer
        if packet[at] == 0x45:
            transport, protocol = 20, packet[at + 9]
            size = packet[at + 2] << 8 | packet[at + 3]
            if packet[at + 6] & 0x3F or packet[at + 7]:
                return None
        elif packet[at] >> 4 == 6:
            transport, protocol = 40, packet[at + 6]
            size = 40 + (packet[at + 4] << 8 | packet[at + 5])
        else:
            return None
        if protocol == IPPROTO_TCP and self.tcp and room >= transport + 20:
            header = transport + (packet[at + transport + 12] >> 4) * 4
            if header < transport + 20 or packet[at + transport + 13] != ACK:
                return None
        elif protocol == IPPROTO_UDP and self.udp and room >= transport + 8:
            header = transport + 8
            if packet[at + transport + 4] << 8 | packet[at + transport + 5] != size - transport:
                return None
        else:
            return None
        return _Kind(transport, header, size, protocol == IPPROTO_TCP) if header < size <= room else None

    def _same_flow(self, one: int, other: int) -> bool:
        """Return whether addresses and ports are equal. This quick check spares mixed flows the costly one."""
        begin, end = (12, 24) if self.buffer[one] >> 4 == 4 else (8, 44)
        return self._view[one + begin : one + end] == self._view[other + begin : other + end]

    def _extent(self, shape: _MergeShape, first: int, count: int, last: int) -> tuple[int, int]:
        """Return the row after the run that begins at `first`, and the size of its last packet.

        Rows follow while they have the same size and header and are in sequence. One smaller row, or one with PSH,
        may come last: it ends a superpacket.
        """
        kind, stride = shape.kind, shape.stride
        # The last row may be shorter than the views assume, so `_tail` looks at it.
        rows = count - first if last == stride else count - first - 1
        headers = shape.headers[first : first + rows]
        masked = (headers & shape.exact_mask).tobytes()
        if masked == masked[: kind.header] * rows:
            follow = rows
        else:
            follow = int(((headers ^ headers[0]) & shape.exact_mask).any(axis=1).argmax())
        if kind.tcp:
            sequence = shape.sequence[first : first + follow]
            in_order = sequence == shape.steps[:follow] + np.uint32(sequence[0])
            if not in_order.all():
                follow = int(in_order.argmin())
        stop = first + follow
        if stop < count and (tail := self._tail(shape, first, stop, stride if stop + 1 < count else last)):
            return stop + 1, tail
        return stop, kind.size

    def _tail(self, shape: _MergeShape, first: int, row: int, room: int) -> int:
        """Return the size of the packet in `row` if it can end the run that began at `first`, or 0."""
        kind, stride = shape.kind, shape.stride
        if room < kind.header:
            return 0
        at, begin = row * stride, first * stride
        ours = int.from_bytes(self._view[at : at + kind.header], "little")
        theirs = int.from_bytes(self._view[begin : begin + kind.header], "little")
        if (ours ^ theirs) & shape.loose_mask:
            return 0
        packet, transport = self.buffer, at + kind.transport
        size = packet[at + 2] << 8 | packet[at + 3] if kind.v4 else 40 + (packet[at + 4] << 8 | packet[at + 5])
        if not kind.header < size <= min(kind.size, room) or (size < kind.size and not self.short_tail):
            return 0
        if kind.tcp:
            expected = int(shape.sequence[first]) + (row - first) * (kind.size - kind.header)
            in_place = int(shape.sequence[row]) == expected & 0xFFFFFFFF
        else:
            in_place = packet[transport + 4] << 8 | packet[transport + 5] == size - kind.transport
        return size if in_place else 0

    def _verified(self, shape: _MergeShape, first: int, stop: int, tail: int, addresses: int) -> bool:
        """Return whether every checksum of the run holds. A sum that includes its field must be 0 modulo 65535."""
        transport, _, size, tcp = shape.kind
        end = (stop - 1) * shape.stride
        # The last row is summed over the full size too. The zeros behind it don't change the sum.
        self._view[end + tail : end + size] = bytes(size - tail)
        sums = shape.transport_sums.big_endian(first, stop)
        sums += addresses + (IPPROTO_TCP if tcp else IPPROTO_UDP) + size - transport
        sums[-1] -= size - tail
        if (sums % 65535).any():
            return False
        return transport != 20 or not (shape.ip_sums.big_endian(first, stop) % 65535).any()

    def _merge(self, shape: _MergeShape, first: int, stop: int, tail: int, addresses: int) -> Run:
        kind = shape.kind
        transport, header, size, tcp = kind
        at, end = first * shape.stride, (stop - 1) * shape.stride
        total = size + (stop - first - 2) * (size - header) + tail - header
        head = bytearray(self._view[at : at + header])
        if kind.v4:
            head[2:4] = total.to_bytes(2, "big")
            head[10:12] = b"\0\0"
            head[10:12] = (65535 - sum_bytes(head[:20]) % 65535).to_bytes(2, "big")
            source = bytes(head[12:16])
        else:
            head[4:6] = (total - 40).to_bytes(2, "big")
            source = bytes(head[8:24])
        if tcp:
            head[transport + 13] = self.buffer[end + transport + 13]
        else:
            head[transport + 4 : transport + 6] = (total - transport).to_bytes(2, "big")
        pseudo = (addresses + (IPPROTO_TCP if tcp else IPPROTO_UDP) + total - transport) % 65535
        field = transport + shape.vnet.checksum_offset
        head[field : field + 2] = pseudo.to_bytes(2, "big")
        parts: list[bytes | memoryview] = [shape.vnet.encode() + head]
        parts += shape.payloads[first : stop - 1]
        parts.append(self._view[end + header : end + tail])
        return Run(first, stop, source, parts)
