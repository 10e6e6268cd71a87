"""Counters: per peer, per worker and of a whole plane."""

from __future__ import annotations

from dataclasses import dataclass, field

from rustguard_py.model.endpoint import Endpoint, PeerId
from rustguard_py.model.memif import MemifState


@dataclass(slots=True)
class PeerStats:
    """Counters of one peer. Bytes count whole WireGuard datagrams, handshakes included, as the kernel's counters do.

    Attributes:
        rx_packets: Data messages received. The kernel doesn't count them.
        tx_packets: Data messages sent.
        last_received: When the last authenticated datagram was received, or None.
        last_sent: When the last datagram was sent, or None.
        handshakes: Keypairs installed.
        drops: Packets to the peer that were dropped, and dropped datagrams of its sessions, including forged ones.
        rx_handshake_bytes: What of `rx_bytes` were handshakes, where that is known.
        tx_handshake_bytes: The same of `tx_bytes`.
    """

    endpoint: Endpoint | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    last_received: float | None = None
    last_sent: float | None = None
    handshakes: int = 0
    drops: int = 0
    rx_handshake_bytes: int = 0
    tx_handshake_bytes: int = 0


# Number of classes in a histogram of batch sizes.
BATCH_CLASSES = 16


@dataclass(slots=True)
class WorkerStats:
    """Counters of one worker: a thread that moves packets in batches. A batch is all that waited at that moment.

    Attributes:
        name: `out-0` for the outbound thread of the first queue, `in-0` for its inbound thread, `loop-0` for one
            thread that does both.
        packets: Datagrams sent and received.
        bytes: The size of these datagrams.
        batch_sizes: BATCH_CLASSES numbers: how many batches had 1 datagram, 2 or 3, 4 to 7 and so on. The last one
            also counts all larger batches.
        system_calls: All system calls made, including those that found nothing and those that slept.
    """

    name: str
    packets: int = 0
    bytes: int = 0
    batch_sizes: list[int] = field(default_factory=lambda: [0] * BATCH_CLASSES)
    system_calls: int = 0

    @property
    def batches(self) -> int:
        """Number of batches."""
        return sum(self.batch_sizes)

    def count(self, packets: int, size: int) -> None:
        """Count one batch of `packets` datagrams with `size` bytes in total."""
        if packets:
            self.packets += packets
            self.bytes += size
            self.batch_sizes[min(packets.bit_length(), BATCH_CLASSES) - 1] += 1


@dataclass(slots=True)
class PlaneStats:
    """Counters of a plane.

    Attributes:
        peers: Counters by peer.
        drops: Dropped datagrams and packets by reason, a short word in snake_case.
        notes: Features that the plane runs without and why (a refused offload), one sentence each.
        workers: Counters per worker. Empty for the kernel's engine.
        memif: What stands for the interface, and how it is connected. None for an interface.
    """

    peers: dict[PeerId, PeerStats] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    workers: list[WorkerStats] = field(default_factory=list)
    memif: MemifState | None = None

    @property
    def device(self) -> str:
        """What stands for the interface, and how it is connected, in a sentence. Empty for an interface."""
        return "" if self.memif is None else str(self.memif)
