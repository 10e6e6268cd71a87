"""What every data plane does, and how Python talks to it: commands in, events out.

Python decides, the plane moves packets. The plane keeps to itself what happens once a packet: nonces, replay
windows, allowed-IPs both ways, roaming, which keypair is current, keepalives, REKEY-AFTER and REJECT-AFTER
limits, packets that wait for a first handshake, and the gate in front of Python (MAC1; under load MAC2 and
cookie replies; a server's HELLO and SHARE_C). Everything else is `rustguard_py.node`'s.

Times are seconds of one monotonic clock. Keys are raw bytes.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats

# Packets held a peer until its first handshake is done; the kernel's MAX_STAGED_PACKETS.
MAX_STAGED_PACKETS = 128


@dataclass(frozen=True, slots=True)
class Keypair:
    """The transport keys of one finished handshake (section 5.4.5).

    Attributes:
        local_index: Our 32-bit index, the receiver field of what we get; from `Plane.reserve_index`.
        remote_index: Theirs, the receiver field of what we send.
        send_key: 32 bytes.
        receive_key: 32 bytes.
        initiator: Whether we sent the initiation. A responder's keypair is `next` until a datagram confirms it.
        birth: When the handshake ended.
    """

    local_index: int
    remote_index: int
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    initiator: bool
    birth: float


class Reason(Enum):
    """Why a plane wants a handshake."""

    NO_SESSION = "a packet has no session to go out on"
    REKEY = "the session reached REKEY-AFTER"
    NO_ANSWER = "sent data, heard nothing for KEEPALIVE-TIMEOUT + REKEY-TIMEOUT"


@dataclass(frozen=True, slots=True)
class HandshakeReceived:
    """A handshake message of types 1 to 3 that passed the gate; MAC1 (types 1 and 2) holds.

    Attributes:
        datagram: Whole.
        source: Where it came from.
        proven: Whether MAC2 shows that the sender receives there, or it answers a handshake of ours. Those wait apart
            from the others.
    """

    datagram: bytes
    source: Endpoint
    proven: bool = False


@dataclass(frozen=True, slots=True)
class ForeignReceived:
    """A datagram that begins with `RGE`: enrollment, as much of it as `Plane.set_pairing` lets through."""

    datagram: bytes
    source: Endpoint


@dataclass(frozen=True, slots=True)
class HandshakeWanted:
    """A session is missing, old or silent. Said again, at most once a second, as often as a packet meets that."""

    peer: PeerId
    reason: Reason


@dataclass(frozen=True, slots=True)
class KeypairConfirmed:
    """The first authenticated datagram came in on a keypair that we made as responder."""

    peer: PeerId
    local_index: int


@dataclass(frozen=True, slots=True)
class EndpointMoved:
    """An authenticated datagram came from elsewhere, or to another address of ours; replies already go there.

    Reported at most every 0.1 s and peer, the last one in any case: a peer can move with every datagram.
    """

    peer: PeerId
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Fault:
    """The plane can't go on, or (fatal False) goes on with less and says so once."""

    message: str
    fatal: bool


Event = HandshakeReceived | ForeignReceived | HandshakeWanted | KeypairConfirmed | EndpointMoved | Fault


class Plane(Protocol):
    """The commands. They may be called from the control thread at any time and take effect in order.

    An endpoint that an event gave knows the address of ours that the datagram came to: what is sent to it goes out
    from there. Where the kernel refuses that, and once a peer doesn't answer, the kernel chooses again.
    """

    def set_peer(
        self,
        peer: PeerId,
        endpoint: Endpoint | None,
        allowed_ips: Sequence[Network],
        persistent_keepalive: int,
    ) -> None:
        """Add a peer or change it; its sessions stay.

        Args:
            peer: The caller's number for it.
            endpoint: Where to send, or None to keep what is known.
            allowed_ips: Networks whose packets go to it and may come from it; each moves here from other peers.
            persistent_keepalive: Seconds between keepalives while nothing is sent, 0 for none.
        """

    def set_public_key(self, public_key: bytes) -> None:
        """Be somebody else (32 bytes) from now on: handshakes have to be for this key.

        No session sends any more, so what is to be sent waits for a handshake; what comes on them is still taken.
        """

    def set_pairing(self, gate: PairingGate | None) -> None:
        """Guard a server's pairing from now on: open the window, change its epoch, or close it (None).

        Call it again when an epoch begins, each 120 s. The plane then answers HELLO itself. It passes a SHARE_C whose
        cookie holds, and a CONFIRM or FORGET that names a session it has seen in a SHARE_S or RESULT given to `send`;
        each at a pace per source or session, and then at one for all (`rustguard_py.protocol.pairing_filter`). The
        rest is dropped and counted. A closed window passes nothing, but for `gate.linger` seconds CONFIRM and FORGET.

        Until the first call, all enrollment datagrams pass at a pace for each step of a join. A client needs no more.
        """

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint) -> None:
        """Send to `endpoint` from now on, until an authenticated datagram comes from elsewhere. No event follows."""

    def remove_peer(self, peer: PeerId) -> None:
        """Forget a peer, its keys, indices and held packets."""

    def reserve_index(self, peer: PeerId) -> int:
        """Give a fresh random 32-bit index for a handshake; the peer's reserved, unused one is given back."""

    def install_keypair(self, peer: PeerId, keypair: Keypair) -> None:
        """Put a keypair in place.

        An initiator's becomes current and is used at once: held packets go out, or an empty one (a keepalive) where
        none is held. A responder's becomes next until a datagram confirms it.
        """

    def erase_keypairs(self, peer: PeerId) -> None:
        """Erase all keys of a peer (section 6.3: none lives longer than 3 * REJECT-AFTER-TIME)."""

    def drop_held(self, peer: PeerId) -> None:
        """Drop the packets that wait for a handshake: it was given up."""

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram as it is (handshakes, enrollment). An unreachable network is not an error."""

    def stats(self) -> PlaneStats:
        """Read the counters."""

    def close(self) -> None:
        """Stop, close every descriptor, drop the interface. May be called twice."""


class EventfulPlane(Plane, Protocol):
    """A plane with its queue of events behind a descriptor.

    Each kind of event has a bounded lane of its own, and all lanes are served in turn, so no kind takes another's
    place. Of one peer at most one event of a kind waits, with its last value.
    """

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
