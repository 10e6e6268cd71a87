"""HTTP CONNECT: which requests are served, and what the others are answered."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.model.errors import UsageError
from rustguard_py.proxy.dial import TtlExpiredError
from rustguard_py.proxy.http import HEAD_LIMIT, answer_to, parse_connect
from rustguard_py.proxy.request import Credentials, Refusal
from support.proxied import Loopback, echo, nothing_left, proxy, served, talk

ALICE = Credentials("alice", "se:cret")


def basic(text: str) -> str:
    return f"Proxy-Authorization: Basic {b64encode(text.encode()).decode()}\r\n"


@pytest.mark.parametrize(
    ("head", "target"),
    [
        ("CONNECT files.home:443 HTTP/1.1\r\n\r\n", ("files.home", 443)),
        ("CONNECT files.home:443 HTTP/1.1\r\nHost: x\r\nProxy-Connection: keep-alive\r\n\r\n", ("files.home", 443)),
        ("CONNECT [fd00::7]:1 HTTP/1.0\r\n\r\n", ("fd00::7", 1)),
        ("CONNECT 10.0.0.1:65535 HTTP/1.1\r\nX-Empty:\r\n\r\n", ("10.0.0.1", 65535)),
    ],
)
def test_a_request_is_understood(head: str, target: tuple[str, int]) -> None:
    assert parse_connect(head.encode(), None) == target


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("\r\n\r\n", 400),
        ("CONNECT\r\n\r\n", 400),
        ("CONNECT a:1\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/2\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1 x\r\n\r\n", 400),
        ("CONNECT  a:1 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\nno field\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\nname : x\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\nname: x\x00\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("CONNECT a HTTP/1.1\r\n\r\n", 400),
        ("CONNECT a: HTTP/1.1\r\n\r\n", 400),
        ("CONNECT :1 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT a:0 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT a:65536 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT a:1:2 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT fd00::7:1 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT [fd00::7] HTTP/1.1\r\n\r\n", 400),
        ("CONNECT http://a:1/ HTTP/1.1\r\n\r\n", 400),
        ("CONNECT u@a:1 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT a:1% HTTP/1.1\r\n\r\n", 400),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("POST / HTTP/1.0\r\n\r\n", 405),
        ("connect a:1 HTTP/1.1\r\n\r\n", 405),
        ("PRI * HTTP/2.0\r\n\r\n", 400),
    ],
)
def test_anything_else_is_answered_with_its_status(head: str, status: int) -> None:
    with pytest.raises(Refusal) as found:
        parse_connect(head.encode(), None)
    first, _, rest = found.value.answer.decode().partition("\r\n")
    assert first.startswith(f"HTTP/1.1 {status} ")
    fields, _, body = rest.partition("\r\n\r\n")
    assert f"Content-Length: {len(body)}" in fields
    assert "CONNECT" in body or status == 400
    assert ("Allow: CONNECT" in fields) == (status == 405)


@pytest.mark.parametrize(
    ("fields", "is_let_in"),
    [
        (basic("alice:se:cret"), True),
        (basic("alice:se:cret").replace("Basic", "bAsIc").replace("Proxy-A", "proxy-a"), True),
        ("", False),
        (basic("alice:secret"), False),
        (basic("bob:se:cret"), False),
        (basic("alice"), False),
        (basic(""), False),
        ("Proxy-Authorization: Basic ***\r\n", False),
        ("Proxy-Authorization: Bearer YWxpY2U6c2U6Y3JldA==\r\n", False),
        ("Authorization: Basic YWxpY2U6c2U6Y3JldA==\r\n", False),
        (basic("alice:se:cret") * 2, False),
    ],
)
def test_credentials_are_checked(fields: str, is_let_in: bool) -> None:
    head = f"CONNECT a:1 HTTP/1.1\r\n{fields}\r\n".encode()
    if is_let_in:
        assert parse_connect(head, ALICE) == ("a", 1)
        return
    with pytest.raises(Refusal) as found:
        parse_connect(head, ALICE)
    assert found.value.answer.startswith(b"HTTP/1.1 407 ")
    assert b'Proxy-Authenticate: Basic realm="rustguard"\r\n' in found.value.answer


def test_the_password_is_not_shown() -> None:
    assert "se:cret" not in repr(ALICE)


@pytest.mark.parametrize(
    ("user", "password"), [("", "x"), ("x", ""), ("a:b", "x"), ("a" * 256, "x"), ("x", "é" * 128)]
)
def test_credentials_that_cannot_be_sent_are_refused(user: str, password: str) -> None:
    with pytest.raises(UsageError, match="can't be sent"):
        Credentials(user, password)


@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=99).map(lambda text: f"CONNECT {text}:1 HTTP/1.1".encode()))
)
def test_no_head_is_more_than_refused(head: bytes) -> None:
    try:
        host, port = parse_connect(head + b"\r\n\r\n", None)
    except Refusal:
        return
    assert host.isascii()
    assert not set(host) & set(" \r\n/@[]\0")
    assert 1 <= port <= 65535


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            502,
            "name a can't be resolved in the tunnel",
        ),
        (OSError(errno.ECONNREFUSED, "Connection refused"), 502, "no connection to a:1: Connection refused"),
        (TimeoutError(), 504, "a:1 doesn't answer"),
        (TtlExpiredError(errno.EHOSTUNREACH, "x"), 504, "too many routers"),
        (OSError("odd"), 502, "odd"),
    ],
)
def test_an_error_is_named(error: OSError, status: int, says: str) -> None:
    answer = answer_to(error, "a", 1).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert says in answer
    assert "[fd00::7]:1" in answer_to(TimeoutError(), "fd00::7", 1).decode()


def test_bytes_behind_the_head_are_early_data() -> None:
    async def main() -> None:
        async with served(echo) as port, proxy() as (_, at):
            head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            for pieces in ([head + b"early, ", b"late"], [head[:9], head[9:-1], head[-1:] + b"early, late"]):
                answer = await talk(at, *pieces, end=True)
                assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nearly, late"

    with nothing_left():
        asyncio.run(main())


def test_an_endless_head_and_a_plain_request_are_answered() -> None:
    async def main() -> None:
        async with proxy(inside=(inside := Loopback())) as (made, at):
            assert (await talk(at, b"CONNECT a:1 HTTP/1.1\r\nX: " + b"x" * 2 * HEAD_LIMIT)).startswith(
                b"HTTP/1.1 431 "
            )
            assert b"CONNECT" in await talk(at, b"POST http://a/ HTTP/1.1\r\n\r\n" + os.urandom(100_000))
            assert (await talk(at, b"CONNECT no.such:1 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
            assert inside.asked == ["no.such"]
            assert made.statistics().failed == 3

    with nothing_left():
        asyncio.run(main())
