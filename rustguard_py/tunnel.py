"""One running tunnel: node and plane put together on an event loop.

The plane's events go to the node, the node's deadline to the loop's timer, enrollment datagrams to whoever asked
for them. All of it runs in the loop's thread; the plane moves packets in its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rustguard_py.clock import now
from rustguard_py.errors import RustGuardError
from rustguard_py.node import HandshakeGivenUp, HandshakeUnanswered, Node, PeerMoved, SessionStarted, Timestamps
from rustguard_py.noise import StaticKey
from rustguard_py.peer import Peer, PeerConfig
from rustguard_py.planes import udp
from rustguard_py.planes.contract import (
    REKEY_ATTEMPT_TIME,
    Endpoint,
    Event,
    Fault,
    ForeignReceived,
    Plane,
    PlaneStats,
)

log = logging.getLogger(__name__)


class EventfulPlane(Plane, Protocol):
    """A plane with its bounded queue of events behind a descriptor."""

    def fileno(self) -> int:
        """Give the descriptor that is readable while events wait."""

    def poll_events(self) -> list[Event]:
        """Take the events that wait; the descriptor is no longer readable."""

    def set_fwmark(self, mark: int) -> None:
        """Mark what is sent from now on, for the system's routing rules; 0 for no mark."""

    def set_mtu(self, mtu: int) -> None:
        """Follow the interface's MTU, bytes."""

    def rebind(self, sockets: Sequence[socket.socket]) -> None:
        """Move to other bound UDP sockets, at most one a family, which are the plane's from here on.

        The mark goes along, and so does all else: peers, sessions, what the interface holds. The sockets before are
        closed with what waits in them. Back when that is done.
        """


class Peers(Protocol):
    """The peers of a tunnel, whoever shakes hands with them: `rustguard_py.node.Node` says what each does.

    Attributes:
        asks_freely: Whether asking somebody leaves the session as it is.
    """

    asks_freely: bool

    @property
    def static(self) -> StaticKey:
        """Our key."""

    def __iter__(self) -> Iterator[Peer]:
        """Go through all."""

    def get(self, public_key: bytes) -> Peer | None:
        """See `Node.get`."""

    def set_peer(self, config: PeerConfig) -> Peer:
        """See `Node.set_peer`."""

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """See `Node.set_endpoint`."""

    def remove_peer(self, public_key: bytes) -> bool:
        """See `Node.remove_peer`."""

    def begin_handshake(self, peer: Peer, now: float, patience: float = REKEY_ATTEMPT_TIME) -> None:
        """See `Node.begin_handshake`."""

    def set_static(self, static: StaticKey, now: float) -> None:
        """See `Node.set_static`."""

    def ask(self, peer: Peer, now: float) -> None:
        """Shake hands whether or not there is a session, to learn if the peer answers; once each REKEY-TIMEOUT."""


class Mover(Protocol):
    """What moves a tunnel's packets, as far as who runs a tunnel sees it."""

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram of enrollment as it is. An unreachable network is not an error."""

    def stats(self) -> PlaneStats:
        """Read the counters."""

    def set_fwmark(self, mark: int) -> None:
        """Mark what is sent from now on, for the system's routing rules; 0 for no mark."""

    def set_mtu(self, mtu: int) -> None:
        """Follow the interface's MTU, bytes."""


class AnyTunnel(Protocol):
    """A running tunnel: `Tunnel`, whose handshakes are ours, or `rustguard_py.kernel_tunnel.KernelTunnel`.

    Attributes:
        listeners: Who is told what happens.
        fault: What ended it, set once; `stopped` is then set as well.
        stopped: Set to end it.
    """

    listeners: Listeners
    fault: RustGuardError | None
    stopped: asyncio.Event

    @property
    def node(self) -> Peers:
        """Its peers; call `wake` after changing them."""

    @property
    def plane(self) -> Mover:
        """Where packets move."""

    def start(self) -> None:
        """Begin to handle events; from within the running loop."""

    def close(self) -> None:
        """Stop; the interface goes with it. May be called twice."""

    def wake(self) -> None:
        """Do what is due, after a change."""

    def set_port(self, port: int) -> int:
        """Move to another UDP port, 0 for any that is free; give which. Sessions stay.

        Raises:
            RefusedError: It's taken; the one before stays.
        """


@dataclass(slots=True)
class Listeners:
    """Who wants to know what of a tunnel; each is called in the loop's thread.

    Attributes:
        foreign: An enrollment datagram, its source, and the time.
        unanswered: A peer's handshake goes unanswered; how many initiations went out so far.
        session: A peer's session began.
        moved: A peer is elsewhere.
    """

    foreign: Callable[[bytes, Endpoint, float], None] | None = None
    unanswered: Callable[[Peer, int], None] | None = None
    session: Callable[[Peer], None] | None = None
    moved: Callable[[Peer, Endpoint], None] | None = None


@dataclass(slots=True)
class Tunnel:
    """A node on its plane.

    Attributes:
        node: Its peers; call `wake` after changing them.
        plane: Where packets move.
        fault: What ended it, set once; `stopped` is then set as well.
    """

    node: Node
    plane: EventfulPlane
    listeners: Listeners
    fault: RustGuardError | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _timer: asyncio.TimerHandle | None = None
    _timer_at: float | None = None

    @classmethod
    def make(cls, private_key: bytes, plane: EventfulPlane, timestamps: Timestamps, listeners: Listeners) -> Tunnel:
        """Put an identity (32 bytes) on a plane."""
        node = Node(StaticKey(private_key), plane, timestamps, wall=time.time_ns, random=os.urandom)
        return cls(node, plane, listeners)

    def start(self) -> None:
        """Begin to handle events; from within the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.plane.fileno(), self._on_events)
        self.wake()

    def close(self) -> None:
        """Stop and close the plane; the interface goes with it. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is not None:
            self._loop.remove_reader(self.plane.fileno())
            self._loop = None
        self.plane.close()

    def wake(self) -> None:
        """Do what is due and set the timer to the node's next deadline."""
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
        sockets = udp.bind(port)
        port = int(sockets[0].getsockname()[1])
        self.plane.rebind(sockets)
        return port

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
                case Fault(message, fatal):
                    self._on_fault(message, fatal=fatal)
                case _:
                    self.node.handle_event(event, at)
        self.wake()

    def _on_fault(self, message: str, *, fatal: bool) -> None:
        if not fatal:
            log.warning("%s", message)
            return
        mend = "Start again. Did something else remove the interface? If not, and if it persists, report it."
        self.fault = RustGuardError(f"The data plane stopped: {message}", mend)
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
                case HandshakeGivenUp(peer):
                    log.info("a peer at %s did not answer for 90 s; its held packets are dropped", peer.endpoint)


def send_keepalive(tunnel: AnyTunnel, peer: Peer) -> None:
    """Send a peer an empty datagram now: turning persistent keepalives on sends one."""
    config = replace(peer.config, endpoint=None)
    wanted = config.persistent_keepalive
    for seconds in (0, wanted) if wanted else (1, 0):
        tunnel.node.set_peer(replace(config, persistent_keepalive=seconds))
