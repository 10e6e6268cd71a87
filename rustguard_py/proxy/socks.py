"""SOCKS5: its messages (RFC 1928) and its username and password (RFC 1929)."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from rustguard_py.proxy.dial import TtlExpiredError
from rustguard_py.proxy.incoming import Incoming
from rustguard_py.proxy.request import Credentials, Refusal, is_host

VERSION: Final = 5
# What SOCKS4 is answered: "request rejected or failed".
REFUSES_VERSION_4: Final = b"\x00\x5b" + bytes(6)
_ANYONE, _PASSWORD, _NO_METHOD = 0, 2, 0xFF
_PASSWORD_VERSION: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4


class Command(IntEnum):
    """What a client asks for: the field CMD (RFC 1928, section 4)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class Reply(IntEnum):
    """How a request ended: the field REP (RFC 1928, section 6)."""

    SUCCEEDED = 0
    FAILED = 1
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request (RFC 1928, section 4).

    Attributes:
        command: What it asks for.
        host: Where to: an IP address, or a name that is resolved inside the tunnel.
        port: Where to, TCP or UDP by the command.
    """

    command: Command
    host: str
    port: int


async def greet(client: Incoming, credentials: Credentials | None) -> None:
    """Agree on a method, and check the credentials if there are any. The version is read already.

    Raises:
        EOFError: The stream ends before.
        OSError: The connection is lost.
        Refusal: The client offers no method that will do, or the wrong credentials.
    """
    (count,) = await client.exactly(1)
    offered = await client.exactly(count)
    wanted = _ANYONE if credentials is None else _PASSWORD
    if wanted not in offered:
        raise Refusal(bytes([VERSION, _NO_METHOD]), "it offers no method that will do")
    await client.send(bytes([VERSION, wanted]))
    if credentials is None:
        return
    version, length = await client.exactly(2)
    user = await client.exactly(length)
    (length,) = await client.exactly(1)
    password = await client.exactly(length)
    if version != _PASSWORD_VERSION or not credentials.match(user, password):
        raise Refusal(bytes([_PASSWORD_VERSION, 1]), "wrong username or password")
    await client.send(bytes([_PASSWORD_VERSION, 0]))


async def read_request(client: Incoming) -> Request:
    """Return what a client asks for.

    Raises:
        EOFError: The stream ends before.
        OSError: The connection is lost.
        Refusal: It isn't a request, or one that isn't supported.
    """
    version, command, _reserved, kind = await client.exactly(4)
    if version != VERSION:
        raise Refusal(reply(Reply.FAILED), f"its request is of version {version}")
    if kind == _IPV4:
        host = str(IPv4Address(await client.exactly(4)))
    elif kind == _IPV6:
        host = str(IPv6Address(await client.exactly(16)))
    elif kind == _NAME:
        (length,) = await client.exactly(1)
        host = (await client.exactly(length)).decode("ascii", "replace")
    else:
        raise Refusal(reply(Reply.ADDRESS_NOT_SUPPORTED), f"its address is of kind {kind}")
    port = int.from_bytes(await client.exactly(2))
    if command not in (Command.CONNECT, Command.UDP_ASSOCIATE):
        raise Refusal(reply(Reply.COMMAND_NOT_SUPPORTED), f"command {command} isn't supported")
    if not is_host(host):
        raise Refusal(reply(Reply.FAILED), "its host is neither a name nor an address")
    return Request(Command(command), host, port)


def reply(code: Reply, bound: tuple[Any, ...] = ("0.0.0.0", 0)) -> bytes:  # noqa: S104 - an address in a message
    """Return a reply.

    Args:
        code: What came of the request.
        bound: The address of our socket, as the socket module has it.
    """
    return bytes([VERSION, code, 0]) + encode_address(bound)


def reply_to(error: OSError) -> Reply:
    """Return the code for the error that a connection ended with before it was made."""
    if isinstance(error, socket.gaierror):
        return Reply.HOST_UNREACHABLE
    if isinstance(error, TimeoutError | TtlExpiredError):
        return Reply.TTL_EXPIRED
    return {
        errno.ECONNREFUSED: Reply.REFUSED,
        errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
        errno.ENETDOWN: Reply.NETWORK_UNREACHABLE,
        errno.EADDRNOTAVAIL: Reply.NETWORK_UNREACHABLE,
        errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
        errno.EHOSTDOWN: Reply.HOST_UNREACHABLE,
        errno.EAFNOSUPPORT: Reply.ADDRESS_NOT_SUPPORTED,
    }.get(error.errno or 0, Reply.FAILED)


def encode_address(address: tuple[Any, ...]) -> bytes:
    """Return an address of the socket module as SOCKS5 writes it: kind, address, port."""
    host = ip_address(str(address[0]).partition("%")[0])
    if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    kind = _IPV4 if isinstance(host, IPv4Address) else _IPV6
    return bytes([kind]) + host.packed + int(address[1]).to_bytes(2)


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram of a client, with the header that says where it goes (RFC 1928, section 7)."""

    fragment: int
    host: str
    port: int
    payload: bytes


def parse_datagram(data: bytes) -> Datagram | None:
    """Return what a client's datagram says, or None if it is malformed."""
    if len(data) < 5 or data[:2] != b"\x00\x00":
        return None
    fragment, kind = data[2], data[3]
    start = 5 if kind == _NAME else 4
    length = {_IPV4: 4, _IPV6: 16, _NAME: data[4]}.get(kind)
    if length is None or len(data) < start + length + 2:
        return None
    raw, end = data[start : start + length], start + length
    host = raw.decode("ascii", "replace") if kind == _NAME else str(ip_address(raw))
    if not is_host(host):
        return None
    return Datagram(fragment, host, int.from_bytes(data[end : end + 2]), data[end + 2 :])


def wrap_datagram(source: tuple[Any, ...], payload: bytes) -> bytes:
    """Return a datagram for a client, with the header that says where it comes from."""
    return b"\x00\x00\x00" + encode_address(source) + payload
