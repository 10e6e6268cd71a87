"""HTTP's CONNECT (RFC 9110, section 9.3.6): the request's head, and the answers."""

from __future__ import annotations

import binascii
import re
import socket
from base64 import b64decode
from typing import Final

from rustguard_py.proxy.dial import TtlExpiredError
from rustguard_py.proxy.request import Credentials, Refusal, is_host

# The longest head of a request, bytes.
HEAD_LIMIT: Final = 8192
END_OF_HEAD: Final = b"\r\n\r\n"
CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_REQUEST: Final = re.compile(r"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?P<target>[!-~]+) HTTP/1\.[01]")
_FIELD: Final = re.compile(r"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[\t -~\x80-\xff]*?)[ \t]*")
_AUTHORITY: Final = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%\w-]+)\]|(?P<host>[^:\[\]@/]+)):(?P<port>[0-9]{1,5})")
_LAST_PORT: Final = 65535
_ONLY_CONNECT: Final = (
    "This proxy serves only CONNECT. Use it for https:// addresses, or as a SOCKS5 proxy on the same port."
)
_REASONS: Final = {
    400: "Bad Request",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_EXTRA: Final = {405: "Allow: CONNECT\r\n", 407: 'Proxy-Authenticate: Basic realm="rustguard"\r\n'}


def refuse(status: int, why: str) -> Refusal:
    """Return a refusal with a status, and a sentence that the client may show."""
    return Refusal(answer(status, why), why)


def answer(status: int, sentence: str) -> bytes:
    """Return the response that ends a connection."""
    body = f"{sentence}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n{_EXTRA.get(status, '')}Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def parse_connect(head: bytes, credentials: Credentials | None) -> tuple[str, int]:
    """Return host and port of a CONNECT request.

    Args:
        head: Everything up to the empty line, which is included.
        credentials: What the client has to name, if anything.

    Raises:
        Refusal: It isn't such a request, or it lacks the credentials.
    """
    first, *fields = head.removesuffix(END_OF_HEAD).decode("latin-1").split("\r\n")
    request = _REQUEST.fullmatch(first)
    named = [_FIELD.fullmatch(line) for line in fields]
    if request is None or not all(named):
        raise refuse(400, "This is not an HTTP/1.1 request.")
    if request["method"] != "CONNECT":
        raise refuse(405, _ONLY_CONNECT)
    if credentials is not None:
        given = [each["value"] for each in named if each and each["name"].lower() == "proxy-authorization"]
        if len(given) != 1 or not _is_authorized(given[0], credentials):
            raise refuse(407, "This proxy needs a username and a password.")
    authority = _AUTHORITY.fullmatch(request["target"])
    host = authority and (authority["ipv6"] or authority["host"])
    if authority is None or not host or not is_host(host) or not 1 <= int(authority["port"]) <= _LAST_PORT:
        raise refuse(400, "CONNECT needs HOST:PORT, or [ADDRESS]:PORT for IPv6.")
    return host, int(authority["port"])


def _is_authorized(value: str, credentials: Credentials) -> bool:
    scheme, _, encoded = value.partition(" ")
    try:
        user, colon, password = b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and bool(colon) and credentials.match(user, password)


def answer_to(error: OSError, host: str, port: int) -> bytes:
    """Return the response for the error that a connection ended with before it was made."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        return answer(502, f"The name {host} can't be resolved in the tunnel: {error.strerror}.")
    if isinstance(error, TtlExpiredError):
        return answer(504, f"The packets to {where} went through too many routers.")
    if isinstance(error, TimeoutError):
        return answer(504, f"{where} doesn't answer.")
    return answer(502, f"There is no connection to {where}: {error.strerror or error}.")
