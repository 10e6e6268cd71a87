"""What only the inside of the transport shows: bounds, indices, message limits."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_network

import pytest

from rustguard_py.model.timers import REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES
from rustguard_py.planes import held_packets
from rustguard_py.planes.contract import MAX_STAGED_PACKETS, HandshakeWanted, Keypair, Reason
from rustguard_py.planes.indices import Indices
from support.memory_plane import MemoryPlane
from support.packets import udp_packet
from support.plane_conformance import PEER, Pair, current_session, to_bob


def pair() -> Pair:
    made = Pair(MemoryPlane(b"a" * 32), MemoryPlane(b"b" * 32))
    made.connect()
    return made


@pytest.mark.fault(35)
def test_at_reject_after_messages_the_session_is_retired_and_the_packet_kept() -> None:
    both = pair()
    session = current_session(both.alice)
    session.counter = REJECT_AFTER_MESSAGES - 1
    both.alice.packet_out(to_bob(b"last"))
    both.alice.packet_out(to_bob(b"kept"))
    ((_, datagram),) = both.alice.outgoing
    assert int.from_bytes(datagram[8:16], "little") == REJECT_AFTER_MESSAGES - 1
    both.carry()
    assert both.bob.delivered == [to_bob(b"last")]
    both.handshake()
    both.carry()
    assert both.bob.delivered == [to_bob(b"last"), to_bob(b"kept")]
    print("row 35: nonce REJECT-AFTER-MESSAGES - 1 was the last; what came after it went out on the next session")


@pytest.mark.fault(35)
def test_rekey_after_messages_wants_a_handshake() -> None:
    both = pair()
    current_session(both.alice).counter = REKEY_AFTER_MESSAGES
    both.alice.packet_out(to_bob())
    assert both.alice.events == [HandshakeWanted(PEER, Reason.REKEY)]


def test_packets_held_for_all_peers_together_are_bounded() -> None:
    plane = MemoryPlane(b"a" * 32)
    for peer in range(100):
        plane.set_peer(peer, ("192.0.2.1", 1), [ip_network(f"10.0.{peer}.0/24")], 0)
        for _ in range(MAX_STAGED_PACKETS):
            plane.packet_out(udp_packet("10.9.0.1", f"10.0.{peer}.1", b""))
    held = sum(len(peer.held or ()) for peer in plane.transport.peers.values())
    assert held == held_packets.MAX_HELD_PACKETS
    assert plane.stats().drops["held_too_many"] == 100 * MAX_STAGED_PACKETS - held
    for peer in range(100):
        plane.drop_held(peer)
    plane.packet_out(udp_packet("10.9.0.1", "10.0.99.1", b""))
    assert len(plane.transport.peers[99].held or ()) == 1


def test_retired_sessions_free_their_indices() -> None:
    both = pair()
    for _ in range(10):
        both.connect()
    for plane in (both.alice, both.bob):
        assert len(plane.transport.sessions) == 2
        assert len(plane.transport.indices._used) == 2
        plane.remove_peer(PEER)
        assert plane.transport.sessions == {}
        assert plane.transport.indices._used == {}


def test_a_reserved_index_that_was_not_used_is_given_back() -> None:
    indices = Indices(os.urandom)
    for _ in range(100):
        index = indices.reserve(1)
    assert set(indices._used) == {index}
    indices.take(1, index)
    other = indices.reserve(1)
    assert indices._used == dict.fromkeys((index, other), 1)
    indices.forget(1)
    indices.release(index)
    assert indices._used == {}


def test_no_index_is_given_twice() -> None:
    few = iter([b"\1\0\0\0", b"\1\0\0\0", b"\1\0\0\0", b"\2\0\0\0"])
    indices = Indices(lambda _: next(few))
    assert [indices.reserve(1), indices.reserve(2)] == [1, 2]


def test_a_keypair_for_a_peer_that_is_gone_leaves_nothing() -> None:
    plane = MemoryPlane(b"a" * 32)
    index = plane.reserve_index(5)
    plane.install_keypair(5, Keypair(index, 1, b"s" * 32, b"r" * 32, True, 0.0))
    assert plane.transport.sessions == {}
    assert plane.transport.indices._used == {}


_MANY_PEERS = """
import os
from ipaddress import ip_network
from rustguard_py.planes.contract import Keypair
from rustguard_py.planes.transport import Transport

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = resident()
transport = Transport(bytes(32), emit=print)
for peer in range(10_000):
    networks = [ip_network((0x0A000000 + peer, 32)), ip_network((0xFD << 120 | peer, 128))]
    transport.set_peer(peer, ("192.0.2.1", 1), networks, 0, 0.0)
    index = transport.reserve_index(peer)
    transport.install_keypair(peer, Keypair(index, peer, os.urandom(32), os.urandom(32), True, 0.0), 0.0)
    transport.poll_transmit()
print((resident() - before) / 2**20)
"""


def test_10000_peers_with_sessions_fit_in_20_mib() -> None:
    # A process of its own: here, memory that other tests gave back would be used again.
    done = subprocess.run([sys.executable, "-c", _MANY_PEERS], capture_output=True, text=True, check=True)
    grown = float(done.stdout)
    print(f"memory: {grown:.1f} MiB for 10,000 peers, two networks and a session each")
    assert grown < 20
