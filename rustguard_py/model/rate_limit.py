"""Limits on how often something is done, overall and per source, and what counts as one source."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address

from rustguard_py.model.endpoint import Endpoint, address_of

# Slots of the table, one float each: 128 KiB. A flood of 100,000 per second from spoofed sources adds 6 per second to
# each slot.
_SLOTS = 1 << 14


class RateLimit:
    """Limits the rate of something, with a burst (the generic cell rate algorithm; one float of memory).

    Args:
        rate: How many per second.
        burst: How many at once.
    """

    __slots__ = ("_due", "_interval", "_slack")

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._due = float("-inf")

    def take(self, now: float) -> bool:
        """Spend one and return True; return False when the budget is spent."""
        if self._due - now > self._slack:
            return False
        self._due = max(self._due, now) + self._interval
        return True


class SourceRateLimits:
    """Limits the rate per source, with a burst, in a table of fixed size, so that spoofed sources cost no memory.

    Several sources may share a slot. The hash is keyed, so that a stranger can't choose whose slot to share.

    Args:
        rate: How many per second.
        burst: How many at once.
        random: Returns the requested number of random bytes.
    """

    __slots__ = ("_due", "_interval", "_key", "_slack")

    def __init__(self, rate: float, burst: int, random: Callable[[int], bytes]) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._key = random(16)
        self._due = array("d", [float("-inf")]) * _SLOTS

    def take(self, source: str, now: float) -> bool:
        """Spend one of a source's (see `source_of`) and return True; False when its budget is spent."""
        digest = blake2s(source.encode(), key=self._key, digest_size=4).digest()
        slot = int.from_bytes(digest, "little") % _SLOTS
        due = self._due[slot]
        if due - now > self._slack:
            return False
        self._due[slot] = max(due, now) + self._interval
        return True


def source_of(source: Endpoint) -> str:
    """Return the source that a budget is charged to: the /32 of an IPv4 address, the /64 of an IPv6 address."""
    address = address_of(source)
    if isinstance(address, IPv4Address):
        return f"{address}/32"
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


# Each draw looks at all sources that wait.
@lru_cache(maxsize=1 << 13)
def site_of(source: str) -> str:
    """Return the site of a source: the /48 that an IPv6 /64 is in, or the IPv4 address itself.

    Whoever has an IPv6 network at all often has a /48, and so 65,536 sources.
    """
    try:
        address = int(IPv6Address(source.partition("/")[0]))
    except ValueError:
        return source
    return f"{IPv6Address(address >> 80 << 80)}/48"
