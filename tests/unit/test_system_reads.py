"""What the kernel says about links, routes, rules and changes, message by message as the kernel writes them.

The kernel's end is played here; `tests/hosts` has the real one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Network, ip_network
from typing import Any, cast

import pytest

from rustguard_py.model.errors import RefusedError
from rustguard_py.system import changes, kernel_view, netlink_batch, networks, sockets
from rustguard_py.system.changes import ChangeWatch
from rustguard_py.system.kernel_view import Link, RuleSeen, View, split

# include/uapi/linux/netlink.h and rtnetlink.h
ERROR, DONE, DUMP = 2, 3, 0x300
NEWLINK, DELLINK, DELADDR, DELROUTE, DELRULE = 16, 17, 21, 25, 33
GETLINK, GETADDR, GETROUTE, GETRULE = 18, 22, 26, 34
BLACKHOLE, UNICAST = 6, 1
V4, V6 = socket.AF_INET, socket.AF_INET6


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def message(kind: int, body: bytes, port: int = 0, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, port) + body + bytes(-len(body) % 4)


def link(index: int, flags: int, name: str = "", mtu: int = 1420) -> bytes:
    head = struct.pack("=BxHiII", 0, 65534, index, flags, 0)
    return head + attribute(3, name.encode() + b"\0") + number(4, mtu)


def route(family: int, length: int, *attributes: bytes, table: int = 254, kind: int = UNICAST) -> bytes:
    return struct.pack("=BBBBBBBBI", family, length, 0, 0, table, 3, 0, kind, 0) + b"".join(attributes)


class Kernel:
    """It answers each kind of request, and family, with these bodies."""

    def __init__(self, answers: dict[tuple[int, int], list[bytes]], refusals: dict[tuple[int, int], int]) -> None:
        self._answers, self._refusals = answers, refusals
        self._mail: list[bytes] = []
        self.asked: list[tuple[int, int, int, bytes]] = []

    def send(self, request: bytes) -> None:
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", request)
        assert length == len(request)
        asked = kind, request[16]
        self.asked.append((*asked, flags, request[16:]))
        if asked in self._refusals:
            self._mail.append(message(ERROR, struct.pack("=i", -self._refusals[asked]), sequence=sequence))
            return
        self._mail += [message(kind - 2, body, sequence=sequence) for body in self._answers.get(asked, ())]
        if flags & DUMP:
            self._mail.append(message(DONE, bytes(4), sequence=sequence))

    def recv(self, _: int) -> bytes:
        return self._mail.pop(0)

    def read(self, work: Callable[..., None], *arguments: Any) -> View:
        view = View()
        work(cast(socket.socket, self), *arguments, view)
        return view


def test_a_link_has_its_number_its_mtu_and_whether_it_is_up() -> None:
    for flags, up in ((0x1043, True), (0x1042, False)):
        kernel = Kernel({(GETLINK, 0): [link(7, flags, "wg0", 1280)]}, {})
        assert kernel.read(kernel_view._read_link, "wg0").links == {"wg0": Link(7, up, 1280)}
        assert b"wg0\0" in kernel.asked[0][3]
    assert Kernel({}, {(GETLINK, 0): errno.ENODEV}).read(kernel_view._read_link, "wg0").links == {}


def test_addresses_are_those_of_the_interface_and_of_our_end() -> None:
    def address(index: int, family: int, length: int, *attributes: bytes) -> bytes:
        return struct.pack("=BBBBI", family, length, 0, 0, index) + b"".join(attributes)

    ours, far = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    six = bytes([0xFD, *[0] * 14, 1])
    bodies = [
        address(7, V4, 32, attribute(1, far), attribute(2, ours)),
        address(7, V6, 64, attribute(1, six)),
        address(8, V4, 24, attribute(2, far)),
        address(7, V4, 24),
    ]
    view = Kernel({(GETADDR, 0): bodies}, {}).read(kernel_view._read_addresses, 7)
    assert view.addresses == {7: {(ours, 32), (six, 64)}}


def test_routes_are_the_unicast_ones_that_lead_to_us_in_their_table_each_once() -> None:
    ten = attribute(1, bytes([10, 0, 0, 0]))
    hops = b"".join(struct.pack("=HBBi", 8, 0, 0, index) for index in (7, 9))
    long = struct.pack("=HBBi", 16, 0, 0, 7) + bytes(8) + struct.pack("=HBBi", 8, 0, 0, 9)
    four = [
        route(V4, 8, ten, number(4, 7)),
        route(V4, 8, ten, number(4, 7)),
        route(V4, 8, ten, number(4, 9)),
        route(V4, 8, ten, attribute(9, hops)),
        route(V4, 16, ten, attribute(9, long)),
        route(V4, 0, number(4, 7), number(15, 51820), table=252),
        route(V4, 24, ten, number(4, 7), kind=BLACKHOLE),
    ]
    kernel = Kernel({(GETROUTE, V4): four, (GETROUTE, V6): [route(V6, 0, number(4, 7))]}, {})
    view = kernel.read(kernel_view._read_routes, 7, {7})
    seven, both = frozenset({7}), frozenset({7, 9})
    assert view.routes == {
        (254, split("10.0.0.0/8")): [seven, both],
        (254, split("10.0.0.0/16")): [both],
        (51820, split("0.0.0.0/0")): [seven],
        (254, split("::/0")): [seven],
    }
    # The kernel is asked for those over the interface only.
    assert [body[12:] for *_, body in kernel.asked] == [number(4, 7)] * 2


def test_rules_have_their_place_table_and_mark_and_a_kernel_without_ipv6_has_none_of_it() -> None:
    four = [
        route(V4, 0, table=255),
        route(V4, 0, number(6, 100), number(14, 0), number(15, 254), table=254),
        route(V4, 0, number(6, 101), number(10, 51820), number(14, 0xFFFFFFFF), number(15, 51820), table=252),
    ]
    for code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        view = Kernel({(GETRULE, V4): four}, {(GETRULE, V6): code}).read(kernel_view._read_rules)
        assert view.rules == {
            RuleSeen(4, 0, 255, 0, False),
            RuleSeen(4, 100, 254, 0, True),
            RuleSeen(4, 101, 51820, 51820, False),
        }
    with pytest.raises(PermissionError):
        Kernel({}, {(GETRULE, V4): errno.EPERM}).read(kernel_view._read_rules)


def test_a_prefix_is_as_the_kernel_writes_it() -> None:
    assert split("10.0.0.1/24") == (bytes([10, 0, 0, 1]), 24)
    assert split("fd00::1/64") == (bytes([0xFD, *[0] * 14, 1]), 64)
    assert kernel_view.network_of("10.0.0.9/24") == "10.0.0.0/24"


class Watched:
    """A watch for changes, and what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: dict[int, int] = {}
        self.ends: dict[int, socket.socket] = {}
        self.told: list[tuple[str | None, str | None]] = []
        monkeypatch.setattr(changes, "_listen", self._listen)
        monkeypatch.setattr(changes, "program", lambda port: f"program {port}" if port else None)
        self.watch = ChangeWatch(lambda kind, by: self.told.append((kind, by)), table="rustguard-")
        self.watch.indices, self.watch.names = {7}, {"wg0"}

    def _listen(self, protocol: int, groups: int) -> Any:
        mine, self.ends[protocol] = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.groups[protocol] = groups
        return _Netlink(mine, protocol)

    async def hears(self, protocol: int, *sent: bytes) -> list[tuple[str | None, str | None]]:
        for each in sent:
            self.ends[protocol].send(each)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        told, self.told[:] = list(self.told), []
        return told


class _Netlink:
    def __init__(self, inner: socket.socket, protocol: int) -> None:
        self._inner, self.proto = inner, protocol
        self.fileno, self.recv, self.close = inner.fileno, inner.recv, inner.close


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Watched], Any]], None]:
    def run(test: Callable[[Watched], Any]) -> None:
        async def main() -> None:
            made = Watched(monkeypatch)
            try:
                await test(made)
            finally:
                made.watch.close()
                made.watch.close()
                for each in made.ends.values():
                    each.close()

        asyncio.run(main())

    return run


def test_only_what_can_take_something_of_ours_away_is_told(watched: Callable[..., None]) -> None:
    async def main(made: Watched) -> None:
        assert made.groups[socket.NETLINK_ROUTE] == 0b1000000010111010001
        hears = made.hears
        assert await hears(0, message(NEWLINK, link(7, 0x1), 5)) == [("link", "program 5")]
        assert made.watch.take_downs() == set()
        assert await hears(0, message(NEWLINK, link(7, 0x0), 5)) == [("link", "program 5")]
        assert (made.watch.take_downs(), made.watch.take_downs()) == ({7}, set())
        # One of another number may have our name: it was made again.
        assert await hears(0, message(NEWLINK, link(8, 0x0, "wg0"))) == [("link", None)]
        assert made.watch.take_downs() == set()
        assert await hears(0, message(DELLINK, link(8, 0, "eth0"))) == []
        address = struct.pack("=BBBBI", V4, 24, 0, 0, 7)
        assert await hears(0, message(DELADDR, address)) == [("address", None)]
        assert await hears(0, message(DELADDR, address[:4] + struct.pack("=I", 8))) == []
        assert await hears(0, message(DELROUTE, route(V4, 8, number(4, 7)))) == [("route", None)]
        assert await hears(0, message(DELROUTE, route(V4, 8, number(4, 8)))) == []
        assert await hears(0, message(DELROUTE, route(V4, 8))) == [("route", None)]
        assert await hears(0, message(DELRULE, route(V4, 8), 9)) == [("rule", "program 9")]
        # What is new, and several at once.
        assert await hears(0, message(24, route(V4, 8, number(4, 7)))) == []
        two = message(DELRULE, route(V4, 8)) + message(DELADDR, address)
        assert await hears(0, two) == [("rule", None), ("address", None)]

    watched(main)


def test_of_the_firewall_only_our_tables_are_told_with_who_changed_them(watched: Callable[..., None]) -> None:
    async def main(made: Watched) -> None:
        assert made.groups[12] == 1 << 6
        ours = message(10 << 8 | 2, bytes(4) + attribute(1, b"rustguard-wg0\0"), 4)
        others = message(10 << 8 | 2, bytes(4) + attribute(1, b"filter\0"), 4)
        named = message(10 << 8 | 15, bytes(4) + number(1, 5) + attribute(3, b"nft\0"), 4)
        unnamed = message(10 << 8 | 15, bytes(4) + number(1, 5), 4)
        foreign = message(9 << 8 | 2, bytes(4) + attribute(1, b"rustguard-wg0\0"), 4)
        assert await made.hears(12, ours + others + named) == [("firewall", "nft")]
        assert await made.hears(12, others + ours + unnamed) == [("firewall", "program 4")]
        assert await made.hears(12, others + named, foreign + named) == []

    watched(main)


class Message(dict[str, Any]):
    get_attr = dict.get


def test_the_networks_in_use_are_those_of_addresses_and_of_routes_of_the_main_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Netlink:
        def get_addr(self) -> list[Message]:
            return [
                Message(index=2, prefixlen=24, IFA_ADDRESS="192.168.1.5", IFA_LOCAL="192.168.1.5"),
                Message(index=2, prefixlen=64, IFA_ADDRESS="fe80::1"),
                Message(index=2, prefixlen=64, IFA_ADDRESS="fd00::1"),
                Message(index=3, prefixlen=32, IFA_ADDRESS="10.8.0.1", IFA_LOCAL="10.8.0.2"),
                Message(index=9, prefixlen=24, IFA_ADDRESS="172.16.0.1", IFA_LOCAL="172.16.0.1"),
                Message(index=9, prefixlen=24),
            ]

        def get_routes(self, *, table: int) -> list[Message]:
            assert table == 254
            main = {"type": UNICAST, "table": 254, "RTA_OIF": 2}
            return [
                Message(main, dst_len=8, RTA_DST="10.0.0.0", RTA_GATEWAY="192.168.1.1"),
                Message(main, dst_len=0),
                Message(main, dst_len=1, RTA_DST="128.0.0.0"),
                Message(main, dst_len=2, RTA_DST="64.0.0.0"),
                Message(main, dst_len=64, RTA_DST="fe80::"),
                Message(main, dst_len=16, RTA_DST="10.1.0.0", type=BLACKHOLE),
                Message(main, dst_len=16, RTA_DST="10.2.0.0", RTA_TABLE=255),
                Message(main, dst_len=16, RTA_DST="10.3.0.0", RTA_OIF=None, RTA_MULTIPATH=[1, 2]),
            ]

    monkeypatch.setattr(networks, "with_netlink", lambda work: work(cast(Any, Netlink())))
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(2, "eth0"), (3, "tun0")])
    assert [(str(network), what) for network, what in networks.taken_networks({"tun0"})] == [
        ("192.168.1.0/24", "address 192.168.1.5/24 on eth0"),
        ("fd00::/64", "address fd00::1/64 on eth0"),
        ("172.16.0.0/24", "address 172.16.0.1/24 on 9"),
        ("10.0.0.0/8", "route 10.0.0.0/8 via 192.168.1.1 on eth0"),
        ("64.0.0.0/2", "route 64.0.0.0/2 on eth0"),
        ("10.3.0.0/16", "route 10.3.0.0/16 over several gateways"),
    ]
    found = dict(networks.taken_networks())
    assert [found[ip_network(f"10.8.0.{each}/32")] for each in (1, 2)] == ["address 10.8.0.2/32 on tun0"] * 2


def test_a_new_ula_is_a_64_of_forty_random_bits() -> None:
    made = networks.make_ula(lambda count: bytes(range(1, count + 1)))
    assert str(made) == "fd01:203:405::/64"


def test_a_proposal_begins_away_from_what_is_usual_and_goes_around_what_is_taken() -> None:
    assert networks.propose([]) == IPv4Network("10.150.0.0/24")
    assert networks.propose([ip_network("10.150.0.0/23")]) == IPv4Network("10.150.2.0/24")
    assert networks.propose([ip_network("10.0.0.0/8"), ip_network("0.0.0.0/0")]) == IPv4Network("172.24.0.0/24")
    assert networks.propose([ip_network("10.128.0.0/9")]) == IPv4Network("10.0.0.0/24")
    everything = [ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    assert networks.propose(everything) is None
    assert networks.propose([], 8) == IPv4Network("10.0.0.0/8")
    assert networks.propose([ip_network("10.0.0.0/30")], 8) is None


def test_a_batch_has_the_answer_of_each_request() -> None:
    class Channel:
        """It refuses the second of three, and acknowledges the last."""

        def sendto(self, data: bytes, _: object) -> None:
            self.sequences, self.flags, at = [], [], 0
            while at < len(data):
                size, _, flags, sequence, _ = struct.unpack_from("=IHHII", data, at)
                self.sequences.append(sequence)
                self.flags.append(flags)
                at += size

        def recv(self, size: int) -> bytes:
            assert size >= 1 << 15
            codes = {1: -errno.EEXIST, 2: 0}
            first = message(ERROR, struct.pack("=i", -errno.EPERM), sequence=self.sequences[0] - 1)
            return first + b"".join(
                message(ERROR, struct.pack("=i", code), sequence=self.sequences[place])
                for place, code in codes.items()
            )

    channel = Channel()
    requests = [netlink_batch.route(f"10.{each}.0.0/16", 7, 254, add=True) for each in range(3)]
    assert netlink_batch._exchange(cast(socket.socket, channel), requests, 20) == [0, errno.EEXIST, 0]
    assert channel.sequences == [20, 21, 22]
    # Only the last is acknowledged: the answers to all of them would not fit.
    assert [bool(flags & 0x4) for flags in channel.flags] == [False, False, True]


class Sockets:
    """Stands in for the module `socket`: binding fails as it is told, and what was made is closed or returned."""

    def __init__(self, refusals: dict[str, list[int]], *, families: tuple[int, ...] = (V4, V6)) -> None:
        self.refusals, self._families, self.open, self.tried = refusals, families, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def socket(self, family: int, _: int) -> Any:
        if family not in self._families:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        self.open += 1
        return _Bound(self)


class _Bound:
    def __init__(self, of: Sockets) -> None:
        self._of, self._port = of, 0

    def setsockopt(self, *_: int) -> None:
        pass

    def bind(self, address: tuple[str, int]) -> None:
        self._of.tried += 1
        if waiting := self._of.refusals.get(address[0]):
            code = waiting.pop(0)
            raise OSError(code, os.strerror(code))
        self._port = address[1] or 40000

    def getsockname(self) -> tuple[str, int]:
        return "", self._port

    def close(self) -> None:
        self._of.open -= 1


@pytest.mark.parametrize(
    ("port", "there", "ports"),
    [
        (0, Sockets({}), [40000, 40000]),
        (7, Sockets({}), [7, 7]),
        # A family that is off, or that the kernel lacks, is left out.
        (7, Sockets({"::": [errno.EADDRNOTAVAIL]}), [7]),
        (7, Sockets({}, families=(V4,)), [7]),
        (7, Sockets({}, families=(V6,)), [7]),
        # A port that is free in one family only: another one is tried, sixteen in all.
        (0, Sockets({"::": [errno.EADDRINUSE] * 15}), [40000, 40000]),
    ],
)
def test_one_port_is_bound_in_each_family_that_there_is(
    monkeypatch: pytest.MonkeyPatch, port: int, there: Sockets, ports: list[int]
) -> None:
    monkeypatch.setattr(sockets, "socket", there)
    assert [each.getsockname()[1] for each in sockets.bind(port)] == ports
    assert there.open == len(ports)


@pytest.mark.parametrize(
    ("port", "there", "tried", "why"),
    [
        (7, Sockets({"::": [errno.EADDRINUSE]}), 2, "UDP port 7 can't be bound: Address already in use"),
        (0, Sockets({"::": [errno.EADDRINUSE] * 16}), 32, "can't be bound"),
        (0, Sockets({"::": [errno.EACCES]}), 2, "Permission denied"),
        (7, Sockets({"0.0.0.0": [errno.EADDRNOTAVAIL]}), 1, "Cannot assign"),  # noqa: S104
        (7, Sockets({}, families=()), 0, "neither IPv4 nor IPv6"),
    ],
)
def test_what_can_not_be_bound_is_refused_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, port: int, there: Sockets, tried: int, why: str
) -> None:
    monkeypatch.setattr(sockets, "socket", there)
    with pytest.raises(RefusedError, match=why):
        sockets.bind(port)
    assert (there.open, there.tried) == (0, tried)
