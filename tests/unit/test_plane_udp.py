"""The sockets, over loopback."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from rustguard_py.model.endpoint import Endpoint, heard, interface_of, local_of
from rustguard_py.model.errors import RefusedError
from rustguard_py.model.offloads import NONE
from rustguard_py.planes import udp
from rustguard_py.planes.offload import REFUSALS, SOL_UDP, UDP_GRO
from rustguard_py.planes.sources import Sources
from rustguard_py.planes.udp import Udp
from rustguard_py.system.sockets import bind


def loopback(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    return made


class Ends:
    """Two sockets."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.said: list[str] = []
        self.one, self.two = (Udp(loopback(family), self.said.append) for _ in range(2))
        self.into = [memoryview(bytearray(65536))]

    def take(self) -> tuple[bytes, int, Endpoint, int]:
        """The next message at the second socket."""
        assert select.select([self.two.fd], [], [], 60.0)[0]
        size, segment, source, tos = self.two.receive(self.into)
        return bytes(self.into[0][:size]), segment, source, tos


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    both = Ends(request.param)
    yield both
    both.one.close()
    both.two.close()


@pytest.mark.parametrize(
    ("everywhere", "at", "gone"),
    [("0.0.0.0", "127.0.0.2", "192.0.2.9"), ("::", "::1", "2001:db8::9")],  # noqa: S104
)
def test_what_was_heard_at_an_address_is_answered_from_it(everywhere: str, at: str, gone: str) -> None:
    said: list[str] = []
    one, two = (Udp(bind(0, [everywhere])[0], said.append) for _ in range(2))
    into = [memoryview(bytearray(65536))]
    try:
        one.send(b"1" * 30, 10, (at, two.socket.getsockname()[1]))
        assert select.select([two.fd], [], [], 60.0)[0]
        _, _, source, _ = two.receive(into)
        packed = socket.inet_pton(two.family, at)
        assert (local_of(source), interface_of(source)) == (packed, socket.if_nametoindex("lo"))
        for local, from_there in ((packed, True), (socket.inet_pton(two.family, gone), False)):
            for segment in (10, 30):
                assert two.send_from(b"2" * 30, segment, heard(source, local)) is from_there
                assert select.select([one.fd], [], [], 60.0)[0]
                _, _, back, _ = one.receive(into)
                assert back[0] == at or not from_there
        assert said == []
    finally:
        one.close()
        two.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_used_while_the_route_leads_over_its_interface(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    local = socket.inet_pton(family, host)
    remote: Endpoint = (host, 7, 0, 0) if ":" in host else (host, 7)
    sources = Sources()
    try:
        for _ in range(2):
            for number, kept in ((1, True), (9999, False), (0, True), (1, True)):
                usable = sources.usable(heard(remote, local, number))
                assert (usable, local_of(usable)) == (remote, local if kept else None)
            assert sources.usable(remote) is remote
            sources.renew()
        if family == socket.AF_INET:
            assert local_of(sources.usable(heard(remote, b"\xc0\x00\x02\x63", 1))) is None
        sources.set_mark(5)
        assert local_of(sources.usable(heard(remote, local, 1))) == local
    finally:
        sources.close()


def netlink(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    """An answer of the kernel's about a route."""
    body = bytes(12)
    for name, value in attributes:
        body += struct.pack("=HH", 4 + len(value), name) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        pytest.param(None, True, id="the kernel can't be asked"),
        pytest.param(netlink(3), True, id="another answer"),
        pytest.param(netlink(24, (1, bytes(4))), True, id="a route without an interface"),
        pytest.param(netlink(24, (15, b"odd"), (4, struct.pack("=I", 7))), True, id="its interface"),
        pytest.param(netlink(24, (15, b"odd"), (4, struct.pack("=I", 8))), False, id="another interface"),
        pytest.param(netlink(2), False, id="no route"),
    ],
)
def test_an_address_is_given_up_only_for_an_answer_that_says_so(answer: bytes | None, kept: bool) -> None:
    class Questions:
        def send(self, question: bytes) -> int:
            if answer is None:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            return len(question)

        def recv(self, _: int) -> bytes | None:
            return answer

        def close(self) -> None:
            pass

    sources = Sources()
    sources._questions.close()
    sources._questions = cast(socket.socket, Questions())
    local = bytes((192, 0, 2, 1))
    assert local_of(sources.usable(heard(("192.0.2.2", 7), local, 7))) == (local if kept else None)
    sources.close()


def test_a_message_arrives_as_the_datagrams_it_was_cut_into(ends: Ends) -> None:
    message = os.urandom(1000 * 20 + 77)
    ends.one.send(memoryview(message), 1000, ends.two.socket.getsockname())
    got = b""
    while len(got) < len(message):
        part, segment, source, _ = ends.take()
        assert source == ends.one.socket.getsockname()
        assert segment in (1000, len(part))
        got += part
    assert got == message
    assert ends.said == []
    with pytest.raises(BlockingIOError):
        ends.two.receive(ends.into)


def test_a_burst_arrives_with_its_mark(ends: Ends) -> None:
    """Also where the kernel reports the mark together with the size of merged datagrams and their address."""
    target = ends.two.socket.getsockname()
    for tos in (0, 1, 2, 3, 0x88):
        ends.one.send(memoryview(bytes(1000 * 20)), 1000, target, tos)
        ends.one.send(bytes(30), 30, target, tos)
        got, merged = 0, False
        while got < 1000 * 20 + 30:
            part, segment, source, found = ends.take()
            assert (found, local_of(source) is not None) == (tos, True)
            got, merged = got + len(part), merged or len(part) > segment
        assert merged
    assert ends.said == []


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_message_that_the_kernel_will_not_cut_is_sent_datagram_by_datagram(ends: Ends, code: int) -> None:
    real = ends.one.socket
    calls = []

    class Refusing:
        def sendmsg(
            self, parts: Sequence[memoryview], control: Sequence[tuple[int, int, bytes]], flags: int, to: Endpoint
        ) -> int:
            calls.append(bool(control))
            if control:
                raise OSError(code, os.strerror(code))
            return real.sendmsg(parts, control, flags, to)

    ends.one.socket = cast(socket.socket, Refusing())
    for _ in range(2):
        ends.one.send(memoryview(b"a" * 25), 10, ends.two.socket.getsockname())
    ends.one.socket = real
    assert [ends.take()[0] for _ in range(6)] == [b"a" * 10, b"a" * 10, b"a" * 5] * 2
    assert len(set(ends.said)) == 1
    assert calls.count(True) == (2 if code in (errno.EINVAL, errno.EMSGSIZE) else 1)


def test_a_datagram_that_fails_takes_no_other_with_it(ends: Ends) -> None:
    real = ends.one.socket

    class Refusing:
        def sendmsg(self, parts: Sequence[memoryview], *rest: Any) -> int:
            if bytes(parts[0]) == b"b" * 10:
                raise OSError(errno.EPERM, "filtered")
            return real.sendmsg(parts, *rest)

    ends.one.segmenting = False
    ends.one.socket = cast(socket.socket, Refusing())
    with pytest.raises(OSError, match="filtered"):
        ends.one.send(memoryview(b"a" * 10 + b"b" * 10 + b"c" * 5), 10, ends.two.socket.getsockname())
    ends.one.socket = real
    assert [ends.take()[0] for _ in range(2)] == [b"a" * 10, b"c" * 5]


def test_a_read_that_fails_with_merging_is_done_without(ends: Ends) -> None:
    assert ends.two.end_merging()
    assert not ends.two.end_merging()
    assert ends.two.socket.getsockopt(SOL_UDP, UDP_GRO) == 0
    assert len(ends.said) == 1
    ends.one.send(memoryview(b"a" * 20), 10, ends.two.socket.getsockname())
    assert b"".join(ends.take()[0] for _ in range(2)) == b"a" * 20


def test_offloads_that_are_off_are_not_asked_for() -> None:
    bound = loopback(socket.AF_INET)
    made = Udp(bound, pytest.fail, NONE)
    assert (made.segmenting, bound.getsockopt(SOL_UDP, UDP_GRO)) == (False, 0)
    made.close()


def test_a_full_send_buffer_is_waited_for_in_bounded_time(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def sendmsg(self, *_: object) -> int:
            raise BlockingIOError(errno.EAGAIN, "full")

    monkeypatch.setattr(udp, "SEND_PATIENCE", 0.01)
    real, ends.one.socket = ends.one.socket, cast(socket.socket, Full())
    with pytest.raises(TimeoutError):
        ends.one.send(b"x", 1, ends.two.socket.getsockname())
    ends.one.socket = real


def test_both_families_get_one_port() -> None:
    sockets = bind(0, ("127.0.0.1", "::1"))
    assert {made.family for made in sockets} == {socket.AF_INET, socket.AF_INET6}
    assert len({made.getsockname()[1] for made in sockets}) == 1
    with pytest.raises(RefusedError, match="can't be bound"):
        bind(sockets[0].getsockname()[1], ("127.0.0.1",))
    for made in sockets:
        made.close()
