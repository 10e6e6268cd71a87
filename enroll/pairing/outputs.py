"""What the server's side of a pairing asks its caller to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.state.records import GuessRecord


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this datagram there."""

    datagram: bytes
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class Admit:
    """A client proved that it knows a token: choose an address and a name, make that durable and live, then answer.

    Call `PairingServer.answer` when that is done, also for a refusal such as "full", or `PairingServer.forget` if it
    couldn't be saved. The same key may join again with another preshared key. The latest one counts.

    Attributes:
        session: 8 bytes, for `answer` and `forget`.
        token_id: The token's number, 0 for the one given to `serve`.
        public_key: The client's WireGuard public key, 32 bytes; it has proved that it owns it.
        name: What it wants to be called; printable, may be empty.
        preshared_key: For the new peer, 32 bytes.
        source: The client's address, proven by the cookie.
    """

    session: bytes
    token_id: int
    public_key: bytes
    name: str
    preshared_key: bytes = field(repr=False)
    source: Endpoint


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The client can't use what it was given, and proved that it is the one: take the admission back.

    Attributes:
        public_key: The client's, 32 bytes.
        preshared_key: What it was given, 32 bytes.
        created: Whether the admission made a new peer, as `answer` was told.
        source: Where it is.
        window: The number of the window that it was admitted in.
    """

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    created: bool
    source: Endpoint
    window: int


@dataclass(frozen=True, slots=True)
class Guessed:
    """The count of wrong tokens has changed: make the record durable, then send the reply.

    It comes again when the client repeats its CONFIRM. A record that is on disk needn't be saved again. If its save
    is under way or failed, wait for a save again; otherwise a crash could forget a guess that was answered.

    Attributes:
        record: What has to be on disk.
        token_id: The number of the token that was tried.
        source: The client's address, proven by the cookie. Its /32 or /64 was charged.
        reply: What to send afterwards. None if a charge was refunded, which needs no reply.
    """

    record: GuessRecord
    token_id: int
    source: Endpoint
    reply: Reply | None


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Pairings are begun and never confirmed: report it. Comes for the first one of a window and at each tenfold.

    Attributes:
        count: How many, in this window.
        source: Who began the last one, proven by the cookie.
    """

    count: int
    source: Endpoint


Output = Reply | Admit | Forgotten | Guessed | Abandoned
