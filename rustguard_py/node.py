"""The deciding half of WireGuard: which peers there are, when to shake hands, give up and erase keys.

It does no I/O. It takes the plane's events and the time. It returns commands to the plane, events, and the time of
the next call. A handshake as initiator passes through these functions, in this order:

    handle_event(HandshakeWanted)    the plane has a packet and no session, or one that is old or silent
      _begin / _initiate             a new ephemeral key and index; message 1 goes out, a retry is due in 5 s
    handle_timeout                   no answer: a new message 1, with the cookie if one came; after 90 s give up
    handle_event(HandshakeReceived)
      _consume_response              message 2 checked, both keys derived, the keypair installed

and as responder:

    handle_event(HandshakeReceived)
      _consume_initiation            known key? newer timestamp? then message 2 goes out, the keypair is `next`
    handle_event(KeypairConfirmed)   the first datagram came in on it: the session stands

Source: whitepaper sections 5 and 6, and where they leave a choice, Linux's drivers/net/wireguard/{noise,timers}.c.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rustguard_py.handshaking_peer import HandshakingPeer
from rustguard_py.model.endpoint import Endpoint, PeerId, is_same, plain
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.timers import REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT
from rustguard_py.planes.contract import (
    EndpointMoved,
    Event,
    Fault,
    ForeignReceived,
    HandshakeReceived,
    HandshakeWanted,
    Keypair,
    KeypairConfirmed,
    Plane,
    Reason,
)
from rustguard_py.protocol import wire
from rustguard_py.protocol.cookie import add_macs, open_cookie
from rustguard_py.protocol.noise import Initiator, InvalidHandshakeError, Received, StaticKey, TransportKeys
from rustguard_py.protocol.tai64n import Tai64nClock

# Section 6.4: retries are delayed by a random time of up to a third of a second.
REKEY_TIMEOUT_JITTER = 1 / 3
# Section 6.3: no key is kept longer, seconds.
ERASE_AFTER_TIME = 3 * REJECT_AFTER_TIME
# The kernel's INITIATIONS_PER_SECOND: faster initiations of a peer aren't worth a Diffie-Hellman. Seconds.
MIN_INITIATION_INTERVAL = 1 / 50


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """A handshake is complete on both sides, as far as this side can know."""

    peer: HandshakingPeer
    initiator: bool


@dataclass(frozen=True, slots=True)
class HandshakeUnanswered:
    """An initiation had no answer for REKEY-TIMEOUT, and the next is sent. `attempts` counts those sent before."""

    peer: HandshakingPeer
    attempts: int


@dataclass(frozen=True, slots=True)
class HandshakeGivenUp:
    """The peer didn't answer in time; the next packet begins again.

    Attributes:
        peer: The peer.
        attempts: How many handshakes it left unanswered.
    """

    peer: HandshakingPeer
    attempts: int


@dataclass(frozen=True, slots=True)
class PeerMoved:
    """A peer has another endpoint: an authenticated message came from there."""

    peer: HandshakingPeer
    endpoint: Endpoint


NodeEvent = SessionStarted | HandshakeUnanswered | HandshakeGivenUp | PeerMoved


class Timestamps(Protocol):
    """The greatest TAI64N (12 bytes) sent with each public key (32 bytes), kept over restarts.

    For a peer's key it is the greatest that the peer sent, for our own key the greatest that we sent.
    """

    def greatest(self, key: bytes, /) -> bytes | None:
        """Return the greatest timestamp of a key, or None if there is none."""

    def record(self, key: bytes, timestamp: bytes, /) -> None:
        """Record a timestamp, before its message is sent or answered."""

    def is_new(self, key: bytes, timestamp: bytes, /) -> bool:
        """Return whether a peer can't have sent this timestamp before."""


class Node:
    """One identity and its peers.

    Args:
        static: Our key.
        plane: Where commands go.
        timestamps: Kept over restarts.
        wall: Returns Unix time in nanoseconds, as `time.time_ns`; only for TAI64N.
        random: Returns n random bytes.
    """

    asks_freely = True

    def __init__(
        self,
        static: StaticKey,
        plane: Plane,
        timestamps: Timestamps,
        *,
        wall: Callable[[], int],
        random: Callable[[int], bytes],
    ) -> None:
        self.static = static
        self._plane = plane
        self._timestamps = timestamps
        self._wall = wall
        self._clock = Tai64nClock(wall, timestamps.greatest(static.public))
        self._random = random
        self._by_key: dict[bytes, HandshakingPeer] = {}
        self._by_id: dict[PeerId, HandshakingPeer] = {}
        self._by_index: dict[int, HandshakingPeer] = {}
        self._next_id = 1
        # (deadline, peer id). An entry is stale if the peer's deadline has changed since.
        self._deadlines: list[tuple[float, PeerId]] = []
        self._events: deque[NodeEvent] = deque()

    # -- peers ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[HandshakingPeer]:
        return iter(self._by_key.values())

    def get(self, public_key: bytes) -> HandshakingPeer | None:
        """Return the peer with this public key (32 bytes), or None."""
        return self._by_key.get(public_key)

    def set_peer(self, config: PeerConfig) -> HandshakingPeer:
        """Add a peer or change it, and return it. Its session stays unless the preshared key changes."""
        peer = self._by_key.get(config.public_key)
        peer_id = self._next_id if peer is None else peer.id
        # The plane first: if it refuses, nothing has changed.
        self._plane.set_peer(peer_id, config.endpoint, config.allowed_ips, config.persistent_keepalive)
        if peer is None:
            peer = HandshakingPeer(peer_id, config)
            self._next_id += 1
            self._by_key[config.public_key] = self._by_id[peer.id] = peer
        elif peer.config.preshared_key != config.preshared_key:
            self._erase(peer)
            peer.unconfirmed = False
            peer.key_in_use = 0
        peer.key_in_use = min(peer.key_in_use, len(config.previous_preshared_keys))
        peer.config = config
        peer.endpoint = config.endpoint or peer.endpoint
        return peer

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Send to `endpoint`, including a handshake under way, until the peer is heard from elsewhere."""
        if peer.endpoint == endpoint:
            return
        peer.endpoint = endpoint
        self._plane.set_endpoint(peer.id, endpoint)
        own = self._by_id[peer.id]
        if own.attempt_began is not None:
            own.retry_at = now
            self._schedule(own)

    @property
    def public_key(self) -> bytes:
        """Our public key, 32 bytes."""
        return self.static.public

    def set_private_key(self, private_key: bytes, now: float) -> None:
        """Use another private key (32 bytes) from now on. A peer that has the same key is removed.

        As in the kernel, existing sessions still receive, but sending needs a new handshake. A handshake under way
        starts again.
        """
        self.static = static = StaticKey(private_key)
        self._clock = Tai64nClock(self._wall, self._timestamps.greatest(static.public))
        self.remove_peer(static.public)
        self._plane.set_public_key(static.public)
        for peer in self:
            waiting = peer.attempt_began is not None
            self._forget_indices(peer)
            peer.end_attempt()
            peer.initiation_sent = peer.static_static = None
            peer.unconfirmed = False
            if waiting:
                self.begin_handshake(peer, now)

    def remove_peer(self, public_key: bytes) -> bool:
        """Remove a peer at once. Return whether there was one."""
        peer = self._by_key.pop(public_key, None)
        if peer is None:
            return False
        del self._by_id[peer.id]
        self._forget_indices(peer)
        self._plane.remove_peer(peer.id)
        return True

    # -- in -------------------------------------------------------------------------------------------------

    def handle_event(self, event: Event, now: float) -> None:
        """Handle an event of the plane. Enrollment datagrams and faults aren't the node's and are ignored."""
        match event:
            case HandshakeReceived(datagram, source):
                self._handle_handshake(datagram, source, now)
            case HandshakeWanted(peer_id, reason):
                if (peer := self._by_id.get(peer_id)) is not None:
                    if reason is Reason.NO_ANSWER:
                        self._forget_local(peer)
                    if reason is Reason.INTERFACE_UP:
                        # What was sent before didn't leave.
                        peer.end_attempt()
                        peer.initiation_sent = None
                    self.begin_handshake(peer, now)
            case KeypairConfirmed(peer_id):
                if (peer := self._by_id.get(peer_id)) is not None:
                    self._session_started(peer, now, initiator=False)
            case EndpointMoved(peer_id, endpoint):
                if (peer := self._by_id.get(peer_id)) is not None:
                    moved, peer.endpoint = peer.endpoint != endpoint, endpoint
                    if moved:
                        self._events.append(PeerMoved(peer, endpoint))
            case ForeignReceived() | Fault():
                pass

    def begin_handshake(self, peer: Peer, now: float, patience: float = REKEY_ATTEMPT_TIME) -> None:
        """Send initiations, at most one per REKEY-TIMEOUT, until one is answered or after `patience` seconds."""
        own = self._by_id[peer.id]
        if own.attempt_began is not None:
            # There is more to send, so the 90 s start again, as the kernel restarts its count of retries.
            own.attempt_began = now
            return
        if own.initiation_sent is not None and now - own.initiation_sent < REKEY_TIMEOUT:
            return
        own.attempt_began = now - (REKEY_ATTEMPT_TIME - patience)
        self._initiate(own, now)

    def ask(self, peer: Peer, now: float) -> None:
        """Start a handshake to learn whether a peer answers. Its session stays."""
        self.begin_handshake(peer, now)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Call it at the time that `poll_timeout` returns."""
        while self._deadlines and self._deadlines[0][0] <= now:
            due, peer_id = heapq.heappop(self._deadlines)
            peer = self._by_id.get(peer_id)
            if peer is None or peer.deadline != due:
                continue
            if peer.erase_at is not None and peer.erase_at <= now:
                self._erase(peer)
            if peer.retry_at is not None and peer.retry_at <= now:
                self._retry(peer, now)
            self._schedule(peer)

    # -- out ------------------------------------------------------------------------------------------------

    def poll_timeout(self) -> float | None:
        """Return when `handle_timeout` is needed next, or None."""
        while self._deadlines:
            due, peer_id = self._deadlines[0]
            peer = self._by_id.get(peer_id)
            if peer is not None and peer.deadline == due:
                return due
            heapq.heappop(self._deadlines)
        return None

    def poll_event(self) -> NodeEvent | None:
        """Return the next event, or None."""
        return self._events.popleft() if self._events else None

    # -- initiator ------------------------------------------------------------------------------------------

    def _initiate(self, peer: HandshakingPeer, now: float) -> None:
        endpoint = peer.endpoint
        static_static = self._static_static(peer)
        if endpoint is None or static_static is None:
            peer.end_attempt()  # without an endpoint the peer has to contact us
            return
        timestamp = self._clock.next()
        self._timestamps.record(self.static.public, timestamp)
        index = self._new_index(peer)
        try:
            initiator = Initiator(self.static, peer.config.public_key, static_static, timestamp, index, self._random)
        except InvalidHandshakeError:
            peer.end_attempt()
            return
        peer.initiator = initiator
        peer.pending_index = index
        peer.attempts += 1
        peer.initiation_sent = now
        jitter = int.from_bytes(self._random(2), "little") / 65536 * REKEY_TIMEOUT_JITTER
        peer.retry_at = now + REKEY_TIMEOUT + jitter
        self._schedule(peer)
        self._send_handshake(peer, initiator.message, endpoint, now)

    def _retry(self, peer: HandshakingPeer, now: float) -> None:
        if peer.attempt_began is None or now - peer.attempt_began >= REKEY_ATTEMPT_TIME:
            attempts = peer.attempts
            peer.end_attempt()
            self._plane.drop_held(peer.id)
            self._events.append(HandshakeGivenUp(peer, attempts))
            return
        self._events.append(HandshakeUnanswered(peer, peer.attempts))
        self._forget_local(peer)
        self._initiate(peer, now)

    def _consume_response(self, datagram: bytes, source: Endpoint, now: float) -> None:
        response = wire.parse_response(datagram)
        peer = self._by_index.get(response.receiver) if response is not None else None
        if response is None or peer is None or peer.initiator is None:
            return
        if peer.pending_index != response.receiver:
            return
        keys = self._open_response(peer, peer.initiator, response)
        if keys is None:
            return
        self._move(peer, source)
        self._install(peer, response.receiver, response.sender, keys, now, initiator=True)
        self._session_started(peer, now, initiator=True)

    def _open_response(
        self, peer: HandshakingPeer, initiator: Initiator, response: wire.Response
    ) -> TransportKeys | None:
        for place, preshared_key in enumerate(peer.config.preshared_keys):
            try:
                keys = initiator.consume_response(self.static, response, preshared_key)
            except InvalidHandshakeError:
                continue
            peer.key_in_use = place
            return keys
        return None

    # -- responder ------------------------------------------------------------------------------------------

    def _consume_initiation(self, datagram: bytes, source: Endpoint, now: float) -> None:
        initiation = wire.parse_initiation(datagram)
        if initiation is None:
            return
        try:
            received = Received(self.static, initiation)
            peer = self._by_key.get(received.remote)
            static_static = self._static_static(peer) if peer is not None else None
            if peer is None or static_static is None:
                return
            timestamp = received.open_timestamp(static_static)
            if not self._is_new(peer, timestamp, now):
                return
            # Recorded before the answer, so a replay fails even after a crash.
            self._timestamps.record(peer.config.public_key, timestamp)
            peer.initiation_consumed = now
            index = self._new_index(peer)
            message, keys = received.respond(index, self._preshared_key(peer), self._random)
        except InvalidHandshakeError:
            return
        # One handshake per peer, as in the kernel: answering this one ends ours that crossed it.
        peer.initiator = None
        peer.pending_index = None
        peer.unconfirmed = True
        self._move(peer, source)
        self._install(peer, index, initiation.sender, keys, now, initiator=False)
        self._send_handshake(peer, message, source, now)

    def _preshared_key(self, peer: HandshakingPeer) -> bytes:
        """Return the preshared key for a response.

        Only the initiator notices a wrong one. So if the last response was not confirmed, the next key is tried.
        """
        keys = peer.config.preshared_keys
        if peer.unconfirmed:
            peer.key_in_use = (peer.key_in_use + 1) % len(keys)
        return keys[peer.key_in_use]

    def _is_new(self, peer: HandshakingPeer, timestamp: bytes, now: float) -> bool:
        if not self._timestamps.is_new(peer.config.public_key, timestamp):
            return False
        last = peer.initiation_consumed
        return last is None or now - last >= MIN_INITIATION_INTERVAL

    # -- both -----------------------------------------------------------------------------------------------

    def _handle_handshake(self, datagram: bytes, source: Endpoint, now: float) -> None:
        match wire.message_type(datagram):
            case wire.INITIATION:
                self._consume_initiation(datagram, source, now)
            case wire.RESPONSE:
                self._consume_response(datagram, source, now)
            case wire.COOKIE_REPLY:
                self._consume_cookie(datagram, now)

    def _consume_cookie(self, datagram: bytes, now: float) -> None:
        # The endpoint stays: a cookie reply can be replayed from anywhere.
        reply = wire.parse_cookie_reply(datagram)
        peer = self._by_index.get(reply.receiver) if reply is not None else None
        if reply is None or peer is None or not peer.last_mac1:
            return
        cookie = open_cookie(reply, peer.last_mac1, peer.cookie_key)
        if cookie is not None:
            peer.take_cookie(cookie, now)

    def _send_handshake(self, peer: HandshakingPeer, message: bytes, endpoint: Endpoint, now: float) -> None:
        datagram = add_macs(message, peer.mac1_key, peer.cookie(now))
        peer.last_mac1 = datagram[-2 * wire.MAC_SIZE : -wire.MAC_SIZE]
        self._plane.send(endpoint, datagram)

    def _install(
        self, peer: HandshakingPeer, local: int, remote: int, keys: TransportKeys, now: float, *, initiator: bool
    ) -> None:
        self._plane.install_keypair(peer.id, Keypair(local, remote, keys.send, keys.receive, initiator, birth=now))
        peer.erase_at = now + ERASE_AFTER_TIME
        self._schedule(peer)

    def _session_started(self, peer: HandshakingPeer, now: float, *, initiator: bool) -> None:
        peer.end_attempt()
        peer.unconfirmed = False
        peer.session_began = now
        self._schedule(peer)
        self._events.append(SessionStarted(peer, initiator))

    def _move(self, peer: HandshakingPeer, source: Endpoint) -> None:
        if is_same(peer.endpoint, source):
            return
        moved, peer.endpoint = peer.endpoint != source, source
        self._plane.set_endpoint(peer.id, source)
        if moved:
            self._events.append(PeerMoved(peer, source))

    @staticmethod
    def _forget_local(peer: HandshakingPeer) -> None:
        """Let the kernel choose the local address again, because the known one may be the reason for no answer."""
        if peer.endpoint is not None:
            peer.endpoint = plain(peer.endpoint)

    def _static_static(self, peer: HandshakingPeer) -> bytes | None:
        if peer.static_static is None:
            try:
                peer.static_static = self.static.shared_with(peer.config.public_key)
            except InvalidHandshakeError:  # the peer has a low-order key, so no handshake can succeed
                return None
        return peer.static_static

    def _new_index(self, peer: HandshakingPeer) -> int:
        self._forget_indices(peer)
        index = self._plane.reserve_index(peer.id)
        peer.last_index = index
        self._by_index[index] = peer
        return index

    def _forget_indices(self, peer: HandshakingPeer) -> None:
        if peer.last_index is not None:
            self._by_index.pop(peer.last_index, None)
            peer.last_index = None

    def _erase(self, peer: HandshakingPeer) -> None:
        peer.erase_at = None
        peer.initiator = None
        peer.pending_index = None
        self._plane.erase_keypairs(peer.id)

    def _schedule(self, peer: HandshakingPeer) -> None:
        if (deadline := peer.deadline) is not None:
            heapq.heappush(self._deadlines, (deadline, peer.id))
