"""A tunnel as a program has it: `AsyncTunnel` for asyncio, `SyncTunnel` for threads."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rustguard_py.embed import statistics
from rustguard_py.embed.arguments import check_timeout
from rustguard_py.embed.control import Control, Opened
from rustguard_py.embed.fixes import closed, elsewhere, with_its_fix
from rustguard_py.model.counted import counted
from rustguard_py.model.endpoint import InterfaceAddress, IpAddress
from rustguard_py.model.errors import UsageError
from rustguard_py.planes.contract import Packet

# Packets that one call returns at most, unless the caller wants another number.
BATCH = 128


class _EmbeddedTunnel:
    """What both kinds of tunnel have."""

    def __init__(self, control: Control, opened: Opened, engine: str) -> None:
        # Both are let go of at the end, and with them the channel's descriptors.
        self._control: Control | None = control
        self._opened: Opened | None = opened
        self._parts = opened.parts
        self._port = opened.port
        self._engine = engine
        self._closing = False

    @property
    def addresses(self) -> tuple[InterfaceAddress, ...]:
        """Our addresses in the tunnel, with the prefix lengths of their networks."""
        return self._parts.addresses

    @property
    def dns(self) -> tuple[IpAddress, ...]:
        """The name servers that the configuration names. Nothing uses them unless the program does."""
        return self._parts.dns

    @property
    def search(self) -> tuple[str, ...]:
        """The search domains that the configuration names."""
        return self._parts.search

    @property
    def mtu(self) -> int:
        """The size of the largest packet, bytes."""
        return self._parts.mtu

    @property
    def port(self) -> int:
        """The UDP port on this machine."""
        return self._port

    @property
    def name(self) -> str:
        """Our name at the server that we joined; empty for a configuration."""
        return self._parts.name

    @property
    def engine(self) -> str:
        """What moves the packets: `native` or `portable`."""
        return self._engine

    @property
    def closed(self) -> bool:
        """Whether the tunnel is closed, or being closed."""
        control = self._control
        return self._closing or (control is not None and control.is_elsewhere)

    def stats(self) -> statistics.Statistics:
        """Return the current counters.

        Raises:
            ClosedError: The tunnel is closed.
        """
        return statistics.gather(self._running()[1].tunnel, self._parts.peers)

    def _check(self, packets: Sequence[Packet]) -> None:
        """Refuse what no plane would take."""
        if isinstance(packets, (bytes, bytearray, memoryview)):
            raise with_its_fix(UsageError("That is one packet, and not a list of them.", "Write [packet]."))
        if not isinstance(packets, Sequence):
            raise with_its_fix(UsageError(f"That is no list: {type(packets).__name__}.", "Write a list of packets."))
        mtu = self.mtu
        for place, packet in enumerate(packets):
            size = len(packet) if isinstance(packet, (bytes, bytearray)) else _size_of_view(packet, place)
            if not 20 <= size <= mtu:
                why = "no IP packet is that short" if size < 20 else f"the tunnel's MTU is {mtu}"
                fix = "Write whole IP packets, header included." if size < 20 else "Write smaller ones."
                raise with_its_fix(UsageError(f"packets[{place}] has {counted(size, 'byte')}, and {why}.", fix))

    def _running(self) -> tuple[Control, Opened]:
        """Return the tunnel's parts. Raise an error if it is closed or broken."""
        control, opened = self._control, self._opened
        if self._closing or control is None or opened is None:
            raise closed()
        if control.is_elsewhere:
            raise elsewhere()
        if control.fault is not None:
            raise control.fault
        return control, opened


class AsyncTunnel(_EmbeddedTunnel):
    """A tunnel for asyncio. Use it in the loop in which it was opened."""

    def __init__(self, control: Control, opened: Opened, engine: str) -> None:
        super().__init__(control, opened, engine)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        control.on_fault = self._on_fault
        if control.fault is not None:
            self._wake_all()

    async def read_batch(self, most: int = BATCH, timeout: float | None = None) -> list[memoryview]:
        """Return the next packets from peers, in order. Wait until there is one.

        A cancelled call has taken no packet.

        Args:
            most: How many packets to return at most.
            timeout: Seconds to wait; None to wait as long as it takes.

        Returns:
            Whole IP packets. None came in time if the list is empty.

        Raises:
            UsageError: `most` is below 1.
            ClosedError: The tunnel is closed, or was closed meanwhile.
            RustGuardError: The data plane broke.
        """
        _check_number(most)
        timeout = _checked(timeout)
        # A program that reads without a pause leaves the loop to others too.
        await asyncio.sleep(0)
        deadline = _deadline(timeout)
        while True:
            channel = self._running()[1].channel
            if batch := channel.read_batch(most):
                return batch
            if not await self._wait(channel.fileno(), deadline):
                return []

    async def write_batch(self, packets: Sequence[Packet], timeout: float | None = None) -> int:
        """Send packets, each to the peer whose allowed IPs have its destination. Wait while the queue is full.

        A cancelled call may have taken some of the packets.

        Args:
            packets: Whole IP packets, from the tunnel's own addresses. They are copied.
            timeout: Seconds to wait for room; None to wait as long as it takes.

        Returns:
            How many packets were taken: all, unless there was no room in time.

        Raises:
            UsageError: A packet is too short, or larger than the MTU. None was taken.
            ClosedError: The tunnel is closed, or was closed meanwhile.
            RustGuardError: The data plane broke.
        """
        self._check(packets)
        timeout = _checked(timeout)
        await asyncio.sleep(0)
        deadline, taken = _deadline(timeout), 0
        while True:
            channel = self._running()[1].channel
            taken += channel.write_batch(packets[taken:] if taken else packets)
            if taken == len(packets) or not await self._wait(channel.writable_fileno(), deadline):
                return taken

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Shake hands with the peers that have an endpoint, and wait until one of them has a session.

        Returns at once if a peer has one, or if no peer has an endpoint.

        Raises:
            UnansweredError: No peer has answered within `timeout` seconds.
            ClosedError: The tunnel is closed.
            RustGuardError: The data plane broke.
        """
        timeout = _checked(timeout)
        control, opened = self._running()
        await asyncio.wrap_future(control.wait_connected(opened, timeout))

    async def close(self) -> None:
        """Close the tunnel. Whoever waits for it gets a `ClosedError`. May be called twice, and in any event loop.

        In a forked child it only lets go of the tunnel, which the parent still has.
        """
        self._closing = True
        if (control := self._control) is not None:
            if not control.is_elsewhere:
                self._release()
            await end(control)
        self._control = self._opened = None

    def _release(self) -> None:
        """Have all who wait look again."""
        if asyncio.get_running_loop() is self._loop:
            self._wake_all()
        else:
            self._on_fault()

    async def _wait(self, descriptor: int, deadline: float | None) -> bool:
        """Wait until a descriptor is readable or the tunnel ends. Return False after the deadline."""
        if asyncio.get_running_loop() is not self._loop:
            raise with_its_fix(
                UsageError(
                    "This tunnel was opened in another event loop.",
                    "Use it there. For several threads: `with connect(…)`, whose tunnel any thread may use.",
                )
            )
        future = self._loop.create_future()
        if descriptor not in self._waiting:
            self._waiting[descriptor] = []
            self._loop.add_reader(descriptor, self._wake, descriptor)
        self._waiting[descriptor].append(future)
        try:
            await asyncio.wait({future}, timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            waiting = self._waiting.get(descriptor)
            if waiting is not None and future in waiting:
                waiting.remove(future)
                if not waiting:
                    self._wake(descriptor)
        return future.done()

    def _wake(self, descriptor: int) -> None:
        """Have all who wait for a descriptor look again. Those who find nothing wait again."""
        self._loop.remove_reader(descriptor)
        for future in self._waiting.pop(descriptor, ()):
            if not future.done():
                future.set_result(None)

    def _wake_all(self) -> None:
        for descriptor in list(self._waiting):
            self._wake(descriptor)

    def _on_fault(self) -> None:
        # The program's loop may be closed already.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake_all)


class SyncTunnel(_EmbeddedTunnel):
    """A tunnel for threads. Several of them may use it at once."""

    def __init__(self, control: Control, opened: Opened, engine: str) -> None:
        super().__init__(control, opened, engine)
        self._changed = threading.Condition()
        self._users = 0
        # Readable from the end on.
        self._over = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        control.on_fault = self._signal_the_end
        if control.fault is not None:
            self._signal_the_end()

    def read_batch(self, most: int = BATCH, timeout: float | None = None) -> list[memoryview]:
        """Return the next packets from peers; see `AsyncTunnel.read_batch`."""
        _check_number(most)
        deadline = _deadline(_checked(timeout))
        with self._use():
            while True:
                channel = self._running()[1].channel
                if batch := channel.read_batch(most):
                    return batch
                if not self._wait(channel.fileno(), deadline):
                    return []

    def write_batch(self, packets: Sequence[Packet], timeout: float | None = None) -> int:
        """Send packets; see `AsyncTunnel.write_batch`."""
        self._check(packets)
        deadline, taken = _deadline(_checked(timeout)), 0
        with self._use():
            while True:
                channel = self._running()[1].channel
                taken += channel.write_batch(packets[taken:] if taken else packets)
                if taken == len(packets) or not self._wait(channel.writable_fileno(), deadline):
                    return taken

    def wait_connected(self, timeout: float | None = None) -> None:
        """Shake hands, and wait until a peer has a session; see `AsyncTunnel.wait_connected`."""
        timeout = _checked(timeout)
        control, opened = self._running()
        control.wait_connected(opened, timeout).result()

    def stats(self) -> statistics.Statistics:
        """Return the current counters; see `AsyncTunnel.stats`."""
        with self._use():
            return super().stats()

    def close(self) -> None:
        """Close the tunnel. Whoever waits for it gets a `ClosedError`. May be called twice.

        In a forked child it only lets go of the tunnel, which the parent still has.
        """
        if (control := self._control) is not None and control.is_elsewhere:
            self._closing, self._control, self._opened = True, None, None
            return
        with self._changed:
            control, self._closing = self._control, True
            if control is None:
                return
            self._signal_the_end()
            # The others' descriptors stay open until they have noticed.
            self._changed.wait_for(lambda: not self._users)
        control.end()
        with self._changed:
            self._control = self._opened = None
            if self._over >= 0:
                os.close(self._over)
                self._over = -1

    @contextmanager
    def _use(self) -> Iterator[None]:
        if (control := self._control) is not None and control.is_elsewhere:
            raise elsewhere()
        with self._changed:
            if self._closing:
                raise closed()
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _wait(self, descriptor: int, deadline: float | None) -> bool:
        """Wait until a descriptor is readable or the tunnel ends. Return False after the deadline."""
        look = select.poll()
        look.register(descriptor, select.POLLIN)
        look.register(self._over, select.POLLIN)
        return bool(look.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000))

    def _signal_the_end(self) -> None:
        os.eventfd_write(self._over, 1)


async def end(control: Control) -> None:
    """End a tunnel's thread, and wait for it without blocking the loop. Does nothing in a forked child."""
    if control.is_elsewhere:
        return
    control.stop()
    await asyncio.shield(asyncio.wrap_future(control.ended))
    control.join()


def _size_of_view(packet: object, place: int) -> int:
    """Return a packet's size, bytes. A view's length counts items, which may be larger."""
    if isinstance(packet, memoryview) and packet.format == "B" and packet.ndim == 1 and packet.c_contiguous:
        return packet.nbytes
    raise with_its_fix(
        UsageError(f"packets[{place}] is not contiguous bytes: {type(packet).__name__}.", "Write bytes(packet).")
    )


def _check_number(most: int) -> None:
    if not isinstance(most, int) or not 1 <= most < 1 << 31:
        raise with_its_fix(UsageError(f"most={most} is no number of packets.", "Read at least one."))


def _checked(timeout: float | None) -> float | None:
    """Return a timeout that is one."""
    try:
        check_timeout(timeout)
    except UsageError as error:
        with_its_fix(error)
        raise
    return timeout


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
