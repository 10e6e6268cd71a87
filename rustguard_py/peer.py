"""The control side of one peer: who it is, and where its handshake stands.

A handshake's life, as initiator (times from whitepaper section 6):

    idle --wanted--> waiting --response--> idle             a session: current keypair, erased after 540 s
                      |   ^
              5 s + jitter: a new initiation
                      |
                     90 s: given up, held packets dropped --> idle

As responder there is nothing to wait for: an initiation is answered at once and its keypair is `next` in the
plane until a datagram confirms it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rustguard_py.cookie import COOKIE_SECRET_LIFETIME, cookie_key, mac1_key
from rustguard_py.noise import NO_PRESHARED_KEY, Initiator
from rustguard_py.planes.contract import Endpoint, Network, PeerId


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """What is set for a peer from outside.

    Attributes:
        public_key: 32 bytes.
        allowed_ips: Networks whose packets go to it and may come from it.
        preshared_key: 32 bytes, zeros for none.
        endpoint: Where to find it at first, or None when it finds us.
        persistent_keepalive: Seconds, 0 for none.
        previous_preshared_keys: Others that the peer may still have, 32 bytes each; tried in turn.
    """

    public_key: bytes
    allowed_ips: tuple[Network, ...]
    preshared_key: bytes = field(default=NO_PRESHARED_KEY, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int = 0
    previous_preshared_keys: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def preshared_keys(self) -> tuple[bytes, ...]:
        """All of them, the newest first."""
        return self.preshared_key, *self.previous_preshared_keys


class Peer:
    """The runtime of a peer in the node. Times are the injected monotonic clock's, None for never.

    Attributes:
        endpoint: Where it was last heard from, or set to.
        attempt_began: When the current run of initiations began; None while none is under way.
        attempts: Initiations sent in this run.
        retry_at: When to send the next initiation.
        erase_at: When the newest keys must be gone.
        unconfirmed: Whether our last response was not confirmed by a datagram.
        key_in_use: Which of the config's `preshared_keys` was used last; 0 is the newest.
        session_began: When the newest session was made or, as responder, confirmed.
        static_static: DH of both static keys (32 bytes), once it was needed.
    """

    __slots__ = (
        "_cookie",
        "_cookie_born",
        "attempt_began",
        "attempts",
        "config",
        "endpoint",
        "erase_at",
        "id",
        "initiation_consumed",
        "initiation_sent",
        "initiator",
        "key_in_use",
        "last_index",
        "last_mac1",
        "pending_index",
        "retry_at",
        "session_began",
        "static_static",
        "unconfirmed",
    )

    def __init__(self, peer: PeerId, config: PeerConfig) -> None:
        self.id = peer
        self.config = config
        self.endpoint = config.endpoint
        self.initiator: Initiator | None = None
        self.pending_index: int | None = None
        self.last_index: int | None = None
        self.last_mac1 = b""
        self.attempt_began: float | None = None
        self.attempts = 0
        self.retry_at: float | None = None
        self.erase_at: float | None = None
        self.initiation_sent: float | None = None
        self.initiation_consumed: float | None = None
        self.session_began: float | None = None
        self.unconfirmed = False
        self.key_in_use = 0
        self._cookie: bytes | None = None
        self._cookie_born = 0.0
        self.static_static: bytes | None = None

    @property
    def deadline(self) -> float | None:
        """When this peer next needs `Node.handle_timeout`."""
        if self.retry_at is None or self.erase_at is None:
            return self.erase_at if self.retry_at is None else self.retry_at
        return min(self.retry_at, self.erase_at)

    @property
    def mac1_key(self) -> bytes:
        """The key of MAC1 for what we send to it."""
        return mac1_key(self.config.public_key)

    @property
    def cookie_key(self) -> bytes:
        """The key that seals what cookies it gives us."""
        return cookie_key(self.config.public_key)

    def take_cookie(self, cookie: bytes, now: float) -> None:
        """Keep a cookie (16 bytes) that it gave us."""
        self._cookie = cookie
        self._cookie_born = now

    def cookie(self, now: float) -> bytes | None:
        """Give the cookie to use, if it is young enough."""
        if self._cookie is not None and now - self._cookie_born >= COOKIE_SECRET_LIFETIME:
            self._cookie = None
        return self._cookie

    def end_attempt(self) -> None:
        """No initiation is under way any more."""
        self.initiator = None
        self.pending_index = None
        self.attempt_began = None
        self.attempts = 0
        self.retry_at = None
