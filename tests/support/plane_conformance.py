"""What every plane must do, as tests: subclass `PlaneConformance` and say how to make one.

The planes are driven by the methods of `MemoryPlane`: commands, `packet_out`, `datagram_in`, `advance`, and the
lists of what came of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Generic, TypeVar

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from rustguard_py.model.endpoint import Network, heard, local_of
from rustguard_py.model.timers import (
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_AFTER_TIME_RECEIVING,
)
from rustguard_py.planes.contract import (
    MAX_STAGED_PACKETS,
    EndpointMoved,
    ForeignReceived,
    HandshakeReceived,
    HandshakeWanted,
    Keypair,
    KeypairConfirmed,
    Reason,
)
from rustguard_py.planes.ecn import CE, ECT_0, ECT_1, HANDSHAKE_TOS, NOT_ECT
from rustguard_py.planes.gate import BURST
from rustguard_py.planes.keypairs import Session
from rustguard_py.protocol import cookie, wire
from support.memory_plane import MemoryPlane
from support.packets import ip_header, mark_of, naive_sum, udp_packet, with_mark

ALICE, BOB, ELSEWHERE = ("192.0.2.1", 51820), ("192.0.2.2", 51820), ("2001:db8::9", 4000, 0, 0)
ALICE4, BOB4, ALICE6, BOB6 = "10.9.0.1", "10.9.0.2", "fd00::1", "fd00::2"
PEER = 7
KEEPALIVE_SIZE = 32

EachPlane = TypeVar("EachPlane", bound=MemoryPlane)


def networks(*names: str) -> list[Network]:
    return [ip_network(name) for name in names]


class PairOf(Generic[EachPlane]):
    """Alice, who starts handshakes, and Bob, who answers; each knows the other as PEER."""

    def __init__(self, alice: EachPlane, bob: EachPlane) -> None:
        self.alice, self.bob = alice, bob
        alice.set_peer(PEER, BOB, networks(BOB4 + "/32", BOB6 + "/128"), 0)
        bob.set_peer(PEER, ALICE, networks(ALICE4 + "/32", ALICE6 + "/128"), 0)

    def handshake(self, *, initiator: str = "alice") -> None:
        """Install fresh keys at both ends, the responder's first; nothing is carried over."""
        one, other = os.urandom(32), os.urandom(32)
        ours, theirs = self.alice.reserve_index(PEER), self.bob.reserve_index(PEER)
        alice = Keypair(ours, theirs, one, other, initiator == "alice", self.alice.now)
        bob = Keypair(theirs, ours, other, one, initiator == "bob", self.bob.now)
        for plane, keypair in sorted(((self.alice, alice), (self.bob, bob)), key=lambda p: p[1].initiator):
            plane.install_keypair(PEER, keypair)

    def carry(self) -> None:
        """Take what waits on the network to the other end, once."""
        for datagram in self.alice.take_outgoing():
            self.bob.datagram_in(datagram[1], ALICE)
        for datagram in self.bob.take_outgoing():
            self.alice.datagram_in(datagram[1], BOB)

    def connect(self) -> None:
        """Have sessions confirmed at both ends, and nothing left over."""
        self.handshake()
        self.carry()
        for plane in (self.alice, self.bob):
            plane.take_events()
            plane.take_outgoing()

    def advance(self, until: float) -> None:
        self.alice.advance(until)
        self.bob.advance(until)


Pair = PairOf[MemoryPlane]


def current_session(plane: MemoryPlane) -> Session:
    """The session that packets to PEER go out on."""
    session = plane.transport.peers[PEER].keypairs.current
    assert session is not None
    return session


def to_bob(payload: bytes = b"x" * 100) -> bytes:
    return udp_packet(ALICE4, BOB4, payload)


def to_alice(payload: bytes = b"y" * 100) -> bytes:
    return udp_packet(BOB4, ALICE4, payload)


class PlaneConformance:
    """The suite."""

    def make_plane(self, public_key: bytes) -> MemoryPlane:
        raise NotImplementedError

    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        pair = Pair(self.make_plane(b"a" * 32), self.make_plane(b"b" * 32))
        yield pair
        pair.alice.close()
        pair.bob.close()

    # Packets out.

    def test_packets_wait_for_the_first_handshake_and_go_out_in_order(self, pair: Pair) -> None:
        packets = [to_bob(bytes([n]) * (50 + n)) for n in range(5)]
        for packet in packets:
            pair.alice.packet_out(packet)
        assert pair.alice.take_events() == [HandshakeWanted(PEER, Reason.NO_SESSION)]
        assert pair.alice.outgoing == []
        pair.handshake()
        assert len(pair.alice.outgoing) == 5
        pair.carry()
        assert pair.bob.delivered == packets

    def test_the_oldest_of_too_many_waiting_packets_is_dropped(self, pair: Pair) -> None:
        packets = [to_bob(b"%04d" % n) for n in range(MAX_STAGED_PACKETS + 10)]
        for packet in packets:
            pair.alice.packet_out(packet)
        pair.handshake()
        pair.carry()
        assert pair.bob.delivered == packets[10:]

    def test_a_handshake_is_wanted_at_most_once_a_second(self, pair: Pair) -> None:
        for now in (0.0, 0.3, 0.9, 1.0, 1.5, 2.1):
            pair.alice.now = now
            pair.alice.packet_out(to_bob())
        assert len(pair.alice.events) == 3

    def test_dropping_held_packets_leaves_nothing_to_send(self, pair: Pair) -> None:
        pair.alice.packet_out(to_bob())
        pair.alice.drop_held(PEER)
        pair.handshake()
        assert [len(datagram) for _, datagram in pair.alice.outgoing] == [KEEPALIVE_SIZE]

    def test_a_new_initiator_with_nothing_to_say_confirms_by_an_empty_datagram(self, pair: Pair) -> None:
        pair.handshake()
        assert [(to, len(datagram)) for to, datagram in pair.alice.outgoing] == [(BOB, KEEPALIVE_SIZE)]

    def test_packets_are_padded_to_16_but_not_over_the_mtu(self, pair: Pair) -> None:
        pair.connect()
        sizes = [28, 32, 33, 1408, 1409, 1419, 1420]
        for size in sizes:
            pair.alice.packet_out(to_bob(bytes(size - 28)))
        padded = [len(datagram) - 32 for _, datagram in pair.alice.outgoing]
        assert padded == [32, 32, 48, 1408, 1420, 1420, 1420]
        pair.carry()
        assert [len(packet) for packet in pair.bob.delivered] == sizes

    def test_padding_follows_the_mtu(self, pair: Pair) -> None:
        pair.connect()
        for mtu, size in ((1300, 1300), (1420, 1312)):
            pair.alice.set_mtu(mtu)
            pair.alice.packet_out(to_bob(bytes(1300 - 28)))
            ((_, datagram),) = pair.alice.take_outgoing()
            assert len(datagram) == size + 32
            pair.bob.datagram_in(datagram, ALICE)
        assert pair.bob.delivered == [to_bob(bytes(1300 - 28))] * 2

    def test_a_packet_goes_to_the_peer_with_the_longest_prefix(self, pair: Pair) -> None:
        near, far = ("192.0.2.8", 1), ("192.0.2.9", 1)
        pair.alice.set_peer(8, far, networks("10.0.0.0/8", "fd00::/16"), 0)
        pair.alice.set_peer(9, near, networks("10.9.0.0/16", "fd00::/64"), 0)
        for peer in (8, 9):
            index = pair.alice.reserve_index(peer)
            pair.alice.install_keypair(peer, Keypair(index, peer, b"s" * 32, b"r" * 32, True, 0.0))
        pair.alice.take_outgoing()
        for target in ("10.1.1.1", "10.9.3.3", "10.200.0.1"):
            pair.alice.packet_out(udp_packet(ALICE4, target, b""))
        for target in ("fd00::5", "fd00:1::5"):
            pair.alice.packet_out(udp_packet(ALICE6, target, b""))
        assert [to for to, _ in pair.alice.outgoing] == [far, near, far, near, far]

    @pytest.mark.parametrize("packet", [b"", b"\x45", bytes(60), b"\x65" * 39, udp_packet(ALICE4, "8.8.8.8", b"")])
    def test_what_is_for_no_peer_is_dropped_and_counted(self, pair: Pair, packet: bytes) -> None:
        pair.connect()
        pair.alice.packet_out(packet)
        assert pair.alice.outgoing == []
        assert packet == b"" or pair.alice.stats().drops["no_peer"] == 1

    # Packets in.

    def test_both_families_go_both_ways(self, pair: Pair) -> None:
        pair.connect()
        there, back = udp_packet(ALICE6, BOB6, b"there"), udp_packet(BOB6, ALICE6, b"back")
        pair.alice.packet_out(there)
        pair.alice.packet_out(to_bob())
        pair.carry()
        pair.bob.packet_out(back)
        pair.bob.packet_out(to_alice())
        pair.carry()
        assert pair.bob.delivered == [there, to_bob()]
        assert pair.alice.delivered == [back, to_alice()]

    def test_a_datagram_is_taken_once(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        ((_, datagram),) = pair.alice.outgoing
        pair.bob.datagram_in(datagram, ALICE)
        for _ in range(3):
            pair.bob.datagram_in(datagram, ELSEWHERE)
        assert pair.bob.delivered == [to_bob()]
        assert pair.bob.stats().drops == {"replayed": 3}
        assert pair.bob.stats().peers[PEER].endpoint == ALICE

    def test_an_endpoint_moves_after_an_authentic_datagram_only(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        ((_, datagram),) = pair.alice.outgoing
        forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
        pair.bob.datagram_in(forged, ELSEWHERE)
        assert pair.bob.events == []
        pair.bob.datagram_in(datagram, ELSEWHERE)
        assert pair.bob.events == [EndpointMoved(PEER, ELSEWHERE)]
        pair.bob.packet_out(to_alice())
        assert pair.bob.outgoing[0][0] == ELSEWHERE

    @pytest.mark.fault(38)
    def test_a_peer_that_moves_with_every_datagram_is_reported_ten_times_a_second(self, pair: Pair) -> None:
        pair.connect()
        places = [("198.51.100.1", 1), ("198.51.100.1", 2)]
        for number in range(2000):
            pair.advance(number / 1000)
            pair.alice.packet_out(to_bob())
            ((_, datagram),) = pair.alice.take_outgoing()
            pair.bob.datagram_in(datagram, places[number % 2])
        moves = [event for event in pair.bob.take_events() if isinstance(event, EndpointMoved)]
        assert 19 <= len(moves) <= 21
        # The last place is reported in any case, also by nothing but time.
        assert pair.bob.stats().peers[PEER].endpoint == places[1]
        pair.bob.advance(2.2)
        assert pair.bob.take_events() == [EndpointMoved(PEER, places[1])]
        pair.bob.advance(3.0)
        assert pair.bob.events == []

    def test_what_goes_to_a_peer_goes_out_from_the_address_that_it_wrote_to(self, pair: Pair) -> None:
        pair.connect()
        for now, local in ((1.0, b"\xc0\x00\x02\x63"), (2.0, b"\xfd" + bytes(15))):
            pair.advance(now)
            pair.alice.packet_out(to_bob())
            ((_, datagram),) = pair.alice.take_outgoing()
            forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
            pair.bob.datagram_in(forged, heard(ALICE, bytes(4)))
            pair.bob.datagram_in(datagram, heard(ALICE, local))
            (event,) = pair.bob.take_events()
            assert isinstance(event, EndpointMoved)
            moved = event.endpoint
            assert (moved, local_of(moved)) == (ALICE, local)
            pair.bob.packet_out(to_alice())
            ((to, _),) = pair.bob.take_outgoing()
            assert (to, local_of(to)) == (ALICE, local)
        pair.bob.set_endpoint(PEER, ALICE)
        pair.bob.packet_out(to_alice())
        assert local_of(pair.bob.outgoing[0][0]) is None

    def test_the_address_that_a_silent_peer_wrote_to_is_forgotten(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        ((_, datagram),) = pair.alice.take_outgoing()
        pair.bob.datagram_in(datagram, heard(ALICE, b"\xc0\x00\x02\x63"))
        pair.bob.packet_out(to_alice())
        pair.bob.advance(20.0)
        assert HandshakeWanted(PEER, Reason.NO_ANSWER) in pair.bob.events
        pair.bob.take_outgoing()
        pair.bob.packet_out(to_alice())
        assert [(to, local_of(to)) for to, _ in pair.bob.outgoing] == [(ALICE, None)]

    # Congestion.

    # An interface that is down.

    def test_a_down_interface_sends_and_takes_nothing_but_enrollment(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        ((_, datagram),) = pair.alice.take_outgoing()
        for plane in (pair.alice, pair.bob):
            plane.set_up(False)
        pair.bob.datagram_in(datagram, ALICE)
        pair.bob.datagram_in(b"RGE2 hello", ALICE)
        assert pair.bob.take_events() == [ForeignReceived(b"RGE2 hello", ALICE)]
        assert pair.bob.delivered == []
        pair.alice.set_peer(PEER, None, networks(BOB4 + "/32"), 25)
        pair.alice.send(BOB, b"\1\0\0\0" + bytes(144))
        pair.alice.send(BOB, b"RGE2 hello")
        pair.advance(200.0)
        assert pair.alice.take_outgoing() == [(BOB, b"RGE2 hello")]
        assert pair.alice.events == []
        assert pair.alice.stats().drops == pair.bob.stats().drops == {"interface_down": 1}
        assert pair.alice.transport.poll_timeout() is None

    def test_an_interface_that_comes_up_begins(self, pair: Pair) -> None:
        pair.alice.set_up(False)
        pair.alice.set_peer(PEER, BOB, networks(BOB4 + "/32"), 25)
        pair.alice.set_peer(8, ELSEWHERE, networks("10.9.0.8/32"), 0)
        assert (pair.alice.outgoing, pair.alice.events) == ([], [])
        pair.advance(5.0)
        pair.alice.set_up(True)
        assert pair.alice.take_events() == [HandshakeWanted(PEER, Reason.NO_SESSION)]
        # With a session, there is a keepalive at once, and then at its time.
        pair.connect()
        pair.alice.set_up(False)
        pair.advance(60.0)
        pair.alice.set_up(True)
        assert [len(datagram) for _, datagram in pair.alice.take_outgoing()] == [KEEPALIVE_SIZE]
        pair.alice.set_up(True)
        pair.alice.advance(84.9)
        assert pair.alice.outgoing == []
        pair.alice.advance(85.0)
        assert [len(datagram) for _, datagram in pair.alice.take_outgoing()] == [KEEPALIVE_SIZE]

    def test_an_initiation_that_did_not_leave_is_told_from_one_that_did(self, pair: Pair) -> None:
        pair.alice.set_up(False)
        pair.alice.set_peer(PEER, BOB, networks(BOB4 + "/32"), 25)
        initiation = b"\1\0\0\0" + pair.alice.reserve_index(PEER).to_bytes(4, "little") + bytes(140)
        pair.alice.send(BOB, initiation)
        pair.alice.set_up(True)
        assert pair.alice.take_events() == [HandshakeWanted(PEER, Reason.INTERFACE_UP)]
        pair.alice.send(BOB, initiation)
        assert pair.alice.take_outgoing() == [(BOB, initiation)]
        pair.alice.set_up(False)
        pair.alice.set_up(True)
        assert pair.alice.take_events() == [HandshakeWanted(PEER, Reason.NO_SESSION)]

    def test_what_waits_is_dropped_when_the_interface_goes_down(self, pair: Pair) -> None:
        pair.alice.packet_out(to_bob())
        pair.alice.set_up(False)
        pair.alice.set_up(True)
        assert pair.alice.stats().drops == {"interface_down": 1}
        pair.handshake()
        assert [len(datagram) for _, datagram in pair.alice.outgoing] == [KEEPALIVE_SIZE]

    # What nobody takes.

    @pytest.mark.parametrize(("source", "target"), [(ALICE4, "10.9.0.77"), (ALICE6, "fd00::77")])
    def test_what_no_peer_takes_is_answered_from_its_destination(self, pair: Pair, source: str, target: str) -> None:
        packet = udp_packet(source, target, bytes(1300))
        pair.alice.packet_out(packet)
        (answer,) = pair.alice.take_answers()
        v4 = ":" not in target
        header, longest = (20, 576) if v4 else (40, 1280)
        assert len(answer) == longest
        there, here = (answer[12:16], answer[16:20]) if v4 else (answer[8:24], answer[24:40])
        assert (there, here) == (ip_address(target).packed, ip_address(source).packed)
        # Host unreachable, address unreachable.
        assert answer[header : header + 2] == (b"\3\1" if v4 else b"\1\3")
        assert answer[header + 8 :] == packet[: longest - header - 8]
        body = answer[header:]
        assert (
            naive_sum((b"" if v4 else there + here + bytes((0, 58)) + len(body).to_bytes(2, "big")) + body) == 0xFFFF
        )
        assert not v4 or naive_sum(answer[:20]) == 0xFFFF
        assert pair.alice.outgoing == []

    def test_a_peer_without_an_endpoint_is_as_unreachable(self, pair: Pair) -> None:
        pair.alice.set_peer(8, None, networks("10.9.0.8/32"), 0)
        pair.alice.packet_out(udp_packet(ALICE4, "10.9.0.8", b"x"))
        (answer,) = pair.alice.take_answers()
        assert answer[12:16] == ip_address("10.9.0.8").packed

    def test_errors_fragments_and_what_goes_to_many_are_not_answered(self, pair: Pair) -> None:
        strange = "10.9.0.77"
        error4 = ip_header(ALICE4, strange, 1, 36) + b"\3\1" + bytes(34)
        error6 = ip_header(ALICE6, "fd00::77", 58, 48) + b"\1\3" + bytes(46)
        silent = [
            error4,
            error6,
            error4[:20],
            error6[:40],
            udp_packet(ALICE4, strange, bytes(80), fragment=0x2001),
            udp_packet(ALICE4, "224.0.0.1", b""),
            udp_packet(ALICE4, "255.255.255.255", b""),
            udp_packet("0.0.0.0", strange, b""),  # noqa: S104
            udp_packet(ALICE6, "ff02::1", b""),
            udp_packet("::", "fd00::77", b""),
            b"",
            b"\x45",
        ]
        for packet in silent:
            pair.alice.packet_out(packet)
        assert pair.alice.take_answers() == []
        for echo in (
            ip_header(ALICE4, strange, 1, 8) + b"\x08" + bytes(7),
            ip_header(ALICE6, "fd00::77", 58, 8) + b"\x80" + bytes(7),
            udp_packet(ALICE4, strange, bytes(80), fragment=0x2000),
        ):
            pair.alice.packet_out(echo)
        assert len(pair.alice.take_answers()) == 3

    def test_answers_are_limited(self, pair: Pair) -> None:
        packet = udp_packet(ALICE4, "10.9.0.77", b"x")
        for now, expected in ((0.0, 50), (0.01, 10), (10.0, 50)):
            pair.advance(now)
            for _ in range(200):
                pair.alice.packet_out(packet)
            assert len(pair.alice.take_answers()) == pytest.approx(expected, abs=1)
        assert pair.alice.stats().drops == {"no_peer": 600}

    @pytest.mark.parametrize("ends", [(ALICE4, BOB4), (ALICE6, BOB6)])
    def test_the_mark_of_a_packet_is_that_of_its_datagram(self, pair: Pair, ends: tuple[str, str]) -> None:
        packets = [with_mark(udp_packet(*ends, bytes([mark]) * 100), mark) for mark in range(4)]
        # Held ones, and ones that find a session. What is already marked leaves as ECT(0).
        for packet in packets:
            pair.alice.packet_out(packet)
        pair.handshake()
        assert pair.alice.tos == [NOT_ECT, ECT_1, ECT_0, ECT_0]
        pair.carry()
        for packet in packets:
            pair.alice.packet_out(packet)
        assert pair.alice.tos == [NOT_ECT, ECT_1, ECT_0, ECT_0]
        pair.carry()
        assert pair.bob.delivered == packets * 2

    @pytest.mark.parametrize("ends", [(ALICE4, BOB4), (ALICE6, BOB6)])
    def test_congestion_on_the_way_is_reported_inside(self, pair: Pair, ends: tuple[str, str]) -> None:
        pair.connect()
        # By the inner mark, then the outer one, as in the kernel: not ECN-capable, ECT(1), ECT(0), CE.
        table = ((0, 0, 0, 0), (1, 1, 1, 3), (2, 1, 2, 3), (3, 3, 3, 3))
        for inner, row in enumerate(table):
            packet = udp_packet(*ends, bytes(100))
            for outer, expected in enumerate(row):
                pair.alice.packet_out(with_mark(packet, inner))
                ((_, datagram),) = pair.alice.take_outgoing()
                pair.bob.datagram_in(datagram, ALICE, HANDSHAKE_TOS | outer)
                assert pair.bob.take_delivered() == [with_mark(packet, expected)], (inner, outer)

    def test_a_wrong_header_checksum_stays_wrong_where_congestion_is_reported(self, pair: Pair) -> None:
        pair.connect()
        packet = bytearray(with_mark(to_bob(), ECT_0))
        packet[10] ^= 1
        pair.alice.packet_out(bytes(packet))
        ((_, datagram),) = pair.alice.take_outgoing()
        pair.bob.datagram_in(datagram, ALICE, CE)
        (delivered,) = pair.bob.delivered
        assert mark_of(delivered) == CE
        assert naive_sum(delivered[:20]) != 0xFFFF

    def test_handshakes_are_marked_and_keepalives_are_not(self, pair: Pair) -> None:
        for datagram in (b"\1\0\0\0" + bytes(144), b"\2\0\0\0" + bytes(88), b"\3\0\0\0" + bytes(60), b"RGE1 hello"):
            pair.alice.send(BOB, datagram)
        pair.handshake()
        assert pair.alice.tos == [HANDSHAKE_TOS, HANDSHAKE_TOS, 0, 0, 0]

    @pytest.mark.fault(18)
    def test_forged_data_with_a_live_index_moves_nothing(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        ((_, datagram),) = pair.alice.outgoing
        tries = 1_000_000 if os.environ.get("RUSTGUARD_SOAK") else 5_000
        for number in range(tries):
            forged = datagram[:8] + number.to_bytes(8, "little") + os.urandom(32)
            pair.bob.datagram_in(forged, ELSEWHERE)
        assert pair.bob.events == []
        assert pair.bob.delivered == []
        assert pair.bob.stats().peers[PEER].endpoint == ALICE
        pair.bob.datagram_in(datagram, ALICE)
        assert pair.bob.delivered == [to_bob()]
        print(f"row 18: {tries} forgeries, endpoint unmoved, the true datagram still taken")

    @pytest.mark.fault(20)
    def test_a_peer_sends_from_its_own_addresses_only(self, pair: Pair) -> None:
        pair.connect()
        pair.bob.set_peer(PEER, None, networks("10.9.0.0/24", ALICE6 + "/128"), 0)
        pair.bob.set_peer(8, None, networks("10.9.0.64/26", "fd00::/64"), 0)
        tries = 100_000 if os.environ.get("RUSTGUARD_SOAK") else 2_000
        for number in range(tries):
            source = (f"10.9.0.{64 + number % 64}", f"fd00::{2 + number % 1000:x}", "10.8.0.1")[number % 3]
            target = BOB6 if ":" in source else BOB4
            pair.alice.packet_out(udp_packet(source, target, b""))
        pair.carry()
        assert pair.bob.delivered == []
        assert pair.bob.stats().drops["inner_source"] == tries
        good = udp_packet("10.9.0.3", BOB4, b"")
        pair.alice.packet_out(good)
        pair.carry()
        assert pair.bob.delivered == [good]
        print(f"row 20: 0 of {tries} delivered with another's inner address")

    def test_an_inner_packet_is_cut_to_its_own_length_and_dropped_if_that_lies(self, pair: Pair) -> None:
        pair.connect()
        long = bytearray(to_bob())
        long[2:4] = (len(long) + 60).to_bytes(2, "big")
        short = bytearray(to_bob())
        short[2:4] = (19).to_bytes(2, "big")
        for packet in (long, short):
            pair.alice.packet_out(bytes(packet))
        pair.carry()
        assert pair.bob.delivered == []
        assert pair.bob.stats().drops == {"inner_length": 2}

    @pytest.mark.parametrize("size", [0, 1, 4, 15, 16, 31])
    def test_a_datagram_too_short_for_its_type_is_dropped(self, pair: Pair, size: int) -> None:
        pair.connect()
        pair.bob.datagram_in((b"\4\0\0\0" + bytes(40))[:size], ALICE)
        assert sum(pair.bob.stats().drops.values()) == 1
        assert pair.bob.events == []

    def test_enrollment_goes_to_python_and_other_strangers_do_not(self, pair: Pair) -> None:
        pair.bob.datagram_in(b"RGE2 hello", ALICE)
        pair.bob.datagram_in(b"RGX", ALICE)
        pair.bob.datagram_in(b"\5\0\0\0" + bytes(100), ALICE)
        assert pair.bob.events == [ForeignReceived(b"RGE2 hello", ALICE)]
        assert pair.bob.stats().drops == {"unknown_type": 2}

    @pytest.mark.fault(17)
    def test_nothing_recorded_is_taken_again_nor_moves_an_endpoint(self, pair: Pair) -> None:
        pair.connect()
        for number in range(3000):
            pair.alice.packet_out(to_bob(number.to_bytes(4, "big")))
        recorded = [datagram for _, datagram in pair.alice.outgoing]
        pair.carry()
        assert len(pair.bob.take_delivered()) == 3000
        for datagram in recorded:
            pair.bob.datagram_in(datagram, ELSEWHERE)
        assert pair.bob.delivered == []
        assert pair.bob.stats().drops == {"replayed": 3000}
        assert pair.bob.stats().peers[PEER].endpoint == ALICE
        print("row 17: 3000 datagrams replayed from elsewhere: none taken, endpoint unmoved")

    @pytest.mark.fault(19)
    def test_a_cookie_reply_from_elsewhere_moves_no_endpoint(self, pair: Pair) -> None:
        pair.connect()
        index = pair.bob.reserve_index(PEER)
        captured = cookie.cookie_reply(index, b"c" * 16, b"m" * 16, b"k" * 32, os.urandom)
        for _ in range(1000):
            pair.bob.datagram_in(captured, ELSEWHERE)
        told = pair.bob.take_events()
        assert set(told) <= {HandshakeReceived(captured, ELSEWHERE, proven=True)}
        assert len(told) <= BURST
        assert pair.bob.stats().peers[PEER].endpoint == ALICE
        pair.bob.packet_out(to_alice())
        assert [to for to, _ in pair.bob.outgoing] == [ALICE]
        print("row 19: 1000 cookie replies from elsewhere: endpoint unmoved")

    def test_a_response_to_nothing_costs_nothing(self, pair: Pair) -> None:
        index = pair.bob.reserve_index(PEER)
        for receiver in (index ^ 1, index):
            body = wire.Response(9, receiver, os.urandom(32), os.urandom(16)).encode()
            answer = cookie.add_macs(body, cookie.mac1_key(b"b" * 32), None)
            pair.bob.datagram_in(answer, ELSEWHERE)
        assert pair.bob.events == [HandshakeReceived(answer, ELSEWHERE, proven=True)]
        assert pair.bob.stats().drops == {"unknown_index": 1}

    @pytest.mark.fault(38)
    def test_neither_a_flood_without_proof_nor_one_with_a_made_up_proof_takes_the_place_of_who_has_one(
        self, pair: Pair
    ) -> None:
        key = cookie.mac1_key(b"b" * 32)

        def knock(host: str, given: bytes | None = None) -> bytes:
            """Knock at Bob's, and return the datagram."""
            body = wire.Initiation(5, os.urandom(32), os.urandom(48), os.urandom(28)).encode()
            made = cookie.add_macs(body, key, given)
            pair.bob.datagram_in(made, (host, 7))
            return made

        def flood(sources: int) -> None:
            for number in range(sources):
                host = f"198.{18 + number // 65536}.{number // 256 % 256}.{number % 256}"
                knock(host, (None, os.urandom(16))[number % 2])

        def proven() -> list[HandshakeReceived]:
            """Return the handshakes that prove something, of those that came since."""
            events = pair.bob.take_events()
            return [event for event in events if isinstance(event, HandshakeReceived) and event.proven]

        def challenged(host: str) -> bytes:
            """Knock without a cookie, and return the one in the answer."""
            pair.bob.take_outgoing()
            sent = knock(host)
            ((_, answer),) = [each for each in pair.bob.take_outgoing() if each[0] == (host, 7)]
            reply = wire.parse_cookie_reply(answer)
            assert reply is not None
            given = cookie.open_cookie(reply, sent[-32:-16], cookie.cookie_key(b"b" * 32))
            assert given is not None
            return given

        # No source is remembered any more.
        flood(9000)
        assert proven() == []
        given = challenged("192.0.2.50")
        flood(200)
        sent = knock("192.0.2.50", given)
        assert proven() == [HandshakeReceived(sent, ("192.0.2.50", 7), proven=True)]
        # Nor does a flood in its own name, of either kind, keep it out.
        for number in range(200):
            knock("192.0.2.50", (None, os.urandom(16))[number % 2])
        sent = knock("192.0.2.50", given)
        assert proven() == [HandshakeReceived(sent, ("192.0.2.50", 7), proven=True)]

    @pytest.mark.fault(31)
    def test_the_kernels_selftest_vector_without_additional_data_opens(self, pair: Pair) -> None:
        """Number 002 of its ChaCha20-Poly1305 tests, whose 8-byte nonce is our counter; an empty body."""
        key = bytes.fromhex("4cf5968338e6ae7f2d292576d5752786919a277afb46c5ef9481795714594068")
        nonce, tag = bytes.fromhex("cabf33713245778e"), bytes.fromhex("eae01e9e2c91aae1db5d993f8af76992")
        index = pair.bob.reserve_index(PEER)
        pair.bob.install_keypair(PEER, Keypair(index, 1, b"s" * 32, key, False, pair.bob.now))
        for last in (tag[15] ^ 1, tag[15]):
            head = b"\4\0\0\0" + index.to_bytes(4, "little") + nonce
            pair.bob.datagram_in(head + tag[:15] + bytes([last]), ALICE)
        assert pair.bob.take_events() == [KeypairConfirmed(PEER, index)]
        assert pair.bob.stats().drops == {"bad_tag": 1}
        print("row 31: the kernel's ChaCha20-Poly1305 vector 002 opens, and not with a bit flipped")

    @pytest.mark.fault(35)
    def test_what_is_numbered_from_reject_after_messages_on_is_refused(self, pair: Pair) -> None:
        key, index = os.urandom(32), pair.bob.reserve_index(PEER)
        pair.bob.install_keypair(PEER, Keypair(index, 1, b"s" * 32, key, False, pair.bob.now))
        for counter in (REJECT_AFTER_MESSAGES - 1, REJECT_AFTER_MESSAGES, 2**64 - 1):
            number = counter.to_bytes(8, "little")
            sealed = ChaCha20Poly1305(key).encrypt(bytes(4) + number, to_bob(), None)
            pair.bob.datagram_in(b"\4\0\0\0" + index.to_bytes(4, "little") + number + sealed, ALICE)
        assert pair.bob.delivered == [to_bob()]
        print("row 35: a datagram numbered REJECT-AFTER-MESSAGES - 1 is taken, those beyond are not")

    # Keypairs.

    def test_a_responder_uses_its_keypair_once_it_is_confirmed(self, pair: Pair) -> None:
        pair.handshake()
        pair.bob.packet_out(to_alice())
        assert pair.bob.outgoing == []
        assert pair.bob.take_events() == [HandshakeWanted(PEER, Reason.NO_SESSION)]
        unconfirmed = pair.bob.transport.peers[PEER].keypairs.next
        assert unconfirmed is not None
        index = unconfirmed.local_index
        pair.carry()
        assert pair.bob.take_events() == [KeypairConfirmed(PEER, index)]
        pair.carry()
        assert pair.alice.delivered == [to_alice()]

    def test_datagrams_under_way_on_the_keypair_before_are_still_taken(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob(b"late"))
        late = pair.alice.take_outgoing()
        pair.connect()
        for _, datagram in late:
            pair.bob.datagram_in(datagram, ALICE)
        assert pair.bob.delivered == [to_bob(b"late")]
        pair.connect()
        assert pair.bob.stats().drops == {}

    def test_erased_keys_neither_send_nor_receive(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        pair.bob.erase_keypairs(PEER)
        pair.carry()
        assert pair.bob.delivered == []
        pair.bob.packet_out(to_alice())
        assert pair.bob.outgoing == []
        assert pair.bob.events == [HandshakeWanted(PEER, Reason.NO_SESSION)]

    def test_as_another_we_send_nothing_on_the_sessions_before_but_take_what_comes(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.set_public_key(b"n" * 32)
        pair.alice.packet_out(to_bob())
        assert pair.alice.take_events() == [HandshakeWanted(PEER, Reason.NO_SESSION)]
        assert pair.alice.outgoing == []
        pair.bob.packet_out(to_alice())
        pair.carry()
        assert pair.alice.take_delivered() == [to_alice()]
        pair.handshake()
        pair.carry()
        assert pair.bob.delivered == [to_bob()]

    def test_as_another_we_send_nothing_on_a_session_that_is_confirmed_late(self, pair: Pair) -> None:
        pair.handshake()
        pair.bob.set_public_key(b"n" * 32)
        pair.carry()
        pair.bob.take_events()
        pair.bob.packet_out(to_alice())
        assert pair.bob.outgoing == []
        assert pair.bob.take_events() == [HandshakeWanted(PEER, Reason.NO_SESSION)]

    def test_handshakes_have_to_be_for_the_key_that_we_have_now(self, pair: Pair) -> None:
        message = bytes([wire.INITIATION, 0, 0, 0]) + bytes(wire.INITIATION_SIZE - 36)
        before, after = (cookie.add_macs(message, cookie.mac1_key(each * 32), None) for each in (b"b", b"n"))
        for datagram in (before, after):
            pair.bob.datagram_in(datagram, ALICE)
        pair.bob.set_public_key(b"n" * 32)
        for datagram in (before, after):
            pair.bob.datagram_in(datagram, ALICE)
        assert pair.bob.events == [HandshakeReceived(before, ALICE), HandshakeReceived(after, ALICE)]
        assert pair.bob.stats().drops == {"bad_mac1": 2}

    def test_a_removed_peer_is_a_stranger(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        pair.bob.remove_peer(PEER)
        pair.carry()
        pair.bob.packet_out(to_alice())
        assert pair.bob.delivered == []
        assert pair.bob.stats().peers == {}
        assert pair.bob.stats().drops == {"unknown_index": 1, "no_peer": 1}

    # Time.

    def test_data_received_and_not_answered_is_acknowledged_by_a_keepalive_after_10_seconds(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        pair.carry()
        pair.bob.advance(KEEPALIVE_TIMEOUT - 0.01)
        assert pair.bob.outgoing == []
        pair.bob.advance(KEEPALIVE_TIMEOUT)
        assert [len(datagram) for _, datagram in pair.bob.outgoing] == [KEEPALIVE_SIZE]
        pair.bob.advance(100.0)
        assert len(pair.bob.outgoing) == 1

    def test_an_answer_makes_the_keepalive_needless(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        pair.carry()
        pair.bob.packet_out(to_alice())
        pair.carry()
        pair.bob.advance(60.0)
        assert pair.bob.outgoing == []

    def test_more_data_while_a_keepalive_is_pending_makes_another(self, pair: Pair) -> None:
        pair.connect()
        for now in (0.0, 3.0):
            pair.advance(now)
            pair.alice.packet_out(to_bob())
            pair.carry()
        pair.bob.advance(60.0)
        assert len(pair.bob.outgoing) == 2

    def test_data_sent_and_nothing_heard_for_15_seconds_wants_a_handshake(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        pair.alice.advance(14.99)
        assert pair.alice.events == []
        pair.alice.advance(15.34)
        assert pair.alice.events == [HandshakeWanted(PEER, Reason.NO_ANSWER)]

    def test_anything_authentic_heard_is_an_answer(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.packet_out(to_bob())
        pair.carry()
        pair.bob.advance(10.0)
        pair.alice.advance(10.0)
        pair.carry()
        pair.alice.advance(100.0)
        assert pair.alice.events == []

    def test_persistent_keepalives_go_out_while_nothing_is_sent(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.set_peer(PEER, None, networks(BOB4 + "/32"), 25)
        assert len(pair.alice.take_outgoing()) == 1
        pair.alice.advance(20.0)
        pair.alice.packet_out(to_bob())
        pair.alice.take_outgoing()
        pair.alice.advance(44.0)
        assert pair.alice.outgoing == []
        pair.alice.advance(45.0)
        assert [len(datagram) for _, datagram in pair.alice.outgoing] == [KEEPALIVE_SIZE]
        pair.alice.set_peer(PEER, None, networks(BOB4 + "/32"), 0)
        pair.alice.advance(100.0)
        assert len(pair.alice.outgoing) == 1

    def test_a_persistent_keepalive_without_a_session_wants_one(self, pair: Pair) -> None:
        pair.alice.set_peer(PEER, None, networks(BOB4 + "/32"), 25)
        pair.alice.advance(51.0)
        assert pair.alice.events == [HandshakeWanted(PEER, Reason.NO_SESSION)] * 3

    def test_the_initiator_rekeys_after_120_seconds_and_the_responder_does_not(self, pair: Pair) -> None:
        pair.connect()
        pair.advance(REKEY_AFTER_TIME)
        for plane, packet in ((pair.alice, to_bob()), (pair.bob, to_alice())):
            plane.packet_out(packet)
        assert pair.alice.events == [HandshakeWanted(PEER, Reason.REKEY)]
        assert pair.bob.events == []
        assert len(pair.alice.outgoing) == 1

    def test_an_initiator_that_only_receives_rekeys_in_time_once(self, pair: Pair) -> None:
        pair.connect()
        for now in (REKEY_AFTER_TIME_RECEIVING - 1, REKEY_AFTER_TIME_RECEIVING, REKEY_AFTER_TIME_RECEIVING + 3):
            pair.alice.now = pair.bob.now = now
            pair.bob.packet_out(to_alice())
            for _, datagram in pair.bob.take_outgoing():
                pair.alice.datagram_in(datagram, BOB)
        assert pair.alice.events == [HandshakeWanted(PEER, Reason.REKEY)]

    def test_a_session_neither_sends_nor_receives_from_180_seconds_on(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.now = pair.bob.now = REJECT_AFTER_TIME - 0.01
        pair.alice.packet_out(to_bob())
        late = pair.alice.take_outgoing()
        pair.alice.take_events()
        pair.alice.now = pair.bob.now = REJECT_AFTER_TIME + 1
        pair.alice.packet_out(to_bob())
        assert pair.alice.outgoing == []
        assert pair.alice.events == [HandshakeWanted(PEER, Reason.NO_SESSION)]
        for _, datagram in late:
            pair.bob.datagram_in(datagram, ALICE)
        assert pair.bob.delivered == []
        assert pair.bob.stats().drops == {"expired_session": 1}

    def test_a_flow_counts_what_a_session_sent_and_what_arrived(self, pair: Pair) -> None:
        pair.connect()
        before, confirmed = pair.alice.flows(PEER)[0], pair.bob.flows(PEER)[0]
        for number in range(10):
            pair.alice.packet_out(to_bob(bytes([number])))
        sent = pair.alice.take_outgoing()
        for number in (9, 0, 1, 1, 4):
            pair.bob.datagram_in(sent[number][1], ALICE)
        ours, theirs = pair.alice.flows(PEER)[0], pair.bob.flows(PEER)[0]
        assert (ours.remote_index, ours.local_index) == (theirs.local_index, theirs.remote_index)
        assert (before.local_index, ours.sent - before.sent) == (ours.local_index, 10)
        # One of the five came twice.
        assert (theirs.next, theirs.received) == (ours.sent, confirmed.received + 4)

    def test_the_session_before_is_the_second_flow(self, pair: Pair) -> None:
        pair.connect()
        first = pair.alice.flows(PEER)[0]
        pair.handshake()
        pair.carry()
        assert [flow.local_index for flow in pair.alice.flows(PEER)][1:] == [first.local_index]
        assert pair.alice.flows(99) == []

    def test_segmentation_can_be_off_for_a_peer_without_any_loss(self, pair: Pair) -> None:
        pair.connect()
        pair.alice.set_segmenting(99, False)
        for on in (False, True):
            pair.alice.set_segmenting(PEER, on)
            packets = [to_bob(bytes([number] * 50)) for number in range(20)]
            for packet in packets:
                pair.alice.packet_out(packet)
            pair.carry()
            assert pair.bob.take_delivered() == packets

    def test_counters_count_whole_datagrams(self, pair: Pair) -> None:
        pair.connect()
        before = pair.alice.stats().peers[PEER]
        pair.advance(5.0)
        pair.alice.packet_out(to_bob(bytes(100)))
        pair.carry()
        after = pair.alice.stats().peers[PEER]
        there = pair.bob.stats().peers[PEER]
        assert (after.tx_packets - before.tx_packets, after.tx_bytes - before.tx_bytes) == (1, 128 + 32)
        # With Bob's handshake, whose first message came from Alice.
        assert (there.rx_packets, there.rx_bytes, there.rx_handshake_bytes) == (2, 148 + 32 + 160, 148)
        assert (after.rx_bytes, after.rx_handshake_bytes) == (92, 92)
        assert after.last_sent == there.last_received == 5.0

    def test_handshakes_count_as_bytes_of_their_peer(self, pair: Pair) -> None:
        index = pair.alice.reserve_index(PEER).to_bytes(4, "little")
        messages = [b"\1\0\0\0" + index + bytes(140), b"\2\0\0\0" + index + bytes(84)]
        # Of another length, with an index that is nobody's, or a cookie reply, it is nobody's.
        unknown = [messages[0][:-1], messages[1][:4] + bytes(88), b"\3\0\0\0" + index + bytes(56)]
        for datagram in messages + unknown:
            pair.alice.send(BOB, datagram)
        counters = pair.alice.stats().peers[PEER]
        assert (counters.tx_bytes, counters.tx_handshake_bytes, counters.tx_packets) == (148 + 92, 148 + 92, 0)

    def test_installed_keypairs_and_drops_are_counted_a_peer(self, pair: Pair) -> None:
        pair.connect()
        pair.connect()
        pair.alice.packet_out(to_bob())
        ((_, datagram),) = pair.alice.outgoing
        for _ in range(3):
            pair.bob.datagram_in(datagram, ALICE)
        pair.bob.datagram_in(datagram[:-1] + bytes([datagram[-1] ^ 1]), ALICE)
        pair.alice.packet_out(udp_packet(ALICE4, "8.8.8.8", b""))
        pair.alice.packet_out(udp_packet("10.8.0.1", BOB4, b""))
        pair.carry()
        here, there = pair.alice.stats(), pair.bob.stats()
        assert (here.peers[PEER].handshakes, there.peers[PEER].handshakes) == (2, 2)
        assert here.drops == {"no_peer": 1}
        assert here.peers[PEER].drops == 0
        assert sum(there.drops.values()) == there.peers[PEER].drops == 5
        assert there.drops["inner_source"] == 1

    def test_packets_held_in_vain_are_their_peers_drops(self, pair: Pair) -> None:
        for _ in range(MAX_STAGED_PACKETS + 2):
            pair.alice.packet_out(to_bob())
        pair.alice.drop_held(PEER)
        stats = pair.alice.stats()
        assert stats.drops == {"held_too_many": 2, "no_answer": MAX_STAGED_PACKETS}
        assert stats.peers[PEER].drops == MAX_STAGED_PACKETS + 2
