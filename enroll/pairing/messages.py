"""The datagrams of an enrollment, and the JSON inside a RESULT (docs/internals/enrollment.md).

Every parser takes any bytes and returns a message, or None for malformed ones, which are dropped without an answer.
No parser raises. Each message has exactly one encoding.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, ClassVar, Final, Self

from rustguard_py.model import ip
from rustguard_py.model.endpoint import Network
from rustguard_py.model.keys import KEY_SIZE
from rustguard_py.model.pairing import PAIRING_PREFIX, PAIRING_REVISION
from rustguard_py.model.peer_names import PEER_NAME_LIMIT, check_label, is_label
from rustguard_py.state.records import MOST_ROUTES, MTU_LEAST, MTU_MOST

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
# More than any server has: a later version may have more tunnels, and a client takes those that it can use.
_MOST_FURTHER: Final = 64
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


@dataclass(frozen=True, slots=True)
class FurtherTunnel:
    """One of a server's further tunnels.

    Attributes:
        server_key: Its public key, 32 bytes.
        port: Its UDP port.
    """

    server_key: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Admission:
    """The content of a RESULT with status "ok": everything that the client needs for its tunnel.

    Attributes:
        name: The client's label at the server.
        address4: The client's address with the pool's prefix length ("10.77.0.2/24").
        address6: The same over IPv6, or None.
        server_key: The server's WireGuard public key, 32 bytes.
        port: The UDP port of the tunnel.
        mtu: The tunnel's MTU.
        keepalive: Seconds of persistent keepalive, 0 for none.
        routes: Further networks behind the server, which the client's user may accept; at most 64.
        gateway4: The server's address in the tunnel.
        gateway6: The same over IPv6, or None.
        tunnels: The server's further tunnels.
    """

    name: str
    address4: IPv4Interface
    address6: IPv6Interface | None
    server_key: bytes = field(repr=False)
    port: int
    mtu: int
    keepalive: int
    routes: tuple[Network, ...]
    gateway4: IPv4Address
    gateway6: IPv6Address | None
    tunnels: tuple[FurtherTunnel, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Return what `encode_outcome` takes, status "ok" included."""
        further = [{"key": base64.b64encode(each.server_key).decode(), "port": each.port} for each in self.tunnels]
        return {
            "status": "ok",
            "name": self.name,
            "address4": str(self.address4),
            "address6": None if self.address6 is None else str(self.address6),
            "server_key": base64.b64encode(self.server_key).decode(),
            "port": self.port,
            "mtu": self.mtu,
            "keepalive": self.keepalive,
            "routes": [str(network) for network in self.routes],
            "gateway4": str(self.gateway4),
            "gateway6": None if self.gateway6 is None else str(self.gateway6),
            **({"tunnels": further} if further else {}),
        }

    @classmethod
    def from_mapping(cls, members: Mapping[str, Any]) -> Self | None:
        """Return a checked "ok", or None if a member is missing or invalid. Unknown members are ignored."""
        try:
            address6, gateway6 = members.get("address6"), members.get("gateway6")
            admission = cls(
                name=_name(members["name"]),
                address4=ip.ipv4_interface(_text(members["address4"])),
                address6=None if address6 is None else ip.ipv6_interface(_text(address6)),
                server_key=_key(members["server_key"]),
                port=_integer(members["port"], 1, 65535),
                mtu=_integer(members["mtu"], MTU_LEAST, MTU_MOST),
                keepalive=_integer(members["keepalive"], 0, 65535),
                routes=tuple(ip.network(_text(each)) for each in _array(members.get("routes", []), MOST_ROUTES)),
                gateway4=ip.ipv4_address(_text(members["gateway4"])),
                gateway6=None if gateway6 is None else ip.ipv6_address(_text(gateway6)),
                tunnels=tuple(_further(each) for each in _array(members.get("tunnels", []), _MOST_FURTHER)),
            )
            admission._check_addresses()
        except (KeyError, TypeError, ValueError):
            return None
        return admission

    def _check_addresses(self) -> None:
        """Raise ValueError if what the server assigned can't be used as it is."""
        ip.check_own4(self.address4, self.gateway4)
        if self.address6 is not None:
            ip.check_own6(self.address6, self.gateway6)
        elif self.gateway6 is not None:
            raise ValueError("an IPv6 gateway without an address")


def encode_outcome(members: Mapping[str, Any]) -> bytes:
    """Return the JSON of a RESULT, padded with zeros to a multiple of 64 bytes.

    Raises:
        ValueError: It doesn't fit into a RESULT (1,152 bytes).
    """
    text = json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + bytes(-len(text) % RESULT_BLOCK)
    if len(padded) > MAX_RESULT_JSON:
        raise ValueError(f"a RESULT holds {MAX_RESULT_JSON} bytes of JSON, this one has {len(text)}")
    return padded


def parse_outcome(padded: bytes) -> dict[str, Any] | None:
    """Return the JSON of a RESULT, or None if it isn't an object with a textual "status"."""
    try:
        members = json.loads(padded.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(members, dict) or not isinstance(members.get("status"), str):
        return None
    return members


def _text(value: object) -> str:
    # The ipaddress classes accept integers and bytes too, but only text is valid here.
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _name(value: object) -> str:
    name = _text(value)
    if not is_label(name):
        raise ValueError("not a name")
    return name


def _array(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TypeError("not an array, or too long a one")
    return value


def _integer(value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError("out of bounds")
    return value


def _key(value: object) -> bytes:
    try:
        key = base64.b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(key) != KEY_SIZE:
        raise ValueError("not a key")
    return key


def _further(value: Any) -> FurtherTunnel:
    return FurtherTunnel(_key(value["key"]), _integer(value["port"], 1, 65535))
