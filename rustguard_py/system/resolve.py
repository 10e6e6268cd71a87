"""From a host name to the addresses that this machine has a route to."""

from __future__ import annotations

import asyncio
import socket

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UnansweredError


async def resolve(host: str, port: int) -> list[Endpoint]:
    """Find the addresses of a host, best first.

    Raises:
        UnansweredError: The name has none, or nobody can say now.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        fix = "Check the name, and that this machine has a network; an address works without names."
        raise UnansweredError(f"The name {host} can't be resolved: {error.strerror}.", fix) from error
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
