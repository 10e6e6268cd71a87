"""A channel in place of an interface: on both planes, and over io_uring."""

from __future__ import annotations

import gc
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from rustguard_py.engine import Engine, has_native, uring_refusal
from rustguard_py.model.errors import RefusedError
from rustguard_py.planes.contract import Fault, Packet
from support.channel_pair import ChannelPair, eventually, to_alice, to_bob
from support.engines import needs_native
from support.packets import udp_packet

_NO_URING = not has_native() or uring_refusal() is not None
ENGINES = [
    pytest.param(Engine("portable", ""), id="portable"),
    pytest.param(Engine("native", ""), id="native", marks=needs_native),
    pytest.param(Engine("native", "", queues=2), id="two queues", marks=needs_native),
    pytest.param(
        Engine("native", "", uring=True), id="io_uring", marks=pytest.mark.skipif(_NO_URING, reason="no io_uring")
    ),
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each in turn."""
    assert isinstance(request.param, Engine)
    return request.param


@pytest.fixture
def pair(engine: Engine) -> Iterator[ChannelPair]:
    """With a session."""
    pair = ChannelPair(engine)
    pair.connect()
    yield pair
    pair.close()


def _is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_any_size_pass_both_ways_in_order(pair: ChannelPair, family: int) -> None:
    sizes = [*range(0, 1373, 49), *[1000] * 50, *range(1372, 0, -49)]
    there, back = [to_bob(size, family) for size in sizes], [to_alice(size, family) for size in sizes]
    pair.alice.write(there)
    pair.bob.write(back)
    assert pair.bob.read(len(there)) == there
    assert pair.alice.read(len(back)) == back


def test_what_waits_for_a_session_and_is_for_nobody_is_handled_as_on_an_interface(engine: Engine) -> None:
    pair = ChannelPair(engine)
    packet = to_bob()
    pair.alice.write([packet, udp_packet("10.9.0.1", "203.0.113.1", b"to nobody")])
    (answer,) = pair.alice.read(1)
    assert answer[9] == socket.IPPROTO_ICMP
    assert answer[20] == 3, "destination unreachable"
    pair.connect()
    assert pair.bob.read(1) == [packet]
    pair.close()


def test_bytes_bytearrays_and_memoryviews_are_taken_and_copied(pair: ChannelPair) -> None:
    packets = [to_bob(50), to_bob(60), to_bob(70)]
    change, lent = bytearray(packets[1]), bytearray(packets[2])
    given: list[Packet] = [packets[0], change, memoryview(lent)]
    assert pair.alice.channel.write_batch(iter(given)) == 3
    change.clear()
    lent[:] = bytes(len(lent))
    assert pair.bob.read(3) == packets


def test_no_packet_of_a_batch_is_taken_if_one_has_an_impossible_size(pair: ChannelPair) -> None:
    with pytest.raises(ValueError, match="at most 65535 bytes"):
        pair.alice.channel.write_batch([to_bob(), bytes(65_536)])
    packet = to_bob()
    pair.alice.write([packet])
    assert pair.bob.read(1) == [packet]


@pytest.mark.parametrize("most", [3, 60])
def test_views_keep_what_they_show_through_later_batches_and_after_the_end(pair: ChannelPair, most: int) -> None:
    packets = [to_bob(1000) for _ in range(300)]
    pair.alice.write(packets)
    views: list[memoryview] = []

    def all_came() -> bool:
        views.extend(pair.bob.channel.read_batch(most))
        return len(views) == len(packets)

    eventually(all_came, "all packets")
    assert all(view.readonly for view in views)
    kept = views[::7]
    views.clear()
    pair.alice.write([to_bob(1000) for _ in range(300)])
    pair.bob.read(300)
    pair.close()
    pair.bob = pair.alice
    gc.collect()
    assert [bytes(view) for view in kept] == packets[::7]


def test_a_batch_has_at_most_what_was_asked_for_and_the_descriptor_tells_of_the_rest(pair: ChannelPair) -> None:
    channel, packets = pair.bob.channel, [to_bob(size) for size in range(20)]
    assert not _is_readable(channel.fileno())
    assert channel.read_batch() == []
    pair.alice.write(packets)
    came: list[bytes] = []
    while len(came) < len(packets):
        select.select([channel], [], [])
        batch = channel.read_batch(3)
        assert 1 <= len(batch) <= 3
        came += map(bytes, batch)
    assert came == packets
    assert not _is_readable(channel.fileno())


def test_a_reader_may_wait_instead_of_watching_the_descriptor(pair: ChannelPair) -> None:
    channel = pair.bob.channel
    assert not channel.wait(0)
    began = time.monotonic()
    assert not channel.wait(0.05)
    assert time.monotonic() - began >= 0.05
    for count in (1, 3, 200):
        packets = [to_bob() for _ in range(count)]
        came: list[bytes] = []
        writer = threading.Timer(0.01, pair.alice.write, [packets])
        writer.start()
        while len(came) < count:
            assert channel.wait(20)
            came += [bytes(packet) for packet in channel.read_batch()]
        writer.join()
        assert came == packets
    assert not channel.wait(0)
    threading.Timer(0.01, pair.bob.plane.close).start()
    assert channel.wait(20)
    assert channel.wait(0)


def test_a_writer_is_told_how_much_found_room_and_when_there_is_more(engine: Engine) -> None:
    pair = ChannelPair(engine, capacity=8)
    channel, packets = pair.alice.channel, [to_bob(size) for size in range(100)]
    pair.connect()
    assert not _is_readable(channel.writable_fileno())
    taken = channel.write_batch(packets)
    assert 8 <= taken < 100
    pair.alice.write(packets[taken:])
    eventually(lambda: pair.alice.plane.stats().peers[7].tx_packets >= 100, "all were sent")
    pair.close()


def test_what_a_slow_reader_leaves_no_room_for_is_dropped_and_counted(engine: Engine) -> None:
    pair = ChannelPair(engine, capacity=8)
    pair.connect()
    packets = [to_bob(size) for size in range(20)]
    pair.alice.write(packets)
    eventually(lambda: pair.bob.plane.stats().drops.get("channel_full") == 12, "twelve drops")
    assert pair.bob.read(8) == packets[:8]
    pair.alice.write(packets[:3])
    assert pair.bob.read(3) == packets[:3]
    assert pair.bob.plane.stats().drops == {"channel_full": 12}
    pair.close()


def test_a_closed_channel_ends_its_plane_without_a_fault_and_after_what_was_written(pair: ChannelPair) -> None:
    packets = [to_bob(size) for size in range(200)]
    assert pair.alice.channel.write_batch(packets) == 200
    pair.alice.channel.close()
    pair.alice.channel.close()
    assert pair.bob.read(200) == packets
    eventually(lambda: not pair.alice.plane.is_running(), "the plane ended")
    assert not [event for event in pair.alice.plane.poll_events() if isinstance(event, Fault)]
    with pytest.raises(BrokenPipeError):
        pair.alice.channel.write_batch(packets)


def test_a_closed_plane_closes_its_channel_which_still_has_what_came_before(pair: ChannelPair) -> None:
    channel, packets = pair.bob.channel, [to_bob(size) for size in range(30)]
    assert not channel.closed
    pair.alice.write(packets)
    # And the keepalive that confirms the session.

    def are_received() -> bool:
        # The portable plane may not have read the command that adds the peer.
        peer = pair.bob.plane.stats().peers.get(7)
        return peer is not None and peer.rx_packets >= 31

    eventually(are_received, "all packets")
    pair.bob.plane.close()
    assert bool(channel.closed)
    assert _is_readable(channel.fileno())
    assert _is_readable(channel.writable_fileno())
    assert pair.bob.read(30) == packets
    with pytest.raises(BrokenPipeError):
        channel.read_batch()
    with pytest.raises(BrokenPipeError):
        channel.write_batch([to_alice()])
    assert _is_readable(channel.fileno())


def test_a_channel_has_one_plane_which_may_change_its_sockets_but_not_its_device(pair: ChannelPair) -> None:
    with pytest.raises(ValueError, match="has a plane already"):
        _again(pair)
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", 0))
    pair.alice.plane.rebind([bound])
    packets = [to_bob(size) for size in range(30)]
    pair.alice.write(packets)
    assert pair.bob.read(30) == packets
    with pytest.raises(RefusedError, match="no interface"):
        pair.alice.plane.reattach()
    assert pair.alice.plane.is_running()


def _again(pair: ChannelPair) -> None:
    engine = Engine("portable" if type(pair.alice.plane).__name__ == "PortablePlane" else "native", "")
    engine.make_plane(bytes(32), "memory", [], 1420, channel=pair.alice.channel)
