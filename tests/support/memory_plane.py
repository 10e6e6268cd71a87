"""A plane whose wire and interface are lists, for tests with a virtual clock.

Set `now`, call the contract's commands, feed `packet_out` and `datagram_in`, and take what came of it from
`outgoing`, `delivered` and `events`. `advance(now)` runs every timer on the way, in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.planes.contract import Event, Flow, Keypair
from rustguard_py.planes.transport import Transport


class MemoryPlane:
    """`Plane` around a `Transport`.

    Attributes:
        now: The time of every command and packet; set it, or call `advance`.
        outgoing: Datagrams for the network, in order: (endpoint, datagram).
        tos: The TOS or traffic class of each of them.
        delivered: Inner packets for the interface.
        events: What Python would be told.
        closed: Whether `close` was called.
    """

    def __init__(
        self,
        public_key: bytes,
        *,
        random: Callable[[int], bytes] = os.urandom,
        now: float = 0.0,
        mtu: int = 1420,
        backlog: Callable[[], int] = lambda: 0,
    ) -> None:
        self.now = now
        self.outgoing: list[tuple[Endpoint, bytes]] = []
        self.tos: list[int] = []
        self.delivered: list[bytes] = []
        self.events: list[Event] = []
        self.closed = False
        rules = self.rules()
        self.transport = rules(public_key, emit=self.events.append, random=random, mtu=mtu, backlog=backlog)

    @staticmethod
    def rules() -> Callable[..., Transport]:
        """What makes the rules."""
        return Transport

    def packet_out(self, packet: bytes) -> None:
        """An inner packet leaves the host."""
        self.transport.handle_packet(packet, self.now)
        self._flush()

    def datagram_in(self, datagram: bytes, source: Endpoint, tos: int = 0) -> None:
        """A datagram comes from the network."""
        inner = self.transport.handle_datagram(datagram, source, self.now, tos)
        if inner is not None:
            self.delivered.append(inner)
        self._flush()

    def advance(self, until: float) -> None:
        """Move `now` to `until`, running each timer at its own time."""
        while (due := self.transport.poll_timeout()) is not None and due <= until:
            self.now = max(self.now, due)
            self.transport.handle_timeout(self.now)
            self._flush()
        self.now = max(self.now, until)

    def take_events(self) -> list[Event]:
        """Give the events so far and forget them."""
        events, self.events[:] = list(self.events), []
        return events

    def take_outgoing(self) -> list[tuple[Endpoint, bytes]]:
        """Give the datagrams so far and forget them."""
        outgoing, self.outgoing[:], self.tos[:] = list(self.outgoing), [], []
        return outgoing

    def take_delivered(self) -> list[bytes]:
        """Give the inner packets so far and forget them."""
        delivered, self.delivered[:] = list(self.delivered), []
        return delivered

    def take_answers(self) -> list[bytes]:
        """Give what the plane has told the host of packets that no peer takes."""
        return self.transport.poll_answers()

    def _flush(self) -> None:
        for endpoint, datagram, tos in self.transport.poll_transmit():
            self.outgoing.append((endpoint, datagram))
            self.tos.append(tos)

    def set_peer(
        self,
        peer: PeerId,
        endpoint: Endpoint | None,
        allowed_ips: Sequence[Network],
        persistent_keepalive: int,
    ) -> None:
        self.transport.set_peer(peer, endpoint, allowed_ips, persistent_keepalive, self.now)
        self._flush()

    def set_up(self, up: bool) -> None:
        """The interface is set up or down."""
        self.transport.set_up(up, self.now)
        self._flush()

    def set_mtu(self, mtu: int) -> None:
        self.transport.set_mtu(mtu)

    def set_public_key(self, public_key: bytes) -> None:
        self.transport.set_public_key(public_key)

    def set_pairing(self, gate: PairingGate | None) -> None:
        self.transport.set_pairing(gate, self.now)

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint) -> None:
        self.transport.set_endpoint(peer, endpoint)

    def remove_peer(self, peer: PeerId) -> None:
        self.transport.remove_peer(peer)

    def reserve_index(self, peer: PeerId) -> int:
        return self.transport.reserve_index(peer)

    def install_keypair(self, peer: PeerId, keypair: Keypair) -> None:
        self.transport.install_keypair(peer, keypair, self.now)
        self._flush()

    def erase_keypairs(self, peer: PeerId) -> None:
        self.transport.erase_keypairs(peer)

    def drop_held(self, peer: PeerId) -> None:
        self.transport.drop_held(peer)

    def set_segmenting(self, peer: PeerId, on: bool) -> None:
        self.transport.set_segmenting(peer, on)

    def flows(self, peer: PeerId) -> list[Flow]:
        return self.transport.flows(peer)

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        self.transport.send(endpoint, datagram, self.now)
        self._flush()

    def stats(self) -> PlaneStats:
        return self.transport.stats()

    def close(self) -> None:
        self.closed = True
