"""The addresses that a server gives to its peers."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from rustguard_py.model.errors import UsageError

_SMALLEST: Final = 30
_SERVER: Final = 1


class Pool:
    """A pool that gives out the lowest free address first.

    The server has the first host address. The last address is the broadcast address and never given out.
    Memory: one byte per address up to the highest one in use, and one entry per peer.

    Args:
        network4: /30 or larger.
        network6: The prefix of IPv6 addresses, or None. A peer's IPv6 and IPv4 addresses have the same host number.

    Raises:
        UsageError: A network is too small.
    """

    __slots__ = ("_hosts", "_limit", "_used", "network4", "network6")

    def __init__(self, network4: IPv4Network, network6: IPv6Network | None = None) -> None:
        if network4.prefixlen > _SMALLEST:
            raise UsageError(
                f"The pool {network4} has no room for a server and a peer.", "Use a /30 or larger, such as a /24."
            )
        if network6 is not None and network6.num_addresses < network4.num_addresses:
            raise UsageError(
                f"The IPv6 pool {network6} is smaller than the IPv4 pool {network4}.", "Use a /64 for --pool6."
            )
        self.network4 = network4
        self.network6 = network6
        # By host number: 1 if in use. `_limit` is the broadcast address, which is never given out.
        self._limit = network4.num_addresses - 1
        self._used = bytearray(b"\1\1")
        self._hosts: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Return how many peers have an address."""
        return len(self._hosts)

    @property
    def capacity(self) -> int:
        """How many peers can have an address."""
        return self._limit - _SERVER - 1

    @property
    def server(self) -> tuple[IPv4Address, IPv6Address | None]:
        """The server's own addresses."""
        return self._addresses(_SERVER)

    def allocate(self, public_key: bytes) -> tuple[IPv4Address, IPv6Address | None] | None:
        """Return the addresses of a key, which gets the lowest free ones if it has none; None if the pool is full."""
        host = self._hosts.get(public_key)
        if host is None:
            # This is a memchr: a few microseconds for a /16.
            host = self._used.find(0)
            if host < 0:
                host = len(self._used)
            if host >= self._limit:
                return None
            self._set(public_key, host)
        return self._addresses(host)

    def take(self, public_key: bytes, address4: IPv4Address) -> bool:
        """Assign a certain address to a key, in place of the one that it had.

        Returns:
            Whether that was possible. If the address is outside the pool, the server's or in use, nothing changes.
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
        """Take a key's addresses back, if it has any."""
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
