"""The client's side of an enrollment: datagrams in, datagrams and one outcome out; no socket, no clock.

::

    HELLO ──► CHALLENGE ──► SHARE_C ──► SHARE_S ──► CONFIRM ──► RESULT ──► Joined | Failed

Each step is sent again, the same bytes, about once a second and ten times at most; once somebody has answered, after
up to two seconds and sixteen times, so that a crowd is through before any of it gives up.

What others can do to it. Off the path nobody knows nonce_c, so nothing they send is looked at twice. On the path
anybody may write CHALLENGEs, SHARE_Ss and RESULTs, faster than the server does. Therefore nothing that isn't
authenticated ends the join: a CHALLENGE or SHARE_S that leads nowhere is put beside the ones that come later, and
those are tried when the first stays unanswered. Within reason: `MAX_CHALLENGES` of the first, `MAX_SERVER_IDS`
different servers (each costs a stretching), and `MAX_CONFIRMS` CONFIRMs, because each CONFIRM lets the one who
made the SHARE_S test one token. Who can also stop packets can of course stop the join.

A wrong Tb may be the other end's word for a wrong token, a garbled RESULT, a forged one, or the consequence of a
CHALLENGE or SHARE_C that was garbled on the way. So all is asked once more: the same RESULT again rules a garbled
one out, the same SHARE_S again says that our share arrived as it was sent, another CHALLENGE of the same server_id
that we stretched the token for the right server. Only then, and after the server had the time to give a right
answer, does the join end. That costs no second guess.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from rustguard_py.enroll.pairing import messages
from rustguard_py.enroll.pairing.cpace import Share, generator, intermediate_session_key
from rustguard_py.enroll.pairing.key_schedule import Keys, associated_data, channel_identifier, session_id, stretch
from rustguard_py.enroll.pairing.messages import (
    Admission,
    Challenge,
    Confirm,
    Details,
    Hello,
    Result,
    ShareC,
    ShareS,
    parse_outcome,
)
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, RustGuardError, UnansweredError, UsageError
from rustguard_py.model.keys import fingerprint, parse_fingerprint

RETRANSMIT_SECONDS: Final = 1.0
RETRANSMISSIONS: Final = 10
MAX_CHALLENGES: Final = 8
MAX_SERVER_IDS: Final = 3
MAX_CONFIRMS: Final = 3
# Once somebody answers, each wait is longer by this, up to so long, and there are so many: a crowd drains at the
# server's 500 shares a second, and who asks too seldom lets it wait in vain.
_BACKOFF = 1.2
_LONGEST_SECONDS = 2.0
_PATIENT_RETRANSMISSIONS = 16
_JITTER = 0.25
# After a first wrong Tb: how soon to ask again, and how often before believing it without the full proof.
_RECHECK_SECONDS = 0.5
_RECHECKS = 6


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this datagram.

    Attributes:
        destination: Where; None for every place where the server may be (each address, and its other port).
    """

    datagram: bytes
    destination: Endpoint | None


@dataclass(frozen=True, slots=True)
class Joined:
    """The server took us in, and proved that it knows the token.

    Attributes:
        admission: What it gave us; `admission.server_key` is its public key.
        preshared_key: For the WireGuard peer, 32 bytes.
        server: The socket address that answered.
    """

    admission: Admission
    preshared_key: bytes = field(repr=False)
    server: Endpoint


class Failure(Enum):
    """Why a join ended."""

    SILENT = "nobody answered"
    IGNORED = "the server is there and open, and then stopped answering"
    UNCONFIRMED = "the server never answered the confirmation"
    WRONG_TOKEN = "the other end doesn't know the token"  # noqa: S105 - not a secret, the lack of one
    WRONG_SERVER = "the server has another key than expected"
    FULL = "the server's pool is full"
    REVOKED = "the server has revoked this key"
    INVITE_USED = "the invite has been used"
    INCOMPATIBLE = "the server's answer isn't understood"


@dataclass(frozen=True, slots=True)
class Failed:
    """The join ended without a peer.

    Attributes:
        failure: Why.
        detail: A sentence more, where there is one: the fingerprint met, the status not understood.
    """

    failure: Failure
    detail: str = ""

    def error(self) -> RustGuardError:
        """Make the error that tells a person what happened and what fixes it."""
        kind, message, fix = _ERRORS[self.failure]
        return kind(f"{message} {self.detail}".rstrip(), fix)


_ERRORS: Final[dict[Failure, tuple[type[RustGuardError], str, str]]] = {
    Failure.SILENT: (
        UnansweredError,
        "Nobody answered: either there is no server at this address and port, or its pairing window is closed.",
        "On the server, run: rustguard open 60",
    ),
    Failure.IGNORED: (
        UnansweredError,
        "The server answered, then fell silent: its window closed meanwhile, it is crowded, or there were too many "
        "wrong tokens from this address.",
        "On the server, look at: rustguard status; then run: rustguard open 60",
    ),
    Failure.UNCONFIRMED: (
        UnansweredError,
        "The server went through the pairing with us but never confirmed it: its window closed meanwhile, it can't "
        "save its state, or large datagrams don't get through.",
        "On the server, look at: rustguard status; then join again, which gives the same address.",
    ),
    Failure.WRONG_TOKEN: (
        RefusedError,
        "The other end doesn't know this token.",
        "Check the token with whoever runs the server; each wrong try is counted there.",
    ),
    Failure.WRONG_SERVER: (
        RefusedError,
        "Somebody who knows the token answered, but with another key than the expected server's.",
        "Compare with the line that `rustguard serve` printed; if the server was set up anew, give its new "
        "fingerprint with --server.",
    ),
    Failure.FULL: (
        RefusedError,
        "The server's pool has no address left.",
        "On the server, run: rustguard peers revoke NAME; or serve a larger --pool.",
    ),
    Failure.REVOKED: (
        RefusedError,
        "The server has revoked this machine's key.",
        "Ask whoever runs the server, or join with a new key.",
    ),
    Failure.INVITE_USED: (RefusedError, "This invite has been used already.", "Ask for another one."),
    Failure.INCOMPATIBLE: (
        RefusedError,
        "The server's answer isn't understood, so it is probably newer than this program.",
        "Update rustguard here.",
    ),
}
_REFUSALS: Final = {
    "full": Failure.FULL,
    "revoked": Failure.REVOKED,
    "invite-used": Failure.INVITE_USED,
}


@dataclass(slots=True, eq=False, repr=False)
class _Attempt:
    """One CHALLENGE that was taken up."""

    challenge: Challenge
    server: Endpoint
    share: Share
    share_c: bytes


@dataclass(slots=True, eq=False, repr=False)
class _Confirmation:
    """One SHARE_S that was confirmed.

    Attributes:
        denials: RESULTs with a wrong Tb that came; the same one twice is no accident.
        denied: Whether that happened.
        echoed: Whether the SHARE_S came again after the first denial: our share had arrived ungarbled.
    """

    attempt: _Attempt
    session: bytes
    keys: Keys
    confirm: bytes
    denials: set[bytes] = field(default_factory=set)
    denied: bool = False
    echoed: bool = False


class PairingClient:
    """Joins a server: `poll_transmit` after each call gives what to send, `outcome` ends it.

    Args:
        token: As the person typed it.
        public_key: Our WireGuard public key, 32 bytes.
        name: What to be called, at most 45 bytes of printable UTF-8; "" leaves it to the server.
        random: Gives so many random bytes.
        now: Monotonic seconds.
        token_id: 0, or the number of an invite.
        expected: The fingerprint given with `--server`; case, spaces and dashes don't matter.
        known_server: The server's public key kept from an earlier join.
        stretching: `schedule.stretch`; called once for each server that answers, about 80 ms.

    Attributes:
        outcome: None until the join has ended.

    Raises:
        UsageError: The name or the fingerprint can't be meant.
    """

    def __init__(
        self,
        token: str,
        public_key: bytes,
        name: str,
        random: Callable[[int], bytes],
        now: float,
        *,
        token_id: int = 0,
        expected: str | None = None,
        known_server: bytes | None = None,
        stretching: Callable[[str, bytes], bytes] = stretch,
    ) -> None:
        try:
            self._details = Details(public_key, name).encode()
        except ValueError as error:
            raise UsageError(f"{name!r} can't be a name: {error}.", "Give another with --name.") from error
        self._token = token
        self._token_id = token_id
        self._random = random
        self._stretching = stretching
        self._expected = None if expected is None else parse_fingerprint(expected)
        self._known_server = known_server
        self._stretched: dict[bytes, bytes] = {}
        self._hello = Hello(random(messages.NONCE_SIZE), token_id)
        self._spare_challenges: list[tuple[Challenge, Endpoint]] = []
        self._attempts: list[_Attempt] = []
        self._spare_shares: list[tuple[ShareS, _Attempt]] = []
        self._confirmations: list[_Confirmation] = []
        self._transmits: deque[Transmit] = deque([Transmit(self._hello.encode(), None)])
        self._tries = 0
        self._deadline = now + self._interval()
        self.outcome: Joined | Failed | None = None

    def poll_transmit(self) -> Transmit | None:
        """Give the next datagram to send, or None for now."""
        return self._transmits.popleft() if self._transmits else None

    def poll_timeout(self) -> float | None:
        """When to call `handle_timeout`; None once the join has ended."""
        return None if self.outcome is not None else self._deadline

    def handle(self, datagram: bytes, source: Endpoint, now: float) -> None:
        """Take a datagram that came in; what is malformed, strange or forged changes nothing."""
        if self.outcome is not None:
            return
        kind = messages.kind_of(datagram)
        if kind == messages.CHALLENGE:
            self._handle_challenge(datagram, source, now)
        elif kind == messages.SHARE_S:
            self._handle_share_s(datagram, now)
        elif kind == messages.RESULT:
            self._handle_result(datagram, now)

    def handle_timeout(self, now: float) -> None:
        """Send again what stayed unanswered, or give up."""
        if self.outcome is not None or now < self._deadline:
            return
        denials = any(confirmation.denials for confirmation in self._confirmations)
        if self._confirmations and all(map(self._is_settled, self._confirmations)):
            self._end(Failed(Failure.WRONG_TOKEN))
        elif self._tries >= (_RECHECKS if denials else self._retransmissions()):
            self._end(Failed(Failure.WRONG_TOKEN if denials else self._silence()))
        else:
            self._tries += 1
            self._deadline = now + (_RECHECK_SECONDS if denials else self._interval())
            self._retransmit()

    def _is_settled(self, confirmation: _Confirmation) -> bool:
        """Tell whether nothing but a wrong token explains the denials."""
        server_id = confirmation.attempt.challenge.server_id
        vouchers = sum(challenge.server_id == server_id for challenge, _ in self._challenges())
        return confirmation.denied and confirmation.echoed and vouchers > 1

    def _challenges(self) -> list[tuple[Challenge, Endpoint]]:
        return [(attempt.challenge, attempt.server) for attempt in self._attempts] + self._spare_challenges

    def _silence(self) -> Failure:
        if self._confirmations:
            return Failure.UNCONFIRMED
        return Failure.IGNORED if self._attempts else Failure.SILENT

    def _retransmissions(self) -> int:
        return _PATIENT_RETRANSMISSIONS if self._attempts else RETRANSMISSIONS

    def _interval(self) -> float:
        fraction = int.from_bytes(self._random(2), "little") / 65536
        wait = RETRANSMIT_SECONDS * (_BACKOFF**self._tries if self._attempts else 1.0)
        return min(wait, _LONGEST_SECONDS) * (1 + _JITTER * fraction)

    def _progress(self, now: float) -> None:
        """A new step begins, with tries of its own."""
        self._tries = 0
        self._deadline = now + self._interval()

    def _retransmit(self) -> None:
        """Send the last step again, and the earlier ones when that doesn't help.

        The first answer that we took up may have been garbled or forged, or the server gave the session up.
        """
        if self._spare_shares and len(self._confirmations) < MAX_CONFIRMS:
            self._confirm(*self._spare_shares.pop(0))
        else:
            self._take_up_spare()
        for confirmation in self._confirmations:
            self._transmits.append(Transmit(confirmation.confirm, confirmation.attempt.server))
        denials = any(confirmation.denials for confirmation in self._confirmations)
        if not self._confirmations or denials or self._tries >= 2:
            for attempt in self._attempts:
                self._transmits.append(Transmit(attempt.share_c, attempt.server))
        # Seldom once somebody has answered: in a crowd others still wait for their first answer.
        if not self._attempts or denials or (self._tries % 5 == 4 and not self._confirmations):
            self._transmits.append(Transmit(self._hello.encode(), None))

    def _take_up_spare(self) -> None:
        """Try another CHALLENGE: any while no SHARE_S has come, one of another server once we were denied.

        Another than those that denied: one whose SHARE_S has not come either may have been garbled elsewhere.
        """
        denying = {confirmation.attempt.challenge.server_id for confirmation in self._confirmations}
        denied = all(confirmation.denials for confirmation in self._confirmations)
        for spare in self._spare_challenges:
            if denied and spare[0].server_id not in denying:
                self._spare_challenges.remove(spare)
                self._take_up(*spare)
                return

    def _handle_challenge(self, datagram: bytes, source: Endpoint, now: float) -> None:
        challenge = Challenge.parse(datagram)
        if challenge is None or not hmac.compare_digest(challenge.nonce_c, self._hello.nonce_c):
            return
        known = self._challenges()
        if (challenge, source) in known or len(known) >= MAX_CHALLENGES:
            return
        if self._attempts:
            self._spare_challenges.append((challenge, source))
        elif self._take_up(challenge, source):
            self._progress(now)

    def _take_up(self, challenge: Challenge, server: Endpoint) -> bool:
        prs = self._prs(challenge.server_id)
        if prs is None:
            return False
        ci = channel_identifier(challenge.server_id, self._token_id)
        share = Share(generator(prs, ci, challenge.nonce_c + challenge.nonce_s), self._random)
        message = ShareC(
            challenge.nonce_c,
            challenge.nonce_s,
            challenge.epoch,
            challenge.cookie,
            self._token_id,
            share.public,
        )
        attempt = _Attempt(challenge, server, share, message.encode())
        self._attempts.append(attempt)
        self._transmits.append(Transmit(attempt.share_c, server))
        return True

    def _prs(self, server_id: bytes) -> bytes | None:
        prs = self._stretched.get(server_id)
        if prs is None and len(self._stretched) < MAX_SERVER_IDS:
            prs = self._stretched[server_id] = self._stretching(self._token, server_id)
        return prs

    def _handle_share_s(self, datagram: bytes, now: float) -> None:
        message = ShareS.parse(datagram)
        attempt = None if message is None else self._attempt_of(message)
        if message is None or attempt is None:
            return
        for confirmation in self._confirmations:
            if confirmation.session == message.session:
                confirmation.echoed |= bool(confirmation.denials)
                return
        if len(self._confirmations) + len(self._spare_shares) >= MAX_CONFIRMS:
            return
        if any(spare.session == message.session for spare, _ in self._spare_shares):
            return
        if not all(confirmation.denials for confirmation in self._confirmations):
            self._spare_shares.append((message, attempt))
        elif self._confirm(message, attempt):
            self._progress(now)

    def _attempt_of(self, message: ShareS) -> _Attempt | None:
        for attempt in self._attempts:
            nonces = (attempt.challenge.nonce_c, attempt.challenge.nonce_s)
            expected = session_id(*nonces, message.share, message.ek)
            if hmac.compare_digest(expected, message.session):
                return attempt
        return None

    def _confirm(self, message: ShareS, attempt: _Attempt) -> bool:
        """Run our half of CPace and encapsulate; False for a share of low order or a key that isn't one."""
        challenge = attempt.challenge
        k = attempt.share.exchange(message.share)
        if k is None:
            return False
        try:
            ss, ct = MLKEM768PublicKey.from_public_bytes(message.ek).encapsulate()
        except ValueError:
            return False
        ad = associated_data(self._hello, challenge)
        sid = challenge.nonce_c + challenge.nonce_s
        isk = intermediate_session_key(sid, k, attempt.share.public, ad, message.share, ad)
        transcript = self._hello.encode() + challenge.encode() + attempt.share_c + message.encode()
        keys = Keys.derive(transcript, ct, isk, ss)
        sealed = keys.seal_details(self._details)
        confirm = Confirm(message.session, ct, sealed, keys.client_tag(sealed)).encode()
        self._confirmations.append(_Confirmation(attempt, message.session, keys, confirm))
        self._transmits.append(Transmit(confirm, attempt.server))
        return True

    def _handle_result(self, datagram: bytes, now: float) -> None:
        message = Result.parse(datagram)
        if message is None:
            return
        for confirmation in self._confirmations:
            if confirmation.session == message.session:
                tag = confirmation.keys.server_tag(confirmation.confirm, message.sealed)
                if hmac.compare_digest(tag, message.tag):
                    self._end(self._read(confirmation, message))
                else:
                    self._handle_denial(confirmation, datagram, now)
                return

    def _handle_denial(self, confirmation: _Confirmation, datagram: bytes, now: float) -> None:
        if datagram in confirmation.denials:
            confirmation.denied = True
        elif len(confirmation.denials) < RETRANSMISSIONS:
            if not confirmation.denials:
                self._tries = 0
                self._deadline = min(self._deadline, now + _RECHECK_SECONDS)
            confirmation.denials.add(datagram)

    def _read(self, confirmation: _Confirmation, message: Result) -> Joined | Failed:
        """Read a RESULT whose Tb is right."""
        plaintext = confirmation.keys.open_outcome(message.sealed)
        members = None if plaintext is None else parse_outcome(plaintext)
        if members is None:
            return Failed(Failure.INCOMPATIBLE)
        status = members["status"]
        if status in _REFUSALS:
            return Failed(_REFUSALS[status])
        admission = Admission.from_mapping(members) if status == "ok" else None
        if admission is None:
            return Failed(Failure.INCOMPATIBLE)
        wrong = wrong_server(admission.server_key, self._expected, self._known_server)
        return wrong or Joined(admission, confirmation.keys.psk, confirmation.attempt.server)

    def _end(self, outcome: Joined | Failed) -> None:
        self.outcome = outcome
        self._transmits.clear()
        self._stretched.clear()
        self._spare_challenges.clear()
        self._attempts.clear()
        self._spare_shares.clear()
        self._confirmations.clear()


def wrong_server(key: bytes, expected: str | None, known: bytes | None) -> Failed | None:
    """Tell a server whose key isn't the one that was wanted.

    Args:
        key: The one it has, 32 bytes.
        expected: The fingerprint given with `--server`, as `parse_fingerprint` gives it.
        known: The key kept from an earlier join.
    """
    met = fingerprint(key)
    if (known is None or known == key) and expected in (None, met):
        return None
    return Failed(Failure.WRONG_SERVER, f"Its fingerprint is {met}.")
