"""The datagrams of an enrollment (docs/internals/enrollment.md). `admission` has the JSON inside a RESULT.

Every parser takes any bytes and returns a message, or None for malformed ones, which are dropped without an answer.
No parser raises. Each message has exactly one encoding.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from rustguard_py.model.pairing import PAIRING_PREFIX, PAIRING_REVISION
from rustguard_py.model.peer_names import PEER_NAME_LIMIT, check_label, is_label

MAGIC: Final = PAIRING_PREFIX + PAIRING_REVISION
MAX_DATAGRAM: Final = 1232
NONCE_SIZE: Final = 16
SERVER_ID_SIZE: Final = 32
SESSION_SIZE: Final = 8
TAG_SIZE: Final = 32
SEAL_OVERHEAD: Final = 16
EK_SIZE: Final = 1184
CT_SIZE: Final = 1088
DETAILS_SIZE: Final = 80
RESULT_BLOCK: Final = 64

HELLO: Final = 1
CHALLENGE: Final = 2
SHARE_C: Final = 3
SHARE_S: Final = 4
CONFIRM: Final = 5
RESULT: Final = 6
FORGET: Final = 7
REVISION: Final = 8

# Flags of SHARE_C: the client knows the server's key, and has keyed its tag with it.
KNOWS_SERVER: Final = 1

_HEADERS = {kind: MAGIC + bytes([kind, 0, 0, 0]) for kind in range(HELLO, REVISION + 1)}
_KINDS = {header: kind for kind, header in _HEADERS.items()}
_HEADER_SIZE = 8
_RESULT_FIXED = _HEADER_SIZE + SESSION_SIZE + TAG_SIZE
MAX_RESULT_JSON: Final = (MAX_DATAGRAM - _RESULT_FIXED - SEAL_OVERHEAD) // RESULT_BLOCK * RESULT_BLOCK


def kind_of(datagram: bytes) -> int | None:
    """Return which message a datagram says it is, or None for none of this revision."""
    return _KINDS.get(datagram[:_HEADER_SIZE])


def other_revision(datagram: bytes) -> bytes | None:
    """Return the nonce_c, 16 bytes, of a HELLO of another revision of the wire; None for anything else.

    Every revision begins a HELLO like this: `RGE`, its own byte, the type 1, three zeros, nonce_c.
    """
    header = datagram[:_HEADER_SIZE]
    if len(datagram) < Revision.SIZE or not header.startswith(PAIRING_PREFIX) or header[3:4] == PAIRING_REVISION:
        return None
    return datagram[_HEADER_SIZE : Revision.SIZE] if header[4:] == bytes([HELLO, 0, 0, 0]) else None


@dataclass(frozen=True, slots=True)
class Hello:
    """1, client to server, 128 bytes. It is longer than its answer, so it can't be used to amplify a flood."""

    SIZE: ClassVar = 128
    _LAYOUT: ClassVar = struct.Struct("<8s16sI100s")

    nonce_c: bytes
    token_id: int

    def encode(self) -> bytes:
        """Return the datagram, 128 bytes."""
        return self._LAYOUT.pack(_HEADERS[HELLO], self.nonce_c, self.token_id, b"")

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Return the message in a datagram, or None if it isn't one."""
        if len(datagram) != cls.SIZE:
            return None
        header, nonce_c, token_id, zeros = cls._LAYOUT.unpack(datagram)
        if header != _HEADERS[HELLO] or any(zeros):
            return None
        return cls(nonce_c, token_id)


@dataclass(frozen=True, slots=True)
class Challenge:
    """2, server to client, 124 bytes. The server keeps nothing of it.

    Attributes:
        nonce_c: 16 bytes, the client's.
        nonce_s: 16 bytes, the server's.
        epoch: Counts the secrets that cookies are made with; 32 bits.
        cookie: 16 bytes.
        server_id: 32 bytes.
        ephemeral: The server's X25519 public key of that epoch, 32 bytes.
    """

    SIZE: ClassVar = 124
    _LAYOUT: ClassVar = struct.Struct("<8s16s16sI16s32s32s")

    nonce_c: bytes
    nonce_s: bytes
    epoch: int
    cookie: bytes
    server_id: bytes
    ephemeral: bytes

    def encode(self) -> bytes:
        """Return the datagram, 124 bytes."""
        return self._LAYOUT.pack(
            _HEADERS[CHALLENGE], self.nonce_c, self.nonce_s, self.epoch, self.cookie, self.server_id, self.ephemeral
        )

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Return the message in a datagram, or None if it isn't one."""
        if len(datagram) != cls.SIZE:
            return None
        header, *fields = cls._LAYOUT.unpack(datagram)
        return cls(*fields) if header == _HEADERS[CHALLENGE] else None


@dataclass(frozen=True, slots=True)
class ShareC:
    """3, client to server, 132 bytes: the challenge handed back with the client's CPace share Ya.

    Attributes:
        nonce_c: 16 bytes, the client's.
        nonce_s: 16 bytes, the server's.
        epoch: The challenge's.
        cookie: The challenge's, 16 bytes.
        token_id: Which token, 0 for the one given to `serve`.
        flags: `KNOWS_SERVER`, or 0.
        share: Ya, 32 bytes.
        ephemeral: The client's X25519 public key for this run, 32 bytes.
    """

    SIZE: ClassVar = 132
    _LAYOUT: ClassVar = struct.Struct("<8s16s16sI16sII32s32s")

    nonce_c: bytes
    nonce_s: bytes
    epoch: int
    cookie: bytes
    token_id: int
    flags: int
    share: bytes
    ephemeral: bytes

    def encode(self) -> bytes:
        """Return the datagram, 132 bytes."""
        return self._LAYOUT.pack(
            _HEADERS[SHARE_C],
            self.nonce_c,
            self.nonce_s,
            self.epoch,
            self.cookie,
            self.token_id,
            self.flags,
            self.share,
            self.ephemeral,
        )

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Read a datagram, or return None."""
        if len(datagram) != cls.SIZE:
            return None
        header, *fields = cls._LAYOUT.unpack(datagram)
        message = cls(*fields)
        return message if header == _HEADERS[SHARE_C] and message.flags in (0, KNOWS_SERVER) else None


@dataclass(frozen=True, slots=True)
class ShareS:
    """4, server to client, 1,232 bytes: the server's share Yb and its ML-KEM-768 encapsulation key."""

    SIZE: ClassVar = 1232
    _LAYOUT: ClassVar = struct.Struct(f"<8s8s32s{EK_SIZE}s")

    session: bytes
    share: bytes
    ek: bytes

    def encode(self) -> bytes:
        """Return the datagram, 1,232 bytes."""
        return self._LAYOUT.pack(_HEADERS[SHARE_S], self.session, self.share, self.ek)

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Return the message in a datagram, or None if it isn't one."""
        if len(datagram) != cls.SIZE:
            return None
        header, *fields = cls._LAYOUT.unpack(datagram)
        return cls(*fields) if header == _HEADERS[SHARE_S] else None


@dataclass(frozen=True, slots=True)
class Confirm:
    """5, client to server, 1,232 bytes: the ML-KEM ciphertext, the sealed details, and Ta over all of it."""

    SIZE: ClassVar = 1232
    _LAYOUT: ClassVar = struct.Struct(f"<8s8s{CT_SIZE}s{DETAILS_SIZE + SEAL_OVERHEAD}s32s")

    session: bytes
    ct: bytes
    sealed: bytes
    tag: bytes

    def encode(self) -> bytes:
        """Return the datagram, 1,232 bytes."""
        return self._LAYOUT.pack(_HEADERS[CONFIRM], self.session, self.ct, self.sealed, self.tag)

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Return the message in a datagram, or None if it isn't one."""
        if len(datagram) != cls.SIZE:
            return None
        header, *fields = cls._LAYOUT.unpack(datagram)
        return cls(*fields) if header == _HEADERS[CONFIRM] else None


@dataclass(frozen=True, slots=True)
class Result:
    """6, server to client, at most 1,232 bytes: the sealed answer, and Tb over it.

    Attributes:
        session: 8 bytes.
        sealed: A multiple of 64 bytes, plus 16.
        tag: Tb, 32 bytes.
    """

    session: bytes
    sealed: bytes
    tag: bytes

    def encode(self) -> bytes:
        """Return the datagram."""
        return _HEADERS[RESULT] + self.session + self.sealed + self.tag

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Return the message in a datagram, or None if it isn't one."""
        json_size = len(datagram) - _RESULT_FIXED - SEAL_OVERHEAD
        if not 0 < json_size <= MAX_RESULT_JSON or json_size % RESULT_BLOCK:
            return None
        if datagram[:_HEADER_SIZE] != _HEADERS[RESULT]:
            return None
        body = _HEADER_SIZE + SESSION_SIZE
        return cls(datagram[_HEADER_SIZE:body], datagram[body:-TAG_SIZE], datagram[-TAG_SIZE:])


@dataclass(frozen=True, slots=True)
class Forget:
    """7, client to server, 48 bytes: take back what this session admitted, because the client can't use it.

    Attributes:
        session: 8 bytes.
        tag: Proves that the client that was admitted sends it, 32 bytes.
    """

    SIZE: ClassVar = 48
    _LAYOUT: ClassVar = struct.Struct("<8s8s32s")

    session: bytes
    tag: bytes

    def encode(self) -> bytes:
        """Return the datagram, 48 bytes."""
        return self._LAYOUT.pack(_HEADERS[FORGET], self.session, self.tag)

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Read a datagram, or return None."""
        if len(datagram) != cls.SIZE:
            return None
        header, *fields = cls._LAYOUT.unpack(datagram)
        return cls(*fields) if header == _HEADERS[FORGET] else None


@dataclass(frozen=True, slots=True)
class Revision:
    """8, server to client, 24 bytes: the answer to a HELLO of another revision. Its header names the server's own.

    Attributes:
        nonce_c: That HELLO's, 16 bytes.
        revision: The byte after `RGE` in the header.
    """

    SIZE: ClassVar = _HEADER_SIZE + NONCE_SIZE

    nonce_c: bytes
    revision: bytes = PAIRING_REVISION

    def encode(self) -> bytes:
        """Return the datagram, 24 bytes."""
        return PAIRING_PREFIX + self.revision + bytes([REVISION, 0, 0, 0]) + self.nonce_c

    @classmethod
    def parse(cls, datagram: bytes) -> Self | None:
        """Read a datagram of any revision, or return None."""
        if len(datagram) != cls.SIZE or not datagram.startswith(PAIRING_PREFIX):
            return None
        if datagram[4:_HEADER_SIZE] != bytes([REVISION, 0, 0, 0]):
            return None
        return cls(datagram[_HEADER_SIZE:], datagram[3:4])


@dataclass(frozen=True, slots=True)
class Details:
    """What a client says about itself, sealed inside CONFIRM; 80 bytes.

    Attributes:
        public_key: The client's WireGuard public key, 32 bytes.
        name: The label to ask for (see `model.peer_names`); empty leaves the choice to the server.
        flags: 16 bits. None is defined yet, and unknown ones are ignored.
    """

    _LAYOUT: ClassVar = struct.Struct(f"<32sHB{PEER_NAME_LIMIT}s")

    public_key: bytes
    name: str
    flags: int = 0

    def encode(self) -> bytes:
        """Return the 80 bytes.

        Raises:
            ValueError: The name is no label. The message says why.
        """
        if self.name and check_label(self.name) != self.name:
            raise ValueError("its characters have a plainer form (NFKC), which a name must have")
        name = self.name.encode()
        return self._LAYOUT.pack(self.public_key, self.flags, len(name), name)

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Return the details in 80 bytes, or None if they are malformed."""
        if len(data) != DETAILS_SIZE:
            return None
        public_key, flags, length, padded = cls._LAYOUT.unpack(data)
        if length > PEER_NAME_LIMIT or any(padded[length:]):
            return None
        try:
            name = padded[:length].decode()
        except UnicodeDecodeError:
            return None
        return cls(public_key, name, flags) if _is_wish(name) else None


def _is_wish(name: str) -> bool:
    """Return whether a client may ask for this name."""
    return name == "" or is_label(name)
