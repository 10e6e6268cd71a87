"""Counters of a peer, of a worker and of a whole plane."""

from __future__ import annotations

from dataclasses import dataclass, field

from rustguard_py.model.endpoint import Endpoint, PeerId


@dataclass(slots=True)
class PeerStats:
    """Counters of one peer. Bytes are those of whole WireGuard datagrams, as the kernel's counters are.

    Attributes:
        last_received: When the last authenticated datagram came, or None.
        last_sent: When the last datagram went out, or None.
        handshakes: Keypairs installed.
        drops: Packets dropped on their way to it, and datagrams of its sessions, forged ones too.
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


# Entries of a histogram of batch sizes.
BATCH_CLASSES = 16


@dataclass(slots=True)
class WorkerStats:
    """Counters of one worker: a thread that moves packets in batches, each as many as waited.

    Attributes:
        name: `out-0` for the way out of the first queue, `in-0` for its way in, `loop-0` for both in one.
        packets: Datagrams handed to the network, and taken from it.
        bytes: Of these datagrams.
        batch_sizes: BATCH_CLASSES numbers: how many batches had 1 datagram, 2 or 3, 4 to 7 and so on. The last also
            counts the larger ones.
        system_calls: That it made, those to look in vain and to sleep included.
    """

    name: str
    packets: int = 0
    bytes: int = 0
    batch_sizes: list[int] = field(default_factory=lambda: [0] * BATCH_CLASSES)
    system_calls: int = 0

    @property
    def batches(self) -> int:
        """How many batches there were."""
        return sum(self.batch_sizes)

    def count(self, packets: int, size: int) -> None:
        """Count a batch of `packets` datagrams, `size` bytes together."""
        if packets:
            self.packets += packets
            self.bytes += size
            self.batch_sizes[min(packets.bit_length(), BATCH_CLASSES) - 1] += 1


@dataclass(slots=True)
class PlaneStats:
    """Counters of a plane.

    Attributes:
        peers: By peer.
        drops: Datagrams and packets dropped, by reason (a short snake_case word each).
        notes: What the plane does without, and why (a refused offload), one sentence each.
        workers: One each; none where packets aren't moved by workers.
    """

    peers: dict[PeerId, PeerStats] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    workers: list[WorkerStats] = field(default_factory=list)
