"""The plane's rules without sockets: bytes and `now` in, bytes and events out.

Call `handle_packet`, `handle_datagram` and `handle_timeout`. Then send what `poll_transmit` returns, and call
`handle_timeout` again no later than `poll_timeout`. The steps are:

- packet out: route, claim a nonce, pad, seal;
- datagram in: look up the index, check the window, open, mark the window, roam, check the inner source.

`outbound` and `inbound` do the same steps for whole batches, with methods of this class. Timers and their order are
the kernel's (drivers/net/wireguard: send.c, receive.c, timers.c).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag

from rustguard_py.model.endpoint import Endpoint, Network, PeerId, is_same
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.planes.allowed_ips import AllowedIps
from rustguard_py.planes.contract import (
    EndpointMoved,
    Event,
    Flow,
    HandshakeWanted,
    Keypair,
    KeypairConfirmed,
    Reason,
)
from rustguard_py.planes.ecn import changes, datagram_tos, mark, outer_tos
from rustguard_py.planes.handshake_lane import HandshakeLane
from rustguard_py.planes.held_packets import HeldPackets
from rustguard_py.planes.indices import Indices
from rustguard_py.planes.inner_packet import destination, ip_length, padded, source_of
from rustguard_py.planes.keypairs import Session, WarmSessions
from rustguard_py.planes.liveness import NO_ANSWER_JITTER, Deadlines
from rustguard_py.planes.plane_peer import PlanePeer
from rustguard_py.planes.unreachable import Answers
from rustguard_py.protocol import wire
from rustguard_py.protocol.wire import DATA_PREFIX, FOREIGN_PREFIX

# Seconds between two HandshakeWanted for the same peer.
WANTED_INTERVAL = 1.0
# Seconds between two EndpointMoved events of one peer.
MOVED_INTERVAL = 0.1

# Types of handshake messages that belong to a peer, by their length.
_HANDSHAKES = {wire.INITIATION_SIZE: wire.INITIATION, wire.RESPONSE_SIZE: wire.RESPONSE}


class Transport:
    """All peers of one interface.

    Args:
        public_key: Our own, 32 bytes, for MAC1.
        emit: Called with each event at once.
        random: Returns n random bytes.
        mtu: The inner interface's MTU, which padding doesn't exceed.
        backlog: Returns how many emitted HandshakeReceived wait for Python.

    Attributes:
        allowed: Peers by inner address.
        drops: Number of drops by reason.
        handshakes: Judges what comes without a session.
        indices: The receiver indices in use.
        peers: Peers by number.
        sessions: PlanePeer and session by local index.
    """

    def __init__(
        self,
        public_key: bytes,
        *,
        emit: Callable[[Event], None],
        random: Callable[[int], bytes] = os.urandom,
        mtu: int = 1420,
        backlog: Callable[[], int] = lambda: 0,
    ) -> None:
        self.mtu = mtu
        self.peers: dict[PeerId, PlanePeer] = {}
        self.allowed: AllowedIps[PlanePeer] = AllowedIps()
        self.indices = Indices(random)
        self.sessions: dict[int, tuple[PlanePeer, Session]] = {}
        self.drops: dict[str, int] = {}
        self._emit = emit
        self._random = random
        self.handshakes = HandshakeLane(
            public_key,
            self.indices,
            emit=emit,
            drop=self.drop,
            answer=lambda endpoint, datagram: self._transmit.append((endpoint, datagram, 0)),
            random=random,
            backlog=backlog,
        )
        self._deadlines: Deadlines[PlanePeer] = Deadlines()
        self._warm = WarmSessions()
        self._transmit: list[tuple[Endpoint, bytes, int]] = []
        self._held = HeldPackets()
        self._down = False
        self._unreachable = Answers()
        self._answers: list[bytes] = []

    def set_mtu(self, mtu: int) -> None:
        """Adopt the inner interface's new MTU."""
        self.mtu = mtu

    @property
    def is_down(self) -> bool:
        """Whether the interface is down."""
        return self._down

    def set_up(self, up: bool, now: float) -> None:
        """Note whether the interface is up."""
        if self._down is not up:
            return
        self._down = not up
        for peer in self.peers.values():
            liveness = peer.liveness
            if not up:
                peer.unsent = False
                liveness.stop()
                liveness.persistent_at = float("inf")
                self._drop_held(peer, "interface_down")
            elif liveness.interval and peer.endpoint is not None:
                peer.wanted_at = float("-inf")
                liveness.persistent_at = now + liveness.interval
                if not self._transmit_sealed(peer, b"", now):
                    self.want(peer, Reason.INTERFACE_UP if peer.unsent else Reason.NO_SESSION, now)
                self._deadlines.schedule(peer, liveness)

    # Commands of the contract. Those that send or set a timer take `now`.

    def set_public_key(self, public_key: bytes) -> None:
        """See `Plane.set_public_key`."""
        self.handshakes.set_public_key(public_key)
        for peer in self.peers.values():
            peer.keypairs.end_sending()
            peer.wanted_at = float("-inf")

    def set_peer(
        self,
        peer: PeerId,
        endpoint: Endpoint | None,
        allowed_ips: Sequence[Network],
        persistent_keepalive: int,
        now: float,
    ) -> None:
        """See `Plane.set_peer`. Turning the persistent keepalive on sends one at once."""
        known = self.peers.get(peer)
        if known is None:
            known = self.peers[peer] = PlanePeer(peer)
        if endpoint is not None:
            known.endpoint = endpoint
        self.allowed.set(known, allowed_ips)
        liveness = known.liveness
        turned_on = persistent_keepalive and not liveness.interval
        liveness.interval = persistent_keepalive
        if not persistent_keepalive:
            liveness.persistent_at = float("inf")
        elif turned_on:
            self._persistent_keepalive(known, now)
            self._deadlines.schedule(known, liveness)

    def set_pairing(self, gate: PairingGate | None, now: float) -> None:
        """See `Plane.set_pairing`."""
        self.handshakes.set_pairing(gate, now)

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint) -> None:
        """See `Plane.set_endpoint`."""
        known = self.peers.get(peer)
        if known is not None:
            known.endpoint = endpoint

    def remove_peer(self, peer: PeerId) -> None:
        """See `Plane.remove_peer`."""
        known = self.peers.pop(peer, None)
        self.indices.forget(peer)
        if known is None:
            return
        self.allowed.remove(known)
        self._retire(known.keypairs.clear())
        self._drop_held(known, "removed_peer")
        known.liveness.scheduled_at = float("inf")

    def reserve_index(self, peer: PeerId) -> int:
        """See `Plane.reserve_index`."""
        return self.indices.reserve(peer)

    def install_keypair(self, peer: PeerId, keypair: Keypair, now: float) -> None:
        """See `Plane.install_keypair`.

        The handshake counts as sent and received, as in the kernel. So does the peer's message in the counters.
        """
        known = self.peers.get(peer)
        if known is None:
            self.indices.forget(peer)
            return
        session = Session(keypair, self._warm)
        self.indices.take(peer, keypair.local_index)
        self.sessions[keypair.local_index] = known, session
        self._retire(known.keypairs.install(session))
        known.handshakes += 1
        message = wire.RESPONSE_SIZE if keypair.initiator else wire.INITIATION_SIZE
        known.rx_bytes += message
        known.rx_handshake_bytes += message
        known.wanted_at = float("-inf")
        known.liveness.received(now, data=False)
        known.liveness.sent(now, data=False)
        known.liveness.jitter = int.from_bytes(self._random(2), "little") / 65536 * NO_ANSWER_JITTER
        if keypair.initiator:
            self._send_keepalive(known, now)
        self._deadlines.schedule(known, known.liveness)

    def erase_keypairs(self, peer: PeerId) -> None:
        """See `Plane.erase_keypairs`."""
        known = self.peers.get(peer)
        if known is not None:
            self._retire(known.keypairs.clear())
            known.liveness.stop()

    def drop_held(self, peer: PeerId) -> None:
        """See `Plane.drop_held`."""
        known = self.peers.get(peer)
        if known is not None:
            self._drop_held(known, "no_answer")
            known.liveness.keepalive_at = float("inf")

    def set_segmenting(self, peer: PeerId, on: bool) -> None:
        """See `Plane.set_segmenting`."""
        known = self.peers.get(peer)
        if known is not None:
            known.segmenting = on

    def flows(self, peer: PeerId) -> list[Flow]:
        """See `Plane.flows`."""
        known = self.peers.get(peer)
        sessions = () if known is None else (known.keypairs.current, known.keypairs.previous)
        return [session.flow() for session in sessions if session is not None]

    def send(self, endpoint: Endpoint, datagram: bytes, now: float) -> None:
        """See `Plane.send`. A handshake counts as sent to its peer."""
        peer = None
        if wire.message_type(datagram) == _HANDSHAKES.get(len(datagram)):
            owner = self.indices.owner(int.from_bytes(datagram[4:8], "little"))
            peer = None if owner is None else self.peers.get(owner)
        if self._down and datagram[:3] != FOREIGN_PREFIX:
            self.drop("interface_down")
            if peer is not None:
                peer.unsent = True
            return
        if peer is not None:
            peer.tx_bytes += len(datagram)
            peer.tx_handshake_bytes += len(datagram)
        self.handshakes.sent(datagram, now)
        self._transmit.append((endpoint, datagram, datagram_tos(datagram)))

    def stats(self) -> PlaneStats:
        """See `Plane.stats`."""
        return PlaneStats({number: peer.stats() for number, peer in list(self.peers.items())}, dict(self.drops))

    # Packets and time.

    def handle_packet(self, packet: bytes, now: float) -> None:
        """Seal one inner IP packet for its peer, or hold it while there is no session."""
        peer = self.allowed.find(destination(packet)) if packet else None
        if peer is None:
            self.drop("no_peer")
            self.answer_unreachable(packet, now)
        elif peer.endpoint is None:
            self.drop("no_endpoint", peer=peer)
            self.answer_unreachable(packet, now)
        elif not self._transmit_sealed(peer, packet, now):
            self.hold(peer, packet, now)

    def handle_datagram(self, datagram: bytes, source: Endpoint, now: float, tos: int = 0) -> bytes | None:
        """Handle one datagram from the network, with its TOS or traffic class.

        Returns:
            The inner packet to deliver, if there is one.
        """
        if self._down and datagram[:3] != FOREIGN_PREFIX:
            self.drop("interface_down")
            return None
        if datagram[:4] == DATA_PREFIX:
            inner = self._open(datagram, source, now)
            if inner is not None and changes(tos):
                packet = bytearray(inner)
                mark(packet, tos)
                return bytes(packet)
            return inner
        if datagram[:3] == FOREIGN_PREFIX:
            self.handshakes.handle_foreign(datagram, source, now)
        else:
            self.handshakes.handle_handshake(datagram, source, now)
        return None

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`."""
        for peer in self._deadlines.due(now):
            liveness = peer.liveness
            if liveness.keepalive_at <= now:
                liveness.keepalive_ran_out(now)
                again = liveness.keepalive_at
                self._send_keepalive(peer, now)
                liveness.keepalive_at = again
            if liveness.no_answer_at <= now:
                liveness.no_answer_at = float("inf")
                peer.forget_local()
                self.want(peer, Reason.NO_ANSWER, now)
            if liveness.persistent_at <= now:
                self._persistent_keepalive(peer, now)
            if liveness.report_at <= now:
                self._report_move(peer, now)
            self._deadlines.schedule(peer, liveness)

    def poll_timeout(self) -> float | None:
        """Return the latest time to call `handle_timeout`, or None."""
        return self._deadlines.next()

    def poll_transmit(self) -> list[tuple[Endpoint, bytes, int]]:
        """Remove and return the datagrams to send, in order: where to, the datagram, its TOS or traffic class."""
        transmit, self._transmit = self._transmit, []
        return transmit

    def poll_answers(self) -> list[bytes]:
        """Remove and return the packets for the host: answers to what it can't reach."""
        answers, self._answers = self._answers, []
        return answers

    # Steps that `outbound` and `inbound` use for whole batches.

    def drop(self, reason: str, count: int = 1, peer: PlanePeer | None = None) -> None:
        """Count drops of what `peer` sent or should have received."""
        self.drops[reason] = self.drops.get(reason, 0) + count
        if peer is not None:
            peer.drops += count

    def answer_unreachable(self, packet: bytes, now: float) -> None:
        """Tell the host that it can't reach a packet's destination."""
        answer = self._unreachable.answer(packet, now)
        if answer is not None:
            self._answers.append(answer)

    def hold(self, peer: PlanePeer, packet: bytes, now: float) -> None:
        """Hold a packet until there is a session, and ask for one. If too many are held, the oldest is dropped."""
        if dropped := self._held.add(peer, packet):
            self.drop("held_too_many", dropped, peer)
        self.want(peer, Reason.NO_SESSION, now)

    def want(self, peer: PlanePeer, reason: Reason, now: float) -> None:
        """Ask Python for a handshake, at most once per WANTED_INTERVAL and peer."""
        if now - peer.wanted_at >= WANTED_INTERVAL and not self._down:
            peer.wanted_at = now
            self._emit(HandshakeWanted(peer.id, reason))

    def sent(self, peer: PlanePeer, session: Session, packets: int, size: int, now: float, *, data: bool) -> None:
        """Note that `packets` datagrams, `size` bytes in total, were sealed for `peer`."""
        peer.tx_packets += packets
        peer.tx_bytes += size
        peer.last_sent = now
        liveness = peer.liveness
        liveness.sent(now, data=data)
        self._deadlines.schedule(peer, liveness)
        if session.worn_by_sending(now):
            self.want(peer, Reason.REKEY, now)

    def received(
        self, peer: PlanePeer, session: Session, source: Endpoint, packets: int, size: int, now: float, *, data: bool
    ) -> None:
        """Note that `packets` authentic datagrams, `size` bytes in total, came from `source`.

        Here a peer roams, and a responder's session becomes the current one.
        """
        peer.rx_packets += packets
        peer.rx_bytes += size
        peer.last_received = now
        peer.liveness.received(now, data=data)
        if not is_same(source, peer.endpoint):
            peer.endpoint = source
            self._report_move(peer, now)
        if session is peer.keypairs.next:
            self._retire(peer.keypairs.confirm(session))
            peer.wanted_at = float("-inf")
            self._emit(KeypairConfirmed(peer.id, session.local_index))
            self._send_held(peer, now)
        if session is peer.keypairs.current and session.worn_by_receiving(now):
            self.want(peer, Reason.REKEY, now)
        self._deadlines.schedule(peer, peer.liveness)

    def inner_packet(self, peer: PlanePeer, plaintext: bytes) -> bytes | None:
        """Return the IP packet from `peer` without its padding, or None if the peer may not send it."""
        source = source_of(plaintext)
        if not source:
            self.drop("inner_not_ip", peer=peer)
            return None
        length = ip_length(plaintext)
        # That of an IPv6 packet has its header's 40 in any case.
        if not 20 <= length <= len(plaintext):
            self.drop("inner_length", peer=peer)
            return None
        if self.allowed.find(source) is not peer:
            self.drop("inner_source", peer=peer)
            return None
        return plaintext[:length]

    def seal(self, peer: PlanePeer, packet: bytes | bytearray, now: float) -> bytes | None:
        """Return one packet (b"" for a keepalive) sealed for `peer`, or None if no session may send it."""
        session = peer.keypairs.current
        nonce = None if session is None else session.claim(1, now)
        if session is None or nonce is None or peer.endpoint is None:
            return None
        counter = nonce.to_bytes(8, "little")
        plaintext = packet + bytes(padded(len(packet), self.mtu) - len(packet))
        datagram = session.header + counter + session.sealer.encrypt(b"\0\0\0\0" + counter, plaintext, None)
        self.sent(peer, session, 1, len(datagram), now, data=bool(packet))
        return datagram

    def _transmit_sealed(self, peer: PlanePeer, packet: bytes, now: float) -> bool:
        datagram = self.seal(peer, packet, now)
        if datagram is None or peer.endpoint is None:
            return False
        self._transmit.append((peer.endpoint, datagram, outer_tos(packet)))
        return True

    def _open(self, datagram: bytes, source: Endpoint, now: float) -> bytes | None:
        if len(datagram) < wire.KEEPALIVE_SIZE:
            self.drop("bad_length")
            return None
        found = self.sessions.get(int.from_bytes(datagram[4:8], "little"))
        if found is None:
            self.drop("unknown_index")
            return None
        peer, session = found
        if session.expired(now):
            self.drop("expired_session", peer=peer)
            return None
        counter = int.from_bytes(datagram[8:16], "little")
        if not session.window.fresh(counter):
            self.drop("replayed", peer=peer)
            return None
        try:
            plaintext = session.opener.decrypt(bytes(4) + datagram[8:16], datagram[16:], None)
        except InvalidTag:
            self.drop("bad_tag", peer=peer)
            return None
        session.window.mark(counter)
        self.received(peer, session, source, 1, len(datagram), now, data=bool(plaintext))
        return self.inner_packet(peer, plaintext) if plaintext else None

    def _report_move(self, peer: PlanePeer, now: float) -> None:
        """Tell Python that `peer` is elsewhere.

        Soon after an earlier report it waits, and then reports the last place: a peer can move with every datagram.
        """
        due = peer.moved_at + MOVED_INTERVAL
        if now < due:
            peer.liveness.report_at = due
            return
        peer.moved_at = now
        peer.liveness.report_at = float("inf")
        if peer.endpoint is not None:
            self._emit(EndpointMoved(peer.id, peer.endpoint))

    def _send_keepalive(self, peer: PlanePeer, now: float) -> None:
        """Send the held packets, or else a keepalive. Without a session, ask for one."""
        if self._down:
            return
        if peer.held:
            self._send_held(peer, now)
        elif peer.endpoint is not None and not self._transmit_sealed(peer, b"", now):
            self.want(peer, Reason.NO_SESSION, now)

    def _persistent_keepalive(self, peer: PlanePeer, now: float) -> None:
        peer.liveness.persistent_at = float("inf") if self._down else now + peer.liveness.interval
        self._send_keepalive(peer, now)

    def _send_held(self, peer: PlanePeer, now: float) -> None:
        for packet in self._held.take(peer):
            if not self._transmit_sealed(peer, packet, now):
                self.hold(peer, packet, now)

    def _drop_held(self, peer: PlanePeer, reason: str) -> None:
        if held := self._held.take(peer):
            self.drop(reason, len(held), peer)

    def _retire(self, sessions: list[Session]) -> None:
        for session in sessions:
            session.cool()
            self.sessions.pop(session.local_index, None)
            self.indices.release(session.local_index)
