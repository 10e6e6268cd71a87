"""MAC1, MAC2 and cookies, which keep strangers from costing us a Diffie-Hellman (sections 5.3, 5.4.4, 5.4.7)."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable
from hashlib import blake2s

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.protocol.wire import MAC_SIZE, CookieReply

LABEL_MAC1 = b"mac1----"
LABEL_COOKIE = b"cookie--"
# How long a cookie and the secret behind it are valid, seconds (section 5.4.7).
COOKIE_SECRET_LIFETIME = 120.0
NO_MAC = bytes(MAC_SIZE)


def mac1_key(public_key: bytes) -> bytes:
    """Return the 32-byte key of MAC1 for messages sent to `public_key` (32 bytes)."""
    return blake2s(LABEL_MAC1 + public_key).digest()


def cookie_key(public_key: bytes) -> bytes:
    """Return the 32-byte key that seals the cookies that the owner of `public_key` (32 bytes) hands out."""
    return blake2s(LABEL_COOKIE + public_key).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """Return the keyed BLAKE2s of `data`, 16 bytes; `key` has at most 32."""
    return blake2s(data, key=key, digest_size=MAC_SIZE).digest()


def add_macs(message: bytes, key: bytes, cookie: bytes | None) -> bytes:
    """Return message 1 or 2 with MAC1 and MAC2 (zeros without a cookie) appended.

    Args:
        message: The message without MACs.
        key: `mac1_key` of the receiver.
        cookie: The receiver's cookie (16 bytes), less than 120 s old, or None.
    """
    message += mac(key, message)
    return message + (NO_MAC if cookie is None else mac(cookie, message))


def mac1_holds(datagram: bytes, key: bytes) -> bool:
    """Return whether MAC1 of a whole message 1 or 2 is right under our own `mac1_key`."""
    covered = len(datagram) - 2 * MAC_SIZE
    return hmac.compare_digest(mac(key, datagram[:covered]), datagram[covered:-MAC_SIZE])


def cookie_reply(receiver: int, cookie: bytes, mac1: bytes, key: bytes, random: Callable[[int], bytes]) -> bytes:
    """Return message 3 (64 bytes): a sealed `cookie` for the sender of the message with MAC1 `mac1`.

    Args:
        receiver: The sender index of that message.
        cookie: 16 bytes from `CookieSecrets.cookie_for`.
        mac1: 16 bytes. As additional data, so only those who know the message can use the reply.
        key: Our own `cookie_key`.
        random: Returns n random bytes.
    """
    nonce = random(24)
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(cookie, mac1, nonce, key)
    return CookieReply(receiver, nonce, sealed).encode()


def open_cookie(reply: CookieReply, mac1: bytes, key: bytes) -> bytes | None:
    """Return the cookie (16 bytes) in message 3, or None if it doesn't answer our message with MAC1 `mac1`.

    Args:
        reply: The parsed message.
        mac1: MAC1 of the last handshake message sent to that peer.
        key: `cookie_key` of the peer.
    """
    try:
        cookie: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(reply.cookie, mac1, reply.nonce, key)
    except CryptoError:
        return None
    return cookie


def source_bytes(source: Endpoint) -> bytes:
    """Return address and port as bytes: 4 + 2 for IPv4, 16 + 2 for IPv6."""
    host, port = source[0], source[1]
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    else:
        packed = socket.inet_pton(socket.AF_INET, host)
    return packed + port.to_bytes(2, "big")


class CookieSecrets:
    """Our rotating secret, and the cookies made with it.

    Args:
        random: Returns n random bytes.
    """

    __slots__ = ("_born", "_previous", "_random", "_secret")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._secret: bytes | None = None
        self._previous: bytes | None = None
        self._born = 0.0

    def _rotate(self, now: float) -> bytes:
        if self._secret is None or now - self._born >= COOKIE_SECRET_LIFETIME:
            fresh_enough = now - self._born < 2 * COOKIE_SECRET_LIFETIME
            self._previous = self._secret if fresh_enough else None
            self._secret = self._random(32)
            self._born = now
        return self._secret

    def cookie_for(self, source: Endpoint, now: float) -> bytes:
        """Return the cookie (16 bytes) of an address and port."""
        return mac(self._rotate(now), source_bytes(source))

    def mac2_holds(self, datagram: bytes, source: Endpoint, now: float) -> bool:
        """Return whether a whole message 1 or 2 has a MAC2 made with a cookie that we gave to `source`."""
        address = source_bytes(source)
        for secret in (self._rotate(now), self._previous):
            if secret is None:
                continue
            expected = mac(mac(secret, address), datagram[:-MAC_SIZE])
            if hmac.compare_digest(expected, datagram[-MAC_SIZE:]):
                return True
        return False
