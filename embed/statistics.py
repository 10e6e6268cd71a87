"""What a program sees of its tunnel's counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rustguard_py.conf import PeerSection
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import endpoint_text
from rustguard_py.model.keys import encode_key
from rustguard_py.model.statistics import PeerStats as PlanePeerStats
from rustguard_py.model.timers import REJECT_AFTER_TIME
from rustguard_py.tunnel import Tunnel

_NOTHING = PlanePeerStats()


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """The counters of one peer. Bytes count whole WireGuard datagrams, handshakes included, as `wg show` does.

    Attributes:
        public_key: In base64.
        name: From the comment in the configuration, or the server's address; empty if there is neither.
        endpoint: Where it was heard last, such as `192.0.2.1:51820`; None if that isn't known yet.
        connected: Whether there is a session.
        last_handshake: Seconds since the newest session began, or None.
        last_received: Seconds since anything authentic was received, or None.
        rx_bytes: Received.
        tx_bytes: Sent.
        rx_packets: Data messages received, keepalives included.
        tx_packets: Data messages sent, keepalives included.
        handshakes: Sessions made so far.
        drops: Packets to the peer that were dropped, and dropped datagrams of its sessions.
    """

    public_key: str
    name: str
    endpoint: str | None
    connected: bool
    last_handshake: float | None
    last_received: float | None
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    handshakes: int
    drops: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counters of a tunnel.

    Attributes:
        peers: Of each peer, in the configuration's order.
        drops: Dropped datagrams and packets by reason, in snake_case. `channel_full` counts packets that came while
            the program hadn't read those before.
        notes: What the tunnel runs without, such as an offload that this kernel lacks, one sentence each.
    """

    peers: tuple[PeerStatistics, ...]
    drops: Mapping[str, int]
    notes: tuple[str, ...]


def gather(tunnel: Tunnel, peers: tuple[PeerSection, ...]) -> Statistics:
    """Return the counters of a tunnel with these peers. May be called in any thread."""
    stats, at = tunnel.plane.stats(), now()
    lines = []
    for section in peers:
        peer = tunnel.node.get(section.public_key)
        if peer is None:
            continue
        counters = stats.peers.get(peer.id, _NOTHING)
        began = peer.session_began
        lines.append(
            PeerStatistics(
                encode_key(section.public_key),
                section.name or (section.endpoint.host if section.endpoint is not None else ""),
                endpoint_text(counters.endpoint or peer.endpoint),
                began is not None and at - began < REJECT_AFTER_TIME,
                None if began is None else max(0.0, at - began),
                None if counters.last_received is None else max(0.0, at - counters.last_received),
                counters.rx_bytes,
                counters.tx_bytes,
                counters.rx_packets,
                counters.tx_packets,
                counters.handshakes,
                counters.drops,
            )
        )
    return Statistics(tuple(lines), dict(stats.drops), tuple(stats.notes))
