"""The TUN device: packets and superpackets of the host (Linux, Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.planes.offload import PLAIN_VNET

_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN = 0x0001
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_WANTED = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
_OFFLOAD_CHECKSUM = 0x01
_OFFLOAD_TSO4 = 0x02
_OFFLOAD_TSO6 = 0x04
_OFFLOAD_USO4 = 0x20
_OFFLOAD_USO6 = 0x40
# What to ask for, best first; USO is there from Linux 6.2.
_OFFLOADS = (
    (
        _OFFLOAD_CHECKSUM | _OFFLOAD_TSO4 | _OFFLOAD_TSO6 | _OFFLOAD_USO4 | _OFFLOAD_USO6,
        "",
    ),
    (
        _OFFLOAD_CHECKSUM | _OFFLOAD_TSO4 | _OFFLOAD_TSO6,
        "The kernel gives no UDP superpackets (Linux 6.2 does): UDP goes packet by packet.",
    ),
    (0, "The kernel gives no superpackets: all goes packet by packet."),
)


def not_ours(error: OSError) -> RefusedError:
    """Say that a descriptor can't be used as a queue of a TUN interface."""
    return RefusedError(
        f"What was given as a TUN descriptor can't be used: {error.strerror}.",
        "Open it with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR, or let RustGuard make the interface.",
    )


class Tun:
    """A queue of an interface of ours; the interface is gone when its last one is closed.

    Addresses, routes, MTU, `up` and `gso_max_segs` (`offload.wanted_gso_segments`) are the caller's to set.

    Args:
        name: The interface to make, up to 15 bytes; a `%d` in it is replaced by a free number.
        note: Called with a sentence for what it does without.
        several: Whether it may have more queues, each a `Tun` of the same name.

    Attributes:
        name: What the kernel named it.
        fd: Non-blocking. Reads give a virtio_net_hdr and a packet or superpacket.

    Raises:
        RefusedError: No permission, no /dev/net/tun, or the name is taken.
        UsageError: The name is no interface name.
    """

    __slots__ = ("fd", "name")

    def __init__(self, name: str, note: Callable[[str], None], *, several: bool = False) -> None:
        if not 0 < len(name.encode()) < 16:
            raise UsageError(f"{name!r} can't name an interface.", "Use a name of 1 to 15 bytes.")
        try:
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise RefusedError(
                f"/dev/net/tun can't be opened: {error.strerror}.",
                "Run as root; in a container, let it have /dev/net/tun and CAP_NET_ADMIN.",
            ) from error
        try:
            flags = _WANTED | (_IFF_MULTI_QUEUE if several else 0)
            request = fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            self._ask_offloads(note)
        except OSError as error:
            os.close(self.fd)
            fix = "Run as root, or with CAP_NET_ADMIN."
            if error.errno == errno.EBUSY:
                fix = f"Look with `ip link show {name}` who has it, or choose another --interface."
            raise RefusedError(f"Interface {name} can't be made: {error.strerror}.", fix) from error
        self.name = request[:16].rstrip(b"\0").decode()

    @classmethod
    def adopt(cls, descriptor: int, note: Callable[[str], None]) -> Tun:
        """Take a copy of somebody else's queue; closing it leaves the interface to its owner.

        Raises:
            RefusedError: It is none, or gives frames of another shape.
        """
        tun = cls.__new__(cls)
        tun.fd = -1
        try:
            tun.fd = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
            tun.name = _examine(tun.fd)
            os.set_blocking(tun.fd, False)
            tun._ask_offloads(note)
        except OSError as error:
            tun.close()
            raise not_ours(error) from error
        return tun

    def _ask_offloads(self, note: Callable[[str], None]) -> None:
        for offloads, lack in _OFFLOADS:
            try:
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, offloads)
            except OSError as error:
                if error.errno != errno.EINVAL or not offloads:
                    raise
            else:
                if lack:
                    note(lack)
                return

    def write(self, packet: bytes | memoryview) -> None:
        """Give the host one packet; it verifies the checksums itself.

        Raises:
            OSError: The interface is down, or the packet is none.
        """
        os.writev(self.fd, (PLAIN_VNET, packet))

    def close(self) -> None:
        """Remove the interface. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _examine(descriptor: int) -> str:
    """Give the interface's name; refuse what gives frames of another shape than ours."""
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(descriptor, _TUNGETIFF, bytes(40)))
    if flags & _WANTED != _WANTED:
        raise OSError(errno.EMEDIUMTYPE, os.strerror(errno.EMEDIUMTYPE))
    return str(name.rstrip(b"\0").decode())
