"""The proxy as a whole: clients by other people, limits of time, size and number, and what closing leaves."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import socks

from rustguard_py.model.errors import UsageError
from rustguard_py.proxy import dial as dialing
from rustguard_py.proxy import server
from rustguard_py.proxy.dial import dial
from rustguard_py.proxy.forward import Forward
from rustguard_py.proxy.request import Credentials
from rustguard_py.proxy.server import Proxy
from support.proxied import (
    KINDS,
    PATIENCE,
    Kind,
    Loopback,
    descriptors,
    echo,
    make,
    nothing_left,
    proxy,
    served,
    talk,
    until,
)

HELLO = b"\x05\x01\x00"
ALICE = Credentials("alice", "secret")
BODY = os.urandom(3 << 20)


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request of HTTP."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY) + BODY)
    await writer.drain()


@pytest.fixture
def all_files() -> Iterator[None]:
    """Allow as many descriptors as the hard limit does."""
    held = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[1], held[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, held)


def to(port: int) -> bytes:
    return b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "user", "host"),
    [
        (["--socks5", "{}"], "", "127.0.0.1"),
        (["--socks5-hostname", "{}"], "", "web.tunnel"),
        (["--proxytunnel", "--proxy", "http://{}"], "", "web.tunnel"),
        (["--proxy", "socks5h://{}"], "alice:secret", "web.tunnel"),
        (["--proxytunnel", "--proxy", "http://{}"], "alice:secret", "web.tunnel"),
        (["--proxytunnel", "--proxy-anyauth", "--proxy", "http://{}"], "alice:secret", "web.tunnel"),
    ],
)
def test_curl_gets_a_page(kind: Kind, options: list[str], user: str, host: str, tmp_path: Path) -> None:
    async def main() -> None:
        inside = Loopback({"web.tunnel": "127.0.0.1"})
        async with served(web) as port, proxy(kind, inside, credentials=ALICE if user else None) as (_, at):
            curl = ["curl", "-sS", "-m", "20", "-o", str(tmp_path / "page")]
            curl += [each.format(f"127.0.0.1:{at}") for each in options]
            curl += ["--proxy-user", user] if user else []
            env = {**os.environ, "no_proxy": "", "NO_PROXY": ""}
            await asyncio.to_thread(subprocess.run, [*curl, f"http://{host}:{port}/"], check=True, env=env)
            assert (tmp_path / "page").read_bytes() == BODY
            assert inside.asked == [host]

    with nothing_left():
        asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [socks.SOCKS5, socks.HTTP])
@pytest.mark.parametrize("user", [None, "alice"])
def test_pysocks_gets_a_page(kind: Kind, protocol: int, user: str | None) -> None:
    def get(at: int, port: int) -> bytes:
        with socks.socksocket() as client:
            client.set_proxy(protocol, "127.0.0.1", at, True, user, user and "secret")
            client.settimeout(PATIENCE)
            client.connect(("web.tunnel", port))
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            got = b""
            while data := client.recv(1 << 16):
                got += data
            return got

    async def main() -> None:
        inside = Loopback({"web.tunnel": "127.0.0.1"})
        async with served(web) as port, proxy(kind, inside, credentials=ALICE if user else None) as (_, at):
            assert (await asyncio.to_thread(get, at, port)).endswith(BODY)

    asyncio.run(main())


def test_pysocks_is_told_what_went_wrong() -> None:
    def fail(at: int, password: str, host: str, port: int) -> str:
        with socks.socksocket() as client:
            client.set_proxy(socks.SOCKS5, "127.0.0.1", at, True, "alice", password)
            with pytest.raises(socks.ProxyError) as found:
                client.connect((host, port))
        return str(found.value)

    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            async with proxy(credentials=ALICE) as (_, at):
                assert "authentication failed" in await asyncio.to_thread(fail, at, "wrong", "127.0.0.1", port)
                assert "0x05: Connection refused" in await asyncio.to_thread(fail, at, "secret", "127.0.0.1", port)
                assert "0x04: Host unreachable" in await asyncio.to_thread(fail, at, "secret", "no.such", port)

    asyncio.run(main())


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("all_files")
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_connections_at_once(kind: Kind) -> None:
    count = 1000

    async def one(at: int, port: int, all_here: asyncio.Barrier) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", at)
        writer.write(HELLO + to(port))
        assert (await reader.readexactly(12))[3] == 0
        await all_here.wait()
        await all_here.wait()
        payload = os.urandom(5000)
        writer.write(payload)
        assert await reader.readexactly(5000) == payload
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    async def main() -> None:
        async with served(echo) as port, proxy(kind) as (made, at):
            all_here = asyncio.Barrier(count + 1)
            before = len(descriptors())
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                for _ in range(count):
                    tasks.create_task(one(at, port, all_here))
                await all_here.wait()
                assert made.statistics().relay.active == count
                # Its client, its server and the two of the proxy: while nothing waits in them, they have no pipes.
                assert len(descriptors()) - before <= 4 * count + 40
                await all_here.wait()
            await until("all end", lambda: made.statistics().relay.active == 0)
            counted = made.statistics()
            assert (counted.accepted, counted.refused, counted.failed) == (count, 0, 0)
            assert counted.relay.bytes_in == counted.relay.bytes_out == 5000 * count

    with nothing_left():
        asyncio.run(main())


def test_connections_beyond_the_most_are_refused_and_counted() -> None:
    async def main() -> None:
        async with served(echo) as port, proxy(connections=3) as (made, at):
            held = [await asyncio.open_connection("127.0.0.1", at) for _ in range(3)]
            for reader, writer in held[:2]:
                writer.write(HELLO + to(port))
                await reader.readexactly(12)
            await until("two are relayed", lambda: made.statistics().requests == 1)
            with pytest.raises(ConnectionResetError):
                await talk(at, HELLO)
            assert made.statistics().refused == 1
            held[0][1].close()
            await until("there is room", lambda: made.statistics().relay.active == 1)
            assert (await talk(at, HELLO, to(port) + b"x", end=True))[12:] == b"x"
            for _, writer in held:
                writer.close()

    with nothing_left():
        asyncio.run(main())


def test_without_descriptors_it_waits_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSE", 0.02)

    async def main() -> None:
        async with served(echo) as port, proxy() as (made, at):
            client = socket.socket()
            client.setblocking(False)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + 1, limits[1]))
            try:
                filler = []
                while True:
                    try:
                        filler.append(os.open("/dev/null", os.O_RDONLY))
                    except OSError:
                        break
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", at))
                await until("it is counted", lambda: made.statistics().refused >= 2)
                assert made.statistics().accepted == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for each in filler:
                    os.close(each)
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(HELLO + to(port) + b"x")
            assert (await asyncio.wait_for(reader.readexactly(13), PATIENCE))[12:] == b"x"
            writer.close()

    with nothing_left():
        asyncio.run(main())


@pytest.mark.parametrize(
    "sent", [b"", b"\x05", b"\x05\x02\x00", HELLO + b"\x05\x01\x00\x03\xff", b"CONNECT a:1 HTTP/1.1\r\nX: "]
)
def test_a_slow_client_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)

    async def main() -> None:
        async with proxy() as (made, at):
            reader, writer = await asyncio.open_connection("127.0.0.1", at)
            # One byte now and then doesn't help.
            writer.write(sent)
            for _ in range(5):
                await asyncio.sleep(0.04)
                if sent and not made.statistics().failed:
                    writer.write(b"x" if sent.startswith(b"C") else b"\x01")
            try:
                answer = await asyncio.wait_for(reader.read(), PATIENCE)
                assert answer.startswith(b"HTTP/1.1 408 ") or not sent.startswith(b"C")
            except ConnectionResetError:
                assert not sent.startswith(b"C")
            writer.close()
            await until("it is gone", lambda: made.statistics().requests == 0)
            assert made.statistics().failed == 1

    with nothing_left():
        asyncio.run(main())


def test_an_open_proxy_needs_a_password() -> None:
    async def main() -> None:
        for host in ("0.0.0.0", "", "*", "::"):  # noqa: S104 - what is refused
            made = Proxy(Loopback(), relay=make("portable"))
            with pytest.raises(UsageError, match="anyone who reaches this host") as found:
                await made.serve(host, 0)
            assert "127.0.0.1" in found.value.fix
            await made.close()
        made = Proxy(Loopback(), relay=make("portable"), credentials=ALICE)
        assert {each[0] for each in await made.serve("", 0)} == {"0.0.0.0", "::"}  # noqa: S104 - where it listens
        await made.close()
        made = Proxy(Loopback(), relay=make("portable"))
        assert {each[0] for each in await made.serve("localhost", 0)} == {"127.0.0.1", "::1"}
        await made.close()

    with nothing_left():
        asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_closing_leaves_nothing(kind: Kind) -> None:
    class Stuck(Loopback):
        async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
            if host == "stuck":
                await asyncio.sleep(PATIENCE)
            return await super().resolve(host, port)

    async def main() -> None:
        async with served(echo) as port:
            made = Proxy(Stuck(), relay=make(kind))
            [(_, at)] = await made.serve("127.0.0.1", 0)
            [(_, forwarded)] = await made.forward_in(Forward("127.0.0.1", 0, "127.0.0.1", port))
            clients = [await asyncio.open_connection("127.0.0.1", where) for where in (at, at, at, forwarded)]
            clients[1][1].write(HELLO + b"\x05\x01\x00\x03\x05stuck\x00\x50")
            clients[2][1].write(HELLO + to(port))
            assert (await clients[2][0].readexactly(12))[3] == 0
            clients[3][1].write(b"hello")
            assert await clients[3][0].readexactly(5) == b"hello"
            # Nobody is waited for.
            async with asyncio.timeout(5):
                await made.close()
                await made.close()
            for reader, writer in clients:
                with suppress(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), PATIENCE)
                writer.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", at)
            assert made.statistics().relay.active == made.statistics().requests == 0

    with nothing_left():
        asyncio.run(main())


class Addresses(Loopback):
    """A name has several addresses; those of 240.0.0.0/4 never answer."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses = addresses

    async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:  # noqa: ARG002 - as called
        return [(socket.AF_INET, (each, port)) for each in self.addresses]


def test_the_next_address_is_tried_while_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        connect = loop.sock_connect

        async def silent(made: socket.socket, address: Any) -> None:
            if address[0].startswith("240."):
                await asyncio.sleep(PATIENCE)
            if address[0] == "127.0.0.2":
                # It can no longer be given up.
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(PATIENCE)
                address = ("127.0.0.1", address[1])
            await connect(made, address)

        monkeypatch.setattr(loop, "sock_connect", silent)
        monkeypatch.setattr(dialing, "_HEAD_START", 0.05)
        async with served(echo) as port:
            for addresses in (
                ["240.0.0.1", "127.0.0.1"],
                ["127.0.0.1", "240.0.0.1"],
                ["127.9.9.9", "127.0.0.1"],
                ["127.0.0.2", "127.0.0.1"],
            ):
                place = Addresses(*addresses)
                with await dial(place, "name", port, 5) as made:
                    assert made.getpeername() == ("127.0.0.1", port)
                assert {each.fileno() for each in place.opened} == {-1}
            with pytest.raises(TimeoutError):
                await dial(Addresses("240.0.0.1", "240.0.0.2"), "name", port, 0.3)
            with pytest.raises(OSError, match=r"111") as found:
                await dial(Addresses("127.9.9.9", "127.9.9.8"), "name", port, 5)
            assert found.value.errno == errno.ECONNREFUSED

    with nothing_left():
        asyncio.run(main())
