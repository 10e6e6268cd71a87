"""Two or more WireGuard hosts on a lossy link in memory, under one virtual clock.

Each host is a real `Node` on a `MemoryPlane`. `Network.run(seconds)` moves the clock from one deadline or arrival
to the next, so hours pass in milliseconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from random import Random

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.node import Node, NodeEvent
from rustguard_py.planes.contract import HandshakeReceived
from rustguard_py.protocol.noise import StaticKey
from support.memory_plane import MemoryPlane

# 2026-01-01T00:00:00Z
WALL_START = 1_767_225_600 * 10**9


class MemoryTimestamps:
    """`Timestamps` in a dict, which a test may carry over a restart."""

    def __init__(self) -> None:
        self.known: dict[bytes, bytes] = {}

    def greatest(self, key: bytes) -> bytes | None:
        return self.known.get(key)

    def is_new(self, key: bytes, timestamp: bytes) -> bool:
        return timestamp > self.known.get(key, b"")

    def record(self, key: bytes, timestamp: bytes) -> None:
        assert timestamp > self.known.get(key, b""), "a recorded timestamp went back"
        self.known[key] = timestamp


@dataclass
class Weather:
    """What the link does to datagrams; probabilities from 0 to 1, delay in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    flip: float = 0.0
    delay: float = 0.001


class Host:
    def __init__(self, network: Network, name: str, address: str, private_key: bytes, port: int = 51820) -> None:
        self.network = network
        self.name = name
        self.endpoint: Endpoint = (address, port)
        self.private_key = private_key
        self.timestamps = MemoryTimestamps()
        self.events: list[NodeEvent] = []
        self.wall_offset = 0
        self.start()

    def start(self) -> None:
        """Begin anew with empty memory but the same identity and timestamps, as after a restart."""
        static = StaticKey(self.private_key)
        random = self.network.random.randbytes
        self.plane = MemoryPlane(static.public, random=random, now=self.network.now)
        self.node = Node(static, self.plane, self.timestamps, wall=self._wall, random=random)

    def _wall(self) -> int:
        return WALL_START + int(self.network.now * 1e9) + self.wall_offset

    @property
    def public_key(self) -> bytes:
        return self.node.static.public

    def add(
        self,
        other: Host,
        *inner: str,
        psk: bytes = bytes(32),
        know_endpoint: bool = True,
        keepalive: int = 0,
        previous_psks: tuple[bytes, ...] = (),
    ) -> Peer:
        return self.node.set_peer(
            PeerConfig(
                other.public_key,
                tuple(ip_network(net) for net in inner),
                psk,
                other.endpoint if know_endpoint else None,
                keepalive,
                previous_psks,
            )
        )

    def become(self, private_key: bytes) -> None:
        """Have another key from now on."""
        self.node.set_private_key(private_key, self.network.now)
        self.network.settle()

    def send(self, packet: bytes) -> None:
        self.plane.packet_out(packet)
        self.network.settle()

    def receive(self, datagram: bytes, source: Endpoint) -> None:
        self.plane.datagram_in(datagram, source)
        self.network.settle()

    @property
    def handshakes_received(self) -> int:
        return self.network.handshakes[self.name]


@dataclass
class Network:
    """The link; `recorded` has every datagram ever sent: (time, source, destination, datagram)."""

    weather: Weather = field(default_factory=Weather)
    seed: int = 1
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.hosts: list[Host] = []
        self.handshakes: dict[str, int] = {}
        self.recorded: list[tuple[float, Endpoint, Endpoint, bytes]] = []
        self.observer: Callable[[Endpoint, Endpoint, bytes], bool] | None = None
        self._flying: list[tuple[float, int, Endpoint, Endpoint, bytes]] = []
        self._order = itertools.count()

    def host(self, name: str, address: str) -> Host:
        host = Host(self, name, address, self.random.randbytes(32))
        self.hosts.append(host)
        self.handshakes[name] = 0
        return host

    def settle(self) -> None:
        """Hand every event to its node and put every datagram on the link, until nothing happens at once."""
        busy = True
        while busy:
            busy = False
            for host in self.hosts:
                host.plane.now = self.now
                for event in host.plane.take_events():
                    busy = True
                    self.handshakes[host.name] += isinstance(event, HandshakeReceived)
                    host.node.handle_event(event, self.now)
                host.node.handle_timeout(self.now)
                while (said := host.node.poll_event()) is not None:
                    host.events.append(said)
                for destination, datagram in host.plane.take_outgoing():
                    busy = True
                    self._launch(host.endpoint, destination, datagram)

    def _launch(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        self.recorded.append((self.now, source, destination, datagram))
        if self.observer is not None and not self.observer(source, destination, datagram):
            return
        weather, chance = self.weather, self.random.random
        for _ in range(2 if chance() < weather.duplicate else 1):
            if chance() < weather.loss:
                continue
            if chance() < weather.flip:
                changed = bytearray(datagram)
                bit = self.random.randrange(len(changed) * 8)
                changed[bit // 8] ^= 1 << bit % 8
                datagram = bytes(changed)
            late = self.random.uniform(0.01, 0.2) if chance() < weather.reorder else 0.0
            arrival = self.now + weather.delay + late
            heapq.heappush(self._flying, (arrival, next(self._order), source, destination, datagram))

    def _next(self) -> float | None:
        times = [self._flying[0][0]] if self._flying else []
        for host in self.hosts:
            times += [t for t in (host.plane.transport.poll_timeout(), host.node.poll_timeout()) if t is not None]
        return min(times, default=None)

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        until = self.now + seconds
        self.settle()
        while (due := self._next()) is not None and due <= until:
            self.now = max(self.now, due)
            for host in self.hosts:
                host.plane.advance(self.now)
            while self._flying and self._flying[0][0] <= self.now:
                _, _, source, destination, datagram = heapq.heappop(self._flying)
                for host in self.hosts:
                    if host.endpoint == destination:
                        host.plane.datagram_in(datagram, source)
            self.settle()
        self.now = until
        for host in self.hosts:
            host.plane.advance(until)
        self.settle()


def packet(source: str, destination: str, payload: bytes = b"") -> bytes:
    """Make an IPv4 or IPv6 UDP packet without checksums; the plane looks at addresses and length only."""
    src, dst = ip_address(source), ip_address(destination)
    udp = bytes.fromhex("0009 0009") + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    if src.version == 4:
        head = b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + b"\x40\x11\0\0"
        return head + src.packed + dst.packed + udp
    return b"\x60\0\0\0" + len(udp).to_bytes(2, "big") + b"\x11\x40" + src.packed + dst.packed + udp


def pair(network: Network, *, psk: bytes = bytes(32), keepalive: int = 0) -> tuple[Host, Host]:
    """Alice (10.0.0.1, fd00::1), who knows where Bob is, and Bob (10.0.0.2, fd00::2), who doesn't know of her."""
    alice, bob = network.host("alice", "192.0.2.1"), network.host("bob", "192.0.2.2")
    alice.add(bob, "10.0.0.2/32", "fd00::2/128", psk=psk, keepalive=keepalive)
    bob.add(alice, "10.0.0.1/32", "fd00::1/128", psk=psk, know_endpoint=False)
    return alice, bob
