"""Curve25519 keys as WireGuard uses them: 32 raw bytes, 44 characters of base64, `wg genkey` and `wg pubkey`."""

from __future__ import annotations

import secrets
from base64 import b32decode, b32encode, b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.model.errors import UsageError

KEY_SIZE = 32
# WireGuard's own value for a peer without a preshared key.
NO_PRESHARED_KEY = bytes(KEY_SIZE)
FINGERPRINT_LENGTH = 16

_ENCODED_LENGTH = 44


def generate_private_key(randomness: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """Return a new private key: 32 random bytes, clamped (RFC 7748, section 5) as `wg genkey` does.

    Args:
        randomness: Returns as many secret random bytes as requested.
    """
    return clamp(randomness(KEY_SIZE))


def clamp(private_key: bytes) -> bytes:
    """Return a private key (32 bytes) with the bits that X25519 ignores set as WireGuard shows them (RFC 7748)."""
    return bytes([private_key[0] & 248, *private_key[1:31], private_key[31] & 127 | 64])


def public_key(private_key: bytes) -> bytes:
    """Return the public key (32 bytes) of a private key (32 bytes): X25519 with the base point."""
    # Imported here because commands that only read records and paths must start without cryptography.
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def fingerprint(public_key: bytes) -> str:
    """Return the fingerprint for `join --server`: 16 base32 characters (80 bits) of SHA-256 of a public key."""
    return b32encode(sha256(public_key).digest()).decode()[:FINGERPRINT_LENGTH]


def parse_fingerprint(text: str) -> str:
    """Return the fingerprint that a person typed, without spaces and dashes and in capitals.

    Raises:
        UsageError: The text isn't a fingerprint.
    """
    plain = text.replace(" ", "").replace("-", "").upper()
    try:
        b32decode(plain)
    except ValueError:
        plain = ""
    if len(plain) != FINGERPRINT_LENGTH:
        raise UsageError(
            f"A server's fingerprint has {FINGERPRINT_LENGTH} letters and digits of base32 (A-Z, 2-7).",
            "Copy it from what `rustguard serve` printed.",
        )
    return plain


def encode_key(key: bytes) -> str:
    """Return a key of 32 bytes as 44 characters of base64."""
    if len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
    return b64encode(key).decode()


def decode_key(text: str) -> bytes:
    """Return the 32 bytes of a key. As for `wg`, it is exactly 44 characters of canonical base64.

    Raises:
        UsageError: The text isn't a key. The message doesn't repeat it, because it may be a secret.
    """
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE or len(text) != _ENCODED_LENGTH or b64encode(key).decode() != text:
        raise UsageError(
            "That isn't a WireGuard key: one is 44 characters of base64.", "Make one with: rustguard genkey"
        )
    return key
