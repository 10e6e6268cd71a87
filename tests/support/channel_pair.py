"""Two planes on channels, over UDP on this machine: no interface, no privilege."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from rustguard_py.engine import Engine
from rustguard_py.model.clock import now
from rustguard_py.planes.contract import EventfulPlane, Keypair, PacketChannel
from support.packets import udp_packet

ALICE4, BOB4, ALICE6, BOB6 = "10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"
PEER = 7
PATIENCE = 20.0


@dataclass
class Side:
    """A plane and the end of its channel."""

    plane: EventfulPlane
    channel: PacketChannel
    endpoint: tuple[str, int]

    def read(self, count: int) -> list[bytes]:
        """Wait for so many packets, and give them."""
        packets: list[bytes] = []
        until = time.monotonic() + PATIENCE
        while len(packets) < count:
            assert time.monotonic() < until, f"{len(packets)} of {count} packets came"
            select.select([self.channel], [], [], 0.1)
            packets += [bytes(packet) for packet in self.channel.read_batch()]
        return packets

    def write(self, packets: list[bytes]) -> None:
        """Write all of them, as there is room."""
        until = time.monotonic() + PATIENCE
        while packets := packets[self.channel.write_batch(packets) :]:
            assert time.monotonic() < until, f"{len(packets)} packets found no room"
            select.select([self.channel.writable_fileno()], [], [], 0.1)


class ChannelPair:
    """Alice and Bob, with a session that either may use.

    Args:
        engine: Of both planes.
        capacity: Of both channels, packets.
    """

    def __init__(self, engine: Engine, capacity: int = 1024) -> None:
        self.alice, self.bob = side(engine, capacity), side(engine, capacity)
        alice, bob = self.alice.plane, self.bob.plane
        alice.set_peer(PEER, self.bob.endpoint, [ip_network(BOB4), ip_network(BOB6)], 0)
        bob.set_peer(PEER, self.alice.endpoint, [ip_network(ALICE4), ip_network(ALICE6)], 0)

    def connect(self) -> None:
        """Make a session, as after a handshake."""
        one, other = os.urandom(32), os.urandom(32)
        alice, bob = self.alice.plane, self.bob.plane
        ours, theirs = alice.reserve_index(PEER), bob.reserve_index(PEER)
        bob.install_keypair(PEER, Keypair(theirs, ours, other, one, False, now()))
        alice.install_keypair(PEER, Keypair(ours, theirs, one, other, True, now()))

    def close(self) -> None:
        self.alice.plane.close()
        self.bob.plane.close()


def to_bob(size: int = 100, family: int = 4) -> bytes:
    """A packet from Alice to Bob with so many bytes inside."""
    return udp_packet(*((ALICE4, BOB4) if family == 4 else (ALICE6, BOB6)), os.urandom(size))


def to_alice(size: int = 100, family: int = 4) -> bytes:
    """A packet from Bob to Alice."""
    return udp_packet(*((BOB4, ALICE4) if family == 4 else (BOB6, ALICE6)), os.urandom(size))


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.005)


def side(engine: Engine, capacity: int) -> Side:
    """Make a plane on a channel."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", 0))
    endpoint = bound.getsockname()
    channel = engine.make_channel(capacity)
    return Side(engine.make_plane(bytes(32), "memory", [bound], 1420, channel=channel), channel, endpoint)
