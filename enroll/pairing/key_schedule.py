"""The keys of an enrollment: from token and shares to tags, seals and the preshared key.

docs/internals/enrollment.md describes them.

Both ends call the same functions with the same datagrams. `th` is the transcript
hash TH = SHA-256(1 ‖ 2 ‖ 3 ‖ 4 ‖ ct).
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from rustguard_py.enroll.pairing.cpace import lv_cat
from rustguard_py.enroll.pairing.messages import SESSION_SIZE, Challenge, Hello
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.limits import MEMORY, has_memory

SEAL_CLIENT = b"seal-client"
SEAL_SERVER = b"seal-server"

# scrypt: 32 MiB and some 80 ms for each token that is tried.
_SCRYPT_N = 2**15
_SCRYPT_R = 8
# OpenSSL's limit for its memory: 128 N r and a little more.
STRETCH_MEMORY = 128 * _SCRYPT_N * _SCRYPT_R + 2**20
_XCHACHA_NONCE = 24


def stretch(token: str, server_id: bytes) -> bytes:
    """Return the password-related string of a token, 32 bytes. It takes about 80 ms.

    Args:
        token: As typed. Equal texts in different Unicode forms are the same token (NFC).
        server_id: 32 bytes.
    """
    secret = unicodedata.normalize("NFC", token).encode()
    return hashlib.scrypt(secret, salt=server_id, n=_SCRYPT_N, r=_SCRYPT_R, p=1, maxmem=STRETCH_MEMORY, dklen=32)


def require_memory() -> None:
    """Check that a token can be stretched here.

    Raises:
        RustGuardError: The control group's limit of memory is too low.
    """
    if not has_memory(STRETCH_MEMORY):
        text = f"There isn't enough memory: a token takes {STRETCH_MEMORY >> 20} MiB for a moment."
        raise RustGuardError(text, MEMORY.fix)


def channel_identifier(server_id: bytes, token_id: int) -> bytes:
    """Return CPace's channel identifier (CI): both roles, the server (32 bytes), and the token's number."""
    return lv_cat(b"rge3", b"client", b"server", server_id, token_id.to_bytes(4, "little"))


def associated_data(hello: Hello, challenge: Challenge) -> bytes:
    """Return CPace's ADa, which is its ADb too."""
    return hashlib.sha256(hello.encode() + challenge.encode()).digest()


def session_id(nonce_c: bytes, nonce_s: bytes, share: bytes, ek: bytes) -> bytes:
    """Return the 8 bytes that name a session. Only someone who saw the nonces can make a SHARE_S that fits."""
    return hashlib.sha256(b"rge3 session" + nonce_c + nonce_s + share + ek).digest()[:SESSION_SIZE]


def shared_secret(private_key: X25519PrivateKey, public_key: bytes) -> bytes | None:
    """Return X25519 of a key pair's private and another's public half, 32 bytes; None for a point of low order."""
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Opening:
    """What both ends share before the client has said who it is: enough to seal and open its details.

    Attributes:
        th: The transcript hash that everything is bound to. Not a secret.
    """

    th: bytes
    _prk: bytes = field(repr=False)

    @classmethod
    def derive(cls, transcript: bytes, ct: bytes, isk: bytes, ss: bytes, server_secret: bytes) -> Self:
        """Derive it (HKDF-SHA-256, RFC 5869).

        Args:
            transcript: Messages 1 to 4.
            ct: The ML-KEM ciphertext, 1,088 bytes.
            isk: CPace's session key, 64 bytes.
            ss: The ML-KEM shared secret, 32 bytes.
            server_secret: X25519 of the client's ephemeral and the server's static key, 32 bytes; empty for a
                client that doesn't know the server's key.
        """
        th = hashlib.sha256(transcript + ct).digest()
        return cls(th, hmac.digest(th, isk + ss + server_secret, "sha256"))

    def seal_details(self, details: bytes) -> bytes:
        """Seal the client's details: 96 bytes for 80."""
        return _seal(_expand(self._prk, SEAL_CLIENT), SEAL_CLIENT, self.th, details)

    def open_details(self, sealed: bytes) -> bytes | None:
        """Open them. None: not sealed with these keys, so the token was another one.

        They are opened before Ta is checked, because Ta also proves the key that they name. Poly1305 doesn't
        commit to a key, but this one comes from CPace's session key: whoever sealed it has committed to one
        token by the share, and knows no second key that a crafted seal could open under as well.
        """
        return _open(_expand(self._prk, SEAL_CLIENT), SEAL_CLIENT, self.th, sealed)

    def keys(self, client_secret: bytes) -> Keys:
        """Derive the session's other keys, once it is known who the client is.

        Args:
            client_secret: X25519 of the server's ephemeral and the client's static key, 32 bytes. Only the owner
                of the client's WireGuard key can compute it, and so make Ta.
        """
        prk = hmac.digest(self._prk, client_secret, "sha256")
        labels = (b"confirm-client", b"confirm-server", SEAL_SERVER, b"psk", b"forget")
        return Keys(self.th, *(_expand(prk, label) for label in labels))


@dataclass(frozen=True, slots=True)
class Keys:
    """What one session's secrets expand to, 32 bytes each. The sealing key seals once.

    Attributes:
        th: The transcript hash that everything is bound to; not a secret.
        confirm_client, confirm_server: Keys of the tags Ta and Tb.
        seal_server: Seals the RESULT.
        psk: The new WireGuard peer's preshared key.
        forget: Authenticates FORGET.
    """

    th: bytes
    confirm_client: bytes = field(repr=False)
    confirm_server: bytes = field(repr=False)
    seal_server: bytes = field(repr=False)
    psk: bytes = field(repr=False)
    forget: bytes = field(repr=False)

    def client_tag(self, sealed: bytes) -> bytes:
        """Return Ta, 32 bytes: the client's proof over its sealed details."""
        return hmac.digest(self.confirm_client, self.th + sealed, "sha256")

    def server_tag(self, confirm: bytes, sealed: bytes) -> bytes:
        """Return Tb, 32 bytes, over the whole CONFIRM datagram and what is sealed in the RESULT."""
        return hmac.digest(self.confirm_server, self.th + confirm + sealed, "sha256")

    def forget_tag(self, session: bytes) -> bytes:
        """Return the tag of a FORGET, 32 bytes."""
        return hmac.digest(self.forget, self.th + session, "sha256")

    def seal_outcome(self, outcome: bytes) -> bytes:
        """Seal a RESULT's padded JSON: 16 bytes more."""
        return _seal(self.seal_server, SEAL_SERVER, self.th, outcome)

    def open_outcome(self, sealed: bytes) -> bytes | None:
        """Open a RESULT's JSON after Tb was checked. Return None if it isn't sealed with these keys."""
        return _open(self.seal_server, SEAL_SERVER, self.th, sealed)


def _expand(prk: bytes, label: bytes) -> bytes:
    """HKDF-Expand, one block."""
    return hmac.digest(prk, label + b"\1", "sha256")


def _nonce(label: bytes, th: bytes) -> bytes:
    return hashlib.sha256(label + th).digest()[:_XCHACHA_NONCE]


def _seal(key: bytes, label: bytes, th: bytes, plaintext: bytes) -> bytes:
    return crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, th, _nonce(label, th), key)


def _open(key: bytes, label: bytes, th: bytes, sealed: bytes) -> bytes | None:
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, th, _nonce(label, th), key)
    except CryptoError:
        return None
