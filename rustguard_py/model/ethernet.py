"""Ethernet on a memif: our MAC address, and for which IP addresses we answer or ask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

_MACHINE_ID = Path("/etc/machine-id")
# In a MAC address's first byte: of many receivers, and not from a manufacturer.
_GROUP, _LOCAL = 1, 2


@dataclass(frozen=True, slots=True)
class EthernetOptions:
    """Ethernet on a memif. Of two ranges that hold an address, the longer prefix counts.

    Attributes:
        mac: Ours, 6 bytes. None for one that is made from the machine, the interface's name and the memif's number.
        gateway: The MAC address that packets go to unless their destination is in a learnt range. None for the
            sender of the last packet.
        answered: Ranges for which we answer ARP requests and neighbour solicitations with our MAC address.
        learnt: Ranges whose MAC addresses we ask for before we send to them.
        excepted: Addresses for which we don't answer, although an answered range has them.
        fixed: Whether somebody chose the answered ranges, or none. Else they are where the tunnel leads.
    """

    mac: bytes | None = None
    gateway: bytes | None = None
    answered: tuple[IPv4Network | IPv6Network, ...] = ()
    learnt: tuple[IPv4Network | IPv6Network, ...] = ()
    excepted: tuple[IPv4Address | IPv6Address, ...] = ()
    fixed: bool = False

    def answering(
        self, ranges: Iterable[IPv4Network | IPv6Network], other: Iterable[IPv4Address | IPv6Address]
    ) -> EthernetOptions:
        """Return the same, with these answered ranges unless somebody chose others.

        Default routes, whole or in halves, are left out: nobody else on the link would be reached.

        Args:
            ranges: Where the tunnel leads.
            other: Addresses of the program on the other side of the memif.
        """
        if self.fixed:
            return self
        chosen = dict.fromkeys(each for each in ranges if each.prefixlen > 1 and each not in self.learnt)
        held = dict.fromkeys(each for each in other if any(each in one for one in chosen))
        return replace(self, answered=tuple(chosen), excepted=tuple(held))

    @property
    def parts(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The answered ranges without the excepted addresses."""
        left = list(self.answered)
        for each in self.excepted:
            left = [part for whole in left for part in _without(whole, each)]
        return tuple(left)


def _without(whole: IPv4Network | IPv6Network, address: IPv4Address | IPv6Address) -> list[IPv4Network | IPv6Network]:
    """Return a range without an address, as ranges."""
    if isinstance(whole, IPv4Network) and isinstance(address, IPv4Address) and address in whole:
        return list(whole.address_exclude(IPv4Network(address)))
    if isinstance(whole, IPv6Network) and isinstance(address, IPv6Address) and address in whole:
        return list(whole.address_exclude(IPv6Network(address)))
    return [whole]


def own_mac(interface: str, number: int) -> bytes:
    """Return a MAC address that stays the same, and that no other interface here or elsewhere has.

    It is locally administered. A machine without a machine id has the addresses of any other such machine.

    Args:
        interface: The interface's name.
        number: The memif's id on its socket.
    """
    machine = _MACHINE_ID.read_bytes() if _MACHINE_ID.is_file() else b""
    digest = hashlib.sha256(b"RustGuard MAC address\0%b\0%b\0%d" % (machine, interface.encode(), number)).digest()
    return bytes([digest[0] & ~_GROUP | _LOCAL]) + digest[1:6]
