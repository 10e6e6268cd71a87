"""The four messages of WireGuard, byte for byte (whitepaper section 5.4).

Integers are little-endian. Parsers return None for anything but a message of their type and never raise.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rustguard_py.model.pairing import PAIRING_PREFIX

INITIATION = 1
RESPONSE = 2
COOKIE_REPLY = 3
DATA = 4

INITIATION_SIZE = 148
RESPONSE_SIZE = 92
COOKIE_REPLY_SIZE = 64
DATA_HEADER_SIZE = 16
TAG_SIZE = 16
# Header and tag around each packet.
DATA_OVERHEAD = DATA_HEADER_SIZE + TAG_SIZE
# A keepalive is a data message that carries no packet.
KEEPALIVE_SIZE = DATA_OVERHEAD
# What one or two initiations and responses measure together, in bytes. Data, padded to multiples of 16, never does.
HANDSHAKE_VOLUMES = frozenset(
    INITIATION_SIZE * initiations + RESPONSE_SIZE * responses
    for initiations in range(3)
    for responses in range(3)
    if initiations + responses
)
# The first bytes of every data message: its type and three reserved zeros.
DATA_PREFIX = DATA.to_bytes(4, "little")
# The first bytes of every enrollment datagram, which shares the tunnel's port.
FOREIGN_PREFIX = PAIRING_PREFIX
MAC_SIZE = 16

_INITIATION = struct.Struct("<II32s48s28s")
_RESPONSE = struct.Struct("<III32s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")
_DATA_HEADER = struct.Struct("<IIQ")


class Initiation(NamedTuple):
    """Message 1 without its MACs: 116 bytes."""

    sender: int
    ephemeral: bytes
    static: bytes
    timestamp: bytes

    def encode(self) -> bytes:
        """Return the 116 bytes that MAC1 covers."""
        return _INITIATION.pack(INITIATION, *self)


class Response(NamedTuple):
    """Message 2 without its MACs: 60 bytes."""

    sender: int
    receiver: int
    ephemeral: bytes
    empty: bytes

    def encode(self) -> bytes:
        """Return the 60 bytes that MAC1 covers."""
        return _RESPONSE.pack(RESPONSE, *self)


class CookieReply(NamedTuple):
    """Message 3: 64 bytes. The cookie is sealed for the sender of the MAC1 that it answers."""

    receiver: int
    nonce: bytes
    cookie: bytes

    def encode(self) -> bytes:
        """Return the whole message."""
        return _COOKIE_REPLY.pack(COOKIE_REPLY, *self)


def message_type(datagram: bytes) -> int:
    """Return the message type, 1 to 4, or 0 for anything else. The three reserved bytes must be zero."""
    if len(datagram) < 4 or datagram[1] or datagram[2] or datagram[3]:
        return 0
    kind = datagram[0]
    return kind if INITIATION <= kind <= DATA else 0


def parse_initiation(datagram: bytes) -> Initiation | None:
    """Return message 1 or None. Its MACs aren't checked."""
    if len(datagram) != INITIATION_SIZE or message_type(datagram) != INITIATION:
        return None
    return Initiation(*_INITIATION.unpack_from(datagram)[1:])


def parse_response(datagram: bytes) -> Response | None:
    """Return message 2 or None. Its MACs aren't checked."""
    if len(datagram) != RESPONSE_SIZE or message_type(datagram) != RESPONSE:
        return None
    return Response(*_RESPONSE.unpack_from(datagram)[1:])


def parse_cookie_reply(datagram: bytes) -> CookieReply | None:
    """Return message 3 or None."""
    if len(datagram) != COOKIE_REPLY_SIZE or message_type(datagram) != COOKIE_REPLY:
        return None
    return CookieReply(*_COOKIE_REPLY.unpack(datagram)[1:])


def data_header(receiver: int, counter: int) -> bytes:
    """Return the 16 bytes in front of a data message's sealed packet."""
    return _DATA_HEADER.pack(DATA, receiver, counter)
