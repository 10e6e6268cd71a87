"""One end of a tunnel whose keys are put in by hand: a plane with many peers and no handshakes. `scale.py` runs it.

    python bench/end.py ENGINE client|server PEERS ACTIVE ENDPOINT

Peer n of either end is n of the other, with a session of its own and one inner address: 10.64.0.0 + n at the
client, 10.128.0.0 + n at the server. So what goes from the client's nth address to the server's nth goes out in
session n, and all sessions share one socket: 64 peers send without 64 machines. Peers beyond ACTIVE have a session
that nobody uses. The ends tell their indices on stdout and take each other's on stdin, a JSON line each; then the
end says that it is ready and goes on until stdin closes.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path

from rustguard_py.data_path import DataPath
from rustguard_py.engine import choose
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint, Network
from rustguard_py.planes.contract import EventfulPlane, Keypair
from rustguard_py.planes.offload import wanted_gso_segments
from rustguard_py.system.interface import InterfaceSetup, set_up
from rustguard_py.system.sockets import bind

PORT = 51820
MTU = 1420
INTERFACE = "rg0"
NETWORKS = {"client": 0x0A400000, "server": 0x0A800000}
OTHER = {"client": "server", "server": "client"}


def address(side: str, peer: int) -> IPv4Address:
    """The inner address of a peer's session at one side; peers count from 1."""
    return IPv4Address(NETWORKS[side] + peer)


def make(engine: str) -> EventfulPlane:
    """A plane on a socket of its own."""
    return choose(DataPath(engine)).make_plane(b"k" * 32, INTERFACE, bind(PORT), MTU)


def _key(sender: str, peer: int) -> bytes:
    return sha256(f"{sender} {peer}".encode()).digest()


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _install(plane: EventfulPlane, side: str, ours: list[int], theirs: list[int]) -> None:
    for peer, (own, other) in enumerate(zip(ours, theirs, strict=True), 1):
        sends, receives = _key(side, peer), _key(OTHER[side], peer)
        # An initiator confirms its session at once, with a keepalive.
        plane.install_keypair(peer, Keypair(own, other, sends, receives, side == "client", now()))


def _serve(engine: str, side: str, peers: int, active: int, endpoint: Endpoint) -> None:
    plane = make(engine)
    addresses = tuple(IPv4Interface((address(side, peer), 32)) for peer in range(1, active + 1))
    routes = (IPv4Network((NETWORKS[OTHER[side]], 16)),)
    set_up(InterfaceSetup(INTERFACE, MTU, addresses, routes, wanted_gso_segments(MTU)), lambda _: None)
    for peer in range(1, peers + 1):
        plane.set_peer(peer, endpoint, [IPv4Network(address(OTHER[side], peer))], 0)
        if peer > active:
            keys = _key(side, peer), _key(OTHER[side], peer)
            plane.install_keypair(peer, Keypair(plane.reserve_index(peer), 1, *keys, initiator=False, birth=now()))
    ours = [plane.reserve_index(peer) for peer in range(1, active + 1)]
    _say(indices=ours)
    _install(plane, side, ours, json.loads(sys.stdin.readline()))
    _say(ready=True)
    while not _closed(plane):
        plane.poll_events()
    _say(drops=plane.stats().drops)
    plane.close()


def _closed(plane: EventfulPlane) -> bool:
    """Wait for events, or for the end of stdin."""
    readable, _, _ = select.select([plane.fileno(), sys.stdin.fileno()], [], [])
    return sys.stdin.fileno() in readable


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _idle(engine: str, peers: int, seconds: float) -> None:
    """Print what this many peers, with two networks and three sessions each, cost an idle plane."""
    plane = make(engine)

    def add(numbers: range) -> None:
        for peer in numbers:
            networks: list[Network] = [IPv4Network(address("client", peer)), IPv6Network((0xFD << 120 | peer, 128))]
            plane.set_peer(peer, ("127.0.0.1", 9), networks, 0)
            for initiator in (True, True, False):
                index = plane.reserve_index(peer)
                plane.install_keypair(peer, Keypair(index, 1, b"s" * 32, b"r" * 32, initiator, now()))

    # The first take what the plane keeps for any number.
    add(range(100))
    before = _resident()
    add(range(100, 100 + peers))
    each = (_resident() - before) / peers
    began, used = time.monotonic(), time.process_time()
    time.sleep(seconds)
    idle = (time.process_time() - used) / (time.monotonic() - began)
    _say(peers=peers, bytes_a_peer=each, idle_cpu=idle)
    plane.close()


if __name__ == "__main__":
    if sys.argv[2] == "idle":
        _idle(sys.argv[1], int(sys.argv[3]), float(sys.argv[4]))
    else:
        _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), (sys.argv[5], PORT))
