"""What a running tunnel is to whoever runs it, whether its handshakes are ours or the kernel's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.model.timers import REKEY_ATTEMPT_TIME


class Peers(Protocol):
    """The peers of a tunnel, whoever shakes hands with them: `rustguard_py.node.Node` says what each does.

    Attributes:
        asks_freely: Whether asking somebody leaves the session as it is.
    """

    asks_freely: bool

    @property
    def public_key(self) -> bytes:
        """Our public key, 32 bytes."""

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

    def set_private_key(self, private_key: bytes, now: float) -> None:
        """See `Node.set_private_key`."""

    def ask(self, peer: Peer, now: float) -> None:
        """Shake hands whether or not there is a session, to learn if the peer answers; once each REKEY-TIMEOUT."""


class Mover(Protocol):
    """What moves a tunnel's packets, as far as who runs a tunnel sees it."""

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram of enrollment as it is. An unreachable network is not an error."""

    def set_pairing(self, gate: PairingGate | None) -> None:
        """See `rustguard_py.planes.contract.Plane.set_pairing`."""

    def stats(self) -> PlaneStats:
        """Read the counters."""

    def set_fwmark(self, mark: int) -> None:
        """Mark what is sent from now on, for the system's routing rules; 0 for no mark."""

    def set_mtu(self, mtu: int) -> None:
        """Follow the interface's MTU, bytes."""


class AnyTunnel(Protocol):
    """A running tunnel: `Tunnel`, whose handshakes are ours, or `rustguard_py.kernel.tunnel.KernelTunnel`.

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
