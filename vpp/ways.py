"""What a way to VPP can do: its binary API and `vppctl` are two of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Protocol

from rustguard_py.model.errors import RustGuardError
from rustguard_py.vpp.plan import Bvi, Network, Wanted

Address = IPv4Address | IPv6Address


class UnreachableError(RustGuardError):
    """VPP doesn't answer. What it did may be seen later."""

    exit_code = 5


class DeclinedError(RustGuardError):
    """VPP answered, and didn't do it."""

    exit_code = 4


class Way(Protocol):
    """A way to VPP. Each method blocks.

    Each raises UnreachableError if VPP doesn't answer, and DeclinedError if it doesn't do it.
    """

    def close(self) -> None:
        """End the connection if there is one. The next call makes another."""

    def socket_path(self, number: int) -> Path | None:
        """Return the path of a memif socket, or None if there is no socket of that number."""

    def has_memif(self, number: int) -> bool:
        """Return whether the memif of this number is there, on the socket of this number."""

    def add_socket(self, number: int, path: Path) -> None:
        """Name a path as a memif socket."""

    def delete_socket(self, number: int, path: Path) -> None:
        """Forget a memif socket. No interface may use it."""

    def add_memif(self, wanted: Wanted) -> None:
        """Make the memif, as the client of a socket that we listen at."""

    def delete_memif(self, number: int) -> None:
        """Delete a memif, and with it its membership in a bridge."""

    def bring_up(self, wanted: Wanted, mtu: int) -> None:
        """Set the memif's MTU, bring it up and put it into the bridge."""

    def look_up(self, bvi: Bvi) -> Bvi:
        """Return the interface with the name or index that this way needs."""

    def route(self, network: Network, bvi: Bvi, *, add: bool) -> None:
        """Add or delete a route to one address, which is on the link behind an interface."""

    def neighbour(self, address: Address, bvi: Bvi, wanted: Wanted, *, add: bool) -> None:
        """Add or delete a neighbour with our MAC address."""
