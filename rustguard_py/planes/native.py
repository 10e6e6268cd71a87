"""The native plane: packets move in Rust, in threads that never take the interpreter's lock (`native/`).

This module makes it look like `portable`: the same constructor, the same methods, the same errors. Commands are
done at once in the caller's thread; events come through the same bounded queue behind a descriptor.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from rustguard_py import _native
from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.planes.contract import Event, Keypair
from rustguard_py.planes.tun import not_ours


class NativePlane:
    """`Plane` in Rust, for Linux from 4.18 on; what the kernel lacks is done without, and said.

    It starts at once. The interface has no address and is down until the caller sets it up. Its clock is
    CLOCK_BOOTTIME (`rustguard_py.model.clock`).

    Args:
        public_key: Ours, 32 bytes.
        interface: The name of the TUN interface to make.
        sockets: Bound UDP sockets, at most one a family; the plane owns them from now on.
        mtu: Of the interface.
        queues: Of the interface, each with a thread for either direction.
        uring: Whether to use io_uring; where the kernel refuses it, the plane does without and notes it.
        xdp: The interface to use AF_XDP on; what the kernel refuses is said, and the sockets carry all.
        merge_udp: Whether to merge UDP packets for the interface; None decides by the kernel's release.
        tun: Descriptors of the queues of an interface that is there already, in place of making one. They stay the
            caller's, and the interface with them.

    Attributes:
        interface: What the kernel named it.

    Raises:
        RefusedError: The interface can't be made; the sockets are still the caller's.
        UsageError: The name is no interface name.
    """

    def __init__(
        self,
        public_key: bytes,
        *,
        interface: str,
        sockets: Sequence[socket.socket],
        mtu: int = 1420,
        queues: int = 1,
        uring: bool = False,
        xdp: str | None = None,
        merge_udp: bool | None = None,
        tun: Sequence[int] = (),
    ) -> None:
        if not 0 < len(interface.encode()) < 16:
            raise UsageError(f"{interface!r} can't name an interface.", "Use a name of 1 to 15 bytes.")
        try:
            self._plane = _native.Plane(
                public_key,
                interface=interface,
                sockets=[bound.fileno() for bound in sockets],
                mtu=mtu,
                queues=queues,
                uring=uring,
                xdp=xdp,
                merge_udp=merge_udp,
                tun=tun,
            )
        except OSError as error:
            raise _refused(interface, error) from error
        self.interface = self._plane.interface
        # The plane has copies.
        for bound in sockets:
            bound.close()

    def set_peer(
        self,
        peer: PeerId,
        endpoint: Endpoint | None,
        allowed_ips: Sequence[Network],
        persistent_keepalive: int,
    ) -> None:
        """See `Plane.set_peer`."""
        self._plane.set_peer(peer, endpoint, allowed_ips, persistent_keepalive)

    def set_public_key(self, public_key: bytes) -> None:
        """See `Plane.set_public_key`."""
        self._plane.set_public_key(public_key)

    def set_pairing(self, gate: PairingGate | None) -> None:
        """See `Plane.set_pairing`."""
        self._plane.set_pairing(gate)

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint) -> None:
        """See `Plane.set_endpoint`."""
        self._plane.set_endpoint(peer, endpoint)

    def remove_peer(self, peer: PeerId) -> None:
        """See `Plane.remove_peer`."""
        self._plane.remove_peer(peer)

    def reserve_index(self, peer: PeerId) -> int:
        """See `Plane.reserve_index`."""
        return self._plane.reserve_index(peer)

    def install_keypair(self, peer: PeerId, keypair: Keypair) -> None:
        """See `Plane.install_keypair`."""
        self._plane.install_keypair(peer, keypair)

    def erase_keypairs(self, peer: PeerId) -> None:
        """See `Plane.erase_keypairs`."""
        self._plane.erase_keypairs(peer)

    def drop_held(self, peer: PeerId) -> None:
        """See `Plane.drop_held`."""
        self._plane.drop_held(peer)

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """See `Plane.send`."""
        self._plane.send(endpoint, datagram)

    def stats(self) -> PlaneStats:
        """See `Plane.stats`."""
        return self._plane.stats()

    def close(self) -> None:
        """See `Plane.close`. Waits for the threads to end."""
        self._plane.close()

    def set_fwmark(self, mark: int) -> None:
        """Mark what is sent from now on (SO_MARK), for the system's routing rules; 0 for no mark."""
        self._plane.set_fwmark(mark)

    def set_mtu(self, mtu: int) -> None:
        """See `EventfulPlane.set_mtu`."""
        self._plane.set_mtu(mtu)

    def rebind(self, sockets: Sequence[socket.socket]) -> None:
        """See `EventfulPlane.rebind`. Waits for the threads, which end and are started anew."""
        self._plane.rebind([bound.fileno() for bound in sockets])
        for bound in sockets:
            bound.close()

    def fileno(self) -> int:
        """Give the descriptor that is readable while events wait."""
        return self._plane.fileno()

    def poll_events(self) -> list[Event]:
        """Give the next events, 32 at most; the descriptor stays readable if there are more."""
        return self._plane.poll_events()


def _refused(interface: str, error: OSError) -> RefusedError:
    if str(error.filename).startswith("descriptor "):
        return not_ours(error)
    if error.filename == "/dev/net/tun":
        return RefusedError(
            f"/dev/net/tun can't be opened: {error.strerror}.",
            "Run as root; in a container, let it have /dev/net/tun and CAP_NET_ADMIN.",
        )
    mend = "Run as root, or with CAP_NET_ADMIN."
    if error.errno == errno.EBUSY:
        mend = f"Look with `ip link show {interface}` who has it, or choose another --interface."
    return RefusedError(f"Interface {interface} can't be made: {error.strerror}.", mend)
