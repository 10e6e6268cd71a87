"""`rustguard genkey`: make a private key, in the form of `wg genkey`, byte for byte."""

from __future__ import annotations

import base64
import os
import stat
import sys

import click

from rustguard_py.cli.verb import Verb


def clamp(key: bytes) -> bytes:
    """Return 32 random bytes clamped to an X25519 private key (RFC 7748, section 5), as wg writes them."""
    return bytes([key[0] & 248, *key[1:31], (key[31] & 127) | 64])


@click.command(
    "genkey",
    cls=Verb,
    examples=[("umask 077; rustguard genkey | tee private.key | rustguard pubkey > public.key", "a pair of keys")],
)
def command() -> None:
    """Make a private key and print it in base64."""
    warn_if_world_accessible()
    click.echo(base64.b64encode(clamp(os.urandom(32))))


def warn_if_world_accessible() -> None:
    """Warn if standard output is a file that others can read, as `wg genkey` does."""
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        click.echo(
            "Warning: writing to world accessible file.\nConsider setting the umask to 077 and trying again.",
            err=True,
        )
