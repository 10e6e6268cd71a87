"""WireGuard's cross-platform interface (wireguard.com/xplatform), with which wg(8) talks to a user-space WireGuard.

A request is lines of `key=value` and an empty line: `get=1` alone, or `set=1` and the changes. The answer ends with
`errno=N` and an empty line. N is 0 for success or a negative errno(3).

This module only converts between text and values. A request is parsed to its end before any of it is done, so a
request with an error changes nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import if_nametoindex
from typing import TypeVar

from rustguard_py.model.counted import counted
from rustguard_py.model.endpoint import Endpoint, Network
from rustguard_py.model.keys import KEY_SIZE, NO_PRESHARED_KEY, clamp

_TRUE = "true"
# sin6_scope_id has 32 bits.
_MAX_SCOPE = 0xFFFF_FFFF

T = TypeVar("T")


class UapiError(Exception):
    """A request can't be done.

    Args:
        code: An errno(3), positive.
        message: For the log, without secrets.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class PeerChange:
    """A request's changes to one peer. None leaves a setting as it is.

    Attributes:
        public_key: 32 bytes.
        remove: Remove the peer.
        update_only: Do nothing if there is no such peer.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        endpoint: Where to send.
        persistent_keepalive: Seconds, 0 for none.
        replace_allowed_ips: Remove all existing networks first.
        allowed_ips: Networks to add (True) or remove (False), in order.
    """

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    preshared_key: bytes | None = field(default=None, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: list[tuple[Network, bool]] = field(default_factory=list)


@dataclass(slots=True)
class DeviceChange:
    """The changes in a `set` request. None leaves a setting as it is.

    Attributes:
        private_key: 32 bytes, zeros for none.
        listen_port: 0 for any free port.
        fwmark: 0 for none.
        replace_peers: Remove all existing peers first.
        peers: In the order of the request. The same peer may come twice.
    """

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: list[PeerChange] = field(default_factory=list)

    def without_omissions(self) -> DeviceChange:
        """Return the request without the resets of what a file leaves out.

        `wg setconf` and `wg syncconf` set the key, the port and the mark, to zero what the file doesn't have.
        wg-quick's files have no mark, and a hook may set the key, so a tunnel with such a file keeps them.
        """
        if self.private_key is None or self.listen_port is None or self.fwmark is None:
            return self
        private_key = None if self.private_key == bytes(KEY_SIZE) else self.private_key
        return replace(
            self, private_key=private_key, listen_port=self.listen_port or None, fwmark=self.fwmark or None
        )


@dataclass(slots=True)
class PeerState:
    """A peer as `get` shows it.

    Attributes:
        public_key: 32 bytes.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        endpoint: None while unknown.
        last_handshake: Unix time in nanoseconds, 0 for never.
    """

    public_key: bytes
    preshared_key: bytes = field(default=NO_PRESHARED_KEY, repr=False)
    endpoint: Endpoint | None = None
    last_handshake: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    persistent_keepalive: int = 0
    allowed_ips: Sequence[Network] = ()


@dataclass(slots=True)
class DeviceState:
    """An interface as `get` shows it.

    Attributes:
        private_key: 32 bytes; None while there is none.
        listen_port: The UDP port.
        fwmark: 0 for none.
    """

    private_key: bytes | None = field(repr=False)
    listen_port: int
    fwmark: int = 0
    peers: Sequence[PeerState] = ()


# -- answers --------------------------------------------------------------------------------------------------------


def ending(code: int) -> str:
    """Return the last lines of an answer. `code` is a positive errno(3), or 0 for success."""
    return f"errno={-code}\n\n"


def format_device(device: DeviceState) -> str:
    """Return the answer to `get`, without the `ending`."""
    lines = []
    if device.private_key is not None:
        lines.append(f"private_key={device.private_key.hex()}")
    lines.append(f"listen_port={device.listen_port}")
    if device.fwmark:
        lines.append(f"fwmark={device.fwmark}")
    for peer in device.peers:
        lines.extend(_peer_lines(peer))
    return "\n".join(lines) + "\n"


def _peer_lines(peer: PeerState) -> Iterable[str]:
    yield f"public_key={peer.public_key.hex()}"
    yield f"preshared_key={peer.preshared_key.hex()}"
    yield "protocol_version=1"
    if peer.endpoint is not None:
        yield f"endpoint={format_endpoint(peer.endpoint)}"
    seconds, nanoseconds = divmod(peer.last_handshake, 10**9)
    yield f"last_handshake_time_sec={seconds}"
    yield f"last_handshake_time_nsec={nanoseconds}"
    yield f"tx_bytes={peer.tx_bytes}"
    yield f"rx_bytes={peer.rx_bytes}"
    yield f"persistent_keepalive_interval={peer.persistent_keepalive}"
    for network in peer.allowed_ips:
        yield f"allowed_ip={network}"


def format_endpoint(endpoint: Endpoint) -> str:
    """Return an endpoint as `192.0.2.1:51820` or `[fe80::1%eth0]:51820`."""
    host, port = endpoint[:2]
    scope = f"%{endpoint[3]}" if len(endpoint) == 4 and endpoint[3] and "%" not in host else ""
    return f"[{host}{scope}]:{port}" if ":" in host else f"{host}:{port}"


# -- requests -------------------------------------------------------------------------------------------------------


def parse_set(lines: Sequence[str]) -> DeviceChange:
    """Return the changes in the lines after `set=1`.

    Args:
        lines: `key=value` each, without the empty line at the end.

    Raises:
        UapiError: EPROTO for a malformed line, EINVAL for an unknown key or value.
    """
    change = DeviceChange()
    for line in lines:
        key, separator, value = line.partition("=")
        if not separator:
            raise UapiError(errno.EPROTO, f"the line {key[:40]!r} has no '='")
        if key == "public_key":
            change.peers.append(PeerChange(_key(key, value)))
        elif not change.peers:
            _set_of_device(change, key, value)
        else:
            _set_of_peer(change.peers[-1], key, value)
    return change


def _set_of_device(change: DeviceChange, key: str, value: str) -> None:
    match key:
        case "private_key":
            private_key = _key(key, value)
            # As in the kernel, which shows it so.
            change.private_key = clamp(private_key) if any(private_key) else private_key
        case "listen_port":
            change.listen_port = _number(key, value, 0xFFFF)
        case "fwmark":
            change.fwmark = _number(key, value, 0xFFFF_FFFF) if value else 0
        case "replace_peers":
            change.replace_peers = _true(key, value)
        case _:
            raise UapiError(errno.EINVAL, f"no key {key[:40]!r} of an interface")


def _set_of_peer(peer: PeerChange, key: str, value: str) -> None:
    match key:
        case "remove":
            peer.remove = _true(key, value)
        case "update_only":
            peer.update_only = _true(key, value)
        case "preshared_key":
            peer.preshared_key = _key(key, value)
        case "endpoint":
            peer.endpoint = _endpoint(value)
        case "persistent_keepalive_interval":
            peer.persistent_keepalive = _number(key, value, 0xFFFF)
        case "replace_allowed_ips":
            peer.replace_allowed_ips = _true(key, value)
        case "allowed_ip":
            peer.allowed_ips.append((_network(value.removeprefix("-")), not value.startswith("-")))
        case "protocol_version":
            if value != "1":
                raise UapiError(errno.EINVAL, f"protocol_version {value[:40]!r}")
        case _:
            raise UapiError(errno.EINVAL, f"no key {key[:40]!r} of a peer")


def _key(name: str, value: str) -> bytes:
    # The value may be secret, so no message repeats it.
    key = _parsed(bytes.fromhex, value, name, "is not hexadecimal")
    if len(key) != KEY_SIZE or len(value) != 2 * KEY_SIZE:
        raise UapiError(errno.EINVAL, f"{name} has {counted(len(value), 'character')}, not {2 * KEY_SIZE}")
    return key


def _number(name: str, value: str, greatest: int) -> int:
    # int() also takes signs, blanks, underscores and the digits of other scripts.
    if not (value.isascii() and value.isalnum()):
        raise UapiError(errno.EINVAL, f"{name} is no number")
    base = 16 if value.startswith("0x") else 10
    number = _parsed(lambda text: int(text, base), value, name, "is no number")
    if not 0 <= number <= greatest:
        raise UapiError(errno.EINVAL, f"{name} must be from 0 to {greatest}")
    return number


def _true(name: str, value: str) -> bool:
    if value != _TRUE:
        raise UapiError(errno.EINVAL, f"{name} can only be {_TRUE}")
    return True


def _network(value: str) -> Network:
    # ip_network() also takes a scope and a netmask.
    prefix = value.partition("/")[2]
    if "%" in value or not ((prefix.isascii() and prefix.isalnum()) or "/" not in value):
        raise UapiError(errno.EINVAL, "allowed_ip is no network")
    return _parsed(lambda text: ip_network(text, strict=False), value, "allowed_ip", "is no network")


def _endpoint(value: str) -> Endpoint:
    host, separator, port = value.rpartition(":")
    number = _number("endpoint", port, 0xFFFF)
    if not separator or number == 0:
        raise UapiError(errno.EINVAL, "endpoint has no port")
    if not host.startswith("["):
        return (str(_parsed(IPv4Address, host, "endpoint", "is no address")), number)
    address = _parsed(IPv6Address, host.removeprefix("[").removesuffix("]"), "endpoint", "is no address")
    if not host.endswith("]"):
        raise UapiError(errno.EINVAL, "endpoint has no ]")
    if address.ipv4_mapped is not None:
        return (str(address.ipv4_mapped), number)
    if address.scope_id is None:
        return (str(address), number)
    return (str(address).partition("%")[0], number, 0, _scope(address.scope_id))


def _scope(name: str) -> int:
    if name.isdecimal():
        return _number("the scope of endpoint", name, _MAX_SCOPE)
    try:
        return if_nametoindex(name)
    except (OSError, ValueError) as error:
        raise UapiError(errno.EINVAL, f"there is no interface {name[:40]!r}") from error


def _parsed(parse: Callable[[str], T], value: str, name: str, problem: str) -> T:
    try:
        return parse(value)
    except ValueError as error:
        raise UapiError(errno.EINVAL, f"{name} {problem}") from error
