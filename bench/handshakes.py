"""How many handshakes one core answers: whole initiations in, responses and installed keypairs out.

    python bench/handshakes.py [--handshakes 3000] [--rounds 5]

The gate, the node, Noise, the timestamps' file and the plane's bookkeeping are all in it; sockets are not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from rustguard_py.model.endpoint import Endpoint, Network
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.peer import PeerConfig
from rustguard_py.node import Node
from rustguard_py.planes.contract import Event, Keypair
from rustguard_py.planes.transport import Transport
from rustguard_py.protocol.cookie import add_macs, mac1_key
from rustguard_py.protocol.noise import Initiator, StaticKey
from rustguard_py.protocol.tai64n import Tai64nClock
from rustguard_py.protocol.wire import RESPONSE
from rustguard_py.state.journal import TimestampJournal

PEERS = 1000


class InMemory:
    """The plane's rules without sockets, at a time that stands still."""

    def __init__(self, public_key: bytes) -> None:
        self.events: list[Event] = []
        self.transport = Transport(public_key, emit=self.events.append)
        self.now = 1000.0
        self.reserve_index = self.transport.reserve_index
        self.set_public_key = self.transport.set_public_key
        self.remove_peer = self.transport.remove_peer
        self.set_endpoint = self.transport.set_endpoint
        self.erase_keypairs = self.transport.erase_keypairs
        self.drop_held = self.transport.drop_held
        self.stats = self.transport.stats
        self.set_segmenting = self.transport.set_segmenting
        self.flows = self.transport.flows

    def set_peer(
        self, peer: int, endpoint: Endpoint | None, allowed_ips: Sequence[Network], persistent_keepalive: int
    ) -> None:
        self.transport.set_peer(peer, endpoint, allowed_ips, persistent_keepalive, self.now)

    def set_pairing(self, gate: PairingGate | None) -> None:
        self.transport.set_pairing(gate, self.now)

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        self.transport.send(endpoint, datagram, self.now)

    def install_keypair(self, peer: int, keypair: Keypair) -> None:
        self.transport.install_keypair(peer, keypair, self.now)

    def close(self) -> None:
        pass


def initiations(clients: list[StaticKey], server: StaticKey, clock: Tai64nClock, count: int) -> list[bytes]:
    """Make so many initiations, from each client in turn."""
    key = mac1_key(server.public)
    shared = [client.shared_with(server.public) for client in clients]
    made = []
    for number in range(count):
        client = clients[number % len(clients)]
        secret = shared[number % len(clients)]
        message = Initiator(client, server.public, secret, clock.next(), number, os.urandom).message
        made.append(add_macs(message, key, None))
    return made


def measure(handshakes: int, rounds: int) -> list[float]:
    """Return the handshakes per second of each round."""
    server = StaticKey(os.urandom(32))
    clients = [StaticKey(os.urandom(32)) for _ in range(PEERS)]
    # An address each: who sends more than 20 a second from one is asked for a cookie first.
    sources: list[Endpoint] = [(f"10.0.{number >> 8}.{number & 255}", 51820) for number in range(PEERS)]
    clock = Tai64nClock(time.time_ns)
    rates = []
    with tempfile.TemporaryDirectory() as directory:
        journal = TimestampJournal.open(Path(directory))
        plane = InMemory(server.public)
        node = Node(server, plane, journal, wall=time.time_ns, random=os.urandom)
        for number, client in enumerate(clients):
            node.set_peer(PeerConfig(client.public, (IPv4Network((0x0A000000 + number, 32)),)))
        for _ in range(rounds):
            batch = initiations(clients, server, clock, handshakes)
            plane.now += 60
            answered = 0
            began = time.perf_counter()
            for number, datagram in enumerate(batch):
                # Two from one client must be 20 ms apart to be answered.
                now = plane.now + number * 0.001
                plane.transport.handle_datagram(datagram, sources[number % PEERS], now)
                for event in plane.events:
                    node.handle_event(event, now)
                plane.events.clear()
                answered += sum(reply[0] == RESPONSE for _, reply, _ in plane.transport.poll_transmit())
            rates.append(handshakes / (time.perf_counter() - began))
            if answered != handshakes:
                raise SystemExit(f"only {answered} of {handshakes} were answered")
        journal.close()
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--handshakes", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rates = measure(options.handshakes, options.rounds)
    if options.json:
        print(json.dumps({"handshakes_per_second": rates}))
        return
    low, high = min(rates), max(rates)
    print(f"handshakes a second as responder, one core: {statistics.median(rates):,.0f} ({low:,.0f} to {high:,.0f})")


if __name__ == "__main__":
    main()
