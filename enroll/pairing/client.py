"""The client's side of an enrollment: datagrams in, datagrams and one outcome out. No socket, no clock.

::

    HELLO ──► CHALLENGE ──► SHARE_C ──► SHARE_S ──► CONFIRM ──► RESULT ──► Joined | Failed

Each step is retransmitted unchanged about once a second, at most ten times. Once the server has answered, the waits
grow to two seconds and there are sixteen, so that many clients can join at once before any of them gives up.

Attackers. Off the path, nobody knows nonce_c, so their datagrams are dropped. On the path, anyone can send
CHALLENGEs, SHARE_Ss and RESULTs faster than the server. So nothing unauthenticated ends the join: if a CHALLENGE or
SHARE_S leads nowhere, others are tried. Those go first that say what an earlier one said (`spares.Spares`). Limits:
`MAX_ATTEMPTS` CHALLENGEs are answered (each of another server costs a stretching), and `MAX_CONFIRMS` SHARE_Ss,
because each CONFIRM lets whoever made the SHARE_S test one token. A client that knows the server's key confirms as
many as it answers CHALLENGEs, because its CONFIRMs tell only that server anything. An attacker who can drop packets
can stop the join.

A wrong Tb can mean a wrong token, a garbled RESULT, a forged one, or a CHALLENGE or SHARE_C that was garbled on the
way. So a wrong Tb is believed once all steps were repeated, which costs no second guess. The same RESULT again shows
that it wasn't garbled, the same SHARE_S again that our share arrived as it was sent, and another CHALLENGE with the
same server_id that the token was stretched for the right server. The server then had time for a right answer too.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.enroll.pairing import messages
from rustguard_py.enroll.pairing.admission import Admission, parse_outcome
from rustguard_py.enroll.pairing.attempts import Attempt, Confirmation
from rustguard_py.enroll.pairing.key_schedule import shared_secret, stretch
from rustguard_py.enroll.pairing.messages import Challenge, Details, Hello, Result, Revision, ShareS
from rustguard_py.enroll.pairing.outcome import REFUSALS, Failed, Failure, Joined, wrong_server
from rustguard_py.enroll.pairing.spares import Spares, said_by_server
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import encode_key, fingerprint, parse_fingerprint

RETRANSMIT_SECONDS: Final = 1.0
RETRANSMISSIONS: Final = 10
# How often FORGET is sent, which nobody answers.
FORGET_COPIES: Final = 3
MAX_ATTEMPTS: Final = 32
MAX_CONFIRMS: Final = 3
# Once the server has answered: factor between two waits, longest wait in seconds, number of waits. The server answers
# 500 shares per second; clients that ask too rarely leave some of that unused.
_BACKOFF = 1.2
_LONGEST_SECONDS = 2.0
_PATIENT_RETRANSMISSIONS = 16
_JITTER = 0.25
# CHALLENGEs answered per retransmission if more came than one server sends, over up to four addresses, per HELLO.
_ANSWERS = 2
_CHALLENGES_A_ROUND = 4
# SHARE_Ss confirmed per retransmission by a client that knows the server's key.
_CONFIRMS_A_ROUND = 4
# After a first wrong Tb: seconds between two requests, and how many before it is believed without the full proof.
_RECHECK_SECONDS = 0.5
_RECHECKS = 6
# The same if somebody forges. The right answer may then take as long as without any denial.
_PATIENT_RECHECKS = 48
# A server denies the same CONFIRM with the same RESULT each time. More different ones than noise explains are forged.
_FORGED_DENIALS = 3
_RIVALS: Final = "Several seemed to answer in the server's place, so somebody on the way may be forging answers."


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this datagram.

    Attributes:
        destination: Where to; None for every address and port where the server may be.
    """

    datagram: bytes
    destination: Endpoint | None


class PairingClient:
    """Joins a server. After each call, `poll_transmit` returns what to send; `outcome` is set at the end.

    Args:
        token: As typed.
        private_key: Our WireGuard key, 32 bytes. The server learns the public half, and that we own it.
        name: The name to ask for, at most 45 bytes of printable UTF-8; "" leaves it to the server.
        random: Returns the requested number of random bytes.
        now: Monotonic seconds.
        token_id: 0, or the number of an invite.
        expected: The fingerprint given with `--server`; case, spaces and dashes don't matter.
        known_server: The server's public key, 32 bytes, kept from an earlier join. An impostor without its private
            half then can't test the token.
        stretching: `key_schedule.stretch`. Called once per server that answers; takes about 80 ms.

    Attributes:
        outcome: None until the join has ended.

    Raises:
        UsageError: The name or the fingerprint isn't valid.
    """

    def __init__(
        self,
        token: str,
        private_key: bytes,
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
            self._static = X25519PrivateKey.from_private_bytes(private_key)
            public = self._static.public_key().public_bytes_raw()
            self._own_key = encode_key(public)
            self._details = Details(public, name).encode()
        except ValueError as error:
            raise UsageError(f"{name!r} can't be a name: {error}.", "Choose another with --name.") from error
        self._token = token
        self._token_id = token_id
        self._random = random
        self._stretching = stretching
        self._expected = None if expected is None else parse_fingerprint(expected)
        self._known_server = known_server
        self._ephemeral = X25519PrivateKey.from_private_bytes(random(32))
        self._server_secret = b"" if known_server is None else shared_secret(self._ephemeral, known_server) or b""
        self._stretched: dict[bytes, bytes] = {}
        self._hello = Hello(random(messages.NONCE_SIZE), token_id)
        self._spare_challenges = Spares[tuple[Challenge, Endpoint]](random, lambda spare: said_by_server(spare[0]))
        self._attempts: list[Attempt] = []
        self._spare_shares = Spares[tuple[ShareS, Attempt]](random, lambda spare: spare[0].session)
        self._confirmations: list[Confirmation] = []
        self._transmits: deque[Transmit] = deque([Transmit(self._hello.encode(), None)])
        self._tries = 0
        self._deadline = now + self._interval()
        self._other_revision: bytes | None = None
        self.outcome: Joined | Failed | None = None

    def poll_transmit(self) -> Transmit | None:
        """Return the next datagram to send, or None for now."""
        return self._transmits.popleft() if self._transmits else None

    def poll_timeout(self) -> float | None:
        """Return when to call `handle_timeout`; None once the join has ended."""
        return None if self.outcome is not None else self._deadline

    def handle(self, datagram: bytes, source: Endpoint, now: float) -> None:
        """Handle a datagram from the network. A malformed, foreign or forged one changes nothing."""
        if self.outcome is not None:
            return
        kind = messages.kind_of(datagram)
        if kind == messages.CHALLENGE:
            self._handle_challenge(datagram, source, now)
        elif kind == messages.SHARE_S:
            self._handle_share_s(datagram, now)
        elif kind == messages.RESULT:
            self._handle_result(datagram, now)
        else:
            self._handle_revision(datagram)

    def handle_timeout(self, now: float) -> None:
        """Retransmit what is unanswered, or give up."""
        if self.outcome is not None or now < self._deadline:
            return
        denials = any(confirmation.denials for confirmation in self._confirmations)
        if self._confirmations and all(map(self._is_settled, self._confirmations)) and not self._has_rivals():
            self._end(self._denied())
        elif self._tries >= (self._rechecks() if denials else self._retransmissions()):
            rivals = _RIVALS if self._has_rivals() else ""
            self._end(self._denied(rivals) if denials else Failed(self._silence(), rivals))
        else:
            self._tries += 1
            self._deadline = now + (_RECHECK_SECONDS * self._jitter() if denials else self._interval())
            self._retransmit()

    def _meets_forgeries(self) -> bool:
        """Return whether somebody forges SHARE_Ss, denials, or CONFIRMs that the server denies.

        The server's right answer is late then.
        """
        forged = any(len(confirmation.denials) >= _FORGED_DENIALS for confirmation in self._confirmations)
        return forged or self._has_rivals()

    def _has_rivals(self) -> bool:
        """Return whether a SHARE_S waits that answers the same SHARE_C as a confirmed one: one of them is forged."""
        confirmed = [confirmation.attempt for confirmation in self._confirmations]
        return any(attempt in confirmed for _, attempt in self._spare_shares)

    def _is_settled(self, confirmation: Confirmation) -> bool:
        """Return whether only a wrong token can explain the denials."""
        said = said_by_server(confirmation.attempt.challenge)
        vouchers = sum(said_by_server(challenge) == said for challenge, _ in self._challenges())
        forged = len(confirmation.denials) >= _FORGED_DENIALS
        return confirmation.denied and confirmation.echoed and vouchers > 1 and not forged

    def _challenges(self) -> list[tuple[Challenge, Endpoint]]:
        return [(attempt.challenge, attempt.server) for attempt in self._attempts] + [*self._spare_challenges]

    def _is_crowded(self) -> bool:
        """Return whether more CHALLENGEs came than one server sends: some are forged, or were garbled on the way."""
        known = self._challenges()
        senders = {said_by_server(challenge) for challenge, _ in known}
        return len(senders) > 1 or len(known) > _CHALLENGES_A_ROUND * self._spare_challenges.rounds

    def _denied(self, detail: str = "") -> Failed:
        """The other end couldn't follow: it lacks the token, or the private key of the server that we know."""
        if self._known_server is not None:
            known = fingerprint(self._known_server)
            detail = f"Or it isn't the server joined before, whose fingerprint is {known}. {detail}".rstrip()
        return Failed(Failure.WRONG_TOKEN, detail)

    def _silence(self) -> Failure:
        if self._confirmations:
            return Failure.UNCONFIRMED
        if self._attempts:
            return Failure.IGNORED
        return Failure.SILENT if self._other_revision is None else Failure.OTHER_REVISION

    def _retransmissions(self) -> int:
        return _PATIENT_RETRANSMISSIONS if self._attempts else RETRANSMISSIONS

    def _rechecks(self) -> int:
        return _PATIENT_RECHECKS if self._meets_forgeries() else _RECHECKS

    def _interval(self) -> float:
        wait = RETRANSMIT_SECONDS * (_BACKOFF**self._tries if self._attempts else 1.0)
        return min(wait, _LONGEST_SECONDS) * self._jitter()

    def _jitter(self) -> float:
        return 1 + _JITTER * int.from_bytes(self._random(2), "little") / 65536

    def _progress(self, now: float) -> None:
        """Begin a new step, with its own retransmissions."""
        self._tries = 0
        self._deadline = now + self._interval()

    def _retransmit(self) -> None:
        """Retransmit the last step, and the earlier ones too if that doesn't help.

        The answer that we used may have been garbled or forged, or the server may have dropped the session.
        """
        contested = self._is_contested()
        if not self._confirm_spares(_CONFIRMS_A_ROUND if self._server_secret else 1):
            self._take_up_spare()
        for confirmation in self._confirmations:
            self._transmits.append(Transmit(confirmation.confirm, confirmation.attempt.server))
        denials = any(confirmation.denials for confirmation in self._confirmations)
        if not self._confirmations or denials or contested or self._tries >= 2:
            self._spare_shares.next_round()
            for attempt in self._attempts:
                self._transmits.append(Transmit(attempt.share_c, attempt.server))
        # Rarely once the server has answered: other clients may still be waiting for their first answer. But if
        # several seem to answer, the server is the one that answers each time.
        crowded = not self._confirmations and self._is_crowded()
        if not self._attempts or denials or crowded or (self._tries % 5 == 4 and not self._confirmations):
            self._spare_challenges.next_round()
            self._transmits.append(Transmit(self._hello.encode(), None))

    def _take_up_spare(self) -> None:
        """Answer another CHALLENGE: any one while no SHARE_S has come, one of another server once all denied us.

        A server that denied us isn't tried again, but one whose SHARE_S has not come is.
        """
        if not all(confirmation.denials for confirmation in self._confirmations):
            return
        denying = {said_by_server(confirmation.attempt.challenge) for confirmation in self._confirmations}
        for _ in range(_ANSWERS if self._is_crowded() else 1):
            if len(self._attempts) >= MAX_ATTEMPTS or (spare := self._spare_challenges.take(denying)) is None:
                return
            self._take_up(*spare)

    def _handle_revision(self, datagram: bytes) -> None:
        """Remember that a server of another revision answered: it says why nobody else does."""
        message = Revision.parse(datagram)
        if message is not None and hmac.compare_digest(message.nonce_c, self._hello.nonce_c):
            self._other_revision = message.revision

    def _handle_challenge(self, datagram: bytes, source: Endpoint, now: float) -> None:
        challenge = Challenge.parse(datagram)
        if challenge is None or not hmac.compare_digest(challenge.nonce_c, self._hello.nonce_c):
            return
        if any((attempt.challenge, attempt.server) == (challenge, source) for attempt in self._attempts):
            return
        if self._attempts:
            self._spare_challenges.put((challenge, source))
        else:
            self._spare_challenges.meet((challenge, source))
            self._take_up(challenge, source)
            self._progress(now)

    def _take_up(self, challenge: Challenge, server: Endpoint) -> None:
        prs = self._prs(challenge.server_id)
        given = (prs, self._ephemeral, self._server_secret, self._random)
        attempt = Attempt.begin(self._hello, challenge, server, *given)
        self._attempts.append(attempt)
        self._transmits.append(Transmit(attempt.share_c, server))

    def _prs(self, server_id: bytes) -> bytes:
        prs = self._stretched.get(server_id)
        if prs is None:
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
        self._spare_shares.put((message, attempt))
        # If there are more than we may confirm, the fastest isn't preferred: they wait for the next retransmission.
        is_free = all(confirmation.denials for confirmation in self._confirmations)
        if is_free and not self._is_contested() and self._confirm_spares(1):
            self._progress(now)

    def _confirms_left(self) -> int:
        return (MAX_ATTEMPTS if self._server_secret else MAX_CONFIRMS) - len(self._confirmations)

    def _is_contested(self) -> bool:
        """Return whether more SHARE_Ss wait than may be confirmed, and two answer the same SHARE_C: one is forged."""
        attempts = [each.attempt for each in self._confirmations] + [attempt for _, attempt in self._spare_shares]
        return len(self._spare_shares) > self._confirms_left() and len(set(attempts)) < len(attempts)

    def _confirm_spares(self, most: int) -> bool:
        """Confirm SHARE_Ss that wait, at most so many; return whether one was confirmed.

        Of more than we may confirm, only those that were said again. The server repeats its own whenever it is asked.
        """
        done = False
        for _ in range(most):
            is_hopeless = self._is_contested() and not self._spare_shares.repeated
            if self._confirms_left() <= 0 or is_hopeless or (spare := self._spare_shares.take()) is None:
                break
            done |= self._confirm(*spare)
        return done

    def _attempt_of(self, message: ShareS) -> Attempt | None:
        return next((attempt for attempt in self._attempts if attempt.is_answered_by(message)), None)

    def _confirm(self, message: ShareS, attempt: Attempt) -> bool:
        """Confirm a SHARE_S; return False if it is invalid."""
        confirmation = attempt.confirm(message, self._static, self._details)
        if confirmation is None:
            return False
        self._confirmations.append(confirmation)
        self._transmits.append(Transmit(confirmation.confirm, attempt.server))
        return True

    def _handle_result(self, datagram: bytes, now: float) -> None:
        message = Result.parse(datagram)
        if message is None:
            return
        for confirmation in self._confirmations:
            if confirmation.session == message.session:
                if confirmation.is_answered_by(message):
                    self._end(outcome := self._read(confirmation, message))
                    if isinstance(outcome, Failed):
                        self._take_back(confirmation)
                else:
                    self._handle_denial(confirmation, datagram, now)
                return

    def _handle_denial(self, confirmation: Confirmation, datagram: bytes, now: float) -> None:
        if datagram in confirmation.denials:
            confirmation.denied = True
        elif len(confirmation.denials) < RETRANSMISSIONS:
            if not confirmation.denials:
                self._tries = 0
                self._deadline = min(self._deadline, now + _RECHECK_SECONDS)
            confirmation.denials.add(datagram)

    def _read(self, confirmation: Confirmation, message: Result) -> Joined | Failed:
        """Return the outcome in a RESULT whose Tb is right."""
        plaintext = confirmation.keys.open_outcome(message.sealed)
        members = None if plaintext is None else parse_outcome(plaintext)
        if members is None:
            return Failed(Failure.INCOMPATIBLE)
        status = members["status"]
        if status in REFUSALS:
            return Failed(REFUSALS[status], key=self._own_key)
        admission = Admission.from_mapping(members) if status == "ok" else None
        if admission is None:
            return Failed(Failure.INCOMPATIBLE)
        wrong = wrong_server(admission.server_key, self._expected, self._known_server)
        server = confirmation.attempt.server
        return wrong or Joined(admission, confirmation.keys.psk, server, confirmation.forget())

    def _take_back(self, confirmation: Confirmation) -> None:
        """Tell the server that its admission is of no use here. It isn't answered, so it goes out several times."""
        for _ in range(FORGET_COPIES):
            self._transmits.append(Transmit(confirmation.forget(), confirmation.attempt.server))

    def _end(self, outcome: Joined | Failed) -> None:
        self.outcome = outcome
        self._transmits.clear()
        self._stretched.clear()
        self._spare_challenges.clear()
        self._attempts.clear()
        self._spare_shares.clear()
        self._confirmations.clear()
