"""The peers of a tunnel whose handshakes the kernel does: `Node`'s methods, and what can be told from its counters.

The kernel says neither that a session began, nor that a handshake goes unanswered, nor when a peer was heard. `Peers.
observe` concludes it from two readings: the time of the last handshake, the endpoint, and the bytes each way. It
opens no socket and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from rustguard_py.kernel.counters import Counters
from rustguard_py.kernel.messages import KernelPeerChange
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

# How long a handshake that was asked for is looked out for closely, seconds.
EXPECTING = 20.0


class Setter(Protocol):
    """What takes the changes: `rustguard_py.kernel.netlink.KernelInterface`."""

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        """Change peers, in order."""

    def configure(self, *, private_key: bytes) -> None:
        """Set the private key (32 bytes)."""


@dataclass(slots=True)
class _Seen:
    """What the last reading said of a peer.

    Attributes:
        handshake: Unix time, or None.
        handshakes: How many were seen.
        heard: When it was last heard, as near as the readings are.
        waiting: Since when something sent has had no answer, or None.
        told: When it was last told that a handshake goes unanswered.
        told_bytes: What had been sent by then.
        rx_before: What was received before the kernel forgot the peer and its counters the last time; in `rx_bytes`.
        tx_before: The same of what was sent.
    """

    handshake: float | None = None
    handshakes: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    heard: float | None = None
    waiting: float | None = None
    told: float = 0.0
    told_bytes: int = 0
    rx_before: int = 0
    tx_before: int = 0


class KernelPeers:
    """The peers of one interface.

    Args:
        private_key: Ours, 32 bytes.
        device: Takes the changes.
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
        """Have the kernel send a keepalive, for which it shakes hands if there is no session; tries on for 90 s."""
        if peer.endpoint is None:
            return
        if patience:
            self._expected[peer.id] = now + EXPECTING
        key, seconds = peer.config.public_key, peer.config.persistent_keepalive
        # One is sent at once whenever they are turned on.
        self._device.set_peers(
            KernelPeerChange(key, keepalive=each, update_only=True) for each in (0, seconds or 1, seconds)
        )

    def ask(self, peer: Peer, now: float) -> None:
        """See `Peers.ask`: with a session the kernel would not shake hands, so it has to forget the peer's."""
        if peer.initiation_sent is not None and now - peer.initiation_sent < REKEY_TIMEOUT:
            return
        if peer.session_began is not None and now - peer.session_began < REJECT_AFTER_TIME:
            # It is told where the peer is now, not where it was at first.
            self._put(peer, replace(peer.config, endpoint=peer.endpoint), peer.key_in_use)
        peer.initiation_sent = now
        self.begin_handshake(peer, now)

    def _put(self, peer: Peer | None, config: PeerConfig, key: int) -> Peer:
        """Put a peer in with one of its preshared keys, anew if it was there: its sessions end."""
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
        """Say whether a handshake that was asked for may end any moment."""
        self._expected = {peer: until for peer, until in self._expected.items() if until > now}
        return bool(self._expected)

    def unsettled(self) -> bool:
        """Say whether a peer may have one of several preshared keys, or doesn't answer."""
        return any(peer.config.previous_preshared_keys for peer in self) or any(
            seen.waiting is not None for seen in self._seen.values()
        )

    def observe(self, read: Mapping[bytes, Counters], now: float, wall: float, listeners: Listeners) -> None:
        """Compare a reading to the one before, and tell what happened.

        Args:
            read: By public key.
            now: On our clock.
            wall: Unix time in seconds.
            listeners: Who is told.
        """
        for peer in list(self):
            state = read.get(peer.config.public_key)
            if state is not None and (seen := self._seen.get(peer.id)) is not None:
                self._observe_one(peer, state, seen, now, wall, listeners)

    def stats(self) -> dict[PeerId, PeerStats]:
        """Give the counters of what was observed last; datagrams are not among them."""
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
        """Handshakes come and end in nothing: the peer has another preshared key, if it is one of several."""
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
            seen.waiting = seen.told = now
            seen.told_bytes = seen.tx_bytes - sent
        # With a session it is what was sent that had no answer, and the handshake comes after that.
        alive = peer.session_began is not None and now - peer.session_began < REKEY_AFTER_TIME
        patience = REKEY_TIMEOUT + (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT if alive and not peer.attempts else 0.0)
        if now - seen.told >= patience and seen.tx_bytes > seen.told_bytes:
            seen.told, seen.told_bytes = now, seen.tx_bytes
            peer.attempts += 1
            listeners.unanswered(peer, peer.attempts)
