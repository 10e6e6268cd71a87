"""Finds the peer of an inner address: longest prefix first, both families (whitepaper section 2).

There is one dictionary per prefix length in use, tried from the longest. Most tables have one or two lengths, so a
look-up takes one or two hashes, whether there are 10,000 prefixes or one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from rustguard_py.model.endpoint import Network

T = TypeVar("T")


class _Family(Generic[T]):
    """The prefixes of one address family."""

    __slots__ = ("bits", "levels", "tables")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        # By host bits (32 less the prefix length for IPv4): owners by network, shifted right by the host bits.
        self.tables: dict[int, dict[int, T]] = {}
        # The same, longest prefix first.
        self.levels: list[tuple[int, dict[int, T]]] = []

    def table(self, host_bits: int) -> dict[int, T]:
        table = self.tables.get(host_bits)
        if table is None:
            table = self.tables[host_bits] = {}
            self.levels = sorted(self.tables.items())
        return table

    def discard(self, host_bits: int, key: int, owner: T) -> None:
        table = self.tables.get(host_bits)
        if table is None or table.get(key) is not owner:
            return
        del table[key]
        if not table:
            del self.tables[host_bits]
            self.levels = sorted(self.tables.items())

    def find(self, address: int) -> T | None:
        for host_bits, table in self.levels:
            owner = table.get(address >> host_bits)
            if owner is not None:
                return owner
        return None


class AllowedIps(Generic[T]):
    """A map from networks to their owners. Owners are compared by identity and must be hashable."""

    __slots__ = ("_owned", "_v4", "_v6")

    def __init__(self) -> None:
        self._v4 = _Family[T](32)
        self._v6 = _Family[T](128)
        # The networks set for an owner, packed: family and host bits in one byte each, then the address. A
        # network may have moved to another owner since, which `discard` checks.
        self._owned: dict[T, bytes] = {}

    def set(self, owner: T, networks: Iterable[Network]) -> None:
        """Replace the networks of `owner`. A network that another owner has moves to this one."""
        self.remove(owner)
        packed = bytearray()
        for network in networks:
            family = self._v4 if network.version == 4 else self._v6
            host_bits = family.bits - network.prefixlen
            family.table(host_bits)[int(network.network_address) >> host_bits] = owner
            packed += bytes((network.version, host_bits)) + network.network_address.packed
        if packed:
            self._owned[owner] = bytes(packed)

    def remove(self, owner: T) -> None:
        """Remove all networks of `owner`."""
        packed = self._owned.pop(owner, b"")
        at = 0
        while at < len(packed):
            version, host_bits = packed[at], packed[at + 1]
            family = self._v4 if version == 4 else self._v6
            end = at + 2 + family.bits // 8
            family.discard(host_bits, int.from_bytes(packed[at + 2 : end], "big") >> host_bits, owner)
            at = end

    def find(self, address: bytes) -> T | None:
        """Return the owner of a packed address (4 or 16 bytes), or None."""
        family = self._v4 if len(address) == 4 else self._v6
        return family.find(int.from_bytes(address, "big"))
