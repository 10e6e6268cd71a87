"""Resolves host names to addresses, and finds those that this machine has a route to."""

from __future__ import annotations

import asyncio
import socket

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UnansweredError
from rustguard_py.model.limits import lack_of_files

# What getaddrinfo opens at once: a database or a library, and a socket for each of a few servers.
_DESCRIPTORS = 4


async def resolve(host: str, port: int) -> list[Endpoint]:
    """Return the addresses of a host, best first.

    Raises:
        UnansweredError: The name has no address, or it can't be resolved now.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        if (lack := lack_of_files(_DESCRIPTORS)) is not None:
            raise UnansweredError(f"The name {host} can't be resolved: {lack.strerror}.") from lack
        fix = "Check the name and this machine's network connection. An address works without name resolution."
        raise UnansweredError(f"The name {host} can't be resolved: {error.strerror}.", fix) from error
    families = {socket.AF_INET, socket.AF_INET6}
    return list(dict.fromkeys(address for family, _, _, _, address in found if family in families))  # type: ignore[misc]


def has_route(endpoint: Endpoint) -> bool:
    """Return whether this machine has a route to an address. Nothing is sent."""
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(endpoint)
    except OSError:
        return False
    return True


def next_to_try(found: list[Endpoint], tried: list[Endpoint]) -> Endpoint | None:
    """Return the next address with a route, each in turn, or None if no address has a route.

    Args:
        found: The addresses of a name.
        tried: Addresses that didn't answer. Emptied when all were tried.
    """
    reachable = [each for each in found if has_route(each)]
    fresh = [each for each in reachable if each not in tried]
    if reachable and not fresh:
        tried.clear()
        fresh = reachable
    return next(iter(fresh), None)
