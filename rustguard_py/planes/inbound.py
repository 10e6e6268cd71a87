"""The inbound path: from the network to the TUN device, one message at a time.

The kernel delivers datagrams of one source and size as one message. Stages:

1. Look at all headers at once, and divide the datagrams into runs of one session with consecutive counters.
2. Check the replay window, and open each datagram into a row.
3. Only then mark the window, roam and confirm the session.
4. Merge the rows into superpackets, check the source of each, and write it.

Everything else (single datagrams, handshakes, forgeries, datagrams out of order) goes one by one through
`Transport.handle_datagram`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import repeat

import numpy as np
from cryptography.exceptions import InvalidTag

from rustguard_py.model.endpoint import Endpoint, is_same
from rustguard_py.model.offloads import Offloads
from rustguard_py.model.statistics import WorkerStats
from rustguard_py.model.timers import REJECT_AFTER_MESSAGES
from rustguard_py.planes.batches import INDEX, LAYOUTS_KEPT, run_all
from rustguard_py.planes.coalesce import Coalescer
from rustguard_py.planes.device import Device, FullError
from rustguard_py.planes.ecn import changes, mark
from rustguard_py.planes.offload import MAX_SEGMENTS, REFUSALS
from rustguard_py.planes.plane_peer import PlanePeer
from rustguard_py.planes.transport import Transport
from rustguard_py.planes.udp import Udp
from rustguard_py.protocol.wire import DATA_OVERHEAD, DATA_PREFIX

_MESSAGE = 65536


class _OpenLayout:
    """Views over the message buffer as datagrams of one size, and over the rows for their plaintexts."""

    __slots__ = ("ciphertexts", "counters", "heads", "indices", "nonces", "plaintexts", "rows")

    def __init__(self, message: bytearray, plain: bytearray, size: int) -> None:
        # A shorter last datagram may be one more. Its view ends beyond a message, but not beyond the buffer.
        self.rows = rows = min(MAX_SEGMENTS, -(-_MESSAGE // size))
        view, plain_view = memoryview(message), memoryview(plain)
        stride = size - DATA_OVERHEAD
        starts = range(0, rows * size, size)
        self.heads = np.ndarray((rows,), "<u8", message, 0, (size,))
        self.indices = np.ndarray((rows,), "<u4", message, 4, (size,))
        self.counters = np.ndarray((rows,), "<u8", message, 8, (size,))
        # As when sealing: once the index is set to zero, the nonce is a part of the message.
        self.nonces = [view[start + 4 : start + 16] for start in starts]
        self.ciphertexts = [view[start + 16 : start + size] for start in starts]
        self.plaintexts = [plain_view[row * stride : (row + 1) * stride] for row in range(rows)]


class Inbound:
    """The inbound path of one interface.

    Args:
        transport: The rules and the peers.
        device: Where opened packets go.
        worker: Counts what comes in.
        offloads: What may be merged for the device.
        note: Called with a sentence for each feature that is missing.
    """

    def __init__(
        self,
        transport: Transport,
        device: Device,
        worker: WorkerStats,
        offloads: Offloads,
        *,
        note: Callable[[str], None],
    ) -> None:
        self._worker = worker
        self._note = note
        self._transport = transport
        self._device = device
        # Twice the size: a message can be received behind the datagrams gathered before.
        self._message = bytearray(2 * _MESSAGE)
        self._view = memoryview(self._message)
        self._into = [self._view[:_MESSAGE]]
        # One row more than a message can fill, for the coalescer's views.
        self._plain = bytearray(2 * _MESSAGE)
        self._plain_view = memoryview(self._plain)
        self._coalescer = Coalescer(self._plain, offloads)
        self._merging = offloads.tcp_merging or offloads.udp_merging
        self._layouts: dict[int, _OpenLayout] = {}

    def pump(self, udp: Udp, now: float) -> bool:
        """Move one message from the socket to the device. Return False if there was none.

        Raises:
            OSError: The socket is gone. Errors of datagrams sent earlier are only counted.
        """
        received = self._receive(udp, 0)
        if received is None:
            return False
        size, segment, source, tos = received
        if size != segment or size <= DATA_OVERHEAD or self._message[:4] != DATA_PREFIX:
            self._take(size, segment, source, tos, now)
            return True
        # The kernel delivered a single datagram: gather more of the same source, mark and size into a message.
        total = size
        while total + size <= _MESSAGE and total < MAX_SEGMENTS * size:
            received = self._receive(udp, total)
            if received is None:
                break
            more, segment, from_whom, other_tos = received
            if not is_same(from_whom, source) or other_tos != tos or more != segment or more > size:
                self._take(total, size, source, tos, now)
                self._view[:more] = self._view[total : total + more]
                self._take(more, segment, from_whom, other_tos, now)
                return True
            total += more
            if more < size:
                break
        self._take(total, size, source, tos, now)
        return True

    def _receive(self, udp: Udp, offset: int) -> tuple[int, int, Endpoint, int] | None:
        """Receive a message at `offset`. None if there is none, or only an error of a datagram sent earlier."""
        try:
            return udp.receive([self._view[offset : offset + _MESSAGE]] if offset else self._into)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTSOCK):
                raise
            if error.errno in REFUSALS and udp.end_merging():
                return self._receive(udp, offset)
            self._transport.drop(f"receive_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
            return None

    def _take(self, size: int, segment: int, source: Endpoint, tos: int, now: float) -> None:
        """Handle the message at the start of the buffer: datagrams of `segment` bytes, the last maybe shorter."""
        count = -(-size // segment) if segment else 1
        self._worker.count(count, size)
        if count > 1 and segment > DATA_OVERHEAD and count <= MAX_SEGMENTS and self._message[:4] == DATA_PREFIX:
            self._batch(size, segment, count, source, tos, now)
        else:
            self._one_by_one(0, size, segment or 1, source, tos, now)

    def _one_by_one(self, start: int, stop: int, segment: int, source: Endpoint, tos: int, now: float) -> None:
        for at in range(start, max(stop, 1), segment):
            datagram = bytes(self._view[at : min(at + segment, stop)])
            inner = self._transport.handle_datagram(datagram, source, now, tos)
            if inner is not None:
                self._write_one(inner)

    def _batch(self, size: int, segment: int, count: int, source: Endpoint, tos: int, now: float) -> None:
        """Divide `count` datagrams into runs. All have `segment` bytes, but the last may be shorter."""
        layout = self._layouts.get(segment)
        if layout is None:
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.clear()
            layout = self._layouts[segment] = _OpenLayout(self._message, self._plain, segment)
        last = size - (count - 1) * segment
        # A short last datagram is in the views too. Without a whole header it is left out of the runs.
        rows = count if last >= DATA_OVERHEAD else count - 1
        first = 0
        ends = [rows] if self._in_order(layout, rows) else self._ends(layout, rows)
        for stop in ends:
            self._run(layout, first, stop, segment, last if stop == count else segment, source, tos, now)
            first = stop
        if rows != count:
            self._one_by_one(rows * segment, size, segment, source, tos, now)

    def _in_order(self, layout: _OpenLayout, rows: int) -> bool:
        """Return whether all are of one session and in order. Comparing bytes is fastest with numpy."""
        if layout.heads[:rows].tobytes() != self._message[:8] * rows:
            return False
        counters = layout.counters[:rows]
        return bool(counters.tobytes() == (INDEX[:rows] + counters[0]).tobytes())

    @staticmethod
    def _ends(layout: _OpenLayout, rows: int) -> list[int]:
        """Return the row after each run of one session with consecutive counters."""
        heads, counters = layout.heads[:rows], layout.counters[:rows]
        follows = (counters[1:] == counters[:-1] + np.uint64(1)) & (heads[1:] == heads[:-1])
        return [*(np.nonzero(~follows)[0] + 1).tolist(), rows]

    def _run(
        self,
        layout: _OpenLayout,
        first: int,
        stop: int,
        segment: int,
        last: int,
        source: Endpoint,
        tos: int,
        now: float,
    ) -> None:
        """Open a run of consecutive counters and deliver it. If anything is unusual, it goes one by one."""
        start, end = first * segment, (stop - 1) * segment + last
        count = stop - first
        counter = int(layout.counters[first])
        found = self._transport.sessions.get(int(layout.indices[first]))
        if (
            found is None
            or count < 2
            or self._message[start : start + 4] != DATA_PREFIX
            or counter < found[1].window.next
            or counter + count > REJECT_AFTER_MESSAGES
            or found[1].expired(now)
            or self._transport.is_down
        ):
            self._one_by_one(start, end, segment, source, tos, now)
            return
        peer, session = found
        full = count if last == segment else count - 1
        open_ = session.opener.decrypt_into
        layout.indices[first:stop] = 0
        try:
            nonces, ciphertexts = layout.nonces[first : first + full], layout.ciphertexts[first : first + full]
            run_all(map(open_, nonces, ciphertexts, repeat(None), layout.plaintexts))
            if full != count:
                ciphertext = layout.ciphertexts[stop - 1][: last - 16]
                open_(layout.nonces[stop - 1], ciphertext, None, layout.plaintexts[full][: last - DATA_OVERHEAD])
        except InvalidTag:
            # One of them is forged or damaged: going one by one finds it.
            layout.indices[first:stop] = session.local_index
            self._one_by_one(start, end, segment, source, tos, now)
            return
        session.window.mark_run(counter, count)
        self._transport.received(peer, session, source, count, end - start, now, data=True)
        if last == DATA_OVERHEAD:
            count, last = count - 1, segment
        if changes(tos):
            for row in layout.plaintexts[:count]:
                mark(row, tos)
        self._deliver(peer, count, segment - DATA_OVERHEAD, last - DATA_OVERHEAD)

    def _deliver(self, peer: PlanePeer, count: int, stride: int, last: int) -> None:
        """Write the packets in the first `count` rows, merged where possible."""
        if not self._merging:
            self._deliver_singly(peer, 0, count, count, stride, last)
            return
        for run in self._coalescer.runs(count, stride, last):
            if run.parts and self._transport.allowed.find(run.source) is not peer:
                self._transport.drop("inner_source", run.stop - run.first, peer)
            elif not run.parts:
                self._deliver_singly(peer, run.first, run.stop, count, stride, last)
            elif not self._write_merged(run.parts) and self._deliver_singly(
                peer, run.first, run.stop, count, stride, last
            ):
                # If all had been refused, the reason wouldn't be that they were merged.
                self._merge_less(run.parts)

    def _deliver_singly(self, peer: PlanePeer, first: int, stop: int, count: int, stride: int, last: int) -> int:
        """Write the packets of some rows, each by itself. Return how many the device took."""
        taken = 0
        for row in range(first, stop):
            size = last if row + 1 == count else stride
            packet = self._transport.inner_packet(peer, bytes(self._plain_view[row * stride : row * stride + size]))
            if packet is not None:
                taken += self._write_one(packet)
        return taken

    def _write_merged(self, parts: list[bytes | memoryview]) -> bool:
        """Write a superpacket. Return False if the kernel may have refused it because it is one."""
        self._worker.system_calls += 1
        try:
            self._device.write_merged(parts)
        except OSError as error:
            if error.errno in REFUSALS:
                return False
            self._count_refused(error)
        return True

    def _merge_less(self, parts: list[bytes | memoryview]) -> None:
        """Merge no more packets of the kind that the kernel has refused."""
        if self._coalescer.short_tail and len(parts[-1]) < len(parts[1]):
            self._coalescer.short_tail = False
            self._note("The kernel refused a superpacket with a shorter last packet: such a packet goes by itself.")
        else:
            self._merging = False
            self._note("The kernel refused a superpacket: packets go to the interface one by one.")

    def _write_one(self, packet: bytes) -> bool:
        """Write one packet. Return whether the device took it."""
        self._worker.system_calls += 1
        try:
            self._device.write(packet)
        except OSError as error:
            self._count_refused(error)
            return False
        return True

    def _count_refused(self, error: OSError) -> None:
        """Count a packet that the device refused: it is full or down, or the packet is invalid."""
        full = isinstance(error, FullError)
        why = "full" if full else errno.errorcode.get(error.errno or 0, "error").lower()
        self._transport.drop(f"{self._device.kind}_{why}")
