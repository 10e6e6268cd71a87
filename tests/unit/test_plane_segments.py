"""Superpackets into packets and back, against checksums made word by word."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustguard_py.model.offloads import ALL
from rustguard_py.planes.checksum import RowSums, sum_bytes
from rustguard_py.planes.coalesce import Coalescer
from rustguard_py.planes.offload import GSO_NONE, MAX_MESSAGE, VNET_SIZE, Vnet, wanted_gso_segments
from rustguard_py.planes.segment import Segmenter
from support.examples import examples
from support.packets import checksums_hold, naive_sum, superpacket, tcp_packet, udp_packet

MTU = 1420
ENDS = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd00::1", "fd00::2")}
SEGMENTER = Segmenter(bytearray(1 << 18), MTU)
ROWS = bytearray(1 << 18)
COALESCER = Coalescer(ROWS)
OPTIONS = st.sampled_from([b"", b"\1\1\x08\x0a" + bytes(range(8)), bytes(40)])


def cut(vnet: Vnet, packet: bytes, at: int = 12) -> list[bytes]:
    """The packets of a superpacket; checks that each row is padded with zeros to the size it says."""
    SEGMENTER.buffer[at : at + len(packet)] = packet
    packets = []
    for rows in SEGMENTER.segment(at, len(packet), vnet):
        assert rows.rows * (rows.stride + 32) <= MAX_MESSAGE
        for row in range(rows.rows):
            size = rows.last if row + 1 == rows.rows else rows.stride
            staged = bytes(SEGMENTER.staging[row * rows.stride : row * rows.stride + size])
            v4 = staged[0] >> 4 == 4
            length = staged[2] << 8 | staged[3] if v4 else 40 + (staged[4] << 8 | staged[5])
            assert length <= size == min(MTU, size + -size % 16)
            assert not any(staged[length:])
            packets.append(staged[:length])
    return packets


def without_checksums(packet: bytes) -> bytes:
    """The packet with zeros there: `checksums_hold` looks at them, and to it 0 and 0xffff are the same."""
    v4 = packet[0] >> 4 == 4
    field = (20 if v4 else 40) + (16 if (packet[9] if v4 else packet[6]) == 6 else 6)
    blank = bytearray(packet)
    blank[field : field + 2] = b"\0\0"
    if v4:
        blank[10:12] = b"\0\0"
    return bytes(blank)


def merge(packets: list[bytes], *, garbage: bytes = b"") -> list[bytes]:
    """What would be written for a batch of packets; garbage follows each packet in its row."""
    stride = max(map(len, packets)) + len(garbage)
    for row, packet in enumerate(packets):
        room = (packet + garbage).ljust(stride, b"\xee")
        ROWS[row * stride : (row + 1) * stride] = room
    last = len(packets[-1]) + len(garbage)
    written = []
    for run in COALESCER.runs(len(packets), stride, last):
        if run.parts:
            written.append(b"".join(run.parts))
        else:
            assert run.stop == run.first + 1
            written.append(bytes(VNET_SIZE) + packets[run.first])
    return written


def split_again(written: list[bytes]) -> list[bytes]:
    packets = []
    for one in written:
        vnet, packet = Vnet.decode(one), one[VNET_SIZE:]
        packets += [packet] if vnet.gso_type == GSO_NONE else cut(vnet, packet)
    return packets


@given(st.binary(max_size=3000), st.integers(0, 9))
def test_sums_agree_with_the_slow_way(data: bytes, offset: int) -> None:
    assert sum_bytes(data) % 65535 == naive_sum(data) % 65535
    if data:
        rows = 3
        buffer = bytearray(offset) + bytearray(data) * rows
        sums = RowSums(buffer, offset, len(data), len(data), rows).big_endian(0, rows)
        assert [int(total) % 65535 for total in sums] == [naive_sum(data) % 65535] * rows


def test_sums_of_all_ones_do_not_overflow() -> None:
    buffer = bytearray(b"\xff" * 65534 * 2)
    assert RowSums(buffer, 0, 65534, 65534, 2).big_endian(0, 2).tolist() == [32767 * 65535 * 256] * 2


@settings(max_examples=examples(300), deadline=None)
@given(
    version=st.sampled_from([4, 6]),
    tcp=st.booleans(),
    mss=st.integers(1, 1320),
    size=st.integers(1, 9000),
    seq=st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 9000, 2**32 - 1)),
    flags=st.sampled_from([0x10, 0x18, 0x11, 0x19, 0x90, 0x98, 0xD8]),
    options=OPTIONS,
    ident=st.sampled_from([0, 7, 65530]),
    fragment=st.sampled_from([0x4000, 0]),
    ones=st.booleans(),
)
def test_a_superpacket_becomes_the_packets_it_stands_for(
    version: int,
    tcp: bool,
    mss: int,
    size: int,
    seq: int,
    flags: int,
    options: bytes,
    ident: int,
    fragment: int,
    ones: bool,
) -> None:
    payload = b"\xff" * size if ones else os.urandom(size)
    mss = min(mss, size)
    made = superpacket(
        *ENDS[version], payload, mss, tcp=tcp, seq=seq, flags=flags, options=options, ident=ident, fragment=fragment
    )
    packets = cut(*made)
    pieces = [payload[at : at + mss] for at in range(0, size, mss)]
    assert len(packets) == len(pieces)
    final = len(pieces) - 1
    for number, (packet, piece) in enumerate(zip(packets, pieces, strict=True)):
        assert checksums_hold(packet)
        counted = ident if fragment else ident + number & 0xFFFF
        if tcp:
            ours = flags & ~0x89 | (flags & 0x80 if number == 0 else 0) | (flags & 0x09 if number == final else 0)
            at = seq + number * mss & 0xFFFFFFFF
            expected = tcp_packet(
                *ENDS[version], piece, seq=at, flags=ours, options=options, ident=counted, fragment=fragment
            )
        else:
            expected = udp_packet(*ENDS[version], piece, ident=counted, fragment=fragment)
        assert without_checksums(packet) == without_checksums(expected)


@settings(max_examples=examples(200), deadline=None)
@given(
    version=st.sampled_from([4, 6]),
    tcp=st.booleans(),
    mss=st.integers(1, 1320),
    count=st.integers(2, 45),
    short=st.integers(0, 1319),
    seq=st.one_of(st.just(5), st.integers(2**32 - 60_000, 2**32 - 1)),
    push=st.booleans(),
    options=OPTIONS,
    garbage=st.sampled_from([b"", bytes(12), b"\xff" * 3]),
)
def test_merging_and_cutting_again_changes_nothing(
    version: int,
    tcp: bool,
    mss: int,
    count: int,
    short: int,
    seq: int,
    push: bool,
    options: bytes,
    garbage: bytes,
) -> None:
    payload = os.urandom(mss * (count - 1) + 1 + short % mss)
    made = superpacket(*ENDS[version], payload, mss, tcp=tcp, seq=seq, flags=0x18 if push else 0x10, options=options)
    packets = cut(*made)
    written = merge(packets, garbage=garbage)
    assert len(written) == 1
    vnet, whole = Vnet.decode(written[0]), written[0][VNET_SIZE:]
    assert vnet == made[0]
    same = superpacket(*ENDS[version], payload, mss, tcp=tcp, seq=seq, flags=0x18 if push else 0x10, options=options)
    assert whole == same[1]
    assert split_again(written) == packets


PACKETS = st.builds(
    lambda version, tcp, size, seq, flags, port, spoilt: (version, tcp, size, seq, flags, port, spoilt),
    st.sampled_from([4, 4, 6]),
    st.sampled_from([True, True, False]),
    st.sampled_from([100, 100, 100, 60, 0, 200]),
    st.sampled_from([0, 100, 200, 300, 400]),
    st.sampled_from([0x10, 0x10, 0x10, 0x18, 0x11, 0x02, 0x30]),
    st.sampled_from([5000, 5000, 6000]),
    st.sampled_from([False, False, False, False, True]),
)


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(PACKETS, min_size=1, max_size=20))
def test_whatever_comes_mixed_is_delivered_unchanged_and_in_order(
    plan: list[tuple[int, bool, int, int, int, int, bool]],
) -> None:
    packets = []
    for version, tcp, size, seq, flags, port, spoilt in plan:
        payload = bytes([size & 0xFF]) * size
        if tcp:
            packet = bytearray(tcp_packet(*ENDS[version], payload, seq=seq, flags=flags))
        else:
            packet = bytearray(udp_packet(*ENDS[version], payload, port=port))
        if spoilt:
            packet[-1] ^= 0x55
        packets.append(bytes(packet))
    assert split_again(merge(packets)) == packets


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda p: p[:6] + b"\x20" + p[7:], id="fragment"),
        pytest.param(lambda p: p[:8] + b"\x05" + p[9:], id="ttl"),
        pytest.param(lambda p: p[:1] + b"\x01" + p[2:], id="congestion"),
        pytest.param(lambda p: p[:28] + b"\x09" + p[29:], id="acknowledgement"),
        pytest.param(lambda p: p[:34] + b"\x09" + p[35:], id="receive-window"),
        pytest.param(lambda p: p[:-1] + bytes([p[-1] ^ 1]), id="wrong-checksum"),
        pytest.param(lambda p: p[:10] + b"\0\0" + p[12:], id="wrong-header-checksum"),
    ],
)
def test_a_packet_that_differs_is_not_merged(spoil: Callable[[bytes], bytes]) -> None:
    packets = [tcp_packet(*ENDS[4], bytes(100), seq=number * 100) for number in range(4)]
    packets[2] = spoil(packets[2])
    written = merge(packets)
    assert bytes(VNET_SIZE) + packets[2] in written
    assert split_again(written) == packets


def test_a_udp_packet_without_a_checksum_stays_without() -> None:
    packets = [udp_packet(*ENDS[4], bytes(100)) for _ in range(3)]
    packets = [packet[:26] + b"\0\0" + packet[28:] for packet in packets]
    assert merge(packets) == [bytes(VNET_SIZE) + packet for packet in packets]


def test_udp_is_left_alone_where_the_kernel_breaks_it() -> None:
    packets = [udp_packet(*ENDS[4], bytes(100)) for _ in range(3)]
    stride = len(packets[0])
    rows = bytearray(b"".join(packets)) + bytearray(stride)
    runs = Coalescer(rows, ALL.without("udp-merging")).runs(3, stride, stride)
    assert [run.parts for run in runs] == [[], [], []]


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(min_size=VNET_SIZE, max_size=VNET_SIZE), st.binary(min_size=1, max_size=300))
def test_no_header_from_the_device_makes_the_segmenter_do_more_than_refuse(head: bytes, packet: bytes) -> None:
    vnet = Vnet.decode(head)
    SEGMENTER.buffer[: len(packet)] = packet
    try:
        rows = sum(rows.rows for rows in SEGMENTER.segment(0, len(packet), vnet))
    except ValueError:
        return
    assert 0 < rows <= len(packet)


@settings(max_examples=examples(500), deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=20))
def test_no_bytes_from_a_peer_make_the_coalescer_fail(packets: list[bytes]) -> None:
    prefix = tcp_packet(*ENDS[4], b"")[:30]
    assert split_again(merge(packets)) == packets
    packets = [prefix + packet for packet in packets]
    assert len(merge(packets)) >= 1


def test_the_wanted_number_of_segments_fills_one_message() -> None:
    assert wanted_gso_segments(1420) == 45
    assert (1420 + 32) * 45 <= MAX_MESSAGE < (1420 + 32) * 46
