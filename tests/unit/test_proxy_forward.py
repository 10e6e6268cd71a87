"""`-L` and `-R` are understood as ssh(1) writes them, and carry connections into the tunnel and out of it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress
from typing import Literal

import pytest

from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.proxy.failures import Failures
from rustguard_py.proxy.forward import Forward, parse_forward
from rustguard_py.proxy.outside import Outside
from rustguard_py.proxy.server import Proxy, _fix_for
from support.proxied import KINDS, PATIENCE, Kind, Loopback, echo, make, nothing_left, served, talk, until


@pytest.mark.parametrize(
    ("option", "text", "forward"),
    [
        ("-L", "8080:files.home:80", Forward("localhost", 8080, "files.home", 80)),
        ("-R", "8080:localhost:80", Forward("", 8080, "localhost", 80)),
        ("-L", "127.0.0.9:8080:10.88.0.7:80", Forward("127.0.0.9", 8080, "10.88.0.7", 80)),
        ("-L", "localhost:1:a:65535", Forward("localhost", 1, "a", 65535)),
        ("-L", "[::1]:8080:[fd00::7]:80", Forward("::1", 8080, "fd00::7", 80)),
        ("-L", "8080:[fd00::7]:80", Forward("localhost", 8080, "fd00::7", 80)),
        ("-R", "[fe80::1%wg0]:8080:[::1]:80", Forward("fe80::1%wg0", 8080, "::1", 80)),
        ("-L", "*:8080:a:80", Forward("", 8080, "a", 80)),
        ("-L", ":8080:a:80", Forward("", 8080, "a", 80)),
        ("-R", "[::]:8080:a_b.c-d:80", Forward("::", 8080, "a_b.c-d", 80)),
    ],
)
def test_each_form_is_understood(option: Literal["-L", "-R"], text: str, forward: Forward) -> None:
    assert parse_forward(option, text) == forward


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        "8080:80",
        "8080:a",
        "8080::80",
        "8080:a:b",
        "a:8080:b:c",
        "8080:a:80:",
        "8080:a:80:90:100",
        "::1:8080:a:80",
        "8080:fd00::7:80",
        "[::1:8080:a:80",
        "8080:[a]b:80",
        "0:a:80",
        "8080:a:0",
        "65536:a:80",
        "8080:a:65536",
        "8080:a:123456",
        "-1:a:80",
        "8080: a:80",
        "8080:a b:80",
        "8080:*:80",
        "8080:a\n:80",
        "8080:a:80\n",
        "٣:a:80",
        "8080:[]:80",
        "a/b:8080:c:80",
        "8080:" + "a" * 256 + ":80",
    ],
)
def test_what_has_another_form_is_refused_with_the_form(text: str) -> None:
    for option in ("-L", "-R"):
        with pytest.raises(UsageError) as found:
            parse_forward(option, text)
        assert found.value.message.startswith(f"{option} ")
        assert "[ADDR:]PORT:HOST:PORT" in found.value.message
        assert f"{option} 8080:" in found.value.fix


@pytest.mark.parametrize("kind", KINDS)
def test_l_leads_into_the_tunnel_and_r_out_of_it(kind: Kind) -> None:
    async def main() -> None:
        inside = Loopback({"files.tunnel": "127.0.0.1"})
        proxy = Proxy(inside, relay=make(kind))
        async with served(echo) as port:
            into = await proxy.forward_in(Forward("localhost", 0, "files.tunnel", port))
            assert {each[0] for each in into} == {"127.0.0.1", "::1"}
            assert len({each[1] for each in into}) == 1
            assert await talk(into[0][1], b"into", b" it", end=True) == b"into it"
            assert inside.asked == ["files.tunnel"]
            made = len(inside.opened)
            # Its listening sockets are made in the tunnel, at every address, and what connects isn't.
            out = await proxy.forward_out(Forward("", 0, "localhost", port))
            assert {each[0] for each in out} == {"0.0.0.0", "::"}  # noqa: S104 - where it listens
            assert len(inside.opened) == made + 2
            assert await talk(out[0][1], b"out", end=True) == b"out"
            assert len(inside.opened) == made + 2
            await until("both end", lambda: proxy.statistics().relay.active == 0)
            assert (proxy.statistics().relay.bytes_in, proxy.statistics().relay.bytes_out) == (10, 10)
        await proxy.close()

    with nothing_left():
        asyncio.run(main())


def test_a_forward_that_leads_nowhere_resets_its_client() -> None:
    async def main() -> None:
        proxy = Proxy(Loopback(), relay=make("portable"))
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            [(_, port)] = await proxy.forward_in(Forward("127.0.0.1", 0, "127.0.0.1", unused.getsockname()[1]))
            with pytest.raises(ConnectionResetError):
                await talk(port)
        assert proxy.statistics().failed == 1
        await proxy.close()

    asyncio.run(main())


def test_an_address_that_is_taken_or_not_ours_is_named() -> None:
    async def main() -> None:
        proxy = Proxy(Loopback(), relay=make("portable"))
        [(_, port)] = await proxy.serve("127.0.0.1", 0)
        with pytest.raises(RefusedError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            await proxy.forward_in(Forward("127.0.0.1", port, "a", 1))
        with pytest.raises(RefusedError, match="Cannot assign requested address"):
            await proxy.forward_out(Forward("192.0.2.1", 0, "a", 1))
        with pytest.raises(RefusedError, match="Name or service not known"):
            await proxy.forward_out(Forward("no.such.name", 0, "a", 1))
        await proxy.close()

    with nothing_left():
        asyncio.run(main())


def test_the_outside_resolves_names_and_makes_sockets_that_do_not_block() -> None:
    async def main() -> None:
        found = await Outside().resolve("localhost", 80)
        assert (socket.AF_INET, ("127.0.0.1", 80)) in found
        with await Outside().open_socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            assert not made.getblocking()
            assert not made.get_inheritable()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_failures_are_logged_with_their_reason_and_not_too_often(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    failures = Failures("-L", "files.home:80", lambda: now)
    for error in (ConnectionRefusedError(111, "Connection refused"), TimeoutError(), OSError(19, "No such device")):
        failures.report(error)
    for _ in range(100):
        failures.report(socket.gaierror(-2, "Name or service not known"))
    assert caplog.messages[:3] == [
        "-L to files.home:80: no connection: Connection refused",
        "-L to files.home:80: no connection: Connection timed out",
        "-L to files.home:80: no connection: No such device",
    ]
    assert (
        caplog.messages[3:]
        == ["-L to files.home:80: no connection: the name isn't resolved (Name or service not known)"] * 2
    )
    now = 61.0
    failures.report(ConnectionRefusedError(111, "Connection refused"))
    assert caplog.messages[-1].endswith("Connection refused (and 98 more that weren't logged)")


@pytest.mark.parametrize("option", ["-L", "-R"])
def test_a_forward_that_leads_nowhere_is_in_the_log(
    option: Literal["-L", "-R"], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            nowhere = probe.getsockname()[1]
        proxy = Proxy(Loopback())
        try:
            work = proxy.forward_in if option == "-L" else proxy.forward_out
            ((_, port, *_),) = await work(Forward("127.0.0.1", 0, "127.0.0.1", nowhere))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()
            assert f"{option} to 127.0.0.1:{nowhere}: no connection: Connection refused" in caplog.messages
        finally:
            await proxy.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("number", "port", "here", "inside"),
    [
        (errno.EADDRINUSE, 8080, "`ss -ltnp 'sport = 8080'`", "`rustguard exec -- ss -ltnp 'sport = 8080'`"),
        (errno.EACCES, 80, "net.ipv4.ip_unprivileged_port_start=80", "port from 1024 on"),
        (errno.EADDRNOTAVAIL, 80, "This machine doesn't have", "The tunnel's network doesn't have"),
        (errno.ENOBUFS, 80, "Choose another", "Choose another"),
    ],
)
def test_each_reason_why_a_port_cannot_be_had_has_its_fix(number: int, port: int, here: str, inside: str) -> None:
    error = OSError(number, os.strerror(number))
    assert here in _fix_for(error, port, is_inside=False)
    assert inside in _fix_for(error, port, is_inside=True)


def test_a_name_that_is_not_known_has_a_fix_of_its_own() -> None:
    assert "address in place of the name" in _fix_for(socket.gaierror(-2, "unknown"), 80, is_inside=False)
