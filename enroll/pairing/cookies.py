"""Cookies prove that a client can be reached at its address, and cost the server no memory. Also: budget sources."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.model.endpoint import Endpoint, address_of
from rustguard_py.model.pairing import PairingEpoch, PairingGate, pairing_cookie

# Seconds until a cookie's secret is replaced. The previous secret stays valid for as long again.
EPOCH = 120.0
_EPOCH_MASK = 2**32 - 1


class Cookies:
    """Makes and checks cookies, as secrets come and go, and holds an ephemeral key for each secret.

    Args:
        random: Returns the requested number of random bytes.
        now: Monotonic seconds.

    Attributes:
        epoch: Counts the secrets, modulo 2^32.
        ephemeral: The X25519 key pair of this epoch.
    """

    __slots__ = ("_born", "_gate", "_previous", "_random", "_secret", "ephemeral", "epoch")

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._random = random
        self._born = now
        self._secret = random(32)
        self._previous: bytes | None = None
        self._gate: PairingGate | None = None
        self.ephemeral = _ephemeral(self._secret)
        # Begins anywhere: counted from zero it would tell strangers how long we have been up.
        self.epoch = int.from_bytes(random(4), "little")

    def rotate(self, now: float) -> None:
        """Replace the secret if it is due. Call this before `make` and `check`."""
        passed = int((now - self._born) // EPOCH)
        if passed <= 0:
            return
        self._previous = self._secret if passed == 1 else None
        self._secret = self._random(32)
        self._gate = None
        self.ephemeral = _ephemeral(self._secret)
        self._born += passed * EPOCH
        self.epoch = self.epoch + passed & _EPOCH_MASK

    @property
    def due(self) -> float:
        """When the secret has to be replaced, in monotonic seconds."""
        return self._born + EPOCH

    def gate(self, server_id: bytes) -> PairingGate:
        """Return what a plane needs to answer HELLOs and to check cookies in the server's place.

        Args:
            server_id: 32 bytes.
        """
        if self._gate is None:
            previous = None if self._previous is None else _epoch(self.epoch - 1 & _EPOCH_MASK, self._previous)
            self._gate = PairingGate(server_id, _epoch(self.epoch, self._secret), previous)
        return self._gate

    def make(self, source: Endpoint, nonce_c: bytes, nonce_s: bytes, token_id: int) -> bytes:
        """Return the current epoch's cookie, 16 bytes."""
        return _cookie(self._secret, source, nonce_c, nonce_s, token_id)

    def ephemeral_of(self, epoch: int) -> X25519PrivateKey | None:
        """Return the ephemeral key of this epoch or the one before, None of any other."""
        secret = self._secret_of(epoch)
        return None if secret is None else _ephemeral(secret)

    def check(
        self, cookie: bytes, epoch: int, source: Endpoint, nonce_c: bytes, nonce_s: bytes, token_id: int
    ) -> bool:
        """Return whether we made this cookie, for these values, in this epoch or the one before."""
        secret = self._secret_of(epoch)
        if secret is None:
            return False
        return hmac.compare_digest(cookie, _cookie(secret, source, nonce_c, nonce_s, token_id))

    def _secret_of(self, epoch: int) -> bytes | None:
        if epoch == self.epoch:
            return self._secret
        return self._previous if epoch == self.epoch - 1 & _EPOCH_MASK else None


def _ephemeral(secret: bytes) -> X25519PrivateKey:
    """Return the X25519 key that goes with an epoch's cookie secret: as fresh, and gone with it."""
    return X25519PrivateKey.from_private_bytes(hmac.digest(secret, b"ephemeral", "sha256"))


def _epoch(number: int, secret: bytes) -> PairingEpoch:
    return PairingEpoch(number, secret, _ephemeral(secret).public_key().public_bytes_raw())


def _cookie(secret: bytes, source: Endpoint, nonce_c: bytes, nonce_s: bytes, token_id: int) -> bytes:
    covered = nonce_c + nonce_s + token_id.to_bytes(4, "little")
    return pairing_cookie(secret, address_of(source).packed, source[1], covered)
