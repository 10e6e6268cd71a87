"""The addresses that a server gives out, and ranges that don't get into anybody's way."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from rustguard_py.model.errors import UsageError

_SMALLEST: Final = 30
_SERVER: Final = 1


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
