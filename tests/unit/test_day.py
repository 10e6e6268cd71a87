"""A day of a thousand peers, with rekeys and churn, on a virtual clock."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

import pytest

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.timers import REKEY_AFTER_TIME
from rustguard_py.planes.contract import Keypair
from support.engines import needs_native
from support.memory_plane import MemoryPlane
from support.native_memory_plane import NativeMemoryPlane
from support.packets import udp_packet

PEERS, LEAVE_AND_COME = 1000, 20
HOME: Endpoint = ("192.0.2.1", 51820)
OURS = int(ip_address("10.1.0.0"))
THEIRS = int(ip_address("10.2.0.0"))


@dataclass(slots=True)
class Day:
    """A server with its peers, and all of these on one plane: each end of a pair knows the other by one number."""

    server: MemoryPlane
    peers: MemoryPlane
    chance: Random
    known: list[int] = field(default_factory=list)
    delivered: int = 0
    _next: int = 1

    def come(self) -> None:
        """Somebody new."""
        peer, self._next = self._next, self._next + 1
        # An address that another had before may be given again.
        place = peer % 0xFFFF
        self.server.set_peer(peer, self._where(peer), [ip_network((THEIRS + place, 32))], 0)
        self.peers.set_peer(peer, HOME, [ip_network((OURS + place, 32))], 0)
        self.known.append(peer)

    def leave(self) -> None:
        """Somebody goes, whoever it is."""
        peer = self.known.pop(self.chance.randrange(len(self.known)))
        self.server.remove_peer(peer)
        self.peers.remove_peer(peer)

    def round(self) -> None:
        """Two minutes: some leave, as many come, everybody has a new session and sends a packet either way."""
        for plane in (self.server, self.peers):
            plane.advance(plane.now + REKEY_AFTER_TIME)
        for _ in range(LEAVE_AND_COME):
            self.leave()
            self.come()
        for peer in self.known:
            self._shake_hands(peer)
        self._carry()
        for peer in self.known:
            ours, theirs = (str(ip_address(net + peer % 0xFFFF)) for net in (OURS, THEIRS))
            self.peers.packet_out(udp_packet(theirs, ours, b"x" * 64))
            self.server.packet_out(udp_packet(ours, theirs, b"y" * 64))
        self._carry()
        for plane in (self.server, self.peers):
            self.delivered += len(plane.take_delivered())
            plane.take_events()

    def _shake_hands(self, peer: int) -> None:
        one, other = self.chance.randbytes(32), self.chance.randbytes(32)
        ours, theirs = self.server.reserve_index(peer), self.peers.reserve_index(peer)
        self.server.install_keypair(peer, Keypair(ours, theirs, one, other, False, self.server.now))
        self.peers.install_keypair(peer, Keypair(theirs, ours, other, one, True, self.peers.now))

    def _carry(self) -> None:
        for _, datagram in self.peers.take_outgoing():
            self.server.datagram_in(datagram, self._where(int.from_bytes(datagram[4:8], "little")))
        for _, datagram in self.server.take_outgoing():
            self.peers.datagram_in(datagram, HOME)

    def _where(self, number: int) -> Endpoint:
        """Anywhere: an endpoint moves with each datagram."""
        return (str(ip_address(0xC6120000 + number % 0x1FFFF)), 1024 + number % 60_000)


def _held() -> tuple[int, int, int]:
    """Resident bytes, descriptors, threads."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) << 10
    descriptors, threads = (len(list(Path(f"/proc/self/{each}").iterdir())) for each in ("fd", "task"))
    return resident, descriptors, threads


@pytest.mark.fault(32)
@needs_native
def test_a_day_of_a_thousand_peers_with_rekeys_and_churn_leaves_nothing(soak: bool) -> None:
    day = Day(NativeMemoryPlane(b"s" * 32), NativeMemoryPlane(b"p" * 32), Random(32))
    for _ in range(PEERS):
        day.come()
    rounds, warm = (24 * 30, 60) if soak else (20, 8)
    # What is kept for good is there once every session has had its predecessors; tables grow by doubling.
    for _ in range(warm):
        day.round()
    before, day.delivered = _held(), 0
    for _ in range(rounds):
        day.round()
    after = _held()
    grown = after[0] / before[0] - 1
    print(
        f"row 32: {rounds / 30:.1f} simulated hours, {PEERS} peers, {rounds * PEERS} rekeys, "
        f"{rounds * LEAVE_AND_COME} left and came: {day.delivered} packets delivered, memory {grown:+.2%} of "
        f"{before[0] >> 20} MiB, descriptors {after[1] - before[1]:+}, threads {after[2] - before[2]:+}"
    )
    assert day.delivered == 2 * PEERS * rounds
    assert len(day.server.stats().peers) == PEERS
    # Over the short time the last tables that still grow count for more than over a day.
    assert grown <= (0.01 if soak else 0.04)
    assert after[1:] == before[1:]
