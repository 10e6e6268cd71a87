"""Both relays move bytes unchanged, pass on ends and resets, stop for slow readers, and leave nothing open."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import resource
import select
import socket
import struct
import threading

import pytest

from rustguard_py.proxy.relay import Ended, Relay, RelayStatistics, Room, make_relay, raise_limit_of_files, room_for
from support.proxied import KINDS, PATIENCE, Kind, ends, make, nothing_left, tcp, until

pytestmark = pytest.mark.parametrize("kind", KINDS)


def joined(relay: Relay, early: bytes = b"") -> tuple[socket.socket, socket.socket]:
    """Return what a client and a server see that a relay joins."""
    (client, outside), (inside, server) = tcp(), tcp()
    relay.add(outside.detach(), inside.detach(), early)
    return client, server


async def read(source: socket.socket, count: int = -1) -> bytes:
    """Return so many bytes, or all to the end of the stream."""
    loop, data = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(PATIENCE):
        while len(data) != count and (piece := await loop.sock_recv(source, 1 << 16)):
            data += piece
    return bytes(data)


async def write(sink: socket.socket, data: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sink, data), PATIENCE)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def fill(sink: socket.socket, most: int = 1 << 27) -> int:
    """Write until nothing more is taken for a while. Return how much was.

    The kernel's buffers of a connection grow to some tens of megabytes.
    """
    sent, rests = 0, 0
    while rests < 20:
        try:
            sent += sink.send(bytes(1 << 16))
            rests = 0
        except BlockingIOError:
            rests += 1
            await asyncio.sleep(0.01)
        assert sent < most, "nobody reads, and still it takes more"
    return sent


def test_early_bytes_come_first_and_everything_is_counted(kind: Kind) -> None:
    async def main() -> None:
        relay = make(kind)
        client, server = joined(relay, b"early ")
        await write(client, b"and later")
        assert await read(server, 15) == b"early and later"
        await write(server, b"back")
        assert await read(client, 4) == b"back"
        assert relay.statistics().active == 1
        client.close()
        server.close()
        assert await ends(relay) == [Ended(0, "finished", 15, 4)]
        counted = relay.statistics()
        copied = 19 if kind == "portable" else 0
        assert counted == RelayStatistics(added=1, bytes_in=15, bytes_out=4, bytes_copied=copied)
        relay.close()

    with nothing_left():
        asyncio.run(main())


@pytest.mark.parametrize("first", ["outside", "inside"])
def test_the_end_of_a_stream_is_passed_on_while_the_other_goes_on(kind: Kind, first: str) -> None:
    async def main() -> None:
        relay = make(kind)
        client, server = joined(relay)
        one, other = (client, server) if first == "outside" else (server, client)
        await write(one, b"question")
        one.shutdown(socket.SHUT_WR)
        assert await read(other) == b"question"
        await write(other, b"answer")
        assert await read(one, 6) == b"answer"
        assert relay.ended() == []
        other.shutdown(socket.SHUT_WR)
        assert await read(one) == b""
        assert [each.how for each in await ends(relay)] == ["finished"]
        for each in (client, server):
            each.close()
        relay.close()

    asyncio.run(main())


@pytest.mark.parametrize("first", ["outside", "inside"])
def test_a_reset_is_passed_on(kind: Kind, first: str) -> None:
    async def main() -> None:
        relay = make(kind)
        client, server = joined(relay)
        one, other = (client, server) if first == "outside" else (server, client)
        await write(one, b"before")
        assert await read(other, 6) == b"before"
        reset(one)
        with pytest.raises(ConnectionResetError):
            await read(other)
        assert [each.how for each in await ends(relay)] == ["reset"]
        assert relay.statistics().resets == 1
        other.close()
        relay.close()

    with nothing_left():
        asyncio.run(main())


def test_a_hundred_megabytes_arrive_unchanged_both_ways(kind: Kind) -> None:
    size = 100 << 20
    block = random.Random(5).randbytes(1 << 20)

    def send(sink: socket.socket, sent: list[str]) -> None:
        digest = hashlib.sha256()
        for number in range(size >> 20):
            piece = number.to_bytes(8) + block[8:]
            digest.update(piece)
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
        sent.append(digest.hexdigest())

    def receive(source: socket.socket, received: list[str]) -> None:
        digest = hashlib.sha256()
        while data := source.recv(1 << 18):
            digest.update(data)
        received.append(digest.hexdigest())

    async def main() -> None:
        relay = make(kind)
        client, server = joined(relay)
        hashes: list[list[str]] = [[], [], [], []]
        threads = []
        for number, (sink, source) in enumerate([(client, server), (server, client)]):
            sink.settimeout(PATIENCE * 3)
            threads.append(threading.Thread(target=send, args=(sink, hashes[2 * number])))
            threads.append(threading.Thread(target=receive, args=(source, hashes[2 * number + 1])))
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert hashes[0] == hashes[1] == hashes[2] == hashes[3]
        assert len(hashes[0]) == 1
        assert await ends(relay) == [Ended(0, "finished", size, size)]
        for each in (client, server):
            each.close()
        relay.close()

    asyncio.run(main())


def test_a_slow_reader_stops_its_writer_in_bounded_memory(kind: Kind) -> None:
    async def main() -> None:
        relay = make(kind)
        client, server = joined(relay)
        # What the relay adds to the kernel's own buffers is at most a pipe, or what is read at once.
        sent = await fill(client)
        client.shutdown(socket.SHUT_WR)
        assert len(await read(server)) == sent
        for each in (client, server):
            each.close()
        await ends(relay)
        relay.close()

    asyncio.run(main())


def test_one_that_never_reads_does_not_stop_the_others(kind: Kind) -> None:
    async def main() -> None:
        relay = make(kind)
        stuck = [joined(relay) for _ in range(4)]
        for client, _ in stuck:
            await fill(client)
        client, server = joined(relay)
        await write(client, b"hello")
        assert await read(server, 5) == b"hello"
        for each in (client, server, *(end for pair in stuck for end in pair)):
            each.close()
        relay.close()

    with nothing_left():
        asyncio.run(main())


def test_an_idle_connection_ends_and_a_busy_one_does_not(kind: Kind) -> None:
    async def main() -> None:
        relay = make(kind, idle=0.4)
        quiet, busy = joined(relay), joined(relay)
        found: list[Ended] = []
        for _ in range(60):
            await write(busy[0], b"x")
            assert await read(busy[1], 1) == b"x"
            found += relay.ended()
            await asyncio.sleep(0.02)
        assert [(each.number, each.how) for each in found] == [(0, "idle")]
        assert await read(quiet[0]) == b""
        assert relay.statistics().idle == 1
        for each in (*quiet, *busy):
            each.close()
        relay.close()

    asyncio.run(main())


def test_too_many_are_refused_and_closed(kind: Kind) -> None:
    async def main() -> None:
        relay = make(kind, connections=1)
        client, server = joined(relay)
        (refused, outside), (inside, other) = tcp(), tcp()
        with pytest.raises(OSError, match="Too many open files") as found:
            relay.add(outside.detach(), inside.detach(), b"")
        assert found.value.errno == errno.EMFILE
        assert await read(refused) == await read(other) == b""
        assert relay.statistics().refused == 1
        # An end that nobody has taken keeps its place.
        client.close()
        server.close()
        await until("it ends", lambda: relay.statistics().active == 0)
        (third, outside), (inside, fourth) = tcp(), tcp()
        with pytest.raises(OSError, match="Too many open files"):
            relay.add(outside.detach(), inside.detach(), b"")
        third.close()
        fourth.close()
        assert select.select([relay.fileno()], [], [], PATIENCE)[0]
        assert len(relay.ended()) == 1
        assert not select.select([relay.fileno()], [], [], 0)[0]
        for each in (refused, other, *joined(relay)):
            each.close()
        relay.close()

    with nothing_left():
        asyncio.run(main())


def test_closing_ends_connections_and_resets_those_that_bytes_wait_in(kind: Kind) -> None:
    async def main() -> None:
        relay = make(kind)
        quiet, full = joined(relay), joined(relay)
        await fill(full[0])
        relay.close()
        relay.close()
        assert await read(quiet[0]) == await read(quiet[1]) == b""
        with pytest.raises(ConnectionResetError):
            await read(full[1])
        for each in (*quiet, *full):
            each.close()
        (client, outside), (inside, server) = tcp(), tcp()
        with pytest.raises(OSError, match="shutdown") as found:
            relay.add(outside.detach(), inside.detach(), b"")
        assert found.value.errno == errno.ESHUTDOWN
        assert (relay.statistics().active, relay.statistics().added) == (0, 2)
        assert relay.ended() == []
        for each in (client, server):
            each.close()

    with nothing_left():
        asyncio.run(main())


def test_the_choice_and_its_room(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "portable":
        monkeypatch.setitem(__import__("sys").modules, "rustguard_py.proxy.native_relay", None)

    async def main() -> str:
        relay = make_relay(Room(connections=3, pipes=1))
        relay.close()
        return type(relay).__name__

    with nothing_left():
        assert asyncio.run(main()) == ("NativeRelay" if kind == "native" else "PortableRelay")
    for limit, used in ((1024, 30), (4096, 500), (20, 30), (1 << 20, 64)):
        room = room_for(limit, used)
        assert room.connections >= 1
        assert 2 * (room.connections + room.pipes) <= max(limit - used - 64, 2)
    assert room_for(4096, 64).connections > 1500
    held = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, held[1]))
        assert raise_limit_of_files().connections > 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (held[1], held[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, held)
