"""Ethernet on a memif: our MAC address, and for which IP addresses we answer or ask."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
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
    """

    mac: bytes | None = None
    gateway: bytes | None = None
    answered: tuple[IPv4Network | IPv6Network, ...] = ()
    learnt: tuple[IPv4Network | IPv6Network, ...] = ()


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
