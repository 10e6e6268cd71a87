"""A peer's configuration, and the part of its runtime state that all engines have."""

from __future__ import annotations

from dataclasses import dataclass, field

from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.keys import NO_PRESHARED_KEY


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """A peer's configuration.

    Attributes:
        public_key: 32 bytes.
        allowed_ips: Networks behind the peer: packets to them are sent to it, and it may send packets from them.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        endpoint: Where to reach it first, or None to wait until it sends something.
        persistent_keepalive: Seconds between keepalives, 0 for none.
        previous_preshared_keys: Older keys (32 bytes each) that the peer may still use. They are tried in turn.
    """

    public_key: bytes
    allowed_ips: tuple[Network, ...]
    preshared_key: bytes = field(default=NO_PRESHARED_KEY, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int = 0
    previous_preshared_keys: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def preshared_keys(self) -> tuple[bytes, ...]:
        """All preshared keys, the newest first."""
        return self.preshared_key, *self.previous_preshared_keys


class Peer:
    """A peer's runtime state, in every engine. Times are those of `model.clock`, None for never.

    Attributes:
        id: The plane's number for it.
        config: Its current configuration.
        endpoint: Where it was last heard from, or the endpoint that was set since.
        attempt_began: When the current run of initiations began, None while there is none. Always None where the
            kernel shakes hands.
        attempts: Initiations sent in the current run.
        initiation_sent: When the last initiation was sent.
        session_began: When the newest session was made or, as responder, confirmed.
        key_in_use: Index into the configuration's `preshared_keys` of the key used last; 0 is the newest.
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
