"""The peers of a tunnel whose handshakes the kernel does: the methods of `Node`, and what the counters reveal.

The kernel doesn't report that a session began, that a handshake had no answer, or when a peer was last heard.
`KernelPeers.observe` infers all three from two readings of the counters: the time of the last handshake, the
endpoint, and the bytes in each direction. It opens no socket and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from rustguard_py.kernel.counters import Counters
from rustguard_py.kernel.messages import KernelInterfaceState, KernelPeerChange
from rustguard_py.model.endpoint import Endpoint, PeerId
from rustguard_py.model.keys import public_key
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.statistics import PeerStats
from rustguard_py.model.timers import (
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
)
from rustguard_py.model.tunnel import Listeners
from rustguard_py.protocol import wire

# How long a requested handshake is watched for closely, seconds.
EXPECTING = 20.0


class Setter(Protocol):
    """Where changes go: `rustguard_py.kernel.netlink.KernelInterface`."""

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        """Change peers, in order."""

    def configure(self, *, private_key: bytes) -> None:
        """Set the private key (32 bytes)."""


@dataclass(slots=True)
class _Seen:
    """The last reading of a peer.

    Attributes:
        handshake: Unix time of the last handshake, or None.
        handshakes: Number of handshakes seen.
        rx_bytes: Bytes received in total.
        tx_bytes: Bytes sent in total.
        heard: When the peer was last heard, as precisely as the readings allow.
        waiting: Since when something sent has had no answer, or None.
        reported: When `listeners.unanswered` was last called.
        reported_bytes: `tx_bytes` at that time.
        rx_before: Bytes received before the peer was last put in again, which resets the kernel's counters.
        tx_before: The same for bytes sent.
    """

    handshake: float | None = None
    handshakes: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    heard: float | None = None
    waiting: float | None = None
    reported: float = 0.0
    reported_bytes: int = 0
    rx_before: int = 0
    tx_before: int = 0


class KernelPeers:
    """The peers of one interface.

    Args:
        private_key: Our own, 32 bytes.
        device: Where changes go.
    """

    asks_freely = False

    def __init__(self, private_key: bytes, device: Setter) -> None:
        self.public_key = public_key(private_key)
        self._device = device
        self._by_key: dict[bytes, Peer] = {}
        self._seen: dict[PeerId, _Seen] = {}
        self._expected: dict[PeerId, float] = {}
        self._next_id = 1

    # -- as `Node` has them ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_key.values())

    def get(self, public_key: bytes) -> Peer | None:
        """See `Node.get`."""
        return self._by_key.get(public_key)

    def set_peer(self, config: PeerConfig) -> Peer:
        """See `Node.set_peer`."""
        peer = self._by_key.get(config.public_key)
        if peer is None or peer.config.preshared_key != config.preshared_key:
            return self._put(peer, config, 0)
        before = peer.config
        peer.key_in_use = min(peer.key_in_use, len(config.previous_preshared_keys))
        peer.config = config
        peer.endpoint = config.endpoint or peer.endpoint
        change = KernelPeerChange(
            config.public_key,
            preshared_key=config.preshared_keys[peer.key_in_use],
            endpoint=config.endpoint,
            keepalive=config.persistent_keepalive,
            allowed_ips=None if config.allowed_ips == before.allowed_ips else config.allowed_ips,
        )
        self._device.set_peers([change])
        return peer

    def set_private_key(self, private_key: bytes, now: float) -> None:  # noqa: ARG002 - as `Node` has it
        """See `Node.set_private_key`."""
        self.public_key = public_key(private_key)
        self._device.configure(private_key=private_key)
        self.remove_peer(self.public_key)

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:  # noqa: ARG002 - as `Node` has it
        """See `Node.set_endpoint`."""
        if peer.endpoint != endpoint:
            peer.endpoint = endpoint
            self._device.set_peers([KernelPeerChange(peer.config.public_key, endpoint=endpoint, update_only=True)])

    def remove_peer(self, public_key: bytes) -> bool:
        """See `Node.remove_peer`."""
        peer = self._by_key.pop(public_key, None)
        if peer is None:
            return False
        del self._seen[peer.id]
        self._expected.pop(peer.id, None)
        self._device.set_peers([KernelPeerChange(public_key, remove=True)])
        return True

    def begin_handshake(self, peer: Peer, now: float, patience: float = REKEY_ATTEMPT_TIME) -> None:
        """Have the kernel send a keepalive. Without a session it first shakes hands, and tries for 90 s."""
        if peer.endpoint is None:
            return
        if patience:
            self._expected[peer.id] = now + EXPECTING
        key, seconds = peer.config.public_key, peer.config.persistent_keepalive
        # Turning keepalives on sends one at once.
        self._device.set_peers(
            KernelPeerChange(key, keepalive=each, update_only=True) for each in (0, seconds or 1, seconds)
        )

    def ask(self, peer: Peer, now: float) -> None:
        """See `Peers.ask`. The kernel shakes hands only without a session, so the peer is put in again first."""
        if peer.initiation_sent is not None and now - peer.initiation_sent < REKEY_TIMEOUT:
            return
        if peer.session_began is not None and now - peer.session_began < REJECT_AFTER_TIME:
            # With its current endpoint, not the configured one.
            self._put(peer, replace(peer.config, endpoint=peer.endpoint), peer.key_in_use)
        peer.initiation_sent = now
        self.begin_handshake(peer, now)

    def put_all_again(self) -> None:
        """Put all peers into a new interface, each where it was last seen. Their sessions are lost."""
        for peer in self:
            config = peer.config
            self._put(peer, replace(config, endpoint=peer.endpoint), peer.key_in_use)

    def adopt(self, state: KernelInterfaceState) -> None:
        """Take over our key and the peers as the kernel has them, with their networks."""
        if state.private_key is not None:
            self.public_key = state.public_key
        for gone in [peer for key, peer in self._by_key.items() if key not in state.peers]:
            del self._by_key[gone.config.public_key], self._seen[gone.id]
            self._expected.pop(gone.id, None)
        for key, found in state.peers.items():
            networks = tuple(found.allowed_ips)
            if (peer := self._by_key.get(key)) is None:
                config = PeerConfig(key, networks, found.preshared_key, found.endpoint, found.keepalive)
                peer = self._by_key[key] = Peer(self._next_id, config)
                self._next_id += 1
                self._seen[peer.id] = _Seen()
            # The kernel lists networks in its own order.
            if set(networks) != set(peer.config.allowed_ips):
                peer.config = replace(peer.config, allowed_ips=networks)
            if found.preshared_key not in peer.config.preshared_keys:
                peer.config = replace(peer.config, preshared_key=found.preshared_key, previous_preshared_keys=())
                peer.key_in_use = 0
            peer.config = replace(peer.config, persistent_keepalive=found.keepalive)
            peer.endpoint = found.endpoint or peer.endpoint

    def _put(self, peer: Peer | None, config: PeerConfig, key: int) -> Peer:
        """Put a peer into the kernel with one of its preshared keys. If it was there, its sessions end."""
        changes = [] if peer is None else [KernelPeerChange(config.public_key, remove=True)]
        if peer is None:
            peer = Peer(self._next_id, config)
            self._next_id += 1
        peer.config = config
        peer.endpoint = config.endpoint or peer.endpoint
        peer.key_in_use = key
        peer.session_began = None
        changes.append(
            KernelPeerChange(
                config.public_key,
                preshared_key=config.preshared_keys[key],
                endpoint=peer.endpoint,
                keepalive=config.persistent_keepalive,
                allowed_ips=config.allowed_ips,
            )
        )
        self._device.set_peers(changes)
        self._by_key[config.public_key] = peer
        seen = self._seen.setdefault(peer.id, _Seen())
        seen.rx_before, seen.tx_before, seen.waiting = seen.rx_bytes, seen.tx_bytes, None
        return peer

    # -- what the kernel does -------------------------------------------------------------------------------

    def expects(self, now: float) -> bool:
        """Return whether a requested handshake may complete soon."""
        self._expected = {peer: until for peer, until in self._expected.items() if until > now}
        return bool(self._expected)

    def unsettled(self) -> bool:
        """Return whether a peer doesn't answer, or may have one of several preshared keys."""
        return any(peer.config.previous_preshared_keys for peer in self) or any(
            seen.waiting is not None for seen in self._seen.values()
        )

    def observe(self, read: Mapping[bytes, Counters], now: float, wall: float, listeners: Listeners) -> None:
        """Compare a reading with the one before, and call the listeners for what happened in between.

        Args:
            read: Counters by public key.
            now: The time on our clock.
            wall: Unix time in seconds.
            listeners: The callbacks.
        """
        for peer in list(self):
            state = read.get(peer.config.public_key)
            if state is not None and (seen := self._seen.get(peer.id)) is not None:
                self._observe_one(peer, state, seen, now, wall, listeners)

    def stats(self) -> dict[PeerId, PeerStats]:
        """Return the counters as of the last reading. The kernel doesn't count datagrams."""
        return {
            peer.id: PeerStats(
                endpoint=peer.endpoint,
                rx_bytes=seen.rx_bytes,
                tx_bytes=seen.tx_bytes,
                last_received=seen.heard,
                handshakes=seen.handshakes,
            )
            for peer in self
            if (seen := self._seen.get(peer.id)) is not None
        }

    def _observe_one(
        self, peer: Peer, state: Counters, seen: _Seen, now: float, wall: float, listeners: Listeners
    ) -> None:
        received = seen.rx_before + state.rx_bytes - seen.rx_bytes
        sent = seen.tx_before + state.tx_bytes - seen.tx_bytes
        seen.rx_bytes += received
        seen.tx_bytes += sent
        if state.endpoint is not None and state.endpoint != peer.endpoint:
            peer.endpoint = state.endpoint
            if listeners.moved is not None:
                listeners.moved(peer, state.endpoint)
        if state.last_handshake is not None and state.last_handshake != seen.handshake:
            seen.handshake = state.last_handshake
            seen.handshakes += 1
            seen.waiting = None
            peer.session_began = seen.heard = now - max(0.0, wall - state.last_handshake)
            peer.attempts = 0
            self._expected.pop(peer.id, None)
            if listeners.session is not None:
                listeners.session(peer)
        elif received in wire.HANDSHAKE_VOLUMES:
            self._try_next_key(peer)
        elif received:
            seen.heard = now
        self._mind_silence(peer, seen, received, sent, now, listeners)

    def _try_next_key(self, peer: Peer) -> None:
        """Handshakes came but no session began: if there are several preshared keys, try the next one."""
        keys = peer.config.preshared_keys
        if len(keys) > 1:
            peer.key_in_use = (peer.key_in_use + 1) % len(keys)
            key = peer.config.public_key
            self._device.set_peers([KernelPeerChange(key, preshared_key=keys[peer.key_in_use], update_only=True)])

    def _mind_silence(
        self, peer: Peer, seen: _Seen, received: int, sent: int, now: float, listeners: Listeners
    ) -> None:
        if listeners.unanswered is None:
            return
        if received or (seen.waiting is None and sent < wire.INITIATION_SIZE):
            seen.waiting = None
            return
        if seen.waiting is None:
            seen.waiting = seen.reported = now
            seen.reported_bytes = seen.tx_bytes - sent
        # With a session it was data that had no answer. The kernel starts a handshake only after that.
        alive = peer.session_began is not None and now - peer.session_began < REKEY_AFTER_TIME
        patience = REKEY_TIMEOUT + (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT if alive and not peer.attempts else 0.0)
        if now - seen.reported >= patience and seen.tx_bytes > seen.reported_bytes:
            seen.reported, seen.reported_bytes = now, seen.tx_bytes
            peer.attempts += 1
            listeners.unanswered(peer, peer.attempts)
