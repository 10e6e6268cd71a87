"""A pairing as the server keeps it, between the client's SHARE_C and the end of the reply."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.enroll.pairing.key_schedule import Keys, Opening, shared_secret
from rustguard_py.enroll.pairing.messages import Confirm, Details, ShareS
from rustguard_py.enroll.pairing.unconfirmed import Unconfirmed
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.rate_limit import RateLimit

HALF_OPEN_SECONDS: Final = 15.0
REPLY_SECONDS: Final = 120.0
# CONFIRMs evaluated per session: at once, and per second, and as many again of those that come once more. Noise and
# forgeries use up some, so a flood of forgeries delays the right one, but does not end the session. An evaluation
# takes about 0.3 ms.
_EVALUATIONS = 32
_EVALUATIONS_A_SECOND = 128.0
# CONFIRMs remembered per session that were not evaluated. Those of the last three seconds, at the most that come.
_MISSED = 1024


class Phase(Enum):
    """Where a session is; see `rustguard_py.enroll.pairing.server`."""

    HALF_OPEN = "waiting for a CONFIRM"
    WAITING = "its CONFIRM waits for a turn"
    DENIED = "got a wrong CONFIRM"
    ADMITTING = "waiting for the caller to save"
    FINISHED = "answered"


LIFETIMES: Final = {
    Phase.HALF_OPEN: HALF_OPEN_SECONDS,
    Phase.WAITING: HALF_OPEN_SECONDS,
    Phase.DENIED: REPLY_SECONDS,
    Phase.ADMITTING: inf,
    Phase.FINISHED: REPLY_SECONDS,
}


class Kem:
    """The ML-KEM-768 key of one window.

    Args:
        window: The window's number.
        random: Returns the requested number of random bytes.
    """

    __slots__ = ("ek", "private", "window")

    def __init__(self, window: int, random: Callable[[int], bytes]) -> None:
        self.window = window
        self.private = MLKEM768PrivateKey.from_seed_bytes(random(64))
        self.ek = self.private.public_key().public_bytes_raw()


@dataclass(slots=True, eq=False, repr=False)
class PairingSession:
    """One SHARE_C and everything that followed it.

    Attributes:
        opening: Messages 1 to 3; with `share_s` the transcript.
        share_c: Message 3 alone; the session is found by it when it is repeated.
        ephemeral: The server's key pair that the CHALLENGE named.
        server_secret: X25519 of the server's static and the client's ephemeral key, or empty.
        public_key: The client's, once it has proved that it owns it.
        forget: The tag that takes the admission back, once it was answered.
        preshared_key: Of the admission, once it was answered.
        created: Whether the admission made a new peer.
        window: The window of the admission.
        keys: Those of the CONFIRM that is being admitted.
        answered: That CONFIRM; after the answer its SHA-256.
        charged: The window in which this session was counted as a wrong guess.
        proved: Whether a CONFIRM of this session was right.
        unconfirmed: Where the session is counted until its CONFIRM comes.
        denials: Replies to wrong CONFIRMs, by the SHA-256 of each.
        missed: The SHA-256 of CONFIRMs that came when none could be evaluated.
    """

    session: bytes
    source: Endpoint
    origin: str
    token_id: int
    nonce_c: bytes
    share_c: bytes
    share: bytes
    opening: bytes
    isk: bytes
    kem: Kem
    ephemeral: X25519PrivateKey
    server_secret: bytes
    phase: Phase = Phase.HALF_OPEN
    expires: float = inf
    keys: Keys | None = None
    answered: bytes = b""
    result: bytes = b""
    public_key: bytes = b""
    forget: bytes = b""
    preshared_key: bytes = b""
    created: bool = False
    window: int = 0
    charged: int | None = None
    proved: bool = False
    unconfirmed: Unconfirmed | None = None
    evaluations: RateLimit = field(default_factory=lambda: RateLimit(_EVALUATIONS_A_SECOND, _EVALUATIONS))
    repeats: RateLimit = field(default_factory=lambda: RateLimit(_EVALUATIONS_A_SECOND, _EVALUATIONS))
    denials: dict[bytes, bytes] | None = None
    missed: dict[bytes, None] | None = None

    def may_evaluate(self, digest: bytes, now: float) -> bool:
        """Return whether a CONFIRM with this SHA-256 can be evaluated now.

        The client repeats its own. So one that came before has a budget that fresh forgeries can't use up.
        """
        missed = self.missed or {}
        if self.evaluations.take(now) or (digest in missed and self.repeats.take(now)):
            missed.pop(digest, None)
            return True
        missed[digest] = None
        if len(missed) > _MISSED:
            del missed[next(iter(missed))]
        self.missed = missed
        return False

    @property
    def run(self) -> tuple[bytes, bytes]:
        """What is admitted once. The key belongs to it: anyone on the path can begin a session with a nonce_c."""
        return self.nonce_c, self.public_key

    def share_s(self) -> bytes:
        """Return message 4, which answers `share_c`."""
        return ShareS(self.session, self.share, self.kem.ek).encode()

    def is_tested(self) -> bool:
        """Return whether its token was checked before, so that another CONFIRM is no further guess."""
        return self.proved or self.charged is not None

    def check(self, message: Confirm) -> tuple[Details, Keys] | None:
        """Open the details, derive the keys and check Ta: the token is right, and the client owns its key."""
        ss = self.kem.private.decapsulate(message.ct)
        opening = Opening.derive(self.opening + self.share_s(), message.ct, self.isk, ss, self.server_secret)
        plaintext = opening.open_details(message.sealed)
        details = None if plaintext is None else Details.parse(plaintext)
        client_secret = None if details is None else shared_secret(self.ephemeral, details.public_key)
        if details is None or client_secret is None:
            return None
        keys = opening.keys(client_secret)
        return (details, keys) if hmac.compare_digest(keys.client_tag(message.sealed), message.tag) else None
