"""The contract between Python and a data plane: commands go in, events come out.

The plane does everything that happens per packet:

- nonces, replay windows, and which keypair is current;
- allowed IPs in both directions, and roaming;
- keepalives, and the limits REKEY-AFTER and REJECT-AFTER;
- holding packets until a first handshake is done;
- the gate in front of Python: MAC1, and under load MAC2 and cookie replies; a server's HELLO and SHARE_C.

Everything else is decided by `rustguard_py.node`: handshakes, retries, timestamps, preshared keys.

There are two planes. `portable` is the readable one, in Python, and `native` the fast one, in Rust. One conformance
suite tests both.

Times are seconds of `rustguard_py.model.clock`. Keys are raw bytes. Sections are the whitepaper's.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.model.ethernet import EthernetOptions
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.statistics import PlaneStats

# What the kernel answers at a TUN descriptor whose interface is gone.
_GONE = (os.strerror(errno.EBADFD), os.strerror(errno.ENODEV))
# What takes packets: `Plane` on an interface, or on a channel.
Packet = bytes | bytearray | memoryview
# Packets that may wait in each direction of a channel, and their bytes together. One packet always may.
CHANNEL_PACKETS = 1024
CHANNEL_BYTES = 4 << 20
# Packets held per peer until a handshake is done; the kernel's MAX_STAGED_PACKETS.
MAX_STAGED_PACKETS = 128


@dataclass(frozen=True, slots=True)
class Keypair:
    """The transport keys of one finished handshake (section 5.4.5).

    Attributes:
        local_index: Our 32-bit index, from `Plane.reserve_index`: the receiver field of what we receive.
        remote_index: The peer's index: the receiver field of what we send.
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


@dataclass(frozen=True, slots=True)
class Flow:
    """What a session has sent and received so far.

    Attributes:
        local_index: Our index: the receiver field of what we receive.
        remote_index: The peer's index: the receiver field of what we send.
        sent: The counter of the next datagram that we send.
        next: One more than the highest counter received.
        received: How many authentic datagrams were received.
    """

    local_index: int
    remote_index: int
    sent: int
    next: int
    received: int


class Reason(Enum):
    """Why a plane wants a handshake."""

    NO_SESSION = "a packet has no session to go out on"
    REKEY = "the session reached REKEY-AFTER"
    INTERFACE_UP = "the interface came up, and an initiation before that didn't leave"
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
    """A peer needs a handshake. Repeated while packets need one, at most once per second."""

    peer: PeerId
    reason: Reason


@dataclass(frozen=True, slots=True)
class KeypairConfirmed:
    """The first authenticated datagram came in on a keypair that we installed as responder."""

    peer: PeerId
    local_index: int


@dataclass(frozen=True, slots=True)
class EndpointMoved:
    """An authenticated datagram came from another endpoint or to another local address. Replies already go there.

    Reported at most every 0.1 s and peer, the last one in any case: a peer can move with every datagram.
    """

    peer: PeerId
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Fault:
    """The plane has stopped (fatal), or it runs on without some feature (not fatal, reported once)."""

    message: str
    fatal: bool

    @property
    def interface_is_gone(self) -> bool:
        """Whether the plane stopped because another program removed its interface."""
        return self.fatal and any(each in self.message for each in _GONE)


Event = HandshakeReceived | ForeignReceived | HandshakeWanted | KeypairConfirmed | EndpointMoved | Fault


class Plane(Protocol):
    """The commands. The control thread may call them at any time; they take effect in order.

    While the interface is down, only enrollment passes: as in the kernel nothing else is sent or taken, and no
    handshake is wanted. Sessions stay. When it comes up, each peer with a persistent keepalive gets one.

    An endpoint from an event knows the local address that its datagram came to, and replies go out from that address.
    If the kernel refuses the address, or the peer stops answering, the kernel chooses one again.
    """

    def set_peer(
        self,
        peer: PeerId,
        endpoint: Endpoint | None,
        allowed_ips: Sequence[Network],
        persistent_keepalive: int,
    ) -> None:
        """Add a peer or change it. Its sessions stay.

        Args:
            peer: The caller's number for the peer.
            endpoint: Where to send, or None to keep the known endpoint.
            allowed_ips: All networks behind the peer. A network that another peer has moves to this one.
            persistent_keepalive: Seconds between keepalives while nothing is sent, 0 for none.
        """

    def set_public_key(self, public_key: bytes) -> None:
        """Take another identity (32 bytes): from now on the gate only passes handshakes for this key.

        Existing sessions still receive but no longer send, so outgoing packets wait for a new handshake.
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
        """Send to `endpoint` until an authenticated datagram comes from elsewhere. It causes no event."""

    def remove_peer(self, peer: PeerId) -> None:
        """Forget a peer with its keys, indices and held packets."""

    def reserve_index(self, peer: PeerId) -> int:
        """Return a new random 32-bit index for a handshake. The peer's reserved but unused index is freed."""

    def install_keypair(self, peer: PeerId, keypair: Keypair) -> None:
        """Install a keypair.

        As initiator it becomes current and is used at once: held packets are sent, or a keepalive if none is held.
        As responder it becomes next, and current when a datagram confirms it.
        """

    def erase_keypairs(self, peer: PeerId) -> None:
        """Erase all keys of a peer (section 6.3: none lives longer than 3 * REJECT-AFTER-TIME)."""

    def drop_held(self, peer: PeerId) -> None:
        """Drop the packets that wait for a handshake, because it was given up."""

    def set_segmenting(self, peer: PeerId, on: bool) -> None:
        """Let the kernel cut messages into datagrams for this peer (the default), or send it each one by itself."""

    def flows(self, peer: PeerId) -> list[Flow]:
        """Return what a peer's sessions have sent and received: the current one, then the one before."""

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram as it is (handshakes, enrollment). An unreachable network is not an error."""

    def stats(self) -> PlaneStats:
        """Return the current counters."""

    def close(self) -> None:
        """Stop, close all descriptors and remove the interface. May be called twice."""


class EventfulPlane(Plane, Protocol):
    """A plane with its queue of events behind a descriptor.

    Each kind of event has a bounded lane of its own, and all lanes are served in turn, so no kind takes another's
    place. Of one peer at most one event of a kind waits, with its last value.
    """

    def fileno(self) -> int:
        """Return the descriptor that is readable while events wait."""

    def poll_events(self) -> list[Event]:
        """Take the next events. The descriptor stays readable if there are more."""

    def roll_call(self) -> list[str]:
        """Ask every thread for a sign of life. Return the names of those that haven't answered the call before."""

    def set_fwmark(self, mark: int) -> None:
        """Set the mark of all datagrams sent from now on, for the system's routing rules; 0 for no mark."""

    def set_mtu(self, mtu: int) -> None:
        """Adopt the interface's new MTU, in bytes."""

    def rebind(self, sockets: Sequence[socket.socket]) -> None:
        """Move to other bound UDP sockets, at most one per family. The plane owns them from now on.

        Mark, peers, sessions and the packets in the interface stay. The old sockets are closed, and datagrams that
        wait in them are lost. Returns when this is done.
        """

    def is_running(self) -> bool:
        """Return whether the plane moves packets. Without its interface it doesn't."""

    def reattach(self) -> None:
        """Make the interface again after another program removed it, on the same UDP port.

        Peers, sessions and mark stay. The interface is down and has no address.

        Raises:
            RefusedError: It can't be made, or the port was taken meanwhile. May be called again.
        """


class AnsweringPlane(EventfulPlane, Protocol):
    """A plane on a memif with Ethernet, which answers ARP requests and neighbour solicitations."""

    def answered_fileno(self) -> int:
        """Return the descriptor that is readable while `take_answered` has something."""

    def take_answered(self) -> list[IPv4Address | IPv6Address]:
        """Return the addresses that were answered for since the last call, each at most once in a few minutes."""

    def answer_for(self, ethernet: EthernetOptions) -> None:
        """Answer for these answered ranges from now on, and for no others."""


class PacketChannel(Protocol):
    """Packets in memory in place of an interface: the end of whoever uses the tunnel.

    Packets are plain IP packets with complete checksums, at most as long as the plane's MTU. Any thread may call any
    method. None waits but `wait`. The descriptors are for poll(2), `asyncio` and the like.

    A plane that finds no room for what it received drops it and counts `channel_full`.
    """

    @property
    def closed(self) -> bool:
        """Whether either end has closed it."""

    def read_batch(self, most: int = 64) -> list[memoryview]:
        """Take the packets that wait, at most `most`; an empty list if none do. There may be more afterwards.

        The views are read-only. What they show never changes, for as long as there are views. On the native plane
        they lie in one buffer. Nothing is copied, unless the whole batch has at most 8 KiB. One view keeps a buffer
        of 64 KiB, so copy what you keep for long.

        Raises:
            BrokenPipeError: The channel is closed, and nothing waits any more.
        """

    def write_batch(self, packets: Iterable[Packet]) -> int:
        """Write packets, in their order, and return how many were taken: the first ones that there is room for.

        Each packet is copied once, so the caller may change it afterwards. The native plane copies large batches of
        `bytes` without the interpreter's lock; of anything else, Python code could change the bytes meanwhile.

        Raises:
            BrokenPipeError: The channel is closed. Nothing was taken.
            ValueError: A packet is longer than 65,535 bytes. Nothing was taken.
        """

    def wait(self, seconds: float) -> bool:
        """Wait until packets wait or the channel is closed, at most so long. Return whether that is so.

        Only the reader may call it. On the native plane a reader that uses this alone, without `fileno`, costs the
        plane a system call only when it sleeps.
        """

    def fileno(self) -> int:
        """Return the descriptor that is readable while packets wait, and once the channel is closed."""

    def writable_fileno(self) -> int:
        """Return the descriptor that is readable when a write has room again, or the channel is closed.

        It counts from the last write that wasn't taken wholly. Before there was one, it says nothing.
        """

    def close(self) -> None:
        """End the channel, and with it the plane. May be called twice.

        What was written before is still sealed. What the plane wrote before can still be read.
        """
