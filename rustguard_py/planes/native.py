"""The native plane: packets move in Rust, in threads that never take the interpreter's lock (`native/`).

This module gives it the same constructor, methods and errors as `portable`. Commands are done at once in the caller's
thread. Events come through a bounded queue with a descriptor, as in `portable`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from rustguard_py import _native
from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.errors import RefusedError
from rustguard_py.model.ethernet import EthernetOptions, own_mac
from rustguard_py.model.memif import MemifOptions, MemifState
from rustguard_py.model.offloads import ALL, Offloads
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.planes.contract import Event, Flow, Keypair
from rustguard_py.planes.tun import not_made, not_ours
from rustguard_py.system import memif_socket
from rustguard_py.system.interface import check_interface_name
from rustguard_py.system.sockets import bind


class NativePlane:
    """`Plane` in Rust, for Linux 4.18 and later. It runs without features that the kernel lacks, and notes them.

    It starts at once. The interface has no address and is down until the caller sets it up. Its clock is
    `rustguard_py.model.clock`.

    Args:
        public_key: Our own, 32 bytes.
        interface: The name of the TUN interface to make.
        sockets: Bound UDP sockets, at most one per family; the plane owns them from now on.
        mtu: The interface's MTU.
        queues: Queues of the interface, each with one thread per direction.
        uring: Whether to use io_uring. If the kernel refuses it, the plane runs without and notes it.
        xdp: The interface to use AF_XDP on. If the kernel refuses it, the plane uses its sockets and notes it.
        offloads: The offloads to use where the kernel has them.
        tun: Descriptors of the queues of an existing interface, to use instead of making one. The caller keeps them
            and the interface.
        channel: A `_native.Channel` to use instead of an interface. Then `interface` is only a name for messages, and
            the channel says how many queues there are. It is closed with the plane, and when none can be made.
        memif: A memif to use instead of an interface. `interface` is then the name that the other side sees, and the
            memif says how many queues there are.
        listener: The listening socket of a memif that is a server, if the caller has made it and removes it.

    Attributes:
        interface: The interface's name.

    Raises:
        RefusedError: The interface can't be made; the sockets are still the caller's.
        UsageError: The name can't be an interface's.
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
        offloads: Offloads = ALL,
        tun: Sequence[int] = (),
        channel: _native.Channel | None = None,
        memif: MemifOptions | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self._memif = None if memif is None else _Memif(memif, interface, listener)
        if channel is None:
            check_interface_name(interface)
        try:
            self._plane = _native.Plane(
                public_key,
                interface=interface,
                sockets=[bound.fileno() for bound in sockets],
                mtu=mtu,
                queues=queues,
                uring=uring,
                xdp=xdp,
                offloads=offloads,
                tun=tun,
                channel=channel,
                memif=None if self._memif is None else self._memif.device,
            )
        except OSError as error:
            if self._memif is not None:
                self._memif.close()
            raise _refused(interface, error) from error
        self.interface = self._plane.interface
        self._port = int(sockets[0].getsockname()[1]) if sockets else 0
        self._mark = 0
        self._has_interface = channel is None and memif is None
        # The plane has its own copies.
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

    def set_segmenting(self, peer: PeerId, on: bool) -> None:
        """See `Plane.set_segmenting`."""
        self._plane.set_segmenting(peer, on)

    def flows(self, peer: PeerId) -> list[Flow]:
        """See `Plane.flows`."""
        return self._plane.flows(peer)

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """See `Plane.send`."""
        self._plane.send(endpoint, datagram)

    def stats(self) -> PlaneStats:
        """See `Plane.stats`."""
        stats = self._plane.stats()
        if self._memif is not None:
            stats.memif = self._memif.state()
        return stats

    def close(self) -> None:
        """See `Plane.close`. Waits for the threads to end."""
        self._plane.close()
        if self._memif is not None:
            self._memif.close()

    def roll_call(self) -> list[str]:
        """See `EventfulPlane.roll_call`."""
        return self._plane.roll_call()

    def set_fwmark(self, mark: int) -> None:
        """See `EventfulPlane.set_fwmark`."""
        self._plane.set_fwmark(mark)
        self._mark = mark

    def set_mtu(self, mtu: int) -> None:
        """See `EventfulPlane.set_mtu`."""
        self._plane.set_mtu(mtu)

    def rebind(self, sockets: Sequence[socket.socket]) -> None:
        """See `EventfulPlane.rebind`. Waits until the threads have ended and started again."""
        self._port = int(sockets[0].getsockname()[1])
        self._plane.rebind([bound.fileno() for bound in sockets])
        for bound in sockets:
            bound.close()

    def is_running(self) -> bool:
        """See `EventfulPlane.is_running`."""
        return self._plane.is_running()

    def memif_costs(self) -> tuple[float, float] | None:
        """Return the nanoseconds of the memif's reads and writes so far, or None if they aren't timed."""
        return None if self._memif is None else self._memif.device.costs()

    def answered_fileno(self) -> int:
        """See `AnsweringPlane.answered_fileno`. -1 without Ethernet: there is nothing to wait for."""
        return -1 if self._memif is None else self._memif.device.answered_fd

    def take_answered(self) -> list[IPv4Address | IPv6Address]:
        """See `AnsweringPlane.take_answered`. Nothing without Ethernet."""
        return [] if self._memif is None else [ip_address(each) for each in self._memif.device.take_answered()]

    def answer_for(self, ethernet: EthernetOptions) -> None:
        """See `AnsweringPlane.answer_for`. Does nothing without Ethernet."""
        if self._memif is not None:
            self._memif.device.answer_for(ethernet.parts)

    def reattach(self) -> None:
        """See `EventfulPlane.reattach`."""
        if not self._has_interface:
            raise RefusedError(f"{self.interface} is no interface, so it can't be made again.")
        # Ends the threads, which close the sockets. What stays is what `reattach` needs.
        self._plane.close()
        sockets = bind(self._port)
        try:
            self._plane.reattach([bound.fileno() for bound in sockets], self._mark)
        except OSError as error:
            raise _refused(self.interface, error) from error
        finally:
            for bound in sockets:
                bound.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable while events wait."""
        return self._plane.fileno()

    def poll_events(self) -> list[Event]:
        """Return the next events, at most 32. The descriptor stays readable if there are more."""
        return self._plane.poll_events()


class _Memif:
    """A memif that is open.

    Args:
        options: The memif.
        interface: This interface's name for the other side.
        listener: The listening socket of a server, which the caller removes; None to make one. Not for a client.

    Raises:
        RefusedError: The socket can't be made.
    """

    def __init__(self, options: MemifOptions, interface: str, listener: socket.socket | None) -> None:
        self._options = options
        self._made: memif_socket.File | None = None
        own = None
        if options.server and listener is None:
            own, self._made = memif_socket.bind(options.socket)
            listener = own
        try:
            self.device = _native.Memif(
                str(options.socket),
                listener=None if listener is None else listener.fileno(),
                number=options.number,
                secret=options.secret,
                queues=options.queues,
                ethernet=_with_mac(options, interface),
                interface=interface,
                metered=options.metered,
            )
        except OSError as error:
            self._remove()
            raise RefusedError(
                f"The memif at {options.socket} can't be made: {error.strerror}.",
                "Choose another path: --memif SOCKET",
            ) from error
        finally:
            # The device has its own copy.
            if own is not None:
                own.close()

    def state(self) -> MemifState:
        """Return how it is connected."""
        peer, connections, why, seconds = self.device.state()
        # Rust adds the number to the system's own words.
        why = why and re.sub(r" \(os error \d+\)$", "", why)
        return MemifState(self._options, peer, connections, why, seconds)

    def close(self) -> None:
        """End the connection, and remove the socket that was made here. May be called twice."""
        self.device.close()
        self._remove()

    def _remove(self) -> None:
        if self._made is not None:
            memif_socket.remove(self._options.socket, self._made)
            self._made = None


def _with_mac(options: MemifOptions, interface: str) -> EthernetOptions | None:
    """Return the Ethernet of a memif, with a MAC address of ours, and with no exceptions in answered ranges."""
    ethernet = options.ethernet
    if ethernet is None:
        return None
    mac = own_mac(interface, options.number) if ethernet.mac is None else ethernet.mac
    return replace(ethernet, mac=mac, answered=ethernet.parts, excepted=())


def _refused(interface: str, error: OSError) -> RefusedError:
    if str(error.filename).startswith("descriptor "):
        return not_ours(error)
    return not_made(interface, error)
