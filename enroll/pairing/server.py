"""The server's side of an enrollment: datagrams in, outputs out. It has no socket, no clock and no disk.

The phases of a session, and how long each lasts::

    HELLO ──► CHALLENGE                     no session yet: the cookie holds all there is
    SHARE_C ─► HALF_OPEN ── 15 s ──► gone
                  │   └ CONFIRM before its turn ─► WAITING ── 15 s without another ──► gone
                  ├◄───────────── drawn ──────────────┘
       wrong Ta   │ right Ta
               ┌──┴──────────► ADMITTING ── answer() ──► FINISHED ── 120 s ──► gone
               ▼      ▲           └ forget() ──► HALF_OPEN
            DENIED ───┘ right Ta
               └ 120 s ──► gone

An admission is durable before it is answered. `Admit` asks the caller to choose an address and save, and then
`PairingServer.answer` makes the RESULT. A wrong guess is durable before it is answered too: `Guessed` contains the
RESULT that denies it, to be sent once the record in it is on disk.

A guess is a session, not a datagram. CPace binds a share to at most one password, so all CONFIRMs of one session
together test one token. The first wrong CONFIRM is charged. If the right one follows in the same session, then the
wrong one was no guess (a bit flipped on the way, or somebody else wrote it), and the charge is refunded. So neither
noise on the path nor a stranger's forged CONFIRM spends anyone's budget.

After twenty wrong tokens in a window, only one more is checked every ten seconds (`window.Window.turn`). Sessions
then wait with their CONFIRM for a draw (`draw.Draw`), for as long as their client repeats it. A right CONFIRM is no
guess and uses up no turn.

A run of a client, identified by its nonce_c and key, is admitted once. A CONFIRM of the same run that arrives late,
in a second session, must not replace the preshared key that the client already uses.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from hashlib import sha256, shake_256
from math import inf
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.enroll.pairing import messages
from rustguard_py.enroll.pairing.admission import encode_outcome
from rustguard_py.enroll.pairing.cookies import Cookies
from rustguard_py.enroll.pairing.cpace import Share, generator, intermediate_session_key
from rustguard_py.enroll.pairing.draw import Draw
from rustguard_py.enroll.pairing.key_schedule import (
    Keys,
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
)
from rustguard_py.enroll.pairing.outputs import Abandoned, Admit, Forgotten, Guessed, Output, Reply
from rustguard_py.enroll.pairing.sessions import LIFETIMES, Kem, PairingSession, Phase
from rustguard_py.enroll.pairing.unconfirmed import Unconfirmed
from rustguard_py.enroll.pairing.window import Window
from rustguard_py.model.endpoint import Endpoint, address_of
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.rate_limit import RateLimit, SourceRateLimits, source_of

CHALLENGES_A_SECOND: Final = 20.0
CHALLENGE_BURST: Final = 5
SHARES_A_SECOND: Final = 500.0
SHARE_BURST: Final = 100
HALF_OPEN_SESSIONS: Final = 4096
# At most 20 MiB or so. 120 s of joins at the full rate would be four times as many sessions.
FINISHED_SESSIONS: Final = 16384
# Sources of another revision that are counted. HELLO doesn't prove its source, so the number is a hint.
_OUTDATED = 1000
# Denials remembered per session, 0.3 KB each. A further one is computed again.
_DENIALS = 256
# Bytes in a denial where a RESULT has sealed JSON: one block and the seal's tag.
_DENIAL_SEALED = messages.RESULT_BLOCK + messages.SEAL_OVERHEAD


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
        unconfirmed: Counts the sessions of this window that were begun and never confirmed.
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
        self.unconfirmed = Unconfirmed()
        self._server_id = server_id
        self._static = X25519PrivateKey.from_private_bytes(private_key)
        self._tokens = tokens
        self._random = random
        self._cookies = Cookies(random, now)
        self._denial_key = random(32)
        self._challenges = SourceRateLimits(CHALLENGES_A_SECOND, CHALLENGE_BURST, random)
        self._shares_by_source = SourceRateLimits(CHALLENGES_A_SECOND, CHALLENGE_BURST, random)
        self._shares = RateLimit(SHARES_A_SECOND, SHARE_BURST)
        self._draw = Draw(random)
        self._outdated: set[str] = set()
        self._kem: Kem | None = None
        self._sessions: dict[bytes, PairingSession] = {}
        self._by_share_c: dict[bytes, PairingSession] = {}
        self._runs: dict[tuple[bytes, bytes], PairingSession] = {}
        # Within a phase all sessions last equally long, so the first one in expires first.
        self._phases: dict[Phase, dict[bytes, PairingSession]] = {phase: {} for phase in Phase}

    def handle(self, datagram: bytes, source: Endpoint, now: float) -> list[Output]:
        """Handle a datagram from the network.

        Args:
            datagram: Any bytes of any length. Malformed ones are dropped.
            source: Its sender's socket address.
            now: Monotonic seconds.

        Returns:
            What the caller must do, in this order.
        """
        outputs = self.handle_timeout(now)
        return [*outputs, *self._handle(datagram, source, now)] if outputs else self._handle(datagram, source, now)

    def _handle(self, datagram: bytes, source: Endpoint, now: float) -> list[Output]:
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

    def answer(self, session: bytes, result: Mapping[str, Any], now: float, *, created: bool = False) -> list[Output]:
        """Return the RESULT of an admission that is durable and live, or of a refusal.

        Args:
            session: From `Admit`.
            result: `Admission.to_mapping()`, or `{"status": "full"}` and the like.
            now: Monotonic seconds.
            created: Whether this admission made a new peer; `Forgotten` repeats it.

        Returns:
            The reply to send; empty if the session isn't waiting for an answer.

        Raises:
            ValueError: The result doesn't fit into a datagram (1,152 bytes of JSON). The session still waits.
        """
        waiting = self._phases[Phase.ADMITTING].get(session)
        if waiting is None or waiting.keys is None:
            return []
        sealed = waiting.keys.seal_outcome(encode_outcome(result))
        tag = waiting.keys.server_tag(waiting.answered, sealed)
        waiting.result = Result(session, sealed, tag).encode()
        waiting.answered = sha256(waiting.answered).digest()
        waiting.forget = waiting.keys.forget_tag(session)
        waiting.preshared_key = waiting.keys.psk
        waiting.created = created
        waiting.keys = None
        waiting.isk = b""
        waiting.opening = b""
        waiting.denials = None
        waiting.missed = None
        self._make_room(Phase.FINISHED, FINISHED_SESSIONS)
        self._move(waiting, Phase.FINISHED, now)
        return [Reply(waiting.result, waiting.source)]

    def forget(self, session: bytes, now: float) -> None:
        """Drop an `Admit` that couldn't be saved, so that the client's next CONFIRM asks again."""
        waiting = self._phases[Phase.ADMITTING].get(session)
        if waiting is None:
            return
        waiting.keys = None
        waiting.answered = b""
        del self._runs[waiting.run]
        self._move(waiting, Phase.HALF_OPEN, now)

    def poll_timeout(self) -> float | None:
        """Return when `handle_timeout` must be called to erase what has expired; None for never."""
        due = [next(iter(sessions.values())).expires for sessions in self._phases.values() if sessions]
        if self._draw:
            due.append(self.window.turn)
        if self.window.ends is not None:
            # A plane that guards the pairing has to hear of a new secret in time.
            due += [self.window.ends, self._cookies.due]
        return min((at for at in due if at < inf), default=None)

    def handle_timeout(self, now: float) -> list[Output]:
        """Erase what has expired, and the secrets of a closed window, and hold the draw if it is due.

        It is harmless at any time. Call it after closing the window too, so that its secrets are erased at once.

        Returns:
            What the caller must do, in this order.
        """
        self._cookies.rotate(now)
        outputs: list[Output] = []
        for sessions in self._phases.values():
            while sessions and (oldest := next(iter(sessions.values()))).expires <= now:
                outputs += self._abandon(oldest)
        if not self.window.is_open(now):
            self._kem = None
            for phase in (Phase.HALF_OPEN, Phase.WAITING, Phase.DENIED):
                for session in list(self._phases[phase].values()):
                    self._drop(session)
        elif self._kem is None or self._kem.window != self.window.number:
            self._kem = Kem(self.window.number, self._random)
            self.unconfirmed = Unconfirmed()
            self._outdated.clear()
        return [*outputs, *self._hold_draw(now)] if self._draw else outputs

    @property
    def gate(self) -> PairingGate | None:
        """What a plane needs to guard the pairing; None while the window is closed."""
        return None if self._kem is None else self._cookies.gate(self._server_id)

    @property
    def half_open(self) -> int:
        """How many sessions are waiting for a CONFIRM."""
        return len(self._phases[Phase.HALF_OPEN])

    @property
    def waiting(self) -> int:
        """How many sessions wait for a turn with their CONFIRM."""
        return len(self._draw)

    @property
    def outdated(self) -> int:
        """How many sources asked with another revision of the wire in this window."""
        return len(self._outdated)

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
        if len(self._outdated) < _OUTDATED:
            self._outdated.add(source_of(source))
        return [Reply(Revision(nonce_c).encode(), source)]

    def _handle_share_c(self, datagram: bytes, source: Endpoint, now: float, kem: Kem) -> list[Output]:
        message = ShareC.parse(datagram)
        if message is None:
            return []
        place = (message.nonce_c, message.nonce_s, message.token_id)
        if not self._cookies.check(message.cookie, message.epoch, source, *place):
            return []
        session = self._by_share_c.get(datagram)
        if session is None:
            if not self._may_begin(source, now):
                return []
            session = self._begin(message, datagram, source, kem)
            if session is None:
                return self._count_invalid(source)
            self._keep(session, now)
        return [Reply(session.share_s(), source)]

    def _may_try(self, source: Endpoint, now: float) -> bool:
        return self.window.allows(address_of(source)) and self.window.may_guess(source_of(source), now)

    def _may_begin(self, source: Endpoint, now: float) -> bool:
        # The source's own limits first: a source that is too fast must not use up the overall limits.
        if not self._may_try(source, now):
            return False
        origin = source_of(source)
        if not self._shares_by_source.take(origin, now) or not self.unconfirmed.may_begin(origin, now):
            return False
        return self._shares.take(now)

    def _begin(self, message: ShareC, datagram: bytes, source: Endpoint, kem: Kem) -> PairingSession | None:
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
        return PairingSession(
            session=session_id(message.nonce_c, message.nonce_s, share.public, kem.ek),
            source=source,
            origin=source_of(source),
            token_id=message.token_id,
            nonce_c=message.nonce_c,
            share_c=datagram,
            share=share.public,
            opening=hello.encode() + challenge.encode() + datagram,
            isk=intermediate_session_key(sid, k, message.share, ad, share.public, ad),
            kem=kem,
            ephemeral=ephemeral,
            server_secret=server_secret,
        )

    def _keep(self, session: PairingSession, now: float) -> None:
        # The oldest session is dropped: an honest client finishes in a moment, one who fills the table doesn't.
        self._make_room(Phase.HALF_OPEN, HALF_OPEN_SESSIONS)
        session.unconfirmed = self.unconfirmed
        self.unconfirmed.begin(session.origin)
        self._sessions[session.session] = session
        self._by_share_c[session.share_c] = session
        self._move(session, Phase.HALF_OPEN, now)

    def _count_invalid(self, source: Endpoint) -> list[Output]:
        """Count a share that is none like a session without a CONFIRM: the token was used for it as well."""
        origin = source_of(source)
        self.unconfirmed.begin(origin)
        return [Abandoned(self.unconfirmed.abandoned, source)] if self.unconfirmed.abandon(origin) else []

    def _handle_confirm(self, datagram: bytes, source: Endpoint, now: float) -> list[Output]:
        message = Confirm.parse(datagram)
        session = None if message is None else self._sessions.get(message.session)
        if message is None or session is None or session.source != source:
            return []
        if session.phase is Phase.ADMITTING:
            return []
        digest = sha256(datagram).digest()
        if session.phase is Phase.FINISHED:
            # Also after the window closed: the admission is durable, so the client gets its answer.
            return [Reply(session.result, source)] if digest == session.answered else []
        if session.denials is not None and digest in session.denials:
            return [self._guessed(session, session.denials[digest])]
        if not session.is_tested():
            # Checked again here: many sessions may have been opened before the first one failed.
            if not self._may_try(session.source, now):
                return []
            if self.window.turn > now:
                self._wait(session, datagram, now)
                return []
        return self._evaluate(session, message, datagram, now)

    def _wait(self, session: PairingSession, datagram: bytes, now: float) -> None:
        """Let a session wait for its turn; it lasts while its client repeats the CONFIRM."""
        if not self._draw.put(session.origin, session.session, datagram):
            return
        if session.phase is not Phase.WAITING:
            self._make_room(Phase.WAITING, HALF_OPEN_SESSIONS)
        self._move(session, Phase.WAITING, now)

    def _hold_draw(self, now: float) -> list[Output]:
        """Evaluate CONFIRMs that waited, until a wrong one has used up the turn."""
        outputs: list[Output] = []
        while self.window.turn <= now and (drawn := self._draw.take(self.window.guesses_of)) is not None:
            session = self._phases[Phase.WAITING].get(drawn[0])
            message = Confirm.parse(drawn[1])
            if session is not None and message is not None and self._may_try(session.source, now):
                outputs += self._evaluate(session, message, drawn[1], now)
        return outputs

    def _evaluate(self, session: PairingSession, message: Confirm, datagram: bytes, now: float) -> list[Output]:
        # Not before: in a CONFIRM that nobody looks at anything may stand, at no cost to its sender.
        if session.unconfirmed is not None:
            session.unconfirmed.confirm(session.origin)
            session.unconfirmed = None
        digest = sha256(datagram).digest()
        if not session.may_evaluate(digest, now):
            return []
        checked = session.check(message)
        if checked is None:
            return [self._deny(session, digest, now)]
        return self._admit(session, datagram, *checked, now)

    def _handle_forget(self, datagram: bytes, source: Endpoint) -> list[Output]:
        message = Forget.parse(datagram)
        session = None if message is None else self._phases[Phase.FINISHED].get(message.session)
        if message is None or session is None or session.source != source:
            return []
        if not hmac.compare_digest(session.forget, message.tag):
            return []
        return [Forgotten(session.public_key, session.preshared_key, session.created, source, session.window)]

    def _deny(self, session: PairingSession, digest: bytes, now: float) -> Guessed:
        # In a session that was right once, a wrong CONFIRM is noise.
        if not session.is_tested():
            session.charged = self.window.number
            self.window.charge(session.origin, now)
            self._move(session, Phase.DENIED, now)
        # Random bytes in place of a seal and Tb: the client sees a wrong Tb and learns nothing else. The same CONFIRM
        # always has the same ones, also if its denial isn't remembered.
        noise = shake_256(self._denial_key + session.session + digest).digest(_DENIAL_SEALED + messages.TAG_SIZE)
        denial = Result(session.session, noise[:_DENIAL_SEALED], noise[_DENIAL_SEALED:]).encode()
        if session.denials is None:
            session.denials = {}
        if len(session.denials) < _DENIALS:
            session.denials[digest] = denial
        return self._guessed(session, denial)

    def _guessed(self, session: PairingSession, denial: bytes | None) -> Guessed:
        reply = None if denial is None else Reply(denial, session.source)
        return Guessed(self.window.record, session.token_id, session.source, reply)

    def _admit(
        self, session: PairingSession, datagram: bytes, details: Details, keys: Keys, now: float
    ) -> list[Output]:
        if (session.nonce_c, details.public_key) in self._runs:
            return []
        outputs: list[Output] = []
        if session.charged is not None:
            if session.charged == self.window.number:
                self.window.refund(session.origin)
                outputs.append(self._guessed(session, None))
            session.charged = None
        session.proved = True
        session.keys = keys
        session.public_key = details.public_key
        session.answered = datagram
        session.window = self.window.number
        self._runs[session.run] = session
        self._move(session, Phase.ADMITTING, now)
        admit = Admit(session.session, session.token_id, details.public_key, details.name, keys.psk, session.source)
        return [*outputs, admit]

    def _move(self, session: PairingSession, phase: Phase, now: float) -> None:
        self._phases[session.phase].pop(session.session, None)
        session.phase = phase
        session.expires = now + LIFETIMES[phase]
        self._phases[phase][session.session] = session

    def _make_room(self, phase: Phase, limit: int) -> None:
        sessions = self._phases[phase]
        if len(sessions) >= limit:
            self._drop(next(iter(sessions.values())))

    def _abandon(self, session: PairingSession) -> list[Output]:
        """Drop a session that nothing more came for."""
        self._drop(session)
        # One that waited in vain for its turn did confirm; it stays counted among those that slow its source.
        counter = session.unconfirmed if session.phase is Phase.HALF_OPEN else None
        if counter is None or not counter.abandon(session.origin):
            return []
        return [Abandoned(counter.abandoned, session.source)]

    def _drop(self, session: PairingSession) -> None:
        self._draw.remove(session.origin, session.session)
        self._phases[session.phase].pop(session.session, None)
        self._sessions.pop(session.session, None)
        self._by_share_c.pop(session.share_c, None)
        if self._runs.get(session.run) is session:
            del self._runs[session.run]
