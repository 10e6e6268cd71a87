"""Whole batches through the portable plane: what is merged, what must not be, what goes the slow way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.statistics import WorkerStats
from rustguard_py.model.timers import REJECT_AFTER_MESSAGES
from rustguard_py.planes.contract import HandshakeWanted, Keypair, Reason
from rustguard_py.planes.offload import NEEDS_CHECKSUM, REFUSALS, VNET_SIZE, Vnet
from support.batch_plane import BatchPlane
from support.packets import checksums_hold, pseudo_sum, superpacket, tcp_packet, udp_packet, with_mark
from support.plane_conformance import ALICE, ALICE4, ALICE6, BOB, BOB4, BOB6, ELSEWHERE, PEER, PairOf, current_session

MSS = 1420 - 40


@pytest.fixture
def pair() -> Iterator[PairOf[BatchPlane]]:
    both = PairOf(BatchPlane(b"a" * 32), BatchPlane(b"b" * 32))
    both.connect()
    both.alice.messages.clear()
    yield both
    both.alice.close()
    both.bob.close()


def stream(count: int, *, seq: int = 0, size: int = MSS, ends: tuple[str, str] = (ALICE4, BOB4)) -> list[bytes]:
    return [tcp_packet(*ends, os.urandom(size), seq=seq + n * size) for n in range(count)]


def carry(pair: PairOf[BatchPlane], source: Endpoint = ALICE) -> None:
    """Each message of Alice's as one message to Bob, as GRO gives it."""
    for datagrams, _ in pair.alice.messages:
        pair.bob.message_in(datagrams, source)
    pair.alice.messages.clear()
    pair.alice.outgoing.clear()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tcp", [True, False])
def test_a_superpacket_goes_as_one_message_and_comes_out_as_one(
    pair: PairOf[BatchPlane], version: int, tcp: bool
) -> None:
    ends = (ALICE4, BOB4) if version == 4 else (ALICE6, BOB6)
    made = superpacket(*ends, os.urandom(30_000), 1300, tcp=tcp)
    pair.alice.from_host([made])
    assert len(pair.alice.messages) == 1
    carry(pair)
    assert pair.bob.written == [made[0].encode() + made[1]]


def test_a_superpacket_of_more_than_one_message_loses_nothing(pair: PairOf[BatchPlane]) -> None:
    payload = os.urandom(64_000)
    pair.alice.from_host([superpacket(ALICE4, BOB4, payload, 100, tcp=True, seq=2**32 - 5000)])
    assert len(pair.alice.messages) == 10
    carry(pair)
    assert b"".join(packet[40:] for packet in pair.bob.delivered) == payload


@pytest.mark.parametrize("version", [4, 6])
def test_a_burst_is_divided_where_the_marks_differ(pair: PairOf[BatchPlane], version: int) -> None:
    ends = (ALICE4, BOB4) if version == 4 else (ALICE6, BOB6)
    marks = [0, 0, 2, 2, 2, 3, 1, 1]
    packets = [with_mark(udp_packet(*ends, bytes([n]) * 500, port=n), mark) for n, mark in enumerate(marks)]
    if version == 6:
        # Another flow label is no other mark.
        packets[1] = packets[1][:1] + bytes((packets[1][1] | 5,)) + packets[1][2:]
    pair.alice.from_host([(None, packet) for packet in packets])
    # An inner CE leaves as ECT(0), together with what has that mark itself.
    assert [len(datagrams) for datagrams, _ in pair.alice.messages] == [2, 3, 1, 2]
    assert pair.alice.tos == [0, 0, 2, 2, 2, 2, 1, 1]
    carry(pair)
    assert pair.bob.delivered == packets


@pytest.mark.parametrize("version", [4, 6])
def test_congestion_is_reported_in_each_packet_of_a_message(pair: PairOf[BatchPlane], version: int) -> None:
    ends = (ALICE4, BOB4) if version == 4 else (ALICE6, BOB6)
    packets = [with_mark(packet, 2) for packet in stream(6, size=1000, ends=ends)]
    pair.alice.from_host([(None, packet) for packet in packets])
    ((datagrams, _),) = pair.alice.messages
    # What the kernel gives one by one is gathered up to the first other mark.
    waiting: list[tuple[list[bytes], Endpoint]] = [([datagram], ALICE) for datagram in datagrams]
    pair.bob.messages_in(waiting, [3, 3, 3, 3, 2, 2])
    assert pair.bob.delivered == [
        with_mark(packet, mark) for packet, mark in zip(packets, [3] * 4 + [2] * 2, strict=True)
    ]
    # The one that ends the gathering goes by itself.
    assert len(pair.bob.written) == 3
    assert all(checksums_hold(packet) for packet in pair.bob.delivered)


def test_packets_that_wait_together_go_as_one_message_for_each_peer_and_size(pair: PairOf[BatchPlane]) -> None:
    other = ("192.0.2.99", 1)
    pair.alice.set_peer(8, other, [ip_network("10.9.1.0/24")], 0)
    pair.alice.install_keypair(8, Keypair(pair.alice.reserve_index(8), 5, b"s" * 32, b"r" * 32, True, 0.0))
    pair.alice.messages.clear()
    one = [udp_packet(ALICE4, BOB4, b"x" * 1000, port=n) for n in range(4)]
    two = [udp_packet(ALICE4, "10.9.1.7", b"x" * 1000) for _ in range(3)]
    small = [udp_packet(ALICE4, BOB4, b"x" * 10, port=n) for n in range(5)]
    pair.alice.from_host([(None, packet) for packet in one + two + small + one[:1]])
    assert [(len(datagrams), to) for datagrams, to in pair.alice.messages] == [
        (4, BOB),
        (3, other),
        (5, BOB),
        (1, BOB),
    ]
    for datagrams, to in pair.alice.messages:
        if to == BOB:
            pair.bob.message_in(datagrams, ALICE)
    assert pair.bob.delivered == [*one, *small, one[0]]


@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("payload", [b"", b"odd", b"\xff" * 1001])
def test_checksums_that_the_host_left_to_us_are_filled_in(
    pair: PairOf[BatchPlane], count: int, payload: bytes
) -> None:
    whole = udp_packet(ALICE4, BOB4, payload)
    pseudo = pseudo_sum(ALICE4, BOB4, 17, 8 + len(payload)).to_bytes(2, "big")
    partial = whole[:26] + pseudo + whole[28:]
    pair.alice.from_host([(Vnet(NEEDS_CHECKSUM, 0, 0, 0, 20, 6), partial)] * count)
    carry(pair)
    assert pair.bob.delivered == [whole] * count
    assert checksums_hold(whole)


def test_a_packet_larger_than_the_mtu_is_sent_and_harms_no_row_behind_it(pair: PairOf[BatchPlane]) -> None:
    packets = [udp_packet(ALICE4, BOB4, bytes([n]) * size) for n, size in enumerate((9, 3000, 9, 1400, 1500, 9))]
    pair.alice.from_host([(None, packet) for packet in packets])
    carry(pair)
    assert pair.bob.delivered == packets


def test_a_gap_a_repetition_and_a_swap_in_a_message_lose_only_what_is_missing(pair: PairOf[BatchPlane]) -> None:
    packets = stream(12)
    pair.alice.from_host([(None, packet) for packet in packets])
    ((datagrams, _),) = pair.alice.messages
    order = [0, 1, 2, 4, 5, 5, 8, 7, 9, 10, 11]
    pair.bob.message_in([datagrams[n] for n in order], ALICE)
    assert pair.bob.delivered == [packets[n] for n in (0, 1, 2, 4, 5, 8, 7, 9, 10, 11)]
    assert pair.bob.stats().drops == {"replayed": 1}
    pair.bob.message_in(datagrams, ALICE)
    assert pair.bob.delivered[10:] == [packets[3], packets[6]]


@pytest.mark.fault(18)
def test_a_forgery_amid_a_message_costs_the_others_nothing(pair: PairOf[BatchPlane]) -> None:
    packets = stream(10)
    pair.alice.from_host([(None, packet) for packet in packets])
    ((datagrams, _),) = pair.alice.messages
    spoilt = list(datagrams)
    spoilt[4] = spoilt[4][:-1] + bytes([spoilt[4][-1] ^ 1])
    pair.bob.message_in(spoilt, ALICE)
    assert pair.bob.delivered == packets[:4] + packets[5:]
    assert pair.bob.stats().drops == {"bad_tag": 1}
    pair.bob.message_in(datagrams[4:5], ALICE)
    assert pair.bob.delivered[-1] == packets[4]


@pytest.mark.fault(18)
def test_a_message_of_forgeries_moves_no_endpoint(pair: PairOf[BatchPlane]) -> None:
    pair.alice.from_host([(None, packet) for packet in stream(10)])
    ((datagrams, _),) = pair.alice.messages
    forged = [datagram[:16] + os.urandom(len(datagram) - 16) for datagram in datagrams]
    pair.bob.message_in(forged, ELSEWHERE)
    assert pair.bob.stats().peers[PEER].endpoint == ALICE
    assert pair.bob.events == []
    carry(pair)
    assert len(pair.bob.delivered) == 10
    print("row 18: a message of 10 forgeries with the counters of true datagrams, none of which is lost")


@pytest.mark.fault(20)
def test_a_merged_run_from_anothers_address_is_dropped_whole(pair: PairOf[BatchPlane]) -> None:
    packets = stream(10, ends=("10.9.0.77", BOB4))
    pair.alice.from_host([(None, packet) for packet in packets])
    carry(pair)
    assert pair.bob.written == []
    assert pair.bob.stats().drops == {"inner_source": 10}


@pytest.mark.parametrize("merging", [True, False])
def test_a_last_packet_that_came_shorter_than_it_says_is_dropped(pair: PairOf[BatchPlane], merging: bool) -> None:
    """Behind it are bytes of an earlier message."""
    pair.bob.inbound._merging = merging
    transport = pair.alice.transport
    packets = [udp_packet(ALICE4, BOB4, os.urandom(132), port=port) for port in range(4)]

    def message(contents: list[bytes]) -> list[bytes]:
        sealed = [transport.seal(transport.peers[PEER], content, pair.alice.now) for content in contents]
        return [datagram for datagram in sealed if datagram is not None]

    pair.bob.message_in(message(packets), ALICE)
    pair.bob.message_in(message([*packets[:3], packets[3][:96]]), ALICE)
    assert pair.bob.delivered == [*packets, *packets[:3]]
    assert pair.bob.stats().drops == {"inner_length": 1}


def test_datagrams_that_the_kernel_gives_one_by_one_are_gathered_and_merged(pair: PairOf[BatchPlane]) -> None:
    packets = stream(50)
    pair.alice.from_host([(None, packet) for packet in packets])
    datagrams = [datagram for _, datagram in pair.alice.outgoing]
    pair.bob.messages_in([([datagram], ALICE) for datagram in datagrams])
    assert pair.bob.delivered == packets
    assert len(pair.bob.written) <= 3


def test_what_waits_mixed_is_delivered_in_order_and_moves_the_endpoint_to_where_it_came_from_last(
    pair: PairOf[BatchPlane],
) -> None:
    packets = [*stream(3), *stream(1, size=300), *stream(4), *stream(6), *stream(2, size=10)]
    pair.alice.from_host([(None, packet) for packet in packets])
    datagrams = [datagram for _, datagram in pair.alice.outgoing]
    waiting: list[tuple[list[bytes], Endpoint]] = [([datagram], ALICE) for datagram in datagrams[:6]]
    waiting += [([b"RGE2 hello"], ELSEWHERE), (datagrams[6:12], ALICE), ([bytes(1000)], ALICE)]
    waiting += [([datagram], ELSEWHERE) for datagram in datagrams[12:]]
    pair.bob.messages_in(waiting)
    assert pair.bob.delivered == packets
    assert pair.bob.stats().peers[PEER].endpoint == ELSEWHERE
    assert pair.bob.stats().drops == {"unknown_type": 1}
    assert len(pair.bob.events) == 2


@pytest.mark.fault(30)
def test_the_longest_message_may_end_with_a_short_datagram(pair: PairOf[BatchPlane]) -> None:
    """UDP over IPv4 carries 65,507 bytes: 45 datagrams of 1,452 bytes, and one of up to 167."""
    packets = [*stream(45), tcp_packet(ALICE4, BOB4, b"the end", seq=45 * MSS)]
    pair.alice.from_host([(None, packet) for packet in packets])
    datagrams = [datagram for message, _ in pair.alice.messages for datagram in message]
    assert [len(datagram) for datagram in datagrams] == [1452] * 45 + [80]
    pair.bob.message_in(datagrams, ALICE)
    assert pair.bob.delivered == packets


@pytest.mark.fault(30)
def test_no_message_of_strangers_is_too_long(pair: PairOf[BatchPlane]) -> None:
    for size in [*range(1, 3000, 13), 1452, 21_000, 32_000, 40_000]:
        full, last = divmod(65_507, size)
        datagrams = [(b"\4\0\0\0" + os.urandom(size))[:size] for _ in range(min(full, 64))]
        pair.bob.message_in([*datagrams, datagrams[0][:last]] if last and full < 64 else datagrams, ELSEWHERE)
    pair.alice.from_host([(None, packet) for packet in stream(2)])
    carry(pair)
    assert len(pair.bob.delivered) == 2


def test_two_streams_in_one_message_are_merged_each(pair: PairOf[BatchPlane]) -> None:
    one, two = stream(6), [udp_packet(ALICE4, BOB4, bytes(MSS + 12)) for _ in range(5)]
    pair.alice.from_host([(None, packet) for packet in one + two])
    carry(pair)
    assert pair.bob.delivered == one + two
    assert len(pair.bob.written) == 2


def test_a_keepalive_at_the_end_of_a_message_is_no_packet(pair: PairOf[BatchPlane]) -> None:
    pair.alice.from_host([(None, packet) for packet in stream(3)])
    pair.alice.set_peer(PEER, None, [], 25)
    datagrams = [datagram for _, datagram in pair.alice.outgoing]
    assert [len(datagram) for datagram in datagrams][-1] == 32
    pair.bob.message_in(datagrams, ALICE)
    assert len(pair.bob.delivered) == 3
    assert pair.bob.stats().drops == {}
    assert pair.bob.stats().peers[PEER].rx_packets == 5


def test_without_a_session_the_packets_of_a_superpacket_are_held_and_sent_later(pair: PairOf[BatchPlane]) -> None:
    pair.alice.erase_keypairs(PEER)
    pair.alice.now = pair.bob.now = 5.0
    made = superpacket(ALICE4, BOB4, os.urandom(10_000), 1000, tcp=True)
    pair.alice.from_host([made])
    assert pair.alice.events == [HandshakeWanted(PEER, Reason.NO_SESSION)]
    pair.handshake()
    pair.carry()
    assert b"".join(packet[40:] for packet in pair.bob.delivered) == made[1][40:]


@pytest.mark.fault(35)
def test_a_run_that_would_pass_the_limit_is_held_whole_and_no_nonce_is_used_twice(
    pair: PairOf[BatchPlane],
) -> None:
    session = current_session(pair.alice)
    session.counter = REJECT_AFTER_MESSAGES - 5
    packets = stream(10)
    pair.alice.from_host([(None, packet) for packet in packets])
    assert pair.alice.messages == []
    pair.alice.from_host([(None, packet) for packet in packets[:5]])
    counters = [int.from_bytes(datagram[8:16], "little") for _, datagram in pair.alice.outgoing]
    assert counters == list(range(REJECT_AFTER_MESSAGES - 5, REJECT_AFTER_MESSAGES))
    print("row 35: a batch of 10 with 5 nonces left was held; the 5 that were sent used the last 5")


def test_a_superpacket_refused_by_the_device_is_written_packet_by_packet_and_said_once(
    pair: PairOf[BatchPlane], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.writev

    def refuse(fd: int, parts: list[memoryview]) -> int:
        if Vnet.decode(bytes(parts[0][:VNET_SIZE])).gso_type:
            raise OSError(22, "Invalid argument")
        return write(fd, parts)

    monkeypatch.setattr(os, "writev", refuse)
    packets = stream(20)
    for part in (packets[:10], packets[10:]):
        pair.alice.from_host([(None, packet) for packet in part])
        carry(pair)
    assert pair.bob.delivered == packets
    assert len(pair.bob.said) == 1
    assert pair.bob.stats().drops == {}


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_refused_superpacket_loses_no_packet_whatever_the_error(
    pair: PairOf[BatchPlane], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write = os.writev

    def refuse(fd: int, parts: list[memoryview]) -> int:
        if Vnet.decode(bytes(parts[0][:VNET_SIZE])).gso_type:
            raise OSError(code, os.strerror(code))
        return write(fd, parts)

    monkeypatch.setattr(os, "writev", refuse)
    packets = stream(20)
    pair.alice.from_host([(None, packet) for packet in packets])
    carry(pair)
    assert (pair.bob.delivered, pair.bob.stats().drops) == (packets, {})


def test_a_kernel_that_refuses_a_shorter_last_packet_still_gets_superpackets(
    pair: PairOf[BatchPlane], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, whole = os.writev, 0

    def refuse(fd: int, parts: list[memoryview]) -> int:
        nonlocal whole
        merged = Vnet.decode(bytes(parts[0][:VNET_SIZE])).gso_type
        if merged and len(parts[-1]) < len(parts[1]):
            raise OSError(errno.EINVAL, "Invalid argument")
        whole += bool(merged)
        return write(fd, parts)

    monkeypatch.setattr(os, "writev", refuse)
    sent = []
    for sequence in (1, 100_000):
        made = superpacket(ALICE4, BOB4, os.urandom(3 * MSS + 20), MSS, tcp=True, seq=sequence)
        pair.alice.from_host([made])
        carry(pair)
        sent.append(made[1][-20:])
    assert [packet[-20:] for packet in pair.bob.delivered if len(packet) < MSS] == sent
    assert (len(pair.bob.delivered), whole, len(pair.bob.said)) == (8, 1, 1)
    assert "shorter last packet" in pair.bob.said[0]


def test_a_peer_without_segmentation_gets_each_datagram_by_itself(pair: PairOf[BatchPlane]) -> None:
    packets = stream(20)
    pair.alice.set_segmenting(PEER, False)
    pair.alice.from_host([(None, packet) for packet in packets])
    assert [len(message) for message, _ in pair.alice.messages] == [1] * 20
    carry(pair)
    pair.alice.set_segmenting(PEER, True)
    pair.alice.from_host([(None, packet) for packet in packets])
    assert [len(message) for message, _ in pair.alice.messages] == [20]
    carry(pair)
    assert pair.bob.delivered == 2 * packets


def test_a_device_that_is_down_costs_the_packets_and_nothing_else(
    pair: PairOf[BatchPlane], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_fd: int, _parts: list[memoryview]) -> int:
        raise OSError(5, "Input/output error")

    packets = stream(10)
    pair.alice.from_host([(None, packet) for packet in packets])
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", down)
        carry(pair)
    assert pair.bob.delivered == []
    assert pair.bob.stats().drops == {"interface_eio": 10}
    pair.alice.from_host([(None, packets[0])])
    carry(pair)
    assert pair.bob.delivered == packets[:1]


@pytest.mark.fault(30)
@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 31, 32, 147, 148, 1500, 65_507])
def test_messages_of_any_size_end_nothing(pair: PairOf[BatchPlane], size: int) -> None:
    for head in (b"\4\0\0\0", b"\1\0\0\0", b"RGE", b""):
        datagram = (head + os.urandom(size))[:size]
        pair.bob.datagram_in(datagram, ELSEWHERE)
        if 0 < size < 10_000:
            pair.bob.message_in([datagram] * min(40, 50_000 // size) + [datagram[: size // 2 or 1]], ELSEWHERE)
    pair.alice.from_host([(None, stream(1)[0])])
    carry(pair)
    assert len(pair.bob.delivered) == 1


def test_the_loops_counters_have_each_batch_both_ways(pair: PairOf[BatchPlane]) -> None:
    calls = pair.alice.worker.system_calls
    before = pair.bob.worker.packets, pair.bob.worker.bytes, pair.bob.worker.batches
    packets = [superpacket(ALICE4, BOB4, os.urandom(3 * MSS), MSS, tcp=True), (None, udp_packet(ALICE4, BOB4, b"1"))]
    pair.alice.from_host(packets)
    sent = [datagram for datagrams, _ in pair.alice.messages for datagram in datagrams]
    carry(pair)
    out, there = pair.alice.worker, pair.bob.worker
    assert (out.packets, out.batches) == (4, 2)
    assert out.bytes == sum(map(len, sent))
    assert (out.batch_sizes[0], out.batch_sizes[1], sum(out.batch_sizes[2:])) == (1, 1, 0)
    assert out.system_calls - calls >= 3
    assert (there.packets - before[0], there.bytes - before[1], there.batches - before[2]) == (4, out.bytes, 2)


def test_batches_are_counted_by_powers_of_two() -> None:
    worker = WorkerStats("loop-0")
    for packets in (0, 1, 2, 3, 4, 64, 65_535, 1 << 20):
        worker.count(packets, packets * 10)
    assert worker.batch_sizes == [1, 2, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (worker.batches, worker.packets) == (7, 10 + 64 + 65_535 + (1 << 20))
    assert worker.bytes == 10 * worker.packets
