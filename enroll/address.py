"""A server's address as people type it: a name, an IPv4 or an IPv6 address, perhaps with a port."""

from __future__ import annotations

import asyncio
import re
import socket
from ipaddress import IPv6Address, ip_address

from rustguard_py.errors import UnansweredError, UsageError
from rustguard_py.planes.contract import Endpoint

# WireGuard's customary one, which a server has unless it is told another.
DEFAULT_PORT = 51820
LAST_PORT = 65535

_WITH_BRACKETS = re.compile(r"\[(?P<host>[0-9A-Fa-f:.%\w-]+)\](?::(?P<port>\d+))?")
_WITHOUT = re.compile(r"(?P<host>[^\s:\[\]]+)(?::(?P<port>\d+))?")


def parse(text: str) -> tuple[str, int | None]:
    """Split `HOST[:PORT]`; an IPv6 address with a port needs brackets.

    Raises:
        UsageError: It's neither.
    """
    if text.count(":") > 1 and not text.startswith("["):
        if _is_ipv6(text):
            return text, None
        match = None
    else:
        match = _WITH_BRACKETS.fullmatch(text) or _WITHOUT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no address.", "Write it like home.example:51820 or [2001:db8::1]:51820.")
    port = match["port"]
    if port is not None and not 1 <= int(port) <= LAST_PORT:
        raise UsageError(f"{port} is no UDP port.", "Ports go from 1 to 65535; RustGuard's is 51820.")
    return match["host"], None if port is None else int(port)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def pairing_port(port: int) -> int:
    """Give the port beside a tunnel's that pairing is answered on where the kernel has the tunnel's to itself.

    Raises:
        UsageError: There is none.
    """
    if port >= LAST_PORT:
        raise UsageError(
            f"UDP port {port} has no next one, and with the kernel's engine pairing needs it.",
            "Choose another --port, or --engine native.",
        )
    return port + 1


async def resolve(host: str, port: int) -> list[Endpoint]:
    """Find the addresses of a host, best first.

    Raises:
        UnansweredError: The name has none, or nobody can say now.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        mend = "Check the name, and that this machine has a network; an address works without names."
        raise UnansweredError(f"The name {host} can't be resolved: {error.strerror}.", mend) from error
    families = {socket.AF_INET, socket.AF_INET6}
    return list(dict.fromkeys(address for family, _, _, _, address in found if family in families))  # type: ignore[misc]


def has_route(endpoint: Endpoint) -> bool:
    """Say whether this machine would know where to send a datagram to that address; nothing is sent."""
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(endpoint)
    except OSError:
        return False
    return True


def next_to_try(found: list[Endpoint], tried: list[Endpoint]) -> Endpoint | None:
    """Take each address that we have a route to in turn while none answers; None where there is none.

    Args:
        found: What a name stands for.
        tried: Those that didn't answer; emptied when that is all of them.
    """
    reachable = [each for each in found if has_route(each)]
    fresh = [each for each in reachable if each not in tried]
    if reachable and not fresh:
        tried.clear()
        fresh = reachable
    return next(iter(fresh), None)


def parse_endpoint(text: str) -> Endpoint | None:
    """Read a kept endpoint, `192.0.2.1:51820` or `[2001:db8::1]:51820`; None for what is none."""
    host, port = parse(text)
    if port is None:
        return None
    try:
        return (host, port, 0, 0) if isinstance(ip_address(host), IPv6Address) else (host, port)
    except ValueError:
        return None
