"""A plane's own view of one peer."""

from __future__ import annotations

from collections import deque

from rustguard_py.model.endpoint import Endpoint, PeerId, plain
from rustguard_py.model.statistics import PeerStats
from rustguard_py.planes.keypairs import Keypairs
from rustguard_py.planes.liveness import Liveness


class PlanePeer:
    """What a plane knows of one peer."""

    __slots__ = (
        "drops",
        "endpoint",
        "handshakes",
        "held",
        "id",
        "keypairs",
        "last_received",
        "last_sent",
        "liveness",
        "moved_at",
        "rx_bytes",
        "rx_handshake_bytes",
        "rx_packets",
        "segmenting",
        "tx_bytes",
        "tx_handshake_bytes",
        "tx_packets",
        "unsent",
        "wanted_at",
    )

    def __init__(self, number: PeerId) -> None:
        self.id = number
        self.endpoint: Endpoint | None = None
        self.keypairs = Keypairs()
        self.liveness = Liveness()
        self.held: deque[bytes] | None = None
        self.segmenting = True
        # Whether a handshake message to it was dropped since the interface went down.
        self.unsent = False
        self.wanted_at = float("-inf")
        self.moved_at = float("-inf")
        self.rx_bytes = self.tx_bytes = self.rx_packets = self.tx_packets = self.handshakes = self.drops = 0
        self.rx_handshake_bytes = self.tx_handshake_bytes = 0
        self.last_received: float | None = None
        self.last_sent: float | None = None

    def forget_local(self) -> None:
        """Let the kernel choose the local address again, because the known one may be the reason for no answer."""
        if self.endpoint is not None:
            self.endpoint = plain(self.endpoint)

    def stats(self) -> PeerStats:
        """Return the counters in the contract's type."""
        return PeerStats(
            self.endpoint,
            self.rx_bytes,
            self.tx_bytes,
            self.rx_packets,
            self.tx_packets,
            self.last_received,
            self.last_sent,
            self.handshakes,
            self.drops,
            self.rx_handshake_bytes,
            self.tx_handshake_bytes,
        )
