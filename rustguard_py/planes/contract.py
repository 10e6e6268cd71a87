"""What every data plane does, and how Python talks to it: commands in, events out.

Python decides, the plane moves packets. The plane keeps to itself what happens once a packet: nonces, replay
windows, allowed-IPs both ways, roaming, which keypair is current, keepalives, REKEY-AFTER and REJECT-AFTER
limits, packets that wait for a first handshake, and the gate in front of Python (MAC1; under load MAC2 and
cookie replies). Everything else is `rustguard_py.node`'s.

Times are seconds of one monotonic clock. Keys are raw bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol, cast

# Whitepaper section 6.1, in seconds and messages, with the paper's names.
REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_ATTEMPT_TIME = 90.0
REKEY_TIMEOUT = 5.0
KEEPALIVE_TIMEOUT = 10.0
# A datagram received by the initiator this close to REJECT_AFTER_TIME starts a new handshake (section 6.2).
REKEY_AFTER_TIME_RECEIVING = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
# Packets held a peer until its first handshake is done; the kernel's MAX_STAGED_PACKETS.
MAX_STAGED_PACKETS = 128

PeerId = int
Network = IPv4Network | IPv6Network
# An address as the socket module gives it: (host, port), or (host, port, flowinfo, scope_id) over IPv6.
Endpoint = tuple[str, int] | tuple[str, int, int, int]


class _Heard(tuple[str | int, ...]):
    """An endpoint that also knows at which address of ours it was heard."""

    local: bytes


def heard(endpoint: Endpoint, local: bytes) -> Endpoint:
    """Give an endpoint from which a datagram came to an address of ours: what goes to it goes out from there.

    It equals the plain one.

    Args:
        endpoint: Where it came from.
        local: Where it came to, 4 or 16 bytes.
    """
    made = _Heard(endpoint)
    made.local = local
    return cast(Endpoint, made)


def local_of(endpoint: Endpoint | None) -> bytes | None:
    """Give the address of ours that `endpoint` was heard at, 4 or 16 bytes; None leaves the choice to the kernel."""
    return endpoint.local if isinstance(endpoint, _Heard) else None


def plain(endpoint: Endpoint) -> Endpoint:
    """Give an endpoint without the address of ours that it was heard at."""
    return cast(Endpoint, tuple(endpoint)) if isinstance(endpoint, _Heard) else endpoint


def is_same(one: Endpoint | None, other: Endpoint | None) -> bool:
    """Say whether two endpoints are one, their addresses of ours included."""
    return one is other or (one == other and local_of(one) == local_of(other))


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
    """A handshake message of types 1 to 3 that passed the gate; MAC1 (types 1 and 2) holds."""

    datagram: bytes
    source: Endpoint


@dataclass(frozen=True, slots=True)
class ForeignReceived:
    """A datagram that begins with `RGE`: enrollment."""

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
    """An authenticated datagram came from elsewhere, or to another address of ours; replies already go there."""

    peer: PeerId
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Fault:
    """The plane can't go on, or (fatal False) goes on with less and says so once."""

    message: str
    fatal: bool


Event = HandshakeReceived | ForeignReceived | HandshakeWanted | KeypairConfirmed | EndpointMoved | Fault


@dataclass(slots=True)
class PeerStats:
    """Counters of one peer. Bytes are those of whole WireGuard datagrams, as the kernel's counters are.

    Attributes:
        last_received: When the last authenticated datagram came, or None.
        last_sent: When the last datagram went out, or None.
        handshakes: Keypairs installed.
        drops: Packets dropped on their way to it, and datagrams of its sessions, forged ones too.
    """

    endpoint: Endpoint | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    last_received: float | None = None
    last_sent: float | None = None
    handshakes: int = 0
    drops: int = 0


# Entries of a histogram of batch sizes.
BATCH_CLASSES = 16


@dataclass(slots=True)
class WorkerStats:
    """Counters of one worker: a thread that moves packets in batches, each as many as waited.

    Attributes:
        name: `out-0` for the way out of the first queue, `in-0` for its way in, `loop-0` for both in one.
        packets: Datagrams handed to the network, and taken from it.
        bytes: Of these datagrams.
        batch_sizes: BATCH_CLASSES numbers: how many batches had 1 datagram, 2 or 3, 4 to 7 and so on. The last also
            counts the larger ones.
        system_calls: That it made, those to look in vain and to sleep included.
    """

    name: str
    packets: int = 0
    bytes: int = 0
    batch_sizes: list[int] = field(default_factory=lambda: [0] * BATCH_CLASSES)
    system_calls: int = 0

    @property
    def batches(self) -> int:
        """How many batches there were."""
        return sum(self.batch_sizes)

    def count(self, packets: int, size: int) -> None:
        """Count a batch of `packets` datagrams, `size` bytes together."""
        if packets:
            self.packets += packets
            self.bytes += size
            self.batch_sizes[min(packets.bit_length(), BATCH_CLASSES) - 1] += 1


@dataclass(slots=True)
class PlaneStats:
    """Counters of a plane.

    Attributes:
        peers: By peer.
        drops: Datagrams and packets dropped, by reason (a short snake_case word each).
        notes: What the plane does without, and why (a refused offload), one sentence each.
        workers: One each; none where packets aren't moved by workers.
    """

    peers: dict[PeerId, PeerStats] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    workers: list[WorkerStats] = field(default_factory=list)


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
