"""What the portable plane reads packets from to seal them, and writes opened ones to."""

from __future__ import annotations

from typing import Protocol


class FullError(OSError):
    """The device has no room for a packet, which is lost."""


class Device(Protocol):
    """One queue of a device: `Tun` and `ChannelDevice`. The trait `Device` of the native plane is its twin.

    Attributes:
        kind: A short word for what it is, in snake_case. Its drops are counted as `{kind}_full` and so on.
        name: What messages call it: the interface's name.
        fd: Readable while frames wait; writable once the device is up.
        vnet: Whether each frame has a virtio_net_hdr in front, and may be a superpacket.
    """

    kind: str
    name: str
    fd: int
    vnet: bool

    def read(self, into: list[memoryview]) -> int:
        """Read one frame into one buffer, and return its bytes.

        Raises:
            BlockingIOError: Nothing waits.
            EOFError: The other side has ended, and nothing will come any more.
            OSError: The device refused it, or is gone.
        """

    def write(self, packet: bytes | memoryview) -> None:
        """Write one packet, which has complete checksums or is verified by the reader.

        Raises:
            FullError: There is no room for it.
            OSError: The device is down, or the packet is invalid.
        """

    def write_merged(self, parts: list[bytes | memoryview], /) -> None:
        """Write a superpacket in pieces; the first begins with its virtio_net_hdr. Needs `vnet`.

        Raises:
            OSError: The device is down, or can't take superpackets.
        """

    def is_up(self) -> bool:
        """Return whether it is up. While it isn't, nothing but enrollment passes."""

    def end_offloads(self) -> bool:
        """After a refused read, have it hand over plain packets. Return False if that can't be the reason."""

    def close(self) -> None:
        """Close it. May be called twice."""
