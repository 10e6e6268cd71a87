"""The TUN device, for packets and superpackets of the host (Linux, Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable
from functools import partial

from rustguard_py.model.errors import NameTakenError, RefusedError
from rustguard_py.model.limits import THREADS
from rustguard_py.model.offloads import ALL, Offloads
from rustguard_py.planes.offload import PLAIN_VNET, REFUSALS
from rustguard_py.system import container
from rustguard_py.system.interface import TUN_DEVICE, check_interface_name

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
_TSO, _USO = _OFFLOAD_TSO4 | _OFFLOAD_TSO6, _OFFLOAD_USO4 | _OFFLOAD_USO6
# After this many refused reads the reason isn't superpackets that still waited in the device.
_REFUSED_READS = 4096


def not_ours(error: OSError) -> RefusedError:
    """Return the error for a descriptor that can't be used as a queue of a TUN interface."""
    return RefusedError(
        f"The given TUN descriptor can't be used: {error.strerror}.",
        "Open it with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR, or let RustGuard make the interface.",
    )


def not_made(name: str, error: OSError) -> RefusedError:
    """Return the error for a TUN interface that couldn't be made."""
    if error.filename == str(TUN_DEVICE):
        return RefusedError(
            f"/dev/net/tun can't be opened: {error.strerror}.",
            container.device_fix(refused=error.errno in (errno.EACCES, errno.EPERM)),
        )
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return NameTakenError(
            f"Interface {name} can't be made: {error.strerror}.",
            f"See what it is with `ip link show {name}`, or choose another --interface.",
        )
    if error.errno == errno.EAGAIN:
        # Of a thread of the native plane.
        return RefusedError(f"Interface {name} can't be made. {THREADS.message}", THREADS.fix)
    reason = (error.strerror or "unknown error").partition(" (os error ")[0]
    fix = container.capability_fix() if error.errno == errno.EPERM else "Run as root, or with CAP_NET_ADMIN."
    return RefusedError(f"Interface {name} can't be made: {reason}.", fix)


class Tun:
    """`Device`: a queue of our TUN interface. The interface is removed when its last queue is closed.

    The caller sets addresses, routes, MTU, `up` and `gso_max_segs` (`offload.wanted_gso_segments`).

    Args:
        name: The interface to make, up to 15 bytes.
        note: Called with a sentence for each feature that is missing.
        offloads: The offloads to use where the kernel has them.
        several: Whether the interface may have more queues, each a `Tun` of the same name.

    Attributes:
        kind: See `Device.kind`.
        name: The interface's name.
        fd: A non-blocking descriptor. Each read returns a virtio_net_hdr (with `vnet`) and a packet or superpacket.
        vnet: Whether each packet has a virtio_net_hdr in front.
        read: See `Device.read`. It is called per packet, so nothing in Python stands before the system call.

    Raises:
        RefusedError: No permission, no /dev/net/tun, or the name is taken.
        UsageError: The name can't be an interface's.
    """

    __slots__ = ("_refused", "fd", "name", "read", "vnet")
    kind = "interface"

    def __init__(
        self,
        name: str,
        note: Callable[[str], None],
        offloads: Offloads = ALL,
        *,
        several: bool = False,
    ) -> None:
        self._refused = 0
        self.vnet = offloads.needs_vnet
        check_interface_name(name)
        try:
            self.fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise not_made(name, error) from error
        try:
            request = self._attach(name, note, _IFF_MULTI_QUEUE if several else 0)
            self._ask_offloads(note, offloads)
        except OSError as error:
            os.close(self.fd)
            raise not_made(name, error) from error
        self.name = request[:16].rstrip(b"\0").decode()
        self.read = partial(os.readv, self.fd)

    @classmethod
    def adopt(
        cls,
        descriptor: int,
        note: Callable[[str], None],
        offloads: Offloads = ALL,
    ) -> Tun:
        """Return a copy of somebody else's queue. Closing it doesn't remove the interface.

        Raises:
            RefusedError: The descriptor isn't a TUN queue, or has other flags.
        """
        tun = cls.__new__(cls)
        tun.fd, tun.vnet, tun._refused = -1, True, 0
        try:
            tun.fd = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
            tun.name = _examine(tun.fd)
            tun.read = partial(os.readv, tun.fd)
            os.set_blocking(tun.fd, False)
            tun._ask_offloads(note, offloads)
        except OSError as error:
            tun.close()
            raise not_ours(error) from error
        return tun

    def _attach(self, name: str, note: Callable[[str], None], flags: int) -> bytes:
        """Make the interface, without the virtio_net_hdr if the kernel has none."""
        while True:
            vnet = _IFF_VNET_HDR if self.vnet else 0
            try:
                given = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | vnet | flags)
                request = fcntl.ioctl(self.fd, _TUNSETIFF, given)
            except OSError as error:
                if not self.vnet or error.errno not in REFUSALS:
                    raise
                self.vnet = False
                note("The kernel's TUN device has no header for superpackets: all goes packet by packet.")
            else:
                return bytes(request)

    def end_offloads(self) -> bool:
        """After a refused read, have the device hand over plain packets. Return False if that can't be the reason."""
        self._refused += 1
        try:
            fcntl.ioctl(self.fd, _TUNSETOFFLOAD, 0)
        except OSError:
            return False
        return self._refused <= _REFUSED_READS

    def _ask_offloads(self, note: Callable[[str], None], wanted: Offloads) -> None:
        most = _OFFLOAD_CHECKSUM | (_TSO if wanted.tso else 0)
        uso = _USO if wanted.uso else 0
        # Best first. The kernel refuses superpackets without the checksum. USO exists from Linux 6.2.
        best_first = (
            (most | uso, ""),
            (most, "The kernel gives no UDP superpackets (Linux 6.2 does): UDP goes packet by packet."),
            (0, "The kernel gives no superpackets: all goes packet by packet."),
        )
        if not self.vnet or not wanted.tun_checksum:
            best_first = ((0, ""),) * 3
        for offloads, lack in best_first:
            try:
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, offloads)
            except OSError as error:
                if error.errno not in REFUSALS or not offloads:
                    raise
            else:
                if lack:
                    note(lack)
                return

    def is_up(self) -> bool:
        """Return whether the interface is up, in whatever network: while it is down, the kernel takes nothing."""
        look = select.poll()
        look.register(self.fd, select.POLLOUT)
        return bool(look.poll(0))

    def write(self, packet: bytes | memoryview) -> None:
        """See `Device.write`."""
        os.writev(self.fd, (PLAIN_VNET, packet) if self.vnet else (packet,))

    def write_merged(self, parts: list[bytes | memoryview]) -> None:
        """See `Device.write_merged`."""
        os.writev(self.fd, parts)

    def close(self) -> None:
        """Close the queue. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _examine(descriptor: int) -> str:
    """Return the interface's name. Raise OSError if its frames aren't like ours."""
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(descriptor, _TUNGETIFF, bytes(40)))
    if flags & _WANTED != _WANTED:
        raise OSError(errno.EMEDIUMTYPE, os.strerror(errno.EMEDIUMTYPE))
    return str(name.rstrip(b"\0").decode())
