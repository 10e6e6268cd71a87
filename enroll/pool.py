"""The addresses that a server gives out, and ranges that don't get into anybody's way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeVar

from rustguard_py.errors import UsageError
from rustguard_py.planes.contract import Network

_SMALLEST: Final = 30
_SERVER: Final = 1
# Private space (RFC 1918), each with the offset to begin at: not where home routers and container engines begin.
_PRIVATE: Final = (
    (IPv4Network("10.0.0.0/8"), 150 << 16),
    (IPv4Network("172.16.0.0/12"), 8 << 16),
    (IPv4Network("192.168.0.0/16"), 150 << 8),
)

_Label = TypeVar("_Label")


class Pool:
    """Lowest free address first; the server has the first host address, the last is the broadcast's.

    Memory: a byte an address up to the highest one in use, and an entry a peer.

    Args:
        network4: /30 or larger.
        network6: The peers' IPv6 addresses: this prefix and the host number that their IPv4 address has.

    Raises:
        UsageError: A network is too small.
    """

    __slots__ = ("_hosts", "_limit", "_used", "network4", "network6")

    def __init__(self, network4: IPv4Network, network6: IPv6Network | None = None) -> None:
        if network4.prefixlen > _SMALLEST:
            raise UsageError(
                f"The pool {network4} has no room for a server and a peer.", "Take a /30 or larger, say a /24."
            )
        if network6 is not None and network6.num_addresses < network4.num_addresses:
            raise UsageError(
                f"The IPv6 pool {network6} is smaller than the IPv4 pool {network4}.", "Take a /64 for --pool6."
            )
        self.network4 = network4
        self.network6 = network6
        # By host number; the broadcast address, of number `_limit`, is never given.
        self._limit = network4.num_addresses - 1
        self._used = bytearray(b"\1\1")
        self._hosts: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many peers have an address."""
        return len(self._hosts)

    @property
    def capacity(self) -> int:
        """How many peers can have one."""
        return self._limit - _SERVER - 1

    @property
    def server(self) -> tuple[IPv4Address, IPv6Address | None]:
        """The server's own addresses."""
        return self._addresses(_SERVER)

    def allocate(self, public_key: bytes) -> tuple[IPv4Address, IPv6Address | None] | None:
        """Give a key the lowest free addresses, or those that it has; None when the pool is full."""
        host = self._hosts.get(public_key)
        if host is None:
            # A search by memchr: some microseconds for a /16.
            host = self._used.find(0)
            if host < 0:
                host = len(self._used)
            if host >= self._limit:
                return None
            self._set(public_key, host)
        return self._addresses(host)

    def take(self, public_key: bytes, address4: IPv4Address) -> bool:
        """Give a key this very address: kept from before, or chosen. Gives back the one that it had.

        Returns:
            False, and nothing is changed, when the address isn't the pool's, or is the server's or somebody else's.
        """
        host = int(address4) - int(self.network4.network_address)
        if self._hosts.get(public_key) == host:
            return True
        if not _SERVER < host < self._limit or (host < len(self._used) and self._used[host]):
            return False
        self.release(public_key)
        self._set(public_key, host)
        return True

    def release(self, public_key: bytes) -> None:
        """Take a key's addresses back; they are the next to be given if they are the lowest."""
        host = self._hosts.pop(public_key, None)
        if host is not None:
            self._used[host] = 0

    def _set(self, public_key: bytes, host: int) -> None:
        if host >= len(self._used):
            self._used.extend(bytes(host + 1 - len(self._used)))
        self._used[host] = 1
        self._hosts[public_key] = host

    def _addresses(self, host: int) -> tuple[IPv4Address, IPv6Address | None]:
        address6 = None if self.network6 is None else self.network6[host]
        return self.network4[host], address6


def collisions(pool: Network, taken: Iterable[tuple[Network, _Label]]) -> list[_Label]:
    """List what shares an address with the pool.

    A default route isn't a collision: it holds every address and means none of them.

    Args:
        pool: Of either family.
        taken: Networks of either family, each with what to call it.

    Returns:
        What those that collide are called, in the order given.
    """
    return [label for network, label in taken if network.prefixlen and _overlap(pool, network)]


def propose(taken: Iterable[Network], prefixlen: int = 24) -> IPv4Network | None:
    """Find a private network that shares no address with any of those taken.

    Args:
        taken: Of either family; default routes don't count.
        prefixlen: The size wanted, 8 to 30.

    Returns:
        The same one for the same arguments; None when there is none of this size.
    """
    obstacles = [n for n in taken if isinstance(n, IPv4Network) and n.prefixlen]
    for space, start in _PRIVATE:
        if prefixlen < space.prefixlen:
            continue
        base = int(space.network_address)
        begin = base + start >> 32 - prefixlen << 32 - prefixlen
        found = _first_free(begin, int(space.broadcast_address), prefixlen, obstacles)
        found = found or _first_free(base, begin - 1, prefixlen, obstacles)
        if found is not None:
            return found
    return None


def make_ula(random: Callable[[int], bytes]) -> IPv6Network:
    """Make a unique local /64 (RFC 4193, section 3.1): fd, 40 random bits, subnet 0."""
    return IPv6Network((b"\xfd" + random(5) + bytes(10), 64))


def _overlap(one: Network, other: Network) -> bool:
    # Between the families there is nothing to share, and `overlaps` refuses to compare them.
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def _first_free(first: int, last: int, prefixlen: int, obstacles: list[IPv4Network]) -> IPv4Network | None:
    size = 1 << 32 - prefixlen
    at = -(-first // size) * size
    while at + size - 1 <= last:
        candidate = IPv4Network((at, prefixlen))
        hit = next((network for network in obstacles if network.overlaps(candidate)), None)
        if hit is None:
            return candidate
        beyond = max(int(hit.broadcast_address), int(candidate.broadcast_address)) + 1
        at = -(-beyond // size) * size
    return None
