"""The outbound path: from the TUN device to the network, one batch at a time.

Stages:

1. Read packets from the device into rows until it is empty or a superpacket came.
2. Divide the rows into runs of one destination, size and ECN mark, and look up the peer.
3. Complete the checksums, or cut the superpacket.
4. Claim a run of nonces, and seal each packet into one message.
5. Send that message with one system call.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.statistics import WorkerStats
from rustguard_py.planes.batches import INDEX, LAYOUTS_KEPT, run_all
from rustguard_py.planes.checksum import RowSums, sum_bytes
from rustguard_py.planes.device import Device
from rustguard_py.planes.ecn import outer_tos
from rustguard_py.planes.inner_packet import destination, ip_length, is_looped, padded
from rustguard_py.planes.offload import (
    MAX_MESSAGE,
    MAX_SEGMENTS,
    NEEDS_CHECKSUM,
    PLAIN_VNET,
    VNET_SIZE,
    Vnet,
    segments_in_message,
)
from rustguard_py.planes.plane_peer import PlanePeer
from rustguard_py.planes.segment import Segmenter
from rustguard_py.planes.transport import Transport
from rustguard_py.protocol.wire import DATA, DATA_OVERHEAD

# Type 4 and a receiver index of zero.
_SEALING_HEADER = np.array((DATA, 0), np.uint32)
# Each packet begins at a multiple of four in its row, because numpy adds aligned words faster.
_LEAD = 2
_PACKET = _LEAD + VNET_SIZE
_MAX_PACKET = 65536
# Where the ECN mark is in a packet's second byte.
_MARK4, _MARK6 = np.uint8(0x03), np.uint8(0x30)

Send = Callable[[memoryview | bytes, int, Endpoint, int], bool]


class _SealLayout:
    """Views over the message buffer as datagrams of one size."""

    __slots__ = ("counters", "headers", "nonces", "size", "targets")

    def __init__(self, message: bytearray, size: int) -> None:
        view = memoryview(message)
        rows = min(MAX_SEGMENTS, len(message) // size)
        starts = range(0, rows * size, size)
        self.size = size
        self.targets = [view[start + 16 : start + size] for start in starts]
        # The AEAD's nonce is four zero bytes and the counter. In the header, the receiver's index is in front of the
        # counter. It stays zero while the packets are sealed, so the nonce is a part of the message.
        self.nonces = [view[start + 4 : start + 16] for start in starts]
        self.headers = np.ndarray((rows, 2), "<u4", message, 0, (size, 4))
        self.counters = np.ndarray((rows,), "<u8", message, 8, (size,))


class _RowShape:
    """Views over the read buffer's rows as packets of one size, with one place of the checksum field (0, 0: none)."""

    __slots__ = ("capacity", "fields", "full", "padding", "sources", "sums")

    def __init__(self, buffer: bytearray, row: int, rows: int, mtu: int, key: tuple[int, int, int]) -> None:
        size, begin, offset = key
        view = memoryview(buffer)
        self.full = full = padded(size, mtu)
        self.capacity = segments_in_message(full + DATA_OVERHEAD)
        self.sources = [view[at : at + full] for at in range(_PACKET, rows * row, row)]
        self.padding = np.ndarray((rows, full - size), np.uint8, buffer, _PACKET + size, (row, 1))
        self.sums = RowSums(buffer, _PACKET + begin, size - begin, row, rows)
        self.fields = np.ndarray((rows,), ">u2", buffer, _PACKET + begin + offset, (row,))


class Outbound:
    """The outbound path of one interface.

    Args:
        transport: The rules and the peers.
        device: Where packets to seal come from.
        send: Sends a message as datagrams of one size to an endpoint, with a TOS or traffic class, and never raises.
            It returns False if the kernel refused the endpoint's local address.
        worker: Counts what goes out.
        refused: Told of a refused read. It returns whether to go on.
    """

    def __init__(
        self,
        transport: Transport,
        device: Device,
        send: Send,
        worker: WorkerStats,
        refused: Callable[[OSError], bool] = lambda _: False,
    ) -> None:
        self._refused = refused
        self._vnet = vnet = device.vnet
        self._worker = worker
        self._packets = self._bytes = 0
        self._transport = transport
        self._device = device
        self._send = send
        mtu = transport.mtu
        self._rows = segments_in_message(mtu + DATA_OVERHEAD)
        self._row = row = (_PACKET + padded(mtu, mtu) + 15) // 16 * 16
        self._buffer = bytearray(self._rows * row + _PACKET + 2 * _MAX_PACKET)
        self._view = memoryview(self._buffer)
        self._slots = [
            [self._view[start + (_LEAD if vnet else _PACKET) : start + _PACKET + _MAX_PACKET]]
            for start in range(0, self._rows * row, row)
        ]
        self._segmenter = Segmenter(self._buffer, mtu)
        self._staging = memoryview(self._segmenter.staging)
        self._message = bytearray(2 * MAX_MESSAGE)
        self._message_view = memoryview(self._message)
        self._layouts: dict[int, _SealLayout] = {}
        self._sources: dict[int, list[memoryview]] = {}
        self._shapes: dict[tuple[int, int, int], _RowShape] = {}
        self._heads = self._columns(_LEAD, VNET_SIZE)
        self._marks = self._columns(_PACKET + 1, 1)
        self._addresses4 = self._columns(_PACKET + 16, 4)
        self._addresses6 = self._columns(_PACKET + 24, 16)

    def _columns(self, offset: int, size: int) -> NDArray[np.uint8]:
        return np.ndarray((self._rows, size), np.uint8, self._buffer, offset, (self._row, 1))

    def pump(self, now: float) -> bool:
        """Move one batch from the device to the network. Return False if there was none.

        Raises:
            EOFError: The other side of the device has ended.
            OSError: The device is gone.
        """
        any_came = self._drain(now)
        self._worker.count(self._packets, self._bytes)
        self._packets = self._bytes = 0
        return any_came

    def _drain(self, now: float) -> bool:
        sizes: list[int] = []
        row, read, slots = self._row, self._device.read, self._slots
        mtu, buffer = self._transport.mtu, self._buffer
        for slot in slots:
            self._worker.system_calls += 1
            try:
                size = read(slot)
            except BlockingIOError:
                break
            except EOFError:
                if not sizes:
                    raise
                break
            except OSError as error:
                if not self._refused(error):
                    raise
                break
            at = len(sizes) * row + _LEAD
            if self._vnet:
                size -= VNET_SIZE
            else:
                self._view[at : at + VNET_SIZE] = PLAIN_VNET
            if buffer[at + 1] or size > mtu:
                # It may extend over the rows behind it.
                self._singles(sizes, now)
                self._large(at + VNET_SIZE, size, now)
                return True
            sizes.append(size)
        self._singles(sizes, now)
        return bool(sizes)

    def _singles(self, sizes: list[int], now: float) -> None:
        """Send the packets of the first rows, those of one run in one message."""
        first, count = 0, len(sizes)
        while first < count:
            size, start = sizes[first], first * self._row + _PACKET
            address = destination(self._view[start : start + size])
            alike = first + 1
            while alike < count and sizes[alike] == size:
                alike += 1
            stop = self._same(first, alike, address) if alike > first + 1 else alike
            peer = self._peer(address, [(self._row * row + _PACKET, size) for row in range(first, stop)], now)
            if peer is None:
                pass
            elif stop == first + 1:
                self._send_one(peer, start, size, now)
            else:
                self._send_run(peer, first, stop, size, now)
            first = stop

    def _same(self, first: int, stop: int, address: bytes) -> int:
        """Return the row after the last that has the first row's virtio_net_hdr, destination and ECN mark."""
        rows = stop - first
        addresses = self._addresses4 if len(address) == 4 else self._addresses6
        heads = self._heads[first:stop].tobytes()
        mask = _MARK4 if len(address) == 4 else _MARK6
        marks = (self._marks[first:stop] & mask).tobytes()
        alike = heads == heads[:VNET_SIZE] * rows and marks == marks[:1] * rows
        if alike and addresses[first:stop].tobytes() == address * rows:
            return stop
        for row in range(first + 1, stop):
            head = heads[(row - first) * VNET_SIZE :][:VNET_SIZE]
            if head != heads[:VNET_SIZE] or marks[row - first] != marks[0] or addresses[row].tobytes() != address:
                return row
        return stop

    def _send_run(self, peer: PlanePeer, first: int, stop: int, size: int, now: float) -> None:
        """Send rows of one size to one peer."""
        at = first * self._row + _LEAD
        vnet = Vnet.decode(self._view[at : at + VNET_SIZE])
        unchecked = vnet.flags & NEEDS_CHECKSUM and vnet.checksum_start + vnet.checksum_offset + 2 <= size
        key = (size, vnet.checksum_start, vnet.checksum_offset) if unchecked else (size, 0, 0)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= LAYOUTS_KEPT:
                self._shapes.clear()
            shape = self._shapes[key] = _RowShape(self._buffer, self._row, self._rows, self._transport.mtu, key)
        if unchecked:
            # The field holds the sum of the pseudo-header.
            sums = shape.sums.big_endian(first, stop)
            np.subtract(65535, sums % 65535, out=shape.fields[first:stop], casting="unsafe")
        if shape.full != size:
            shape.padding[first:stop] = 0
        for begin in range(first, stop, shape.capacity):
            self._seal(peer, shape.sources[begin : min(stop, begin + shape.capacity)], shape.full, now)

    def _send_one(self, peer: PlanePeer, at: int, size: int, now: float) -> None:
        """Send the one packet at `at`. For one packet, numpy and layouts cost more than they save."""
        packet = bytearray(self._view[at : at + size])
        if self._buffer[at - VNET_SIZE] & NEEDS_CHECKSUM:
            vnet = Vnet.decode(self._view[at - VNET_SIZE : at])
            field = vnet.checksum_start + vnet.checksum_offset
            if field + 2 <= size:
                total = sum_bytes(packet[vnet.checksum_start :])
                packet[field : field + 2] = (65535 - total % 65535).to_bytes(2, "big")
        if self._is_looped(peer, packet):
            return
        datagram = self._transport.seal(peer, packet, now)
        if datagram is None:
            self._transport.hold(peer, bytes(packet), now)
        elif peer.endpoint is not None:
            self._packets += 1
            self._bytes += len(datagram)
            if not self._send(datagram, len(datagram), peer.endpoint, outer_tos(packet)):
                peer.forget_local()

    def _large(self, at: int, size: int, now: float) -> None:
        """Send a superpacket, or a single packet larger than the MTU."""
        peer = self._peer(destination(self._view[at : at + size]), [(at, size)], now)
        if peer is None:
            return
        vnet = Vnet.decode(self._view[at - VNET_SIZE : at])
        if not vnet.gso_type:
            self._send_one(peer, at, size, now)
            return
        try:
            for cut in self._segmenter.segment(at, size, vnet):
                self._seal(peer, self._staged(cut.stride)[: cut.rows], cut.last, now)
        except ValueError:
            self._transport.drop("superpacket", peer=peer)

    def _is_looped(self, peer: PlanePeer, packet: bytearray | memoryview, count: int = 1) -> bool:
        """Return whether `packet` is a datagram of our own, and count the `count` packets of its batch as dropped."""
        session = peer.keypairs.current
        if session is None or not is_looped(packet, session.header):
            return False
        self._transport.drop("routing_loop", count, peer)
        return True

    def _staged(self, stride: int) -> list[memoryview]:
        sources = self._sources.get(stride)
        if sources is None:
            if len(self._sources) >= LAYOUTS_KEPT:
                self._sources.clear()
            starts = range(0, segments_in_message(stride + DATA_OVERHEAD) * stride, stride)
            sources = self._sources[stride] = [self._staging[at : at + stride] for at in starts]
        return sources

    def _peer(self, address: bytes, packets: list[tuple[int, int]], now: float) -> PlanePeer | None:
        """Return the peer for packets, which lie at these places and have these sizes. If none takes them, say so."""
        peer = self._transport.allowed.find(address) if address else None
        if peer is not None and peer.endpoint is not None:
            return peer
        self._transport.drop("no_peer" if peer is None else "no_endpoint", len(packets), peer)
        for at, size in packets:
            self._transport.answer_unreachable(bytes(self._view[at : at + size]), now)
        return None

    def _seal(self, peer: PlanePeer, sources: list[memoryview], last: int, now: float) -> None:
        """Seal packets of one size into one message and send it. The last packet may be shorter."""
        if self._is_looped(peer, sources[0], len(sources)):
            return
        count, size = len(sources), len(sources[0]) + DATA_OVERHEAD
        session = peer.keypairs.current
        nonce = None if session is None else session.claim(count, now)
        if session is None or nonce is None or peer.endpoint is None:
            for source in sources:
                self._transport.hold(peer, bytes(source[: ip_length(source)]), now)
            return
        layout = self._layout(size)
        header = session.header
        layout.headers[:count] = _SEALING_HEADER
        np.add(INDEX[:count], np.uint64(nonce), out=layout.counters[:count])
        seal = session.sealer.encrypt_into
        total = count * size
        if last + DATA_OVERHEAD == size:
            run_all(map(seal, layout.nonces[:count], sources, repeat(None), layout.targets))
        else:
            run_all(map(seal, layout.nonces[: count - 1], sources, repeat(None), layout.targets))
            target = layout.targets[count - 1][: last + 16]
            seal(layout.nonces[count - 1], sources[-1][:last], None, target)
            total += last + DATA_OVERHEAD - size
        layout.headers[:count, 1] = int.from_bytes(header[4:8], "little")
        self._packets += count
        self._bytes += total
        # One message that the kernel cuts, or each datagram by itself.
        step, tos = total if peer.segmenting else size, outer_tos(sources[0])
        for start in range(0, total, step):
            if not self._send(self._message_view[start : min(start + step, total)], size, peer.endpoint, tos):
                peer.forget_local()
        self._transport.sent(peer, session, count, total, now, data=True)

    def _layout(self, size: int) -> _SealLayout:
        layout = self._layouts.get(size)
        if layout is None:
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.clear()
            layout = self._layouts[size] = _SealLayout(self._message, size)
        return layout
