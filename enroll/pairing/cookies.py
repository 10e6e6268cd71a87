"""Cookies prove that a client can be reached at its address, and cost the server no memory. Also: budget sources."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

from rustguard_py.enroll.pairing.messages import COOKIE_SIZE
from rustguard_py.model.endpoint import Endpoint

# Seconds until a cookie's secret is replaced. The previous secret stays valid for as long again.
EPOCH = 120.0
_EPOCH_MASK = 2**32 - 1


def address_of(source: Endpoint) -> IPv4Address | IPv6Address:
    """Return a socket address's host without its zone, and an IPv4-mapped address as an IPv4 address."""
    address = ip_address(source[0].partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def source_of(source: Endpoint) -> str:
    """Return the source that a budget is charged to: the /32 of an IPv4 address, the /64 of an IPv6 address."""
    address = address_of(source)
    if isinstance(address, IPv4Address):
        return f"{address}/32"
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


class Cookies:
    """Makes and checks cookies, with secrets that change.

    Args:
        random: Returns the requested number of random bytes.
        now: Monotonic seconds.
    """

    __slots__ = ("_born", "_previous", "_random", "_secret", "epoch")

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._random = random
        self._born = now
        self._secret = random(32)
        self._previous: bytes | None = None
        # Starts at a random number. Counted from zero, it would show strangers how long the server has been up.
        self.epoch = int.from_bytes(random(4), "little")

    def rotate(self, now: float) -> None:
        """Replace the secret if it is due. Call this before `make` and `check`."""
        passed = int((now - self._born) // EPOCH)
        if passed <= 0:
            return
        self._previous = self._secret if passed == 1 else None
        self._secret = self._random(32)
        self._born += passed * EPOCH
        self.epoch = self.epoch + passed & _EPOCH_MASK

    def make(self, source: Endpoint, nonce_c: bytes, nonce_s: bytes, token_id: int) -> bytes:
        """Return a cookie of the current epoch, 16 bytes."""
        return _cookie(self._secret, source, nonce_c, nonce_s, token_id)

    def check(
        self, cookie: bytes, epoch: int, source: Endpoint, nonce_c: bytes, nonce_s: bytes, token_id: int
    ) -> bool:
        """Return whether `make` made this cookie for these values, in this epoch or the previous one."""
        if epoch == self.epoch:
            secret: bytes | None = self._secret
        elif epoch == self.epoch - 1 & _EPOCH_MASK:
            secret = self._previous
        else:
            return False
        if secret is None:
            return False
        return hmac.compare_digest(cookie, _cookie(secret, source, nonce_c, nonce_s, token_id))


def _cookie(secret: bytes, source: Endpoint, nonce_c: bytes, nonce_s: bytes, token_id: int) -> bytes:
    place = address_of(source).packed + source[1].to_bytes(2, "little")
    message = place + nonce_c + nonce_s + token_id.to_bytes(4, "little")
    return hmac.digest(secret, message, "sha256")[:COOKIE_SIZE]
