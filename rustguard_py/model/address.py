"""A server's address as people type it: a name, an IPv4 address or an IPv6 address, with or without a port."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from rustguard_py.model.defaults import DEFAULT_PORT
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UsageError

LAST_PORT = 65535
# The longest name in DNS, and room for any address with its scope.
HOST_LIMIT = 255

_WITH_BRACKETS = re.compile(r"\[(?P<host>[0-9A-Fa-f:.%\w-]+)\](?::(?P<port>\d+))?")
_WITHOUT = re.compile(r"(?P<host>[^\s:\[\]]+)(?::(?P<port>\d+))?")


def parse(text: str) -> tuple[str, int | None]:
    """Return host and port (or None) of `HOST[:PORT]`. An IPv6 address with a port needs brackets.

    Raises:
        UsageError: The text isn't an address, or the port isn't a UDP port.
    """
    if text.count(":") > 1 and not text.startswith("["):
        if _is_ipv6(text):
            return text, None
        match = None
    else:
        match = _WITH_BRACKETS.fullmatch(text) or _WITHOUT.fullmatch(text)
    if match is None or not _is_host(match["host"]):
        raise UsageError(f"{text!r} is not an address.", "Write it like home.example:51820 or [2001:db8::1]:51820.")
    port = match["port"]
    if port is not None and not 1 <= int(port) <= LAST_PORT:
        raise UsageError(f"{port} is not a UDP port.", "Ports go from 1 to 65535. RustGuard's is 51820.")
    return match["host"], None if port is None else int(port)


def typed(host: str, port: int | None) -> str:
    """Return a server as `join` takes it: without the port if it is the usual one, or None."""
    if port in (None, DEFAULT_PORT):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_host(host: str) -> str:
    """Return a server's host, as `parse` gave it and it was kept. Raise ValueError for anything else."""
    if not _is_host(host):
        raise ValueError("it is neither a name nor an address")
    return host


def _is_host(text: str) -> bool:
    return 0 < len(text) <= HOST_LIMIT and text.isprintable() and re.search(r"[\s\[\]/]", text) is None


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def pairing_port(port: int) -> int:
    """Return the port for pairing with the kernel's engine, which keeps the tunnel's port for itself: the next one.

    Raises:
        UsageError: The tunnel's port is the last one.
    """
    if port >= LAST_PORT:
        raise UsageError(
            f"UDP port {port} has no next one, and with the kernel's engine pairing needs it.",
            "Choose another --port, or --engine native.",
        )
    return port + 1


def parse_endpoint(text: str) -> Endpoint | None:
    """Return the endpoint of `192.0.2.1:51820` or `[2001:db8::1]:51820`, or None for a name or a missing port."""
    host, port = parse(text)
    if port is None:
        return None
    try:
        return (host, port, 0, 0) if isinstance(ip_address(host), IPv6Address) else (host, port)
    except ValueError:
        return None
