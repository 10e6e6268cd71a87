"""The portable plane: a poll loop in one thread. It is the readable description of the contract.

Each turn of the loop:

1. Wait until something is ready or due.
2. Do the commands that came, move one batch from the TUN device to the network (`outbound`), and one message from
   each socket to the device (`inbound`).
3. Do what is due, and send what `transport` wants to send.

There is one thread, because the AEAD holds the interpreter's lock while it works: a second thread cost 20 % when
measured. The control thread sends commands through a queue with an eventfd. The loop sends events through a bounded
queue with another (`event_queue`). Neither side ever blocks on them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.offloads import ALL, Offloads
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats, WorkerStats
from rustguard_py.planes import switching
from rustguard_py.planes.channel import Channel
from rustguard_py.planes.contract import Event, Fault, Flow, Keypair
from rustguard_py.planes.device import Device
from rustguard_py.planes.event_queue import EventQueue
from rustguard_py.planes.inbound import Inbound
from rustguard_py.planes.offload import REFUSALS
from rustguard_py.planes.outbound import Outbound
from rustguard_py.planes.sources import Sources
from rustguard_py.planes.transport import Transport
from rustguard_py.planes.tun import Tun
from rustguard_py.planes.udp import Udp
from rustguard_py.system.sockets import bind

# How long `close` waits for the loop to end, seconds.
CLOSE_PATIENCE = 5.0
# How often `rebind` checks that the loop still runs while it waits, seconds.
_LOOK = 0.5


class Events:
    """Events from the loop's thread to the control thread, behind a descriptor that is readable while some wait."""

    def __init__(self, drop: Callable[[str], None]) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._drop = drop
        self._queue = EventQueue()
        self._lock = threading.Lock()

    def handshakes(self) -> int:
        """Return how many handshake datagrams wait."""
        return self._queue.handshakes()

    def put(self, event: Event) -> None:
        """Queue an event. Count it as dropped if too many of its kind wait."""
        with self._lock:
            was_empty = not self._queue
            dropped = self._queue.put(event)
            if was_empty and self._queue:
                os.eventfd_write(self.fd, 1)
        if dropped is not None:
            self._drop(dropped)

    def take(self) -> list[Event]:
        """Take the next events. The descriptor stays readable if there are more."""
        with self._lock:
            events = self._queue.take()
            if events and not self._queue:
                os.eventfd_read(self.fd)
        return events

    def close(self) -> None:
        """Close the descriptor, once neither end uses it."""
        os.close(self.fd)


class PortablePlane:
    """`Plane` in Python, for any Linux.

    It starts at once. The interface has no address and is down until the caller sets it up. The interpreter's
    switch interval is lowered for the whole process as long as a plane runs (`switching`).

    Args:
        public_key: Our own, 32 bytes.
        interface: The name of the TUN interface to make.
        sockets: Bound UDP sockets, at most one per family; the plane owns them from now on.
        mtu: The interface's MTU.
        random: Returns n random bytes.
        clock: Returns the time in seconds.
        offloads: The offloads to use where the kernel has them.
        tun: Descriptors of an existing interface, to use instead of making one. Only the first is used. The caller
            keeps them and the interface.
        channel: Used instead of an interface. Then `interface` is only a name for messages. The channel is closed
            with the plane.

    Attributes:
        interface: The interface's name.

    Raises:
        RefusedError: The interface can't be made; the sockets are still the caller's.
    """

    def __init__(
        self,
        public_key: bytes,
        *,
        interface: str,
        sockets: Sequence[socket.socket],
        mtu: int = 1420,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
        offloads: Offloads = ALL,
        tun: Sequence[int] = (),
        channel: Channel | None = None,
    ) -> None:
        self._notes: list[str] = []
        self._events = Events(lambda reason: self._transport.drop(reason))
        try:
            self._device = self._open(interface, tun, channel, offloads)
        except (RustGuardError, ValueError):
            self._events.close()
            raise
        self.interface = self._device.name
        self._clock = clock
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._closed = False
        self._ended = False
        self._answered = True
        self._transport = Transport(
            public_key, emit=self._events.put, random=random, mtu=mtu, backlog=self._events.handshakes
        )
        self._offloads = offloads
        self._worker = WorkerStats("loop-0")
        self._mark = 0
        self._process = os.getpid()
        switching.lower()
        try:
            self._begin(sockets)
        except BaseException:
            switching.restore()
            raise

    def _open(self, name: str, tun: Sequence[int], channel: Channel | None, offloads: Offloads) -> Device:
        if channel is not None:
            return channel.device(name)
        return Tun.adopt(tun[0], self._note, offloads) if tun else Tun(name, self._note, offloads)

    def _begin(self, sockets: Sequence[socket.socket]) -> None:
        """Start the loop on these sockets and the interface."""
        self._port = int(sockets[0].getsockname()[1]) if sockets else 0
        merging = self._offloads if self._device.vnet else self._offloads.without("tcp-merging", "udp-merging")
        self._udp = {bound.family: Udp(bound, self._note, self._offloads) for bound in sockets}
        self._sources = self._open_sources()
        if self._sources is not None:
            self._sources.set_mark(self._mark)
        self._poll = select.poll()
        self._outbound = self._make_outbound()
        self._inbound = Inbound(self._transport, self._device, self._worker, merging, note=self._note)
        self._ended = False
        self._thread = threading.Thread(target=self._main, name=f"plane {self.interface}", daemon=True)
        self._thread.start()

    # Commands. The loop does them in order; `reserve_index` and `stats` answer at once.

    def set_peer(
        self,
        peer: PeerId,
        endpoint: Endpoint | None,
        allowed_ips: Sequence[Network],
        persistent_keepalive: int,
    ) -> None:
        """See `Plane.set_peer`."""
        allowed_ips = tuple(allowed_ips)
        self._queue(
            lambda: self._transport.set_peer(peer, endpoint, allowed_ips, persistent_keepalive, self._clock())
        )

    def set_public_key(self, public_key: bytes) -> None:
        """See `Plane.set_public_key`."""
        self._queue(partial(self._transport.set_public_key, public_key))

    def set_pairing(self, gate: PairingGate | None) -> None:
        """See `Plane.set_pairing`."""
        self._queue(lambda: self._transport.set_pairing(gate, self._clock()))

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint) -> None:
        """See `Plane.set_endpoint`."""
        self._queue(partial(self._transport.set_endpoint, peer, endpoint))

    def remove_peer(self, peer: PeerId) -> None:
        """See `Plane.remove_peer`."""
        self._queue(partial(self._transport.remove_peer, peer))

    def reserve_index(self, peer: PeerId) -> int:
        """See `Plane.reserve_index`."""
        return self._transport.reserve_index(peer)

    def install_keypair(self, peer: PeerId, keypair: Keypair) -> None:
        """See `Plane.install_keypair`."""
        self._queue(lambda: self._transport.install_keypair(peer, keypair, self._clock()))

    def erase_keypairs(self, peer: PeerId) -> None:
        """See `Plane.erase_keypairs`."""
        self._queue(partial(self._transport.erase_keypairs, peer))

    def drop_held(self, peer: PeerId) -> None:
        """See `Plane.drop_held`."""
        self._queue(partial(self._transport.drop_held, peer))

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """See `Plane.send`."""
        self._queue(lambda: self._transport.send(endpoint, datagram, self._clock()))

    def stats(self) -> PlaneStats:
        """See `Plane.stats`."""
        stats = self._transport.stats()
        stats.notes += self._notes
        calls = self._worker.system_calls + sum(udp.system_calls for udp in self._udp.values())
        sizes = list(self._worker.batch_sizes)
        stats.workers.append(replace(self._worker, batch_sizes=sizes, system_calls=calls))
        return stats

    def close(self) -> None:
        """See `Plane.close`. Waits for the loop to end. Does nothing in a forked child, which doesn't have it."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(CLOSE_PATIENCE)
        os.close(self._wake)
        self._events.close()
        switching.restore()

    def roll_call(self) -> list[str]:
        """See `EventfulPlane.roll_call`."""
        silent = [] if self._answered or self._ended or self._closed else [self._worker.name]
        self._answered = False
        self._queue(self._answer)
        return silent

    def set_fwmark(self, mark: int) -> None:
        """See `EventfulPlane.set_fwmark`."""
        self._mark = mark
        if not self._ended:
            for udp in self._udp.values():
                _set_mark(udp.socket, mark)
            if self._sources is not None:
                self._queue(partial(self._sources.set_mark, mark))

    def set_mtu(self, mtu: int) -> None:
        """See `EventfulPlane.set_mtu`."""
        self._queue(partial(self._set_mtu, mtu))

    def rebind(self, sockets: Sequence[socket.socket]) -> None:
        """See `EventfulPlane.rebind`."""
        done = threading.Event()
        self._queue(partial(self._rebind, sockets, done))
        while not done.wait(_LOOK):
            if self._ended or self._closed:
                for bound in sockets:
                    bound.close()
                return

    def is_running(self) -> bool:
        """See `EventfulPlane.is_running`."""
        return not self._ended

    def reattach(self) -> None:
        """See `EventfulPlane.reattach`."""
        if not isinstance(self._device, Tun):
            raise RefusedError(f"{self.interface} is no interface, so it can't be made again.")
        self._thread.join(CLOSE_PATIENCE)
        sockets = bind(self._port)
        try:
            if self._mark:
                for bound in sockets:
                    _set_mark(bound, self._mark)
            self._device = Tun(self.interface, self._note, self._offloads)
        except BaseException:
            for bound in sockets:
                bound.close()
            raise
        self._begin(sockets)

    def set_segmenting(self, peer: PeerId, on: bool) -> None:
        """See `Plane.set_segmenting`."""
        self._queue(partial(self._transport.set_segmenting, peer, on))

    def flows(self, peer: PeerId) -> list[Flow]:
        """See `Plane.flows`."""
        return self._transport.flows(peer)

    # Events.

    def fileno(self) -> int:
        """Return the descriptor that is readable while events wait."""
        return self._events.fd

    def poll_events(self) -> list[Event]:
        """Take the next events, 32 at most. The descriptor stays readable if there are more."""
        return self._events.take()

    # The loop.

    def _queue(self, command: Callable[[], None]) -> None:
        if not self._ended and not self._closed:
            self._commands.append(command)
            os.eventfd_write(self._wake, 1)

    def _main(self) -> None:
        """Run the loop. Whatever ends it, Python gets a fault and the descriptors are closed."""
        try:
            self._loop()
        except EOFError:
            # Whoever used the channel closed it.
            pass
        except Exception as error:
            self._events.put(Fault(f"{type(error).__name__}: {error}", fatal=True))
        finally:
            self._ended = True
            self._commands.clear()
            self._device.close()
            for udp in self._udp.values():
                udp.close()
            if self._sources is not None:
                self._sources.close()

    def _loop(self) -> None:
        transport, clock, worker = self._transport, self._clock, self._worker
        poll, device = self._poll, self._device.fd
        # poll reports them in this order, so a command is done before a packet that came after it.
        routes = -1 if self._sources is None else self._sources.fd
        for fd in (self._wake, device, *(udp.fd for udp in self._udp.values()), *([routes] if routes >= 0 else [])):
            poll.register(fd, select.POLLIN)
        sockets = {udp.fd: udp for udp in self._udp.values()}
        transport.set_up(self._device.is_up(), clock())
        while not self._closing:
            deadline = transport.poll_timeout()
            wait = None if deadline is None else max(0.0, deadline - clock()) * 1000 + 1
            # The device is writable once it is up.
            poll.modify(device, select.POLLIN | select.POLLOUT if transport.is_down else select.POLLIN)
            ready = poll.poll(wait)
            worker.system_calls += 1
            now = clock()
            if transport.is_down:
                transport.set_up(self._device.is_up(), now)
            for fd, _ in ready:
                if fd == device:
                    self._outbound.pump(now)
                elif fd == self._wake:
                    os.eventfd_read(fd)
                    worker.system_calls += 1
                    while self._commands:
                        self._commands.popleft()()
                    sockets = {udp.fd: udp for udp in self._udp.values()}
                elif fd == routes and self._sources is not None:
                    self._sources.renew()
                    transport.set_up(self._device.is_up(), now)
                elif fd in sockets:
                    self._inbound.pump(sockets[fd], now)
            if deadline is not None and deadline <= now:
                transport.set_up(self._device.is_up(), now)
                transport.handle_timeout(now)
            for endpoint, datagram, tos in transport.poll_transmit():
                self._send_message(datagram, len(datagram), endpoint, tos)
            for answer in transport.poll_answers():
                # The host can do without.
                with contextlib.suppress(OSError):
                    self._device.write(answer)

    def _open_sources(self) -> Sources | None:
        try:
            return Sources()
        except OSError as error:
            self._note(f"A better route is noticed late: the kernel refuses to report it ({error.strerror}).")
            return None

    def _answer(self) -> None:
        self._answered = True

    def _make_outbound(self) -> Outbound:
        return Outbound(self._transport, self._device, self._send_message, self._worker, self._refused_read)

    def _set_mtu(self, mtu: int) -> None:
        if mtu != self._transport.mtu:
            self._transport.set_mtu(mtu)
            # Its buffers are laid out for one MTU.
            self._outbound = self._make_outbound()

    def _rebind(self, sockets: Sequence[socket.socket], done: threading.Event) -> None:
        before = list(self._udp.values())
        made = {bound.family: Udp(bound, self._note, self._offloads) for bound in sockets}
        mark = next(iter(before)).socket.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4)
        for udp in made.values():
            if any(mark):
                udp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            self._poll.register(udp.fd, select.POLLIN)
        self._udp = made
        self._port = int(sockets[0].getsockname()[1])
        for udp in before:
            self._poll.unregister(udp.fd)
            self._worker.system_calls += udp.system_calls
            udp.close()
        done.set()

    def _note(self, note: str) -> None:
        """Note a missing feature, and report it once."""
        if note not in self._notes:
            self._notes.append(note)
            self._events.put(Fault(note, fatal=False))

    def _refused_read(self, error: OSError) -> bool:
        """Go on without superpackets if that may be why the device refused a read. Return False if it isn't."""
        if error.errno not in REFUSALS or not self._device.end_offloads():
            return False
        why = error.strerror
        self._note(f"The kernel refused to hand over a packet ({why}): it gives no superpackets any more.")
        return True

    def _send_message(self, message: memoryview | bytes, segment: int, endpoint: Endpoint, tos: int) -> bool:
        """Send datagrams. Errors of the network are only counted.

        Returns:
            False if the kernel refused the endpoint's local address and another one was used.
        """
        udp = self._udp.get(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET)
        if udp is None:
            self._transport.drop("no_socket")
            return True
        if self._sources is not None:
            endpoint = self._sources.usable(endpoint)
        try:
            return udp.send_from(message, segment, endpoint, tos)
        except OSError as error:
            self._transport.drop(f"send_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
        return True


def _set_mark(bound: socket.socket, mark: int) -> None:
    # As bytes: setsockopt takes no int above 2^31 - 1.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark.to_bytes(4, sys.byteorder))
