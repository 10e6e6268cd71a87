"""SOCKS5: its messages byte by byte, its replies, and its username and password."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.proxy.dial import TtlExpiredError
from rustguard_py.proxy.incoming import Incoming
from rustguard_py.proxy.request import Credentials, Refusal
from rustguard_py.proxy.socks import (
    Datagram,
    Reply,
    Request,
    encode_address,
    greet,
    parse_datagram,
    read_request,
    reply_to,
    wrap_datagram,
)
from support.proxied import KINDS, PATIENCE, Kind, Loopback, echo, nothing_left, proxy, served, talk

HELLO = b"\x05\x01\x00"
AGREED = b"\x05\x00"
ALICE = Credentials("alice", "secret")


def to(host: str, port: int, command: int = 1) -> bytes:
    """Return a request."""
    try:
        packed = ip_address(host).packed
        where = bytes([1 if len(packed) == 4 else 4]) + packed
    except ValueError:
        where = bytes([3, len(host)]) + host.encode()
    return bytes([5, command, 0]) + where + port.to_bytes(2)


@pytest.mark.parametrize("kind", KINDS)
def test_connect_by_address_and_by_name(kind: Kind) -> None:
    async def main() -> None:
        inside = Loopback({"files.tunnel": "127.0.0.1"})
        async with served(echo) as port, served(echo, "::1") as port6, proxy(kind, inside) as (made, at):
            for host, where in (("127.0.0.1", port), ("::1", port6), ("files.tunnel", port)):
                answer = await talk(at, HELLO, to(host, where) + b"early, ", b"late", end=True)
                local = inside.opened[-1]
                assert answer[:2] == AGREED
                size = 22 if host == "::1" else 10
                assert answer[2:5] == b"\x05\x00\x00"
                assert answer[2 + size :] == b"early, late"
                # The address is the one inside the tunnel.
                assert answer[5] == (4 if host == "::1" else 1)
                assert ip_address(answer[6:size]).is_loopback
                assert local.fileno() == -1, "the relay has taken it"
            assert inside.asked == ["127.0.0.1", "::1", "files.tunnel"]
            assert made.statistics().relay.added == 3

    with nothing_left():
        asyncio.run(main())


def test_everything_at_once_byte_by_byte() -> None:
    async def main() -> None:
        async with served(echo) as port, proxy() as (_, at):
            whole = HELLO + to("127.0.0.1", port) + b"early"
            for pieces in ([whole], [bytes([each]) for each in whole]):
                assert (await talk(at, *pieces, end=True))[12:] == b"early"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"\x00\x5b" + bytes(6)),
        (b"\x00", b""),
        (b"\x16\x03\x01", b""),
        (b"\x05\x00", b"\x05\xff"),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x02\x01\x80", b"\x05\xff"),
        (HELLO + b"\x04\x01\x00\x01", AGREED + b"\x05\x01\x00\x01" + bytes(6)),
        (HELLO + b"\x05\x01\x00\x02", AGREED + b"\x05\x08\x00\x01" + bytes(6)),
        (HELLO + b"\x05\x01\x00\x00", AGREED + b"\x05\x08\x00\x01" + bytes(6)),
        (HELLO + to("127.0.0.1", 9, 2), AGREED + b"\x05\x07\x00\x01" + bytes(6)),
        (HELLO + to("127.0.0.1", 9, 0), AGREED + b"\x05\x07\x00\x01" + bytes(6)),
        (HELLO + to("127.0.0.1", 9, 9), AGREED + b"\x05\x07\x00\x01" + bytes(6)),
        (HELLO + b"\x05\x01\x00\x03\x00\x00\x50", AGREED + b"\x05\x01\x00\x01" + bytes(6)),
        (HELLO + to("a b", 80), AGREED + b"\x05\x01\x00\x01" + bytes(6)),
        (HELLO + to("a\x00", 80), AGREED + b"\x05\x01\x00\x01" + bytes(6)),
        (HELLO + to("é", 80)[:-3] + b"\xc3\xa9\x00\x50", AGREED + b"\x05\x01\x00\x01" + bytes(6)),
        (HELLO + to("no.such", 80), AGREED + b"\x05\x04\x00\x01" + bytes(6)),
    ],
)
def test_what_is_malformed_or_not_supported_is_answered(sent: bytes, answer: bytes) -> None:
    async def main() -> None:
        async with proxy() as (made, at):
            try:
                assert await talk(at, sent, end=True) == answer
            except ConnectionResetError:
                assert answer == b""
            assert made.statistics().failed == 1
            assert made.statistics().relay.added == 0

    with nothing_left():
        asyncio.run(main())


@pytest.mark.parametrize(
    "sent", [HELLO[:2], HELLO + b"\x05", HELLO + to("127.0.0.1", 9)[:-1], HELLO + to("abc", 9)[:6]]
)
def test_a_request_that_breaks_off_ends_its_connection(sent: bytes) -> None:
    async def main() -> None:
        async with proxy() as (made, at):
            with suppress(ConnectionResetError):
                assert await talk(at, sent, end=True) in (b"", AGREED)
            assert made.statistics().failed == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ECONNREFUSED, ""), Reply.REFUSED),
        (OSError(errno.ENETUNREACH, ""), Reply.NETWORK_UNREACHABLE),
        (OSError(errno.ENETDOWN, ""), Reply.NETWORK_UNREACHABLE),
        (OSError(errno.EHOSTUNREACH, ""), Reply.HOST_UNREACHABLE),
        (socket.gaierror(socket.EAI_NONAME, ""), Reply.HOST_UNREACHABLE),
        (TimeoutError(), Reply.TTL_EXPIRED),
        (OSError(errno.ETIMEDOUT, ""), Reply.TTL_EXPIRED),
        (TtlExpiredError(errno.EHOSTUNREACH, ""), Reply.TTL_EXPIRED),
        (OSError(errno.EAFNOSUPPORT, ""), Reply.ADDRESS_NOT_SUPPORTED),
        (OSError(errno.EMFILE, ""), Reply.FAILED),
        (OSError("odd"), Reply.FAILED),
    ],
)
def test_the_reply_is_true_to_the_error(error: OSError, code: Reply) -> None:
    assert reply_to(error) == code


def test_replies_to_errors_of_real_connections() -> None:
    async def main() -> None:
        inside = Loopback({"elsewhere": "240.0.0.1", "loop6": "::1"})
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with proxy(inside=inside) as (_, at):
                answer = await talk(at, HELLO, to("127.0.0.1", unused.getsockname()[1]))
                assert answer[3] == Reply.REFUSED
                inside.refuses = OSError(errno.ENETDOWN, "Network is down")
                assert (await talk(at, HELLO, to("127.0.0.1", 1)))[3] == Reply.NETWORK_UNREACHABLE

    with nothing_left():
        asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\x05\x01\x00", b"\x05\xff"),
        (b"\x05\x01\x02\x01\x05alice\x06secreT", b"\x05\x02\x01\x01"),
        (b"\x05\x02\x00\x02\x01\x05alicE\x06secret", b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02\x01\x00\x00", b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02\x02\x05alice\x06secret", b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02\x01\x05alice\x06secret", b"\x05\x02\x01\x00"),
        (b"\x05\x03\x00\x01\x02\x01\x05alice\x06secret", b"\x05\x02\x01\x00"),
    ],
)
def test_username_and_password_are_asked_for_if_there_are_any(sent: bytes, answer: bytes) -> None:
    async def main() -> None:
        async with served(echo) as port, proxy(credentials=ALICE) as (made, at):
            answered = await talk(at, sent + to("127.0.0.1", port) + b"in", end=True)
            assert answered[: len(answer)] == answer
            is_in = answer.endswith(b"\x00")
            assert answered[len(answer) :][10:] == (b"in" if is_in else b"")
            assert made.statistics().failed == (not is_in)

    with nothing_left():
        asyncio.run(main())


@given(st.binary(max_size=300))
def test_no_stream_of_bytes_is_more_than_refused(data: bytes) -> None:
    async def main() -> None:
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            other.sendall(data)
            other.shutdown(socket.SHUT_WR)
            client = Incoming(one)
            try:
                await greet(client, ALICE if len(data) % 2 else None)
                request = await read_request(client)
            except (EOFError, Refusal):
                return
            assert isinstance(request, Request)
            assert 0 <= request.port <= 65535
            assert request.host.isascii()
            assert data.endswith(client.rest())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@given(st.binary(max_size=300))
def test_no_datagram_is_more_than_dropped(data: bytes) -> None:
    found = parse_datagram(data)
    if found is not None:
        assert data.endswith(found.payload)
        assert found.host.isascii()
        assert 7 <= len(data) - len(found.payload) <= 262


@given(st.sampled_from([("10.0.0.1", 53), ("fd00::7", 65535, 0, 0), ("fe80::1%lo", 1, 0, 1)]), st.binary(max_size=50))
def test_a_datagram_comes_back_as_it_was_wrapped(source: tuple[str, int], payload: bytes) -> None:
    found = parse_datagram(wrap_datagram(source, payload))
    assert found == Datagram(0, source[0].partition("%")[0], source[1], payload)


@pytest.mark.parametrize(
    ("data", "datagram"),
    [
        (b"\0\0\x07\x03\x01a\x00\x35x", Datagram(7, "a", 53, b"x")),
        (b"\0\0\0\x01\x0a\0\0\x01\0\x35", Datagram(0, "10.0.0.1", 53, b"")),
        (b"\0\0\0\x01\x0a\0\0\x01\0", None),
        (b"\0\x01\0\x01\x0a\0\0\x01\0\x35x", None),
        (b"\x01\0\0\x01\x0a\0\0\x01\0\x35x", None),
        (b"\0\0\0\x02\x0a\0\0\x01\0\x35x", None),
        (b"\0\0\0\x03\x00\0\x35x", None),
        (b"\0\0\0\x03\x05a\0\x35", None),
        (b"\0\0\0\x03\x01 \0\x35", None),
        (b"\0\0\0\x04" + bytes(17), None),
        (b"", None),
    ],
)
def test_the_header_of_a_datagram(data: bytes, datagram: Datagram | None) -> None:
    assert parse_datagram(data) == datagram


def test_an_ipv4_address_in_an_ipv6_socket_is_written_as_ipv4() -> None:
    assert encode_address(("::ffff:10.0.0.1", 80, 0, 0)) == b"\x01\x0a\0\0\x01\0\x50"
