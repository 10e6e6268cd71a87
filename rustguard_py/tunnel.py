"""One running tunnel: a node and its plane on an event loop.

The plane's events go to the node, the node's deadline sets the loop's timer, and enrollment datagrams go to the
listener. All this runs in the loop's thread. The plane moves packets in its own threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, field, replace

from rustguard_py.model.clock import now
from rustguard_py.model.counted import counted
from rustguard_py.model.endpoint import endpoint_text
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.peer import Peer
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.node import HandshakeGivenUp, HandshakeUnanswered, Node, PeerMoved, SessionStarted, Timestamps
from rustguard_py.planes.contract import EventfulPlane, Fault, ForeignReceived
from rustguard_py.protocol.noise import StaticKey
from rustguard_py.system.sockets import bind

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tunnel:
    """A node on its plane.

    Attributes:
        node: The peers. Call `wake` after changing them.
        plane: What moves the packets.
        listeners: Callbacks for what happens.
        fault: The error that ended the tunnel. When it is set, `stopped` is set too.
        silent: Names of the plane's threads that didn't answer the last roll call.
        stopped: Set when the tunnel must end.
    """

    node: Node
    plane: EventfulPlane
    listeners: Listeners
    fault: RustGuardError | None = None
    silent: list[str] = field(default_factory=list)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _timer: asyncio.TimerHandle | None = None
    _timer_at: float | None = None

    @classmethod
    def make(cls, private_key: bytes, plane: EventfulPlane, timestamps: Timestamps, listeners: Listeners) -> Tunnel:
        """Return a tunnel with this private key (32 bytes) on a plane."""
        node = Node(StaticKey(private_key), plane, timestamps, wall=time.time_ns, random=os.urandom)
        return cls(node, plane, listeners)

    def start(self) -> None:
        """Start handling events. Call it inside the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.plane.fileno(), self._on_events)
        self.wake()

    def close(self) -> None:
        """Stop, and close the plane with its interface. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is not None:
            self._loop.remove_reader(self.plane.fileno())
            self._loop = None
        self.plane.close()

    def wake(self) -> None:
        """Do what is due, and set the timer to the node's next deadline."""
        if self._loop is None:
            return
        self.node.handle_timeout(now())
        self._report()
        due = self.node.poll_timeout()
        if due == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = due
        if due is not None:
            self._timer = self._loop.call_later(max(0.0, due - now()), self._on_timer)

    def set_port(self, port: int) -> int:
        """See `AnyTunnel.set_port`."""
        sockets = bind(port)
        port = int(sockets[0].getsockname()[1])
        self.plane.rebind(sockets)
        return port

    def has_interface(self) -> bool:
        """See `AnyTunnel.has_interface`."""
        return self.plane.is_running()

    def reattach(self) -> None:
        """See `AnyTunnel.reattach`."""
        self.plane.reattach()
        self.wake()

    def adopt(self) -> None:
        """See `AnyTunnel.adopt`: wg(8) asks us for each change."""

    def _on_timer(self) -> None:
        self._timer = None
        self.wake()

    def _on_events(self) -> None:
        at = now()
        for event in self.plane.poll_events():
            match event:
                case ForeignReceived(datagram, source):
                    if self.listeners.foreign is not None:
                        self.listeners.foreign(datagram, source, at)
                case Fault() as fault:
                    self._on_fault(fault)
                case _:
                    self.node.handle_event(event, at)
        self.wake()

    def _on_fault(self, fault: Fault) -> None:
        if not fault.fatal:
            log.warning("%s", fault.message)
            return
        if fault.interface_is_gone and self.listeners.lost is not None:
            # Each thread of the plane reports it. After `reattach` there is nothing to do for the later ones.
            if not self.plane.is_running():
                self.listeners.lost()
            return
        fix = "Start again. If no other program removed the interface and this happens again, please report it."
        self.fault = RustGuardError(f"The data plane stopped: {fault.message}", fix)
        self.stopped.set()

    def _report(self) -> None:
        listeners = self.listeners
        while (event := self.node.poll_event()) is not None:
            match event:
                case SessionStarted(peer):
                    if listeners.session is not None:
                        listeners.session(peer)
                case HandshakeUnanswered(peer, attempts):
                    if listeners.unanswered is not None:
                        listeners.unanswered(peer, attempts)
                case PeerMoved(peer, endpoint):
                    if listeners.moved is not None:
                        listeners.moved(peer, endpoint)
                case HandshakeGivenUp(peer, attempts):
                    where = endpoint_text(peer.endpoint)
                    # A server asks each peer once when it starts, and many aren't there.
                    level = logging.INFO if attempts > 1 else logging.DEBUG
                    what = "the peer at %s did not answer %s: its held packets are dropped"
                    log.log(level, what, where, counted(attempts, "handshake"))


def send_keepalive(tunnel: AnyTunnel, peer: Peer) -> None:
    """Send a keepalive to a peer now, by turning its persistent keepalives on."""
    config = replace(peer.config, endpoint=None)
    wanted = config.persistent_keepalive
    for seconds in (0, wanted) if wanted else (1, 0):
        tunnel.node.set_peer(replace(config, persistent_keepalive=seconds))
