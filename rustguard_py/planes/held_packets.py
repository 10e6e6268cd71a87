"""Packets that wait for a peer's first session."""

from __future__ import annotations

from collections import deque

from rustguard_py.planes.contract import MAX_STAGED_PACKETS
from rustguard_py.planes.plane_peer import PlanePeer

# For all peers together, so that many silent peers can't use up the memory.
MAX_HELD_PACKETS = 64 * MAX_STAGED_PACKETS


class HeldPackets:
    """Those of all peers of one interface."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, peer: PlanePeer, packet: bytes) -> int:
        """Hold a packet for a peer. Return how many were dropped for it: the peer's oldest, or the packet itself."""
        dropped = 0
        if peer.held is None:
            peer.held = deque()
        if len(peer.held) >= MAX_STAGED_PACKETS:
            peer.held.popleft()
            self._count -= 1
            dropped += 1
        if self._count < MAX_HELD_PACKETS:
            peer.held.append(packet)
            self._count += 1
        else:
            dropped += 1
        return dropped

    def take(self, peer: PlanePeer) -> deque[bytes]:
        """Remove and return a peer's packets, in order."""
        held, peer.held = peer.held or deque(), None
        self._count -= len(held)
        return held
