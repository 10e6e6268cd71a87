"""`rustguard pubkey`: print the public key of a private key, as `wg pubkey` does, byte for byte."""

from __future__ import annotations

import base64
import binascii
import sys

import click

from rustguard_py.cli.verb import Verb
from rustguard_py.model.errors import RustGuardError

# 32 bytes in base64.
KEY_LENGTH = 44
_WHITE_SPACE = b" \t\n\v\f\r\0"
_FIX = "Give the private key as `rustguard genkey` prints it: 44 characters of base64."


@click.command(
    "pubkey", cls=Verb, examples=[("rustguard pubkey < private.key", "the public key of a private key in a file")]
)
def command() -> None:
    """Read a private key from standard input and print its public key, both in base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = parse_key(sys.stdin.buffer.read())
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    click.echo(base64.b64encode(public))


def parse_key(text: bytes) -> bytes:
    """Return the 32 bytes of canonical base64; only white space may follow.

    Raises:
        RustGuardError: The text isn't such a key.
    """
    encoded, rest = text[:KEY_LENGTH], text[KEY_LENGTH:]
    try:
        key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        key = b""
    # Bits after the 32 bytes must be zero, so that each key has only one spelling.
    if len(key) != 32 or base64.b64encode(key) != encoded:
        raise RustGuardError("Key is not the correct length or format.", _FIX)
    # wg treats zero bytes as white space.
    if rest.strip(_WHITE_SPACE):
        raise RustGuardError("Trailing characters found after key.", _FIX)
    return key
