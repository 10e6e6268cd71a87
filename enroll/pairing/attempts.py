"""What a client computes in a pairing: SHARE_C for a CHALLENGE, CONFIRM for a SHARE_S, and the check of a RESULT."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

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
    KNOWS_SERVER,
    Challenge,
    Confirm,
    Forget,
    Hello,
    Result,
    ShareC,
    ShareS,
)
from rustguard_py.model.endpoint import Endpoint


@dataclass(slots=True, eq=False, repr=False)
class Attempt:
    """One CHALLENGE that was answered.

    Attributes:
        hello: Our HELLO.
        challenge: The answer to it.
        server: Where that came from.
        share: Our half of CPace.
        share_c: Message 3.
        server_secret: X25519 of our ephemeral and the server's static key; empty if we don't know that key.
    """

    hello: Hello
    challenge: Challenge
    server: Endpoint
    share: Share
    share_c: bytes
    server_secret: bytes

    @classmethod
    def begin(
        cls,
        hello: Hello,
        challenge: Challenge,
        server: Endpoint,
        prs: bytes,
        ephemeral: X25519PrivateKey,
        server_secret: bytes,
        random: Callable[[int], bytes],
    ) -> Self:
        """Answer a CHALLENGE.

        Args:
            hello: Our HELLO.
            challenge: The answer to it.
            server: Where that came from.
            prs: The token, stretched for that server.
            ephemeral: Our key for this run.
            server_secret: X25519 of it and the server's static key; empty if we don't know that key.
            random: Returns the requested number of random bytes.
        """
        ci = channel_identifier(challenge.server_id, hello.token_id)
        share = Share(generator(prs, ci, challenge.nonce_c + challenge.nonce_s), random)
        message = ShareC(
            challenge.nonce_c,
            challenge.nonce_s,
            challenge.epoch,
            challenge.cookie,
            hello.token_id,
            KNOWS_SERVER if server_secret else 0,
            share.public,
            ephemeral.public_key().public_bytes_raw(),
        )
        return cls(hello, challenge, server, share, message.encode(), server_secret)

    def is_answered_by(self, message: ShareS) -> bool:
        """Return whether a SHARE_S names this attempt."""
        expected = session_id(self.challenge.nonce_c, self.challenge.nonce_s, message.share, message.ek)
        return hmac.compare_digest(expected, message.session)

    def confirm(self, message: ShareS, static: X25519PrivateKey, details: bytes) -> Confirmation | None:
        """Run our half of CPace and encapsulate.

        Args:
            message: The server's share.
            static: Our WireGuard key.
            details: What we say about ourselves, encoded.

        Returns:
            What to send and how to read the answer; None for an invalid share or a key that isn't one.
        """
        challenge = self.challenge
        k = self.share.exchange(message.share)
        client_secret = shared_secret(static, challenge.ephemeral)
        if k is None or client_secret is None:
            return None
        try:
            ss, ct = MLKEM768PublicKey.from_public_bytes(message.ek).encapsulate()
        except ValueError:
            return None
        ad = associated_data(self.hello, challenge)
        sid = challenge.nonce_c + challenge.nonce_s
        isk = intermediate_session_key(sid, k, self.share.public, ad, message.share, ad)
        transcript = self.hello.encode() + challenge.encode() + self.share_c + message.encode()
        opening = Opening.derive(transcript, ct, isk, ss, self.server_secret)
        sealed = opening.seal_details(details)
        keys = opening.keys(client_secret)
        confirm = Confirm(message.session, ct, sealed, keys.client_tag(sealed)).encode()
        return Confirmation(self, message.session, keys, confirm)


@dataclass(slots=True, eq=False, repr=False)
class Confirmation:
    """One SHARE_S that was confirmed.

    Attributes:
        attempt: What it answers.
        session: 8 bytes.
        keys: The session's.
        confirm: Message 5.
        denials: The RESULTs with a wrong Tb.
        denied: Whether one of them came twice, which rules out a garbled one.
        echoed: Whether the SHARE_S came again after the first denial, so that our share had arrived ungarbled.
    """

    attempt: Attempt
    session: bytes
    keys: Keys
    confirm: bytes
    denials: set[bytes] = field(default_factory=set)
    denied: bool = False
    echoed: bool = False

    def is_answered_by(self, message: Result) -> bool:
        """Return whether the Tb of a RESULT is right."""
        return hmac.compare_digest(self.keys.server_tag(self.confirm, message.sealed), message.tag)

    def forget(self) -> bytes:
        """Return the FORGET of this session."""
        return Forget(self.session, self.keys.forget_tag(self.session)).encode()
