"""The JSON inside a RESULT: what a server assigns to a client, or why it refuses (docs/internals/enrollment.md)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, Final, Self

from rustguard_py.enroll.pairing.messages import MAX_RESULT_JSON, RESULT_BLOCK
from rustguard_py.model import ip
from rustguard_py.model.endpoint import Network
from rustguard_py.model.keys import KEY_SIZE
from rustguard_py.model.peer_names import is_label
from rustguard_py.state.records import MOST_ROUTES
from rustguard_py.state.shared_members import MTU_LEAST, MTU_MOST

# More than any server has: a later version may have more tunnels, and a client takes those that it can use.
_MOST_FURTHER: Final = 64


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
