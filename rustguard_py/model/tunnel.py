"""The interface of a running tunnel, whether Python or the kernel does its handshakes.

`AnyTunnel` is the tunnel, `Peers` its peers, `Mover` what moves its packets, `Listeners` the callbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.model.timers import REKEY_ATTEMPT_TIME


class Peers(Protocol):
    """The peers of a tunnel. `rustguard_py.node.Node` documents the methods.

    Attributes:
        asks_freely: Whether `ask` leaves the peer's session as it is.
    """

    asks_freely: bool

    @property
    def public_key(self) -> bytes:
        """Our public key, 32 bytes."""

    def __iter__(self) -> Iterator[Peer]:
        """Iterate over all peers."""

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
        """Start a handshake, even with a session, to learn whether the peer answers. Once per REKEY-TIMEOUT."""


class Mover(Protocol):
    """What moves a tunnel's packets: the part of a plane that all engines have."""

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one enrollment datagram as it is. An unreachable network is not an error."""

    def set_pairing(self, gate: PairingGate | None) -> None:
        """See `rustguard_py.planes.contract.Plane.set_pairing`."""

    def stats(self) -> PlaneStats:
        """Return the current counters."""

    def roll_call(self) -> list[str]:
        """Ask every thread for a sign of life. Return the names of those that haven't answered the call before."""

    def set_fwmark(self, mark: int) -> None:
        """Set the mark of all datagrams sent from now on, for the system's routing rules; 0 for no mark."""

    def set_mtu(self, mtu: int) -> None:
        """Adopt the interface's new MTU, in bytes."""


class AnyTunnel(Protocol):
    """A running tunnel: `rustguard_py.tunnel.Tunnel`, or `KernelTunnel` where the kernel does the handshakes.

    Attributes:
        listeners: Callbacks for what happens.
        fault: The error that ended the tunnel. When it is set, `stopped` is set too.
        silent: Names of the plane's threads that didn't answer the last roll call.
        stopped: Set when the tunnel must end.
    """

    listeners: Listeners
    fault: RustGuardError | None
    silent: list[str]
    stopped: asyncio.Event

    @property
    def node(self) -> Peers:
        """The peers. Call `wake` after changing them."""

    @property
    def plane(self) -> Mover:
        """What moves the packets."""

    def start(self) -> None:
        """Start handling events. Call it inside the running loop."""

    def close(self) -> None:
        """Stop, and remove the interface. May be called twice."""

    def wake(self) -> None:
        """Do what is due. Call it after a change."""

    def set_port(self, port: int) -> int:
        """Move to another UDP port (0 for any free one) and return it. Sessions stay.

        Raises:
            RefusedError: The port is taken. The tunnel keeps its old one.
        """

    def has_interface(self) -> bool:
        """Return whether the interface is still there, under whatever name."""

    def reattach(self) -> None:
        """Make the interface again, down and without addresses, after another program removed it.

        Peers and the port stay. Sessions stay too, except with the kernel's engine, which shakes hands again.

        Raises:
            RustGuardError: It can't be made. May be called again.
        """

    def adopt(self) -> Adopted | None:
        """Take over what other programs changed: keys, port, mark, peers. Return None if they can't behind our back.

        Raises:
            RustGuardError: The interface is gone.
        """


@dataclass(frozen=True, slots=True)
class Adopted:
    """What other programs have set in a tunnel.

    Attributes:
        private_key: Ours, 32 bytes, if it isn't the one that we set; else None.
        port: UDP.
        mark: The mark of its datagrams, 0 for none.
    """

    private_key: bytes | None = field(repr=False)
    port: int
    mark: int


@dataclass(slots=True)
class Listeners:
    """Callbacks of a tunnel, each called in the loop's thread.

    Attributes:
        foreign: An enrollment datagram came. Takes it, its source and the time.
        unanswered: A handshake had no answer. Takes the peer and the number of initiations sent so far.
        session: A peer's session began.
        moved: A peer has another endpoint.
        lost: Another program removed the interface. Calls `reattach` sooner or later. Without this listener the
            tunnel ends instead.
    """

    foreign: Callable[[bytes, Endpoint, float], None] | None = None
    unanswered: Callable[[Peer, int], None] | None = None
    session: Callable[[Peer], None] | None = None
    moved: Callable[[Peer, Endpoint], None] | None = None
    lost: Callable[[], None] | None = None
