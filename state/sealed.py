"""A sealed file: content under a passphrase, with a header that says how (docs/internals/backup.md).

scrypt makes the key from the passphrase, and XChaCha20-Poly1305 seals the content with the header as associated data.
A SHA-256 of everything ends the file, so that a damaged copy differs from a wrong passphrase.
"""

from __future__ import annotations

import os
import struct
import unicodedata
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_ABYTES,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from rustguard_py.model.counted import counted
from rustguard_py.model.errors import RefusedError, RustGuardError, StateError, UsageError
from rustguard_py.model.limits import MEMORY, has_memory

MAGIC = b"RustGuard backup"
FORMAT = 1
# Bytes. A server with a /16 full of peers needs a tenth of it.
MOST_CONTENT = 512 << 20

_HEAD = struct.Struct(">16sBB")
_SCRYPT = struct.Struct(">BII16s24s")
_SIZE = struct.Struct(">Q")
_OPEN, _SEALED = 0, 1
_CHECKSUM = 32
_KEY = 32
_AGAIN = "Copy the backup again from where it was made."


@dataclass(frozen=True, slots=True)
class Cost:
    """What a guess at the passphrase costs: the parameters of scrypt (RFC 7914).

    Attributes:
        log_n: Binary logarithm of N.
        r: Size of a block.
        p: How often it is done.
    """

    log_n: int = 16
    r: int = 8
    p: int = 2

    @property
    def memory(self) -> int:
        """Bytes that it takes for a moment."""
        return 128 * self.r << self.log_n


# What a file may ask for, so that a hostile one can take neither all memory nor an hour.
_MOST_MEMORY, _MOST_WORK = 256 << 20, 1 << 30


def key(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    """Return the key of a passphrase, 32 bytes. It takes 0.3 to 0.5 s.

    Args:
        passphrase: Equal texts in different Unicode forms are the same (NFC).
        salt: 16 random bytes.
        cost: How much each guess costs.

    Raises:
        RustGuardError: There isn't enough memory.
    """
    if not has_memory(cost.memory):
        raise RustGuardError(
            f"There isn't enough memory: a passphrase takes {cost.memory >> 20} MiB for a moment.", MEMORY.fix
        )
    secret = unicodedata.normalize("NFC", passphrase).encode()
    return Scrypt(salt=salt, length=_KEY, n=1 << cost.log_n, r=cost.r, p=cost.p).derive(secret)


def seal(content: bytes, passphrase: str | None, cost: Cost | None = None) -> bytes:
    """Return a file that holds the content.

    Args:
        content: At most MOST_CONTENT bytes.
        passphrase: Whoever knows it can open the file; None: everybody can.
        cost: How much each guess at the passphrase costs.

    Raises:
        UsageError: The content is too long.
    """
    if len(content) > MOST_CONTENT:
        raise UsageError(f"A backup has at most {MOST_CONTENT >> 20} MiB.", "Move old audit logs away.")
    if passphrase is None:
        whole = _HEAD.pack(MAGIC, FORMAT, _OPEN) + _SIZE.pack(len(content)) + content
        return whole + sha256(whole).digest()
    cost = cost or Cost()
    salt, nonce = os.urandom(16), os.urandom(24)
    header = _HEAD.pack(MAGIC, FORMAT, _SEALED) + _SCRYPT.pack(cost.log_n, cost.r, cost.p, salt, nonce)
    header += _SIZE.pack(len(content) + crypto_aead_xchacha20poly1305_ietf_ABYTES)
    body = crypto_aead_xchacha20poly1305_ietf_encrypt(content, header, nonce, key(passphrase, salt, cost))
    whole = header + body
    return whole + sha256(whole).digest()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file that `seal` made, whole and undamaged, but not opened yet.

    Attributes:
        header: All before the body.
        body: The content, sealed if there is a cost.
        cost: What a guess at its passphrase costs; None: it has no passphrase.
    """

    header: bytes
    body: bytes
    cost: Cost | None

    @classmethod
    def parse(cls, file: bytes) -> Sealed:
        """Return a file's parts.

        Raises:
            StateError: It is something else, made by a later version, cut off, or damaged.
        """
        if not file.startswith(MAGIC):
            if file and MAGIC.startswith(file[: len(MAGIC)]):
                raise _cut(len(file), None)
            raise StateError("This is no backup of RustGuard.", "Name a file that `rustguard backup` wrote.")
        if len(file) < _HEAD.size:
            raise _cut(len(file), None)
        _, form, protection = _HEAD.unpack_from(file)
        if form > FORMAT:
            raise StateError(
                f"A later version of RustGuard made this backup (format {form}, this one knows {FORMAT}).",
                "Upgrade RustGuard on this machine, then restore it.",
            )
        if form < FORMAT or protection > _SEALED:
            raise _damaged("its header is invalid")
        return cls._parse_rest(file, has_passphrase=protection == _SEALED)

    @classmethod
    def _parse_rest(cls, file: bytes, *, has_passphrase: bool) -> Sealed:
        begins = _HEAD.size + (_SCRYPT.size if has_passphrase else 0) + _SIZE.size
        if len(file) < begins:
            raise _cut(len(file), None)
        (size,) = _SIZE.unpack_from(file, begins - _SIZE.size)
        whole = begins + size + _CHECKSUM
        if len(file) < whole:
            raise _cut(len(file), whole)
        if len(file) > whole:
            raise _damaged(f"it has {counted(len(file) - whole, 'byte')} after its end")
        if sha256(file[:-_CHECKSUM]).digest() != file[-_CHECKSUM:]:
            raise _damaged("its checksum doesn't match")
        cost = _cost(file) if has_passphrase else None
        return cls(file[:begins], file[begins:-_CHECKSUM], cost)

    def open(self, passphrase: str | None) -> bytes:
        """Return the content.

        Args:
            passphrase: None for a file that has none.

        Raises:
            RefusedError: The passphrase is wrong or missing.
        """
        if self.cost is None:
            return self.body
        if passphrase is None:
            raise RefusedError("This backup has a passphrase.", "Leave out --no-passphrase.")
        _, _, _, salt, nonce = _SCRYPT.unpack_from(self.header, _HEAD.size)
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                self.body, self.header, nonce, key(passphrase, salt, self.cost)
            )
        except CryptoError:
            raise RefusedError(
                "The passphrase is wrong.", "Type the one that the backup was made with; nothing else opens it."
            ) from None


def _cost(file: bytes) -> Cost:
    log_n, r, p, _, _ = _SCRYPT.unpack_from(file, _HEAD.size)
    # RFC 7914, 6: N is less than 2^(16 r). First this: a shift by a large number takes memory itself.
    if not (1 <= log_n <= min(30, 16 * r - 1) and 1 <= r <= 1 << 20 and 1 <= p <= 1 << 20):
        raise _damaged("its parameters of scrypt are invalid")
    cost = Cost(log_n, r, p)
    if cost.memory > _MOST_MEMORY or cost.memory * p > _MOST_WORK:
        raise StateError(
            f"This backup asks for {cost.memory >> 20} MiB of memory, {counted(p, 'time')}, to check its passphrase, "
            f"more than the {_MOST_MEMORY >> 20} MiB that RustGuard gives.",
            "`rustguard backup` doesn't write such files: take another copy.",
        )
    return cost


def _cut(size: int, whole: int | None) -> StateError:
    has = counted(size, "byte") if whole is None else f"{size} of {whole} bytes"
    return StateError(f"The backup is cut off: it has {has}.", _AGAIN)


def _damaged(why: str) -> StateError:
    return StateError(f"The backup is damaged: {why}.", _AGAIN)
