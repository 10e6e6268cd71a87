"""What is set for a peer, and the part of its state that both engines keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.keys import NO_PRESHARED_KEY


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
    """The runtime of a peer, whoever shakes hands with it. Times are the monotonic clock's, None for never.

    Attributes:
        id: The number that the plane knows it by.
        config: What was set last.
        endpoint: Where it was last heard from, or set to.
        attempt_began: When the current run of initiations began; None while none is under way, and in the kernel.
        attempts: Initiations sent in the current run.
        initiation_sent: When the last one went out.
        session_began: When the newest session was made or, as responder, confirmed.
        key_in_use: Which of the config's `preshared_keys` was used last; 0 is the newest.
    """

    __slots__ = (
        "attempt_began",
        "attempts",
        "config",
        "endpoint",
        "id",
        "initiation_sent",
        "key_in_use",
        "session_began",
    )

    def __init__(self, peer: PeerId, config: PeerConfig) -> None:
        self.id = peer
        self.config = config
        self.endpoint = config.endpoint
        self.attempt_began: float | None = None
        self.attempts = 0
        self.initiation_sent: float | None = None
        self.session_began: float | None = None
        self.key_in_use = 0
