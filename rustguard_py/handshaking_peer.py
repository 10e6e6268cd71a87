"""A peer whose handshakes Python does, and the state of its handshake.

A handshake's life as initiator (times from whitepaper section 6):

    idle --wanted--> waiting --response--> idle             a session: current keypair, erased after 540 s
                      |   ^
              5 s + jitter: a new initiation
                      |
                     90 s: given up, held packets dropped --> idle

A responder waits for nothing: it answers an initiation at once, and the keypair is `next` in the plane until a
datagram confirms it.
"""

from __future__ import annotations

from rustguard_py.model.endpoint import PeerId
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.protocol.cookie import COOKIE_SECRET_LIFETIME, cookie_key, mac1_key
from rustguard_py.protocol.noise import Initiator


class HandshakingPeer(Peer):
    """The runtime state that `Node` keeps of a peer.

    Attributes:
        initiator: Our half of the handshake under way, or None.
        pending_index: The index of that handshake.
        last_index: The index of our last message 1 or 2.
        last_mac1: MAC1 of our last message 1 or 2.
        retry_at: When to send the next initiation, or None.
        erase_at: When the newest keys must be erased, or None.
        initiation_consumed: When the peer's last initiation was accepted, or None.
        unconfirmed: Whether no datagram has confirmed our last response yet.
        static_static: DH of both static keys (32 bytes), computed when first needed.
    """

    __slots__ = (
        "_cookie",
        "_cookie_born",
        "erase_at",
        "initiation_consumed",
        "initiator",
        "last_index",
        "last_mac1",
        "pending_index",
        "retry_at",
        "static_static",
        "unconfirmed",
    )

    def __init__(self, peer: PeerId, config: PeerConfig) -> None:
        super().__init__(peer, config)
        self.initiator: Initiator | None = None
        self.pending_index: int | None = None
        self.last_index: int | None = None
        self.last_mac1 = b""
        self.retry_at: float | None = None
        self.erase_at: float | None = None
        self.initiation_consumed: float | None = None
        self.unconfirmed = False
        self._cookie: bytes | None = None
        self._cookie_born = 0.0
        self.static_static: bytes | None = None

    @property
    def deadline(self) -> float | None:
        """When this peer next needs `Node.handle_timeout`, or None."""
        if self.retry_at is None or self.erase_at is None:
            return self.erase_at if self.retry_at is None else self.retry_at
        return min(self.retry_at, self.erase_at)

    @property
    def mac1_key(self) -> bytes:
        """The key for MAC1 of messages to the peer."""
        return mac1_key(self.config.public_key)

    @property
    def cookie_key(self) -> bytes:
        """The key that seals the cookies from the peer."""
        return cookie_key(self.config.public_key)

    def take_cookie(self, cookie: bytes, now: float) -> None:
        """Keep a cookie (16 bytes) from the peer."""
        self._cookie = cookie
        self._cookie_born = now

    def cookie(self, now: float) -> bytes | None:
        """Return the cookie (16 bytes) if it is still valid, or None."""
        if self._cookie is not None and now - self._cookie_born >= COOKIE_SECRET_LIFETIME:
            self._cookie = None
        return self._cookie

    def end_attempt(self) -> None:
        """End the current run of initiations."""
        self.initiator = None
        self.pending_index = None
        self.attempt_began = None
        self.attempts = 0
        self.retry_at = None
