"""Proof that a client can be reached where it says, at no memory; and the sources that budgets are counted by."""

from __future__ import annotations

import hmac
from array import array
from collections.abc import Callable
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.enroll.pairing.messages import COOKIE_SIZE
from rustguard_py.model.endpoint import Endpoint

# Seconds between changes of a cookie's secret; the one before stays valid as long again.
EPOCH = 120.0
_EPOCH_MASK = 2**32 - 1
# Slots of a limiter, one float each: 128 KiB. A flood from spoofed sources of 100,000/s adds 6/s to each.
_SLOTS = 1 << 14


def address_of(source: Endpoint) -> IPv4Address | IPv6Address:
    """Read a socket address's host: no zone, and an IPv4-mapped address as the IPv4 one that it is."""
    address = ip_address(source[0].partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def source_of(source: Endpoint) -> str:
    """Name whom a budget is charged to: the /32 of an IPv4 address, the /64 of an IPv6 one."""
    address = address_of(source)
    if isinstance(address, IPv4Address):
        return f"{address}/32"
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


class Cookies:
    """Makes and checks cookies, as secrets come and go, and holds an ephemeral key for each secret.

    Args:
        random: Gives so many random bytes.
        now: Monotonic seconds.

    Attributes:
        epoch: Counts the secrets, modulo 2^32.
        ephemeral: The X25519 key pair of this epoch.
    """

    __slots__ = ("_born", "_previous", "_random", "_secret", "ephemeral", "epoch")

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._random = random
        self._born = now
        self._secret = random(32)
        self._previous: bytes | None = None
        self.ephemeral = _ephemeral(self._secret)
        # Begins anywhere: counted from zero it would tell strangers how long we have been up.
        self.epoch = int.from_bytes(random(4), "little")

    def rotate(self, now: float) -> None:
        """Change the secret when its time has come. Call before `make` and `check`."""
        passed = int((now - self._born) // EPOCH)
        if passed <= 0:
            return
        self._previous = self._secret if passed == 1 else None
        self._secret = self._random(32)
        self.ephemeral = _ephemeral(self._secret)
        self._born += passed * EPOCH
        self.epoch = self.epoch + passed & _EPOCH_MASK

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


def _cookie(secret: bytes, source: Endpoint, nonce_c: bytes, nonce_s: bytes, token_id: int) -> bytes:
    place = address_of(source).packed + source[1].to_bytes(2, "little")
    message = place + nonce_c + nonce_s + token_id.to_bytes(4, "little")
    return hmac.digest(secret, message, "sha256")[:COOKIE_SIZE]


class Pace:
    """A rate and a burst (the generic cell rate algorithm: one float of memory).

    Args:
        rate: How many a second.
        burst: How many at once.
    """

    __slots__ = ("_due", "_interval", "_slack")

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._due = float("-inf")

    def take(self, now: float) -> bool:
        """Spend one, or return False when the budget is spent."""
        if self._due - now > self._slack:
            return False
        self._due = max(self._due, now) + self._interval
        return True


class SourcePaces:
    """A rate and a burst for each source, in a table of fixed size, so that spoofed sources cost no memory.

    Sources share a slot by a keyed hash that strangers can't aim at.

    Args:
        rate: How many a second.
        burst: How many at once.
        random: Gives so many random bytes.
    """

    __slots__ = ("_due", "_interval", "_key", "_slack")

    def __init__(self, rate: float, burst: int, random: Callable[[int], bytes]) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._key = random(16)
        self._due = array("d", [float("-inf")]) * _SLOTS

    def take(self, source: str, now: float) -> bool:
        """Spend one of a source's (see `source_of`), or return False when its budget is spent."""
        digest = blake2s(source.encode(), key=self._key, digest_size=4).digest()
        slot = int.from_bytes(digest, "little") % _SLOTS
        due = self._due[slot]
        if due - now > self._slack:
            return False
        self._due[slot] = max(due, now) + self._interval
        return True
