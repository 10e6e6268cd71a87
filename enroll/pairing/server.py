"""The server's side of an enrollment: datagrams in, outputs out. It has no socket, no clock and no disk.

The phases of a session, and how long each lasts::

    HELLO ──► CHALLENGE                     no session yet: the cookie holds all there is
    SHARE_C ─► HALF_OPEN ── 15 s ──► gone
                  │  │
       wrong Ta   │  └ right Ta ─► ADMITTING ── answer() ──► FINISHED ── 120 s ──► gone
                  ▼        ▲           │
               DENIED ─────┘           └ forget() ──► HALF_OPEN
                  └ 120 s ──► gone

An admission is durable before it is answered. `Admit` asks the caller to choose an address and save, and then
`PairingServer.answer` makes the RESULT. A wrong guess is durable before it is answered too: `Guessed` contains the
RESULT that denies it, to be sent once the record in it is on disk.

A guess is a session, not a datagram. CPace binds a share to at most one password, so all CONFIRMs of one session
together test one token. The first wrong CONFIRM is charged. If the right one follows in the same session, then the
wrong one was no guess (a bit flipped on the way, or somebody else wrote it), and the charge is refunded. So neither
noise on the path nor a stranger's forged CONFIRM spends anyone's budget.

A run of a client, identified by its nonce_c, is admitted once. A CONFIRM of the same run that arrives late, in a
second session, must not replace the preshared key that the client already uses.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256, shake_256
from math import inf
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.enroll.pairing import messages
from rustguard_py.enroll.pairing.cookies import Cookies, source_of
from rustguard_py.enroll.pairing.cpace import Share, generator, intermediate_session_key
from rustguard_py.enroll.pairing.key_schedule import (
    Keys,
    Opening,
    associated_data,
    channel_identifier,
    session_id,
    shared_secret,
)
from rustguard_py.enroll.pairing.messages import (
    Challenge,
    Confirm,
    Details,
    Forget,
    Hello,
    Result,
    Revision,
    ShareC,
    ShareS,
)
from rustguard_py.enroll.pairing.rate_limit import RateLimit, SourceRateLimits
from rustguard_py.enroll.pairing.window import Window
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.state.records import GuessRecord

CHALLENGES_A_SECOND: Final = 20.0
CHALLENGE_BURST: Final = 5
SHARES_A_SECOND: Final = 500.0
SHARE_BURST: Final = 100
HALF_OPEN_SESSIONS: Final = 4096
HALF_OPEN_SECONDS: Final = 15.0
REPLY_SECONDS: Final = 120.0
# At most 20 MiB or so. 120 s of joins at the full rate would be four times as many sessions.
FINISHED_SESSIONS: Final = 16384
# CONFIRMs evaluated per session: at once, and per second. Noise and forgeries use up some, so a flood of forgeries
# delays the right one, but doesn't end the session. An evaluation takes about 0.3 ms.
_EVALUATIONS = 32
_EVALUATIONS_A_SECOND = 128.0
# Denials remembered per session. A further one is computed again.
_DENIALS = 32
# Bytes in a denial where a RESULT has sealed JSON: one block and the seal's tag.
_DENIAL_SEALED = messages.RESULT_BLOCK + messages.SEAL_OVERHEAD


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this datagram there."""

    datagram: bytes
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class Admit:
    """A client proved that it knows a token: choose an address and a name, make that durable and live, then answer.

    Call `answer` when that is done, also for a refusal such as "full", or `forget` if it couldn't be saved. The same
    key may join again with another preshared key. The latest one counts.

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
        source: Where it is.
    """

    public_key: bytes
    source: Endpoint


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


Output = Reply | Admit | Forgotten | Guessed


class _Phase(Enum):
    HALF_OPEN = "waiting for a CONFIRM"
    DENIED = "got a wrong CONFIRM"
    ADMITTING = "waiting for the caller to save"
    FINISHED = "answered"


_LIFETIMES = {
    _Phase.HALF_OPEN: HALF_OPEN_SECONDS,
    _Phase.DENIED: REPLY_SECONDS,
    _Phase.ADMITTING: inf,
    _Phase.FINISHED: REPLY_SECONDS,
}


class _Kem:
    """The ML-KEM-768 key of one window."""

    __slots__ = ("ek", "private", "window")

    def __init__(self, window: int, random: Callable[[int], bytes]) -> None:
        self.window = window
        self.private = MLKEM768PrivateKey.from_seed_bytes(random(64))
        self.ek = self.private.public_key().public_bytes_raw()


@dataclass(slots=True, eq=False, repr=False)
class _PairingSession:
    """One SHARE_C and everything that followed it.

    Attributes:
        opening: Messages 1 to 3; with `share_s` the transcript.
        share_c: Message 3 alone; the session is found by it when it is repeated.
        ephemeral: The server's key pair that the CHALLENGE named.
        server_secret: X25519 of the server's static and the client's ephemeral key, or empty.
        public_key: The client's, once it has proved that it owns it.
        forget: The tag that takes the admission back, once it was answered.
        keys: Those of the CONFIRM that is being admitted.
        answered: That CONFIRM; after the answer its SHA-256.
        charged: The window in which this session was counted as a wrong guess.
        denials: Replies to wrong CONFIRMs, by the SHA-256 of each.
    """

    session: bytes
    source: Endpoint
    token_id: int
    nonce_c: bytes
    share_c: bytes
    share: bytes
    opening: bytes
    isk: bytes
    kem: _Kem
    ephemeral: X25519PrivateKey
    server_secret: bytes
    phase: _Phase
    expires: float = inf
    keys: Keys | None = None
    answered: bytes = b""
    result: bytes = b""
    public_key: bytes = b""
    forget: bytes = b""
    charged: int | None = None
    evaluations: RateLimit = field(default_factory=lambda: RateLimit(_EVALUATIONS_A_SECOND, _EVALUATIONS))
    denials: dict[bytes, bytes] | None = None

    def share_s(self) -> bytes:
        return ShareS(self.session, self.share, self.kem.ek).encode()


class PairingServer:
    """Pairs clients while its window is open, and is silent otherwise.

    Args:
        server_id: 32 random bytes that the state keeps.
        private_key: The server's WireGuard key, 32 bytes.
        tokens: The stretched tokens (`key_schedule.stretch`) by number. Read at each SHARE_C, so it may change.
        window: The pairing window; the caller opens and closes it; guesses are charged here.
        random: Returns the requested number of random bytes.
        now: Monotonic seconds.

    Attributes:
        window: The same.
        outdated: HELLOs of other revisions that were answered while the window was open.
    """

    def __init__(
        self,
        server_id: bytes,
        private_key: bytes,
        tokens: Mapping[int, bytes],
        window: Window,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        self.window = window
        self.outdated = 0
        self._server_id = server_id
        self._static = X25519PrivateKey.from_private_bytes(private_key)
        self._tokens = tokens
        self._random = random
        self._cookies = Cookies(random, now)
        self._denial_key = random(32)
        self._challenges = SourceRateLimits(CHALLENGES_A_SECOND, CHALLENGE_BURST, random)
        self._shares_by_source = SourceRateLimits(CHALLENGES_A_SECOND, CHALLENGE_BURST, random)
        self._shares = RateLimit(SHARES_A_SECOND, SHARE_BURST)
        self._kem: _Kem | None = None
        self._sessions: dict[bytes, _PairingSession] = {}
        self._by_share_c: dict[bytes, _PairingSession] = {}
        self._runs: dict[bytes, _PairingSession] = {}
        # Within a phase all sessions last equally long, so the first one in expires first.
        self._phases: dict[_Phase, dict[bytes, _PairingSession]] = {phase: {} for phase in _Phase}

    def handle(self, datagram: bytes, source: Endpoint, now: float) -> list[Output]:
        """Handle a datagram from the network.

        Args:
            datagram: Any bytes of any length. Malformed ones are dropped.
            source: Its sender's socket address.
            now: Monotonic seconds.

        Returns:
            What the caller must do, in this order.
        """
        self.handle_timeout(now)
        kind = messages.kind_of(datagram)
        if kind == messages.CONFIRM:
            return self._handle_confirm(datagram, source, now)
        if kind == messages.FORGET:
            return self._handle_forget(datagram, source)
        if self._kem is None:
            return []
        if kind == messages.HELLO:
            return self._handle_hello(datagram, source, now)
        if kind == messages.SHARE_C:
            return self._handle_share_c(datagram, source, now, self._kem)
        return self._handle_other_revision(datagram, source, now)

    def answer(self, session: bytes, result: Mapping[str, Any], now: float) -> list[Output]:
        """Return the RESULT of an admission that is durable and live, or of a refusal.

        Args:
            session: From `Admit`.
            result: `messages.Admission.to_mapping()`, or `{"status": "full"}` and the like.
            now: Monotonic seconds.

        Returns:
            The reply to send; empty if the session isn't waiting for an answer.

        Raises:
            ValueError: The result doesn't fit into a datagram (1,152 bytes of JSON). The session still waits.
        """
        waiting = self._phases[_Phase.ADMITTING].get(session)
        if waiting is None or waiting.keys is None:
            return []
        sealed = waiting.keys.seal_outcome(messages.encode_outcome(result))
        tag = waiting.keys.server_tag(waiting.answered, sealed)
        waiting.result = Result(session, sealed, tag).encode()
        waiting.answered = sha256(waiting.answered).digest()
        waiting.forget = waiting.keys.forget_tag(session)
        waiting.keys = None
        waiting.isk = b""
        waiting.opening = b""
        waiting.denials = None
        self._make_room(_Phase.FINISHED, FINISHED_SESSIONS)
        self._move(waiting, _Phase.FINISHED, now)
        return [Reply(waiting.result, waiting.source)]

    def forget(self, session: bytes, now: float) -> None:
        """Drop an `Admit` that couldn't be saved, so that the client's next CONFIRM asks again."""
        waiting = self._phases[_Phase.ADMITTING].get(session)
        if waiting is None:
            return
        waiting.keys = None
        waiting.answered = b""
        del self._runs[waiting.nonce_c]
        self._move(waiting, _Phase.HALF_OPEN, now)

    def poll_timeout(self) -> float | None:
        """Return when `handle_timeout` must be called to erase what has expired; None for never."""
        due = [next(iter(sessions.values())).expires for sessions in self._phases.values() if sessions]
        if self.window.ends is not None:
            due.append(self.window.ends)
        return min((at for at in due if at < inf), default=None)

    def handle_timeout(self, now: float) -> None:
        """Erase what has expired, and the secrets of a closed window. Harmless at any time.

        Call it right after closing the window too, so that its secrets are erased at once.
        """
        self._cookies.rotate(now)
        for sessions in self._phases.values():
            while sessions and (oldest := next(iter(sessions.values()))).expires <= now:
                self._drop(oldest)
        if not self.window.is_open(now):
            self._kem = None
            for phase in (_Phase.HALF_OPEN, _Phase.DENIED):
                for session in list(self._phases[phase].values()):
                    self._drop(session)
        elif self._kem is None or self._kem.window != self.window.number:
            self._kem = _Kem(self.window.number, self._random)

    @property
    def half_open(self) -> int:
        """How many sessions are waiting for a CONFIRM."""
        return len(self._phases[_Phase.HALF_OPEN])

    def _handle_hello(self, datagram: bytes, source: Endpoint, now: float) -> list[Output]:
        hello = Hello.parse(datagram)
        if hello is None or not self._challenges.take(source_of(source), now):
            return []
        nonce_s = self._random(messages.NONCE_SIZE)
        cookie = self._cookies.make(source, hello.nonce_c, nonce_s, hello.token_id)
        ephemeral = self._cookies.ephemeral.public_key().public_bytes_raw()
        challenge = Challenge(hello.nonce_c, nonce_s, self._cookies.epoch, cookie, self._server_id, ephemeral)
        return [Reply(challenge.encode(), source)]

    def _handle_other_revision(self, datagram: bytes, source: Endpoint, now: float) -> list[Output]:
        nonce_c = messages.other_revision(datagram)
        if nonce_c is None or not self._challenges.take(source_of(source), now):
            return []
        self.outdated += 1
        return [Reply(Revision(nonce_c).encode(), source)]

    def _handle_share_c(self, datagram: bytes, source: Endpoint, now: float, kem: _Kem) -> list[Output]:
        message = ShareC.parse(datagram)
        if message is None:
            return []
        place = (message.nonce_c, message.nonce_s, message.token_id)
        if not self._cookies.check(message.cookie, message.epoch, source, *place):
            return []
        session = self._by_share_c.get(datagram)
        if session is None:
            if not self._may_begin(source_of(source), now):
                return []
            session = self._begin(message, datagram, source, kem)
            if session is None:
                return []
            self._keep(session, now)
        return [Reply(session.share_s(), source)]

    def _may_begin(self, origin: str, now: float) -> bool:
        # The source's own limit first: a source that is too fast must not use up the overall limit.
        if not self.window.may_guess(origin, now):
            return False
        return self._shares_by_source.take(origin, now) and self._shares.take(now)

    def _begin(self, message: ShareC, datagram: bytes, source: Endpoint, kem: _Kem) -> _PairingSession | None:
        """Run the server's half of CPace; None for an invalid share or ephemeral key."""
        ephemeral = self._cookies.ephemeral_of(message.epoch)
        server_secret: bytes | None = b""
        if message.flags & messages.KNOWS_SERVER:
            server_secret = shared_secret(self._static, message.ephemeral)
        if ephemeral is None or server_secret is None:
            return None
        hello = Hello(message.nonce_c, message.token_id)
        challenge = Challenge(
            message.nonce_c,
            message.nonce_s,
            message.epoch,
            message.cookie,
            self._server_id,
            ephemeral.public_key().public_bytes_raw(),
        )
        # An unknown token is handled like a known one, with a secret that nobody has.
        unknown = self._random(32)
        prs = self._tokens.get(message.token_id, unknown)
        sid = message.nonce_c + message.nonce_s
        share = Share(generator(prs, channel_identifier(self._server_id, message.token_id), sid), self._random)
        k = share.exchange(message.share)
        if k is None:
            return None
        ad = associated_data(hello, challenge)
        return _PairingSession(
            session=session_id(message.nonce_c, message.nonce_s, share.public, kem.ek),
            source=source,
            token_id=message.token_id,
            nonce_c=message.nonce_c,
            share_c=datagram,
            share=share.public,
            opening=hello.encode() + challenge.encode() + datagram,
            isk=intermediate_session_key(sid, k, message.share, ad, share.public, ad),
            kem=kem,
            ephemeral=ephemeral,
            server_secret=server_secret,
            phase=_Phase.HALF_OPEN,
        )

    def _keep(self, session: _PairingSession, now: float) -> None:
        # The oldest session is dropped: an honest client finishes in a moment, one who fills the table doesn't.
        self._make_room(_Phase.HALF_OPEN, HALF_OPEN_SESSIONS)
        self._sessions[session.session] = session
        self._by_share_c[session.share_c] = session
        self._move(session, _Phase.HALF_OPEN, now)

    def _handle_confirm(self, datagram: bytes, source: Endpoint, now: float) -> list[Output]:
        message = Confirm.parse(datagram)
        session = None if message is None else self._sessions.get(message.session)
        if message is None or session is None or session.source != source:
            return []
        if session.phase is _Phase.ADMITTING:
            return []
        digest = sha256(datagram).digest()
        if session.phase is _Phase.FINISHED:
            # Also after the window closed: the admission is durable, so the client gets its answer.
            return [Reply(session.result, source)] if digest == session.answered else []
        if session.denials is not None and digest in session.denials:
            return [self._guessed(session, session.denials[digest])]
        if not self._may_evaluate(session, now):
            return []
        checked = self._check(session, message)
        if checked is None:
            return [self._deny(session, digest, now)]
        return self._admit(session, datagram, *checked, now)

    def _may_evaluate(self, session: _PairingSession, now: float) -> bool:
        # Checked again here: many sessions may have been opened before the first one failed.
        if session.charged is None and not self.window.may_guess(source_of(session.source), now):
            return False
        return session.evaluations.take(now)

    def _check(self, session: _PairingSession, message: Confirm) -> tuple[Details, Keys] | None:
        """Open the details, derive the keys and check Ta: the token is right, and the client owns its key."""
        ss = session.kem.private.decapsulate(message.ct)
        transcript = session.opening + session.share_s()
        opening = Opening.derive(transcript, message.ct, session.isk, ss, session.server_secret)
        plaintext = opening.open_details(message.sealed)
        details = None if plaintext is None else Details.parse(plaintext)
        client_secret = None if details is None else shared_secret(session.ephemeral, details.public_key)
        if details is None or client_secret is None:
            return None
        keys = opening.keys(client_secret)
        return (details, keys) if hmac.compare_digest(keys.client_tag(message.sealed), message.tag) else None

    def _handle_forget(self, datagram: bytes, source: Endpoint) -> list[Output]:
        message = Forget.parse(datagram)
        session = None if message is None else self._phases[_Phase.FINISHED].get(message.session)
        if message is None or session is None or session.source != source:
            return []
        if not hmac.compare_digest(session.forget, message.tag):
            return []
        return [Forgotten(session.public_key, source)]

    def _deny(self, session: _PairingSession, digest: bytes, now: float) -> Guessed:
        if session.charged is None:
            session.charged = self.window.number
            self.window.charge(source_of(session.source))
            self._move(session, _Phase.DENIED, now)
        # Random bytes in place of a seal and Tb: the client sees a wrong Tb and learns nothing else. The same CONFIRM
        # always has the same ones, also if its denial isn't remembered.
        noise = shake_256(self._denial_key + session.session + digest).digest(_DENIAL_SEALED + messages.TAG_SIZE)
        denial = Result(session.session, noise[:_DENIAL_SEALED], noise[_DENIAL_SEALED:]).encode()
        if session.denials is None:
            session.denials = {}
        if len(session.denials) < _DENIALS:
            session.denials[digest] = denial
        return self._guessed(session, denial)

    def _guessed(self, session: _PairingSession, denial: bytes | None) -> Guessed:
        reply = None if denial is None else Reply(denial, session.source)
        return Guessed(self.window.record, session.token_id, session.source, reply)

    def _admit(
        self, session: _PairingSession, datagram: bytes, details: Details, keys: Keys, now: float
    ) -> list[Output]:
        if session.nonce_c in self._runs:
            return []
        outputs: list[Output] = []
        if session.charged is not None:
            if session.charged == self.window.number:
                self.window.refund(source_of(session.source))
                outputs.append(self._guessed(session, None))
            session.charged = None
        session.keys = keys
        session.public_key = details.public_key
        session.answered = datagram
        self._runs[session.nonce_c] = session
        self._move(session, _Phase.ADMITTING, now)
        admit = Admit(session.session, session.token_id, details.public_key, details.name, keys.psk, session.source)
        return [*outputs, admit]

    def _move(self, session: _PairingSession, phase: _Phase, now: float) -> None:
        self._phases[session.phase].pop(session.session, None)
        session.phase = phase
        session.expires = now + _LIFETIMES[phase]
        self._phases[phase][session.session] = session

    def _make_room(self, phase: _Phase, limit: int) -> None:
        sessions = self._phases[phase]
        if len(sessions) >= limit:
            self._drop(next(iter(sessions.values())))

    def _drop(self, session: _PairingSession) -> None:
        self._phases[session.phase].pop(session.session, None)
        self._sessions.pop(session.session, None)
        self._by_share_c.pop(session.share_c, None)
        if self._runs.get(session.nonce_c) is session:
            del self._runs[session.nonce_c]
