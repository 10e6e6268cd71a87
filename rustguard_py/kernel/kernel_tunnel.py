"""One running tunnel of the kernel's WireGuard, watched from an event loop.

The kernel shakes hands and moves packets. It owns the tunnel's port, so enrollment is answered on separate sockets.
Events are inferred from its counters. They are read only as often as somebody waits for an event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from rustguard_py.kernel.kernel_peers import KernelPeers
from rustguard_py.kernel.messages import KernelPeerChange
from rustguard_py.kernel.netlink import KernelInterface
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.model.tunnel import Adopted, Listeners
from rustguard_py.protocol.pairing_filter import PASS, REVISION_REASON, Answer, Drop, PairingFilter, is_revision
from rustguard_py.protocol.wire import FOREIGN_PREFIX
from rustguard_py.system.sockets import bind

log = logging.getLogger(__name__)

# Seconds between two readings while a requested handshake may complete.
PACE_EXPECTING = 0.25
# While a peer doesn't answer or has one of several preshared keys, and always with several tunnels.
PACE_UNSETTLED = 1.0
# While somebody listens for peers that don't answer.
PACE_MINDING = 5.0
# Otherwise: only to know where the peers are.
PACE_AT_REST = 30.0
# The pause is at least this many times the duration of a reading, so readings take at most 1/20 of a processor.
_SHARE = 20
# How often to check that the interface still exists, seconds.
_LOOK = 5.0
# How many enrollment datagrams are taken before others have their turn.
_DATAGRAMS_A_TURN = 64
_NOTE = (
    "The kernel counts only bytes: how many packets a peer sent or lost isn't known, and when it was last heard is "
    "known to 30 seconds."
)


class KernelTunnel:
    """A tunnel whose handshakes and packets are the kernel's. `AnyTunnel` documents the methods.

    Args:
        private_key: 32 bytes.
        device: The interface. The tunnel owns it, and `close` removes it.
        sockets: Bound to the tunnel's future port, at most one per family. They are closed so that the kernel can
            bind the port.
        pairing: Bound sockets for enrollment, at most one per family. The tunnel owns them.
        several: Whether this is one of several tunnels, so that new sessions must be noticed soon.
        notes: Sentences for people, shown in the statistics.
        make: Makes such an interface again.

    Attributes:
        fault: The error that ended the tunnel. When it is set, `stopped` is set too.
        silent: Names of threads that didn't answer the last roll call: none, as there are none.
    """

    def __init__(
        self,
        private_key: bytes,
        device: KernelInterface,
        sockets: Sequence[socket.socket],
        pairing: Sequence[socket.socket] = (),
        *,
        several: bool = False,
        notes: Sequence[str] = (),
        make: Callable[[], KernelInterface] | None = None,
    ) -> None:
        self.listeners = Listeners()
        self.fault: RustGuardError | None = None
        self.silent: list[str] = []
        self.stopped = asyncio.Event()
        self.node = KernelPeers(private_key, self)
        self._device = device
        self._make = make
        self._several = several
        self._notes = [_NOTE, *notes]
        self._pairing = {each.family: each for each in pairing}
        self._filter: PairingFilter | None = None
        self._drops: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._read_at = 0.0
        self._cost = 0.0
        self._closed = False
        self._private_key = private_key
        self._port = int(sockets[0].getsockname()[1])
        self._mark = 0
        for each in sockets:
            each.close()
        device.configure(private_key=private_key, port=self._port)

    @property
    def plane(self) -> KernelTunnel:
        """What moves packets: this tunnel itself."""
        return self

    # -- as `Tunnel` has them -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start watching. Call it inside the running loop."""
        self._loop = asyncio.get_running_loop()
        for each in self._pairing.values():
            each.setblocking(False)
            self._loop.add_reader(each.fileno(), self._on_datagrams, each)
        self.wake()

    def close(self) -> None:
        """Stop, and remove the interface. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for each in self._pairing.values():
            if self._loop is not None:
                self._loop.remove_reader(each.fileno())
            each.close()
        self._pairing.clear()
        self._loop = None
        self._device.remove()

    def wake(self) -> None:
        """Bring the next reading forward if a change requires it."""
        if self._loop is None or self.fault is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, min(self._due() - now(), _LOOK)), self._on_timer)

    def set_port(self, port: int) -> int:
        """See `AnyTunnel.set_port`."""
        # Bound here first for a clear error: the kernel would answer with an error number only.
        sockets = bind(port)
        port = int(sockets[0].getsockname()[1])
        for each in sockets:
            each.close()
        self._device.configure(port=port)
        self._port = port
        return port

    def has_interface(self) -> bool:
        """See `AnyTunnel.has_interface`."""
        return self._device.exists()

    def reattach(self) -> None:
        """See `AnyTunnel.reattach`. The kernel lost the sessions with the interface, so it shakes hands again."""
        if self._make is None:
            raise RustGuardError("The interface is gone: another program removed it.", "Start again.")
        device = self._make()
        try:
            device.configure(private_key=self._private_key, port=self._port, fwmark=self._mark)
            gone, self._device = self._device, device
            self.node.put_all_again()
        except BaseException:
            device.remove()
            raise
        gone.close()
        for peer in self.node:
            if peer.endpoint is not None and peer.config.persistent_keepalive:
                self.node.begin_handshake(peer, now())
        self.wake()

    def adopt(self) -> Adopted:
        """See `AnyTunnel.adopt`: wg(8) changes the kernel's tunnel without us."""
        found = self._device.read(allowed_ips=True)
        private_key = None
        if found.private_key is not None and found.public_key != self.node.public_key:
            private_key = self._private_key = found.private_key
        self._port, self._mark = found.port, found.fwmark
        self.node.adopt(found)
        self.wake()
        return Adopted(private_key, self._port, self._mark)

    # -- as a plane has them --------------------------------------------------------------------------------

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send an enrollment datagram."""
        if self._filter is not None:
            self._filter.sent(datagram, now())
        bound = self._pairing.get(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET)
        if bound is not None:
            with suppress(OSError):
                bound.sendto(datagram, endpoint)

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        """Change peers in the kernel. If the interface is gone, the tunnel ends and the caller gets no error."""
        try:
            self._device.set_peers(changes)
        except RustGuardError as error:
            if self._device.exists():
                raise
            self._on_gone(error)

    def configure(self, *, private_key: bytes) -> None:
        """Set the private key (32 bytes) in the kernel."""
        self._private_key = private_key
        self._device.configure(private_key=private_key)

    def set_pairing(self, gate: PairingGate | None) -> None:
        """See `Mover.set_pairing`."""
        if self._filter is None:
            self._filter = PairingFilter(os.urandom)
        self._filter.set_gate(gate, now())

    def stats(self) -> PlaneStats:
        """Return the current counters."""
        self._read()
        return PlaneStats(self.node.stats(), dict(self._drops), notes=self._notes)

    def roll_call(self) -> list[str]:
        """See `Mover.roll_call`. The kernel answers at once; an interface that is gone ends the tunnel by itself."""
        self._device.exists()
        return []

    def set_fwmark(self, mark: int) -> None:
        """Set the mark of all datagrams sent from now on, for the system's routing rules; 0 for no mark."""
        self._mark = mark
        self._device.configure(fwmark=mark)

    def set_mtu(self, mtu: int) -> None:
        """Do nothing: the kernel follows its interface by itself."""

    # -- watching -------------------------------------------------------------------------------------------

    def _due(self) -> float:
        if self.node.expects(now()):
            pace = PACE_EXPECTING
        elif self._several or self.node.unsettled():
            pace = PACE_UNSETTLED
        else:
            pace = PACE_AT_REST if self.listeners.unanswered is None else PACE_MINDING
        return self._read_at + max(pace, _SHARE * self._cost)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._device.exists():
            self._on_gone(RustGuardError("The interface is gone: another program removed it.", "Start again."))
        elif self._due() <= now():
            self._read()
        self.wake()

    def _read(self) -> None:
        began = now()
        try:
            read = self._device.read_counters()
        except RustGuardError as error:
            self._on_gone(error)
            return
        self._read_at = now()
        self._cost = self._read_at - began
        self.node.observe(read, self._read_at, time.time(), self.listeners)

    def _on_gone(self, fault: RustGuardError) -> None:
        """End, unless somebody will make the interface again. Until then the last reading stays."""
        if self.listeners.lost is None or self._device.exists():
            self._stop(fault)
            return
        self._read_at = now()
        self.listeners.lost()

    def _stop(self, fault: RustGuardError) -> None:
        if self.fault is None:
            self.fault = fault
            self.stopped.set()

    def _on_datagrams(self, bound: socket.socket) -> None:
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                datagram, source = bound.recvfrom(65536)
            except OSError:
                return
            verdict = PASS if self._filter is None else self._filter.judge(datagram, source, now())
            match verdict:
                case Answer(answer):
                    if is_revision(answer):
                        self._drops[REVISION_REASON] += 1
                    with suppress(OSError):
                        bound.sendto(answer, source)
                case Drop(reason):
                    self._drops[reason] += 1
                case _ if datagram.startswith(FOREIGN_PREFIX) and self.listeners.foreign is not None:
                    self.listeners.foreign(datagram, source, now())
