"""The portable plane's batches without its loop: a socket pair for the TUN device, lists for the network.

It is driven like `MemoryPlane`, so the same tests run through both. What the plane writes to its device is cut
again into packets, so that tests see what the host would.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, cast

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.offloads import ALL
from rustguard_py.model.statistics import WorkerStats
from rustguard_py.planes.channel import Channel
from rustguard_py.planes.device import Device
from rustguard_py.planes.inbound import Inbound
from rustguard_py.planes.offload import PLAIN_VNET, VNET_SIZE, Vnet
from rustguard_py.planes.outbound import Outbound
from rustguard_py.planes.segment import Segmenter
from rustguard_py.planes.udp import Udp
from support.memory_plane import MemoryPlane


class _FarEnd:
    """A device and its far end: what is written can be taken here."""

    kind = "interface"
    name = "batches"
    vnet = True

    def __init__(self) -> None:
        self.host, plane = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.host, plane):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setblocking(False)
        self.plane = plane
        self.fd = plane.fileno()

    def write(self, packet: bytes | memoryview) -> None:
        os.writev(self.fd, (PLAIN_VNET, packet))

    def write_merged(self, parts: list[bytes | memoryview]) -> None:
        os.writev(self.fd, parts)

    def read(self, into: list[memoryview]) -> int:
        return os.readv(self.fd, into)

    def is_up(self) -> bool:
        return True

    def end_offloads(self) -> bool:
        return False

    def close(self) -> None:
        self.host.close()
        self.plane.close()

    def take(self) -> list[bytes]:
        written = []
        while True:
            try:
                written.append(self.host.recv(1 << 17))
            except BlockingIOError:
                return written


class Host:
    """What a host's stack makes of what is written to its device."""

    def __init__(self, mtu: int = 1420) -> None:
        self._cutter = Segmenter(bytearray(1 << 18), mtu)

    def take(self, written: bytes) -> list[bytes]:
        """Give the packets in a virtio_net_hdr and a packet or superpacket."""
        vnet, packet = Vnet.decode(written), written[VNET_SIZE:]
        if not vnet.gso_type:
            return [packet]
        self._cutter.buffer[: len(packet)] = packet
        packets = []
        for rows in self._cutter.segment(0, len(packet), vnet):
            for row in range(rows.rows):
                staged = self._cutter.staging[row * rows.stride : (row + 1) * rows.stride]
                size = staged[2] << 8 | staged[3] if staged[0] >> 4 == 4 else 40 + (staged[4] << 8 | staged[5])
                packets.append(bytes(staged[:size]))
        return packets


class _Network:
    """Messages that wait in a socket."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, int, Endpoint, int]] = []

    def receive(self, into: list[memoryview]) -> tuple[int, int, Endpoint, int]:
        if not self.waiting:
            raise BlockingIOError
        message, segment, source, tos = self.waiting.pop(0)
        into[0][: len(message)] = message
        return len(message), segment, source, tos


class BatchPlane(MemoryPlane):
    """`MemoryPlane` over `Outbound` and `Inbound`.

    Attributes:
        messages: What was handed to the network in one call: (datagrams, endpoint).
        written: What was written to the device, with virtio_net_hdr.
        said: What the plane says that it does without.
        worker: What the two ways count.
    """

    def __init__(self, public_key: bytes, **options: Any) -> None:
        super().__init__(public_key, **options)
        self.messages: list[tuple[list[bytes], Endpoint]] = []
        self.written: list[bytes] = []
        self.said: list[str] = []
        self.device = self._make_device()
        self._network = _Network()
        self.worker = WorkerStats("loop-0")
        self._outbound = self._make_outbound()
        offloads = ALL if self.device.vnet else ALL.without("tcp-merging", "udp-merging")
        self.inbound = Inbound(self.transport, self.device, self.worker, offloads, note=self.said.append)
        self._host = Host(self.transport.mtu)

    def _make_device(self) -> Device:
        self.far = far = _FarEnd()
        return far

    def _make_outbound(self) -> Outbound:
        return Outbound(self.transport, self.device, self._sent, self.worker)

    def set_mtu(self, mtu: int) -> None:
        super().set_mtu(mtu)
        self._outbound = self._make_outbound()

    def _sent(self, message: memoryview | bytes, segment: int, endpoint: Endpoint, tos: int) -> bool:
        whole = bytes(message)
        datagrams = [whole[at : at + segment] for at in range(0, len(whole), segment)]
        self.messages.append((datagrams, endpoint))
        self.outgoing += [(endpoint, datagram) for datagram in datagrams]
        self.tos += [tos] * len(datagrams)
        return True

    def from_host(self, packets: Iterable[tuple[Vnet | None, bytes]]) -> None:
        """Packets and superpackets that wait in the device at once."""
        self._give([(vnet.encode() if vnet else PLAIN_VNET) + packet for vnet, packet in packets])
        while self._outbound.pump(self.now):
            pass
        self._flush()

    def packet_out(self, packet: bytes) -> None:
        self.from_host([(None, packet)])

    def datagram_in(self, datagram: bytes, source: Endpoint, tos: int = 0) -> None:
        self.message_in([datagram], source, tos)

    def message_in(self, datagrams: list[bytes], source: Endpoint, tos: int = 0) -> None:
        """Datagrams of one size and mark, the last perhaps shorter, that the kernel gives as one message."""
        self.messages_in([(datagrams, source)], [tos])

    def messages_in(self, messages: list[tuple[list[bytes], Endpoint]], tos: Sequence[int] = ()) -> None:
        """Several such messages that wait at once. `tos` has that of each, or is empty for zeros."""
        waiting = self._network.waiting
        for (datagrams, source), mark in zip(messages, tos or [0] * len(messages), strict=True):
            waiting.append((b"".join(datagrams), len(datagrams[0]), source, mark))
        while self.inbound.pump(cast(Udp, self._network), self.now):
            pass
        self._flush()
        for written in self._taken():
            self.written.append(written)
            self.delivered += self._host.take(written)

    def _give(self, frames: list[bytes]) -> None:
        """Have frames wait in the device."""
        for frame in frames:
            self.far.host.send(frame)

    def _taken(self) -> list[bytes]:
        """Take the frames that were written to the device."""
        return self.far.take()

    def close(self) -> None:
        super().close()
        self.device.close()


class ChannelBatchPlane(BatchPlane):
    """The same on a channel: plain packets alone."""

    def _make_device(self) -> Device:
        self.channel = Channel()
        return self.channel.device("batches")

    def _give(self, frames: list[bytes]) -> None:
        assert all(frame.startswith(PLAIN_VNET) for frame in frames)
        assert self.channel.write_batch([frame[VNET_SIZE:] for frame in frames]) == len(frames)

    def _taken(self) -> list[bytes]:
        frames = []
        while batch := self.channel.read_batch():
            frames += [PLAIN_VNET + bytes(packet) for packet in batch]
        return frames
