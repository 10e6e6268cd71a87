"""UDP ASSOCIATE: datagrams into the tunnel and back, for the client that associated and as long as it stays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import socks

from rustguard_py.proxy.association import UdpStatistics
from rustguard_py.proxy.server import Proxy
from rustguard_py.proxy.socks import encode_address, parse_datagram
from support.proxied import PATIENCE, Loopback, nothing_left, proxy, until


class Echo(asyncio.DatagramProtocol):
    """Sends each datagram back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


@asynccontextmanager
async def echoing(host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A UDP echo server at a port of loopback."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=(host, 0))
    yield transport.get_extra_info("sockname")[1]
    transport.close()


class Client:
    """A client of SOCKS5 that has associated."""

    def __init__(self, control: asyncio.StreamWriter, where: tuple[str, int]) -> None:
        self.control = control
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setblocking(False)
        self.udp.bind(("127.0.0.1", 0))
        self.where = where

    def send(self, host: str, port: int, payload: bytes, fragment: int = 0) -> None:
        try:
            address = encode_address((host, port))
        except ValueError:
            address = bytes([3, len(host)]) + host.encode() + port.to_bytes(2)
        self.udp.sendto(bytes([0, 0, fragment]) + address + payload, self.where)

    async def receive(self) -> tuple[str, int, bytes]:
        data, source = await asyncio.wait_for(asyncio.get_running_loop().sock_recvfrom(self.udp, 65535), PATIENCE)
        assert source == self.where
        datagram = parse_datagram(data)
        assert datagram is not None
        assert datagram.fragment == 0
        return datagram.host, datagram.port, datagram.payload

    def close(self) -> None:
        self.udp.close()
        self.control.close()


async def associate(at: int, port: int = 0) -> Client:
    """Associate at the proxy, saying that datagrams will come from a port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    writer.write(b"\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00" + port.to_bytes(2))
    answer = await asyncio.wait_for(reader.readexactly(12), PATIENCE)
    assert answer[:6] == b"\x05\x00\x05\x00\x00\x01"
    return Client(writer, (socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:])))


def statistics(made: Proxy) -> UdpStatistics:
    return made.statistics().udp


def test_datagrams_go_by_address_and_by_name_and_answers_name_their_source() -> None:
    async def main() -> None:
        inside = Loopback({"dns.tunnel": "127.0.0.1"})
        async with echoing() as port, echoing("::1") as port6, proxy(inside=inside) as (made, at):
            client = await associate(at)
            assert client.where[0] == "127.0.0.1"
            for host, where, source in (
                ("127.0.0.1", port, "127.0.0.1"),
                ("::1", port6, "::1"),
                ("dns.tunnel", port, "127.0.0.1"),
            ):
                for payload in (b"question", b"?", bytes(60_000)):
                    client.send(host, where, payload)
                    assert await client.receive() == (source, where, payload)
            # Each name is asked for once, and a family has one socket.
            assert inside.asked == ["127.0.0.1", "::1", "dns.tunnel"]
            assert [each.family for each in inside.opened] == [socket.AF_INET, socket.AF_INET6]
            assert statistics(made) == UdpStatistics(associations=1, datagrams_in=9, datagrams_out=9)
            client.close()
            await until("the association ends", lambda: statistics(made).associations == 0)
            assert [each.fileno() for each in inside.opened] == [-1, -1]

    with nothing_left():
        asyncio.run(main())


def test_an_association_ends_with_its_connection_and_with_the_proxy() -> None:
    async def main() -> None:
        async with proxy() as (made, at):
            client = await associate(at)
            assert statistics(made).associations == made.statistics().requests == 1
            # What comes on the connection has no meaning.
            client.control.write(b"anything")
            await asyncio.sleep(0.05)
            assert statistics(made).associations == 1
            client.close()
            await until("it ends", lambda: made.statistics().requests == 0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind(client.where)
            other = await associate(at)
        assert statistics(made).associations == 0
        other.close()

    with nothing_left():
        asyncio.run(main())


def stranger(host: str, port: int, client: Client) -> None:
    """Send a datagram to a client's association from another socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((host, 0))
        made.sendto(b"\0\0\0" + encode_address(("127.0.0.1", port)) + b"theirs", client.where)


def test_fragments_strangers_and_rubbish_are_dropped_and_counted() -> None:
    async def main() -> None:
        async with echoing() as port, proxy() as (made, at):
            client = await associate(at)
            # The first datagram settles the port, but not one from another host.
            stranger("127.0.0.2", port, client)
            client.send("127.0.0.1", port, b"piece", fragment=1)
            client.udp.sendto(b"rubbish", client.where)
            client.send("no.such.name", port, b"lost")
            client.send("127.0.0.1", port, b"mine")
            assert await client.receive() == ("127.0.0.1", port, b"mine")
            stranger("127.0.0.1", port, client)
            await until("both are counted", lambda: statistics(made).strangers == 2)
            assert statistics(made) == UdpStatistics(
                associations=1, datagrams_in=1, datagrams_out=1, fragments=1, malformed=1, strangers=2, dropped=1
            )
            client.close()

    with nothing_left():
        asyncio.run(main())


def test_the_port_that_a_client_names_is_the_only_one() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
            mine.bind(("127.0.0.1", 0))
            async with echoing() as port, proxy() as (made, at):
                client = await associate(at, mine.getsockname()[1])
                client.send("127.0.0.1", port, b"from another port")
                await until("it is counted", lambda: statistics(made).strangers == 1)
                mine.sendto(b"\0\0\0" + encode_address(("127.0.0.1", port)) + b"x", client.where)
                await until("it is answered", lambda: statistics(made).datagrams_out == 1)
                client.close()

    asyncio.run(main())


def test_a_resolver_that_does_not_answer_holds_few_datagrams_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rustguard_py.proxy.association._RESOLVE_SECONDS", 2.0)

    class Silent(Loopback):
        async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
            if host == "silent":
                await asyncio.sleep(PATIENCE)
            return await super().resolve(host, port)

    async def main() -> None:
        async with echoing() as port, proxy(inside=Silent()) as (made, at):
            client = await associate(at)
            client.send("127.0.0.1", port, b"first")
            assert (await client.receive())[2] == b"first"
            for _ in range(80):
                client.send("silent", port, b"x")
            # What needs no resolver goes on at once.
            client.send("127.0.0.1", port, b"second")
            assert (await client.receive())[2] == b"second"
            # One is being sent, 64 wait.
            await until("too many are dropped", lambda: statistics(made).dropped >= 15)
            assert statistics(made).dropped == 15
            await until("the first is given up", lambda: statistics(made).dropped == 16)
            client.close()

    with nothing_left():
        asyncio.run(main())


def test_pysocks_sends_and_receives_datagrams() -> None:
    def ask(at: int, port: int) -> bytes:
        with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.set_proxy(socks.SOCKS5, "127.0.0.1", at, rdns=True)
            client.settimeout(PATIENCE)
            client.sendto(b"hello", ("echo.tunnel", port))
            data, source = client.recvfrom(100)
            assert source == ("127.0.0.1", port)
            return bytes(data)

    async def main() -> None:
        async with echoing() as port, proxy(inside=Loopback({"echo.tunnel": "127.0.0.1"})) as (made, at):
            assert await asyncio.to_thread(ask, at, port) == b"hello"
            await until("it ends", lambda: statistics(made).associations == 0)

    asyncio.run(main())
