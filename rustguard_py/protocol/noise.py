"""The handshake Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, as the whitepaper writes it (section 5.4).

Names are the paper's: C is the chaining key, H the hash, S a static key, E an ephemeral key, Q the preshared key;
tau and kappa are outputs of a key derivation. `Initiator` is the initiator's side, `Received` the responder's.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from rustguard_py.protocol.wire import Initiation, Response

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_NONCE_ZERO = bytes(12)
_C0 = blake2s(CONSTRUCTION).digest()
_H0 = blake2s(_C0 + IDENTIFIER).digest()


class InvalidHandshakeError(Exception):
    """The message isn't authentic, or it isn't for us. It is dropped without an answer."""


def _hash(data: bytes) -> bytes:
    return blake2s(data).digest()


def kdf1(key: bytes, material: bytes) -> bytes:
    """Return KDF_1 of section 5.4: 32 bytes of HKDF over HMAC-BLAKE2s."""
    return hmac.digest(hmac.digest(key, material, "blake2s"), b"\x01", "blake2s")


def kdf2(key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Return KDF_2 of section 5.4: twice 32 bytes."""
    tau0 = hmac.digest(key, material, "blake2s")
    tau1 = hmac.digest(tau0, b"\x01", "blake2s")
    return tau1, hmac.digest(tau0, tau1 + b"\x02", "blake2s")


def kdf3(key: bytes, material: bytes) -> tuple[bytes, bytes, bytes]:
    """Return KDF_3 of section 5.4: three times 32 bytes."""
    tau0 = hmac.digest(key, material, "blake2s")
    tau1 = hmac.digest(tau0, b"\x01", "blake2s")
    tau2 = hmac.digest(tau0, tau1 + b"\x02", "blake2s")
    return tau1, tau2, hmac.digest(tau0, tau2 + b"\x03", "blake2s")


def dh(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the X25519 (RFC 7748) of both keys, 32 bytes.

    Raises:
        InvalidHandshakeError: `public` is a low-order point, for which anybody could compute the secret.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise InvalidHandshakeError("low-order public key") from error


def _seal(key: bytes, plaintext: bytes, h: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_NONCE_ZERO, plaintext, h)


def _open(key: bytes, ciphertext: bytes, h: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE_ZERO, ciphertext, h)
    except InvalidTag as error:
        raise InvalidHandshakeError("authentication failed") from error


class StaticKey:
    """Our long-lived key pair.

    Args:
        private_key: 32 bytes.
    """

    __slots__ = ("private", "public", "responder_hash")

    def __init__(self, private_key: bytes) -> None:
        self.private = X25519PrivateKey.from_private_bytes(private_key)
        self.public = self.private.public_key().public_bytes_raw()
        # H after the responder's static key was mixed in: the same for every initiation to us.
        self.responder_hash = _hash(_H0 + self.public)

    def shared_with(self, public_key: bytes) -> bytes:
        """Return the DH of both static keys (32 bytes). Each peer's entry keeps it."""
        return dh(self.private, public_key)


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """The keys of a finished handshake (section 5.4.5), 32 bytes each."""

    send: bytes
    receive: bytes


class Initiator:
    """The initiator's half of a handshake, kept from the initiation until its response.

    Attributes:
        message: Message 1 without MACs.
    """

    __slots__ = ("_c", "_ephemeral", "_h", "message")

    def __init__(
        self,
        static: StaticKey,
        remote: bytes,
        static_static: bytes,
        timestamp: bytes,
        index: int,
        random: Callable[[int], bytes],
    ) -> None:
        """Make message 1 (section 5.4.2).

        Args:
            static: Our key.
            remote: The responder's public key, 32 bytes.
            static_static: `static.shared_with(remote)`.
            timestamp: TAI64N (12 bytes), greater than any sent before.
            index: Our reserved index.
            random: Returns n random bytes.

        Raises:
            InvalidHandshakeError: `remote` is a low-order point.
        """
        ephemeral = X25519PrivateKey.from_private_bytes(random(32))
        e = ephemeral.public_key().public_bytes_raw()
        c = kdf1(_C0, e)
        h = _hash(_hash(_H0 + remote) + e)
        c, kappa = kdf2(c, dh(ephemeral, remote))
        sealed_static = _seal(kappa, static.public, h)
        h = _hash(h + sealed_static)
        c, kappa = kdf2(c, static_static)
        sealed_timestamp = _seal(kappa, timestamp, h)
        self._h = _hash(h + sealed_timestamp)
        self._c = c
        self._ephemeral = ephemeral
        self.message = Initiation(index, e, sealed_static, sealed_timestamp).encode()

    def consume_response(self, static: StaticKey, response: Response, preshared_key: bytes) -> TransportKeys:
        """Verify message 2 (section 5.4.3) and return the keys.

        Args:
            static: Our key.
            response: The parsed message.
            preshared_key: 32 bytes, zeros for none.

        Raises:
            InvalidHandshakeError: It doesn't answer our initiation. This half stays as it was.
        """
        e = response.ephemeral
        c = kdf1(self._c, e)
        h = _hash(self._h + e)
        c = kdf1(c, dh(self._ephemeral, e))
        c = kdf1(c, dh(static.private, e))
        c, tau, kappa = kdf3(c, preshared_key)
        h = _hash(h + tau)
        _open(kappa, response.empty, h)
        send, receive = kdf2(c, b"")
        return TransportKeys(send, receive)


class Received:
    """The responder's half of a handshake: message 1, opened as far as the initiator's public key.

    Attributes:
        remote: That key, 32 bytes. Only `open_timestamp` proves that the sender has it.
    """

    __slots__ = ("_c", "_ephemeral", "_h", "_sealed_timestamp", "_sender", "remote")

    def __init__(self, static: StaticKey, initiation: Initiation) -> None:
        """Open the static key (section 5.4.2).

        Raises:
            InvalidHandshakeError: The message isn't for us, or has a low-order point.
        """
        e = initiation.ephemeral
        c = kdf1(_C0, e)
        h = _hash(static.responder_hash + e)
        c, kappa = kdf2(c, dh(static.private, e))
        self.remote = _open(kappa, initiation.static, h)
        self._h = _hash(h + initiation.static)
        self._c = c
        self._ephemeral = e
        self._sealed_timestamp = initiation.timestamp
        self._sender = initiation.sender

    def open_timestamp(self, static_static: bytes) -> bytes:
        """Return the TAI64N (12 bytes). Opening it proves that the initiator has the key `remote`.

        Args:
            static_static: DH of our static key and `remote`.

        Raises:
            InvalidHandshakeError: The initiator doesn't have the key.
        """
        self._c, kappa = kdf2(self._c, static_static)
        timestamp = _open(kappa, self._sealed_timestamp, self._h)
        self._h = _hash(self._h + self._sealed_timestamp)
        return timestamp

    def respond(
        self, index: int, preshared_key: bytes, random: Callable[[int], bytes]
    ) -> tuple[bytes, TransportKeys]:
        """Return message 2 (section 5.4.3) without MACs, and the keys. Call it after `open_timestamp`.

        Args:
            index: Our reserved index.
            preshared_key: 32 bytes, zeros for none.
            random: Returns n random bytes.

        Raises:
            InvalidHandshakeError: The initiator's ephemeral or static key is a low-order point.
        """
        ephemeral = X25519PrivateKey.from_private_bytes(random(32))
        e = ephemeral.public_key().public_bytes_raw()
        c = kdf1(self._c, e)
        h = _hash(self._h + e)
        c = kdf1(c, dh(ephemeral, self._ephemeral))
        c = kdf1(c, dh(ephemeral, self.remote))
        c, tau, kappa = kdf3(c, preshared_key)
        h = _hash(h + tau)
        message = Response(index, self._sender, e, _seal(kappa, b"", h)).encode()
        receive, send = kdf2(c, b"")
        return message, TransportKeys(send, receive)
