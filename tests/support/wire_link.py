"""One server and many joining clients on a lossy link in memory, under one virtual clock.

The server's shell here does what the real one must: an admission is saved (which takes a while) before it is
answered, a count of wrong tokens is saved before its reply goes out.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from random import Random

from rustguard_py.enroll.pairing.admission import Admission
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.outcome import Failed, Joined
from rustguard_py.enroll.pairing.outputs import Admit, Guessed, Output, Reply
from rustguard_py.enroll.pairing.server import PairingServer
from rustguard_py.enroll.pairing.window import Limits, Window
from rustguard_py.enroll.server.pool import Pool
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.keys import public_key
from rustguard_py.state.records import GuessRecord

SERVER: Endpoint = ("192.0.2.1", 51820)
SERVER_PRIVATE = bytes(range(32))
SERVER_KEY = public_key(SERVER_PRIVATE)
TOKEN = "correct horse"  # noqa: S105 - the tests' own
SAVE_SECONDS = 0.004


def cheap_stretch(token: str, server_id: bytes) -> bytes:
    """Stand in for scrypt where a test joins hundreds of times."""
    return sha256(token.encode() + server_id).digest()


@dataclass
class Weather:
    """What the link does to datagrams, each way; probabilities from 0 to 1, delay in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    flip: float = 0.0
    delay: float = 0.001


@dataclass
class Joining:
    """A client on the link, and how it went."""

    client: PairingClient
    source: Endpoint
    public_key: bytes
    began: float
    ended: float | None = None

    @property
    def outcome(self) -> Joined | Failed | None:
        return self.client.outcome

    @property
    def seconds(self) -> float:
        assert self.ended is not None
        return self.ended - self.began


@dataclass
class Disk:
    """What outlives the server's process."""

    server_id: bytes
    guesses: GuessRecord = field(default_factory=GuessRecord)
    preshared_keys: dict[bytes, bytes] = field(default_factory=dict)
    commits: list[bytes] = field(default_factory=list)
    broken: bool = False


# Sees each datagram and whether it goes to the server; gives those that go on in its place.
Meddler = Callable[[bytes, bool], list[bytes]]


class World:
    def __init__(
        self,
        seed: int,
        weather: Weather | None = None,
        *,
        pool: str = "10.150.0.0/16",
        token: str = TOKEN,
        meddler: Meddler | None = None,
    ) -> None:
        self.chance = Random(seed)
        self.random: Callable[[int], bytes] = self.chance.randbytes
        self.weather = weather or Weather()
        self.meddler = meddler
        self.now = 1000.0
        self.token = token
        self.pool = Pool(IPv4Network(pool), IPv6Network("fd00:1:2:3::/64"))
        self.disk = Disk(self.random(32))
        self.joinings: dict[Endpoint, Joining] = {}
        self.outputs: list[Output] = []
        self.carried: list[tuple[bytes, bool]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.start()

    # -- the server ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server's process on what its disk holds; the window is closed."""
        self.window = Window(self.disk.guesses)
        self._turn: float | None = None
        tokens = {0: cheap_stretch(self.token, self.disk.server_id)}
        self.server = PairingServer(self.disk.server_id, SERVER_PRIVATE, tokens, self.window, self.random, self.now)

    def open(self, seconds: float = 600.0, limits: Limits | None = None) -> None:
        self.window.open(seconds, self.now, limits)
        self.disk.guesses = self.window.record

    def _serve(self, outputs: list[Output]) -> None:
        self.outputs += outputs
        for output in outputs:
            match output:
                case Reply(datagram, destination):
                    self.carry(datagram, destination, to_server=False)
                case Admit():
                    self.at(self.now + SAVE_SECONDS, partial(self._admit, self.server, output))
                case Guessed(record, _, _, reply):
                    if self.disk.broken:
                        continue
                    self.disk.guesses = record
                    if reply is not None:
                        self.carry(reply.datagram, reply.destination, to_server=False)

    def _mind_draw(self) -> None:
        """Let the server hold its draw when that is due."""
        if not self.server.waiting or self._turn == self.window.turn:
            return
        self._turn = self.window.turn
        self.at(max(self.now, self._turn), partial(self._hold_draw, self.server))

    def _hold_draw(self, server: PairingServer) -> None:
        if server is self.server:
            self._turn = None
            self._serve(server.handle_timeout(self.now))
            self._mind_draw()

    def _admit(self, server: PairingServer, admit: Admit) -> None:
        if self.disk.broken:
            server.forget(admit.session, self.now)
            return
        addresses = self.pool.allocate(admit.public_key)
        if addresses is None:
            self._serve(server.answer(admit.session, {"status": "full"}, self.now))
            return
        self.disk.commits.append(admit.public_key)
        self.disk.preshared_keys[admit.public_key] = admit.preshared_key
        self._serve(server.answer(admit.session, admission(addresses[0]).to_mapping(), self.now))

    # -- clients -------------------------------------------------------------------------------------------

    def join(
        self,
        number: int,
        *,
        token: str | None = None,
        after: float = 0.0,
        key: bytes | None = None,
        server: bytes | None = None,
    ) -> Joining:
        """Let client `number` begin, from an address of its own; `server` is the key that it knows of the server."""
        source: Endpoint = (str(IPv4Address(int(IPv4Address("198.18.0.0")) + number)), 40000)
        return self.join_from(source, token=token, after=after, key=key, server=server)

    def join_from(
        self,
        source: Endpoint,
        *,
        token: str | None = None,
        after: float = 0.0,
        key: bytes | None = None,
        server: bytes | None = None,
    ) -> Joining:
        private_key = self.random(32) if key is None else key
        client = PairingClient(
            self.token if token is None else token,
            private_key,
            "laptop",
            self.random,
            self.now + after,
            known_server=server,
            stretching=cheap_stretch,
        )
        joining = Joining(client, source, public_key(private_key), self.now + after)
        self.joinings[source] = joining
        self.at(joining.began, lambda: self._pump(joining))
        return joining

    def _pump(self, joining: Joining) -> None:
        client = joining.client
        client.handle_timeout(self.now)
        while (transmit := client.poll_transmit()) is not None:
            self.carry(transmit.datagram, joining.source, to_server=True)
        if client.outcome is not None:
            if joining.ended is None:
                joining.ended = self.now
            return
        deadline = client.poll_timeout()
        assert deadline is not None
        self.at(deadline, lambda: self._pump(joining) if client.poll_timeout() == deadline else None)

    # -- the link and the clock ----------------------------------------------------------------------------

    def carry(self, datagram: bytes, client: Endpoint, *, to_server: bool) -> None:
        """Put a datagram on the link, to the server or from it; `client` is the other end's address."""
        self.carried.append((datagram, to_server))
        for changed in [datagram] if self.meddler is None else self.meddler(datagram, to_server):
            if self.chance.random() < self.weather.loss:
                continue
            copies = 2 if self.chance.random() < self.weather.duplicate else 1
            for _ in range(copies):
                delay = self.weather.delay * self.chance.uniform(1, 1.2)
                if self.chance.random() < self.weather.reorder:
                    delay += self.chance.uniform(0, 2.5)
                delivered = changed
                if self.chance.random() < self.weather.flip:
                    delivered = flip_bit(changed, self.chance.randrange(len(changed) * 8))
                self.at(self.now + delay, partial(self._deliver, delivered, client, to_server))

    def _deliver(self, datagram: bytes, client: Endpoint, to_server: bool) -> None:
        if to_server:
            self._serve(self.server.handle(datagram, client, self.now))
            self._mind_draw()
        elif (joining := self.joinings.get(client)) is not None:
            joining.client.handle(datagram, SERVER, self.now)
            self._pump(joining)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def run(self, seconds: float = 300.0) -> None:
        """Move the clock until nothing is left to happen, or for so many seconds."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            what()
        if self._events:
            self.now = end

    def joined(self) -> list[Joining]:
        return [joining for joining in self.joinings.values() if isinstance(joining.outcome, Joined)]

    def preshared_keys_agree(self) -> bool:
        """Tell whether all that joined hold the preshared key that the server holds for them."""
        return all(
            isinstance(joining.outcome, Joined)
            and joining.outcome.preshared_key == self.disk.preshared_keys[joining.public_key]
            for joining in self.joined()
        )


def admission(address4: IPv4Address) -> Admission:
    return Admission(
        name="laptop",
        address4=IPv4Interface(f"{address4}/16"),
        address6=None,
        server_key=SERVER_KEY,
        port=51820,
        mtu=1420,
        keepalive=25,
        routes=(),
        gateway4=IPv4Interface(f"{address4}/16").network[1],
        gateway6=None,
    )


def flip_bit(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
