"""Tunnels inside a program, over this host's loopback: what they carry, how long they wait, and what they leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

import rustguard_py
from rustguard_py import AsyncTunnel, ClosedError, SyncTunnel, UnansweredError, UsageError
from rustguard_py.embed.connect import EngineName
from rustguard_py.model.clock import now
from rustguard_py.planes import keypairs
from rustguard_py.planes.contract import Fault
from support.embedded import ONE6, OTHER6, Belongings, Ends, in_loop, to_one, to_other
from support.engines import on_both_engines

# For what takes a moment, on a machine that is slow and busy.
PATIENCE = 60.0

pytestmark = on_both_engines


async def eventually(attempt: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not attempt():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def collect(tunnel: AsyncTunnel, count: int) -> list[bytes]:
    packets: list[bytes] = []
    while len(packets) < count:
        batch = await tunnel.read_batch(timeout=PATIENCE)
        assert batch, f"only {len(packets)} of {count} came"
        packets += map(bytes, batch)
    return packets


@in_loop
async def test_packets_go_both_ways_unchanged_and_in_order(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        assert (one.engine, other.engine) == (engine, engine)
        assert one.port == ends.port
        there = [to_one(bytes([number]) * size) for number, size in enumerate((0, 1, 500, 1392))]
        there += [to_one(b"six", source=OTHER6)]
        assert await other.write_batch(there) == len(there)
        assert await collect(one, len(there)) == there
        back: list[rustguard_py.Packet] = [to_other(b"back"), bytearray(to_other(b"six", source=ONE6))]
        back.append(memoryview(to_other(b"view")))
        assert await one.write_batch(back) == 3
        assert await collect(other, 3) == [bytes(each) for each in back]


def test_threads_use_one_tunnel_at_once(engine: EngineName) -> None:
    ends, count = Ends(), 2000
    came: list[bytes] = []
    with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine, capacity=64) as other,
    ):

        def write(kind: int) -> None:
            for number in range(0, count, 20):
                batch = [to_one(bytes([kind]) + each.to_bytes(4, "big")) for each in range(number, number + 20)]
                assert other.write_batch(batch) == 20
                time.sleep(0.002)

        def read() -> None:
            while batch := one.read_batch(timeout=2):
                came.extend(bytes(packet[28:]) for packet in batch)

        threads = [threading.Thread(target=write, args=(kind,)) for kind in (1, 2)]
        threads += [threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lost = one.stats().drops.get("channel_full", 0)
    for kind in (1, 2):
        numbers = [int.from_bytes(each[1:], "big") for each in came if each[0] == kind]
        assert numbers == sorted(set(numbers)), "each once, and in the order of its thread"
    assert len(came) + lost == 2 * count


@in_loop
async def test_a_packet_from_outside_the_peers_allowed_ips_is_dropped_and_counted(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        await other.write_batch([to_one(source="10.9.0.77"), to_one(b"mine")])
        assert await collect(one, 1) == [to_one(b"mine")]
        assert one.stats().drops["inner_source"] == 1


@in_loop
async def test_a_packet_that_no_peer_takes_is_answered_as_by_a_kernel(engine: EngineName) -> None:
    ends = Ends()
    async with rustguard_py.connect(ends.one(), engine=engine) as one:
        stray = to_other()
        stray = stray[:16] + bytes([192, 0, 2, 1]) + stray[20:]
        await one.write_batch([stray])
        (answer,) = await one.read_batch(timeout=PATIENCE)
        # ICMP, destination unreachable, host unreachable.
        assert (answer[9], answer[20], answer[21]) == (1, 3, 1)


@in_loop
async def test_reading_waits_as_long_as_it_may_and_takes_as_many_as_asked_for(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        began = time.monotonic()
        assert await one.read_batch(timeout=0.2) == []
        assert time.monotonic() - began >= 0.2
        assert await one.read_batch(timeout=0) == []
        await other.write_batch([to_one(bytes([number])) for number in range(5)])
        await eventually(lambda: one.stats().peers[0].rx_packets >= 5)
        batches = [len(await one.read_batch(2, timeout=PATIENCE)) for _ in range(3)]
        assert batches == [2, 2, 1]


@in_loop
async def test_a_cancelled_read_loses_no_packet(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        sent = []
        for number in range(20):
            reading = asyncio.create_task(one.read_batch())
            staying = asyncio.create_task(one.read_batch())
            await asyncio.sleep(0.01)
            sent.append(to_one(bytes([number])))
            await other.write_batch(sent[-1:])
            if number % 2:
                await asyncio.sleep(0.002 * number)
            reading.cancel()
            result = (await asyncio.gather(reading, return_exceptions=True))[0]
            if isinstance(result, list):
                got = [*result]
                staying.cancel()
                await asyncio.gather(staying, return_exceptions=True)
            else:
                got = await asyncio.wait_for(staying, PATIENCE)
            assert [bytes(each) for each in got] == sent[-1:]


@in_loop
async def test_a_writer_waits_for_room_and_loses_nothing_while_others_run(engine: EngineName) -> None:
    ends, count, turns = Ends(), 3000, 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine, capacity=8) as other,
    ):
        before, running = other.stats().peers[0].tx_packets, asyncio.create_task(others())
        assert await other.write_batch([to_one(bytes(1000))] * count) == count
        await eventually(lambda: other.stats().peers[0].tx_packets - before >= count)
        running.cancel()
        assert turns > 10, "the writer waited for room, and left the loop to others"
        # The reader has more room than these, and then reads.
        assert len(await one.read_batch(10, timeout=PATIENCE)) == 10


@in_loop
async def test_what_nobody_reads_is_dropped_and_counted(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine, capacity=16) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        for _ in range(10):
            await other.write_batch([to_one(b"x")] * 20)
            await asyncio.sleep(0.01)
        await eventually(lambda: one.stats().drops.get("channel_full", 0) > 0)
        assert 1 <= len(await one.read_batch(1000)) <= 16


@in_loop
async def test_statistics_name_the_peers_and_count_what_was_carried(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        await other.write_batch([to_one(bytes(100))] * 10)
        await collect(one, 10)
        # The thread of the one is told of the session after its first packets came.
        await eventually(lambda: one.stats().peers[0].connected)
        (there,), (here,) = one.stats().peers, other.stats().peers
        assert (there.name, here.name) == ("other", "one")
        assert (there.connected, here.connected) == (True, True)
        assert there.endpoint == f"127.0.0.1:{other.port}"
        assert here.endpoint == f"127.0.0.1:{ends.port}"
        assert there.rx_packets == here.tx_packets == 11, "ten and the keepalive that confirms the session"
        assert here.tx_bytes >= 10 * (128 + 32)
        assert there.handshakes == here.handshakes == 1
        assert there.last_received is not None
        assert 0 <= there.last_received < PATIENCE
        assert here.last_handshake is not None


@in_loop
async def test_both_ends_follow_each_other_to_another_port(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        for mover, follower, packet in ((one, other, to_other(b"moved")), (other, one, to_one(b"moved"))):
            port = mover._running()[1].tunnel.set_port(0)
            assert port != mover.port
            await mover.write_batch([packet])
            assert await collect(follower, 1) == [packet]
            assert follower.stats().peers[0].endpoint == f"127.0.0.1:{port}"
        await one.write_batch([to_other(b"found")])
        assert await collect(other, 1) == [to_other(b"found")]


@in_loop
async def test_a_peer_that_starts_late_is_found(engine: EngineName) -> None:
    ends = Ends()
    async with rustguard_py.connect(ends.other(), engine=engine, timeout=None) as other:
        await other.write_batch([to_one(b"early")])
        with pytest.raises(UnansweredError, match=rf"No answer from 127\.0\.0\.1:{ends.port} within 0\.5 s"):
            await other.wait_connected(0.5)
        assert not other.stats().peers[0].connected
        async with rustguard_py.connect(ends.one(), engine=engine) as one:
            await other.wait_connected(PATIENCE)
            assert other.stats().peers[0].connected
            assert await collect(one, 1) == [to_one(b"early")], "it was held until then"
            await other.wait_connected(0)


@in_loop
async def test_what_was_written_before_the_end_is_sent(engine: EngineName) -> None:
    ends, sent = Ends(), [to_one(bytes([number])) for number in range(100)]
    async with rustguard_py.connect(ends.one(), engine=engine) as one:
        for _ in range(3):
            async with rustguard_py.connect(ends.other(), engine=engine) as other:
                await other.write_batch(sent)
            assert await collect(one, len(sent)) == sent


@in_loop
async def test_whoever_waits_is_released_when_the_tunnel_is_closed(engine: EngineName) -> None:
    ends = Ends()
    async with rustguard_py.connect(ends.other(), engine=engine, timeout=None, capacity=1) as other:
        tasks = [
            asyncio.create_task(other.read_batch()),
            asyncio.create_task(other.read_batch(timeout=PATIENCE)),
            asyncio.create_task(other.wait_connected()),
        ]
        await asyncio.sleep(0.2)
        await other.close()
        for each in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(each, ClosedError)
        await other.close()
        for attempt in (other.read_batch(), other.write_batch([to_one()]), other.wait_connected()):
            with pytest.raises(ClosedError):
                await attempt
        with pytest.raises(ClosedError):
            other.stats()
        assert other.closed


def test_threads_that_wait_are_released_when_another_closes_the_tunnel(engine: EngineName) -> None:
    ends, errors = Ends(), []

    def use(call: Callable[[], object]) -> None:
        try:
            call()
        except ClosedError as error:
            errors.append(error)

    with rustguard_py.connect(ends.other(), engine=engine, timeout=None) as other:
        calls = (other.read_batch, lambda: other.read_batch(timeout=PATIENCE), other.wait_connected)
        threads = [threading.Thread(target=use, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        closers = [threading.Thread(target=other.close) for _ in range(2)]
        for thread in closers:
            thread.start()
        for thread in (*threads, *closers):
            thread.join(PATIENCE)
        assert len(errors) == len(threads)
        with pytest.raises(ClosedError):
            other.write_batch([to_one()])
    assert other.closed


def _carry(one: SyncTunnel, other: SyncTunnel) -> None:
    assert other.write_batch([to_one(b"x")] * 10) == 10
    got = 0
    while got < 10:
        got += len(one.read_batch(timeout=PATIENCE))


def _work(engine: EngineName) -> None:
    """Open, use and close tunnels, in each way; also those that can't be opened."""
    ends = Ends()
    with ExitStack() as stack:
        one = stack.enter_context(rustguard_py.connect(ends.one(), engine=engine))
        _carry(one, stack.enter_context(rustguard_py.connect(ends.other(), engine=engine)))
    with pytest.raises(UnansweredError), rustguard_py.connect(ends.other(), engine=engine, timeout=0.2):
        pass
    with pytest.raises(UnansweredError), rustguard_py.connect(Ends(host="nowhere.invalid").other(), engine=engine):
        pass

    async def again() -> None:
        async with (
            rustguard_py.connect(ends.one(), engine=engine) as one,
            rustguard_py.connect(ends.other(), engine=engine) as other,
        ):
            await other.write_batch([to_one(b"x")] * 10)
            await collect(one, 10)
            assert await one.read_batch(timeout=0.01) == []
        opening = asyncio.create_task(rustguard_py.connect(ends.other(), engine=engine, timeout=60).__aenter__())
        await asyncio.sleep(0.2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(again())


def test_closing_leaves_no_thread_and_no_descriptor(engine: EngineName) -> None:
    # What Python and its libraries keep from a first use isn't the tunnel's.
    _work(engine)
    before = Belongings.look()
    for _ in range(3):
        _work(engine)
    # The kernel takes a moment to take away a thread that has ended.
    deadline = time.monotonic() + 5
    while (more := Belongings.look().more_than(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert more == set()


@in_loop
async def test_a_tunnel_can_be_opened_again_once_it_is_closed(engine: EngineName) -> None:
    ends = Ends()
    connecting = rustguard_py.connect(ends.one(), engine=engine)
    for _ in range(2):
        async with connecting as one:
            assert one.port == ends.port
            with pytest.raises(UsageError, match="open already"):
                await connecting.__aenter__()
    with connecting as two:
        assert two.port == ends.port


@in_loop
async def test_names_ipv6_and_preshared_keys(engine: EngineName) -> None:
    for host in ("localhost", "::1"):
        ends = Ends(host=host, preshared=(b"p" * 32, b"p" * 32))
        async with (
            rustguard_py.connect(ends.one(), engine=engine) as one,
            rustguard_py.connect(ends.other(), engine=engine) as other,
        ):
            await other.write_batch([to_one(b"x")])
            assert await collect(one, 1) == [to_one(b"x")]
    wrong = Ends(preshared=(b"p" * 32, b"q" * 32))
    async with rustguard_py.connect(wrong.one(), engine=engine):
        with pytest.raises(UnansweredError) as caught:
            async with rustguard_py.connect(wrong.other(), engine=engine, timeout=1):
                pass
        assert "PresharedKey" in caught.value.fix
        assert caught.value.__notes__ == [caught.value.fix]


@in_loop
async def test_a_name_that_nobody_knows_is_an_error_or_looked_up_later(engine: EngineName) -> None:
    ends = Ends(host="nowhere.invalid")
    with pytest.raises(UnansweredError, match=r"nowhere\.invalid"):
        async with rustguard_py.connect(ends.other(), engine=engine):
            pass
    async with rustguard_py.connect(ends.other(), engine=engine, timeout=None) as other:
        with pytest.raises(UnansweredError, match=rf"nowhere\.invalid:{ends.port}, whose name can't be resolved"):
            await other.wait_connected(0.3)


@in_loop
async def test_a_persistent_keepalive_is_sent(engine: EngineName) -> None:
    ends = Ends(keepalive=1)
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine),
    ):
        await eventually(lambda: one.stats().peers[0].rx_packets >= 3)
        assert await one.read_batch(timeout=0) == []


@in_loop
async def test_the_files_mtu_counts_and_a_larger_packet_is_refused(engine: EngineName) -> None:
    ends = Ends(mtu=1280)
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        assert (one.mtu, other.mtu) == (1280, 1280)
        whole = to_one(bytes(1280 - 28))
        with pytest.raises(UsageError, match=r"packets\[1\] has 1281 bytes, and the tunnel's MTU is 1280"):
            await other.write_batch([whole, to_one(bytes(1281 - 28))])
        with pytest.raises(UsageError, match=r"packets\[0\] has 19 bytes"):
            await other.write_batch([bytes(19)])
        await other.write_batch([whole])
        assert await collect(one, 1) == [whole], "the first of the refused batch wasn't taken"


def test_a_busy_loop_delays_no_handshake(engine: EngineName) -> None:
    """The program's loop stands still while the peer shakes hands and sends."""
    ends, done = Ends(), threading.Event()

    def elsewhere() -> None:
        with rustguard_py.connect(ends.other(), engine=engine, timeout=PATIENCE) as other:
            other.write_batch([to_one(b"x")])
            done.set()

    async def main() -> None:
        async with rustguard_py.connect(ends.one(), engine=engine) as one:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            assert done.wait(PATIENCE)
            assert await collect(one, 1) == [to_one(b"x")]
            thread.join()

    asyncio.run(main())


@in_loop
async def test_opening_and_closing_leave_the_loop_to_others(engine: EngineName) -> None:
    gaps = [0.0]

    async def beat() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - before)

    beating, ends = asyncio.create_task(beat()), Ends()
    with pytest.raises(UnansweredError):
        async with rustguard_py.connect(ends.other(), engine=engine, timeout=1):
            pass
    async with rustguard_py.connect(ends.one(), engine=engine), rustguard_py.connect(ends.other(), engine=engine):
        pass
    beating.cancel()
    print(f"{len(gaps)} beats, the longest {max(gaps) * 1000:.0f} ms")
    assert len(gaps) > 20


@in_loop
async def test_a_broken_plane_is_an_error_for_who_reads(engine: EngineName) -> None:
    ends = Ends()
    async with rustguard_py.connect(ends.one(), engine=engine) as one:
        reading = asyncio.create_task(one.read_batch())
        await asyncio.sleep(0.05)
        control, opened = one._running()
        assert control._loop is not None
        control._loop.call_soon_threadsafe(opened.tunnel._on_fault, Fault("it broke", fatal=True))
        with pytest.raises(rustguard_py.RustGuardError, match="The data plane stopped: it broke"):
            await asyncio.wait_for(reading, PATIENCE)
        with pytest.raises(rustguard_py.RustGuardError, match="it broke"):
            await one.write_batch([to_other()])


@in_loop
async def test_sessions_are_renewed_under_traffic(engine: EngineName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keypairs, "REKEY_AFTER_TIME", 1.0)
    monkeypatch.setattr("rustguard_py.node.REKEY_TIMEOUT", 0.2)
    ends, sent = Ends(), 0
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        control, opened = other._running()

        def renew() -> None:
            """Do what the native plane asks for after 120 s, which is fixed in it."""
            for peer in opened.tunnel.node:
                opened.tunnel.node.begin_handshake(peer, now())
            opened.tunnel.wake()

        came: list[bytes] = []
        while other.stats().peers[0].handshakes < 4:
            if engine == "native":
                assert control._loop is not None
                control._loop.call_soon_threadsafe(renew)
            sent += await other.write_batch([to_one(sent.to_bytes(4, "big"))])
            came += map(bytes, await one.read_batch(timeout=0.05))
        came += await collect(one, sent - len(came))
    assert came == [to_one(number.to_bytes(4, "big")) for number in range(sent)]
