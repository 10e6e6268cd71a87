"""wg(8) on a tunnel of `serve` or `join`: which changes it may make, and that a refused request changes nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, cast

import pytest

from rustguard_py.daemon.uapi.fixed import FixedTunnel
from rustguard_py.daemon.uapi.protocol import UapiError, format_endpoint, parse_set
from rustguard_py.model.keys import NO_PRESHARED_KEY, clamp, public_key
from rustguard_py.model.peer import PeerConfig
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import EventfulPlane
from rustguard_py.tunnel import Tunnel
from support.memory_plane import MemoryPlane

KEY, PORT = bytes([0x5A]) * 32, 51820
FIRST, SECOND, STRANGER = (bytes([number]) * 32 for number in (1, 2, 3))
PSK = bytes([7]) * 32
HINT = "use `rustguard peers`"


class Plane(MemoryPlane):
    """A plane in memory that also has a mark."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.marks: list[int] = []

    def set_fwmark(self, mark: int) -> None:
        self.marks.append(mark)


class NoTimestamps(dict[bytes, bytes]):
    greatest = dict.get
    record = dict.__setitem__


@dataclass
class Bench:
    plane: Plane = field(default_factory=lambda: Plane(public_key(KEY)))

    def __post_init__(self) -> None:
        plane = cast(EventfulPlane, self.plane)
        self.tunnel = Tunnel.make(KEY, plane, cast(Any, NoTimestamps()), Listeners())
        self.tunnel.node.set_peer(PeerConfig(FIRST, (ip_network("10.0.0.1/32"),), PSK, ("192.0.2.1", 1), 25))
        self.tunnel.node.set_peer(PeerConfig(SECOND, (ip_network("10.0.0.2/32"), ip_network("10.9.0.0/16"))))
        self.fixed = FixedTunnel(self.tunnel, KEY, PORT, HINT)

    def set(self, *lines: str) -> None:
        self.fixed.change(parse_set(lines))

    def endpoint(self, key: bytes = FIRST) -> object:
        return next(peer.endpoint for peer in self.tunnel.node if peer.config.public_key == key)

    def everything(self) -> object:
        configs = [(peer.config, peer.endpoint) for peer in self.tunnel.node]
        return self.fixed.show(), configs, list(self.plane.marks), sorted(self.plane.transport.peers)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.tunnel.close()


def test_all_of_it_is_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = bench.fixed.show()
    assert (shown.private_key, shown.listen_port, shown.fwmark) == (clamp(KEY), PORT, 0)
    first, second = shown.peers
    assert (first.public_key, first.preshared_key, first.endpoint) == (FIRST, PSK, ("192.0.2.1", 1))
    assert (first.persistent_keepalive, list(map(str, first.allowed_ips))) == (25, ["10.0.0.1/32"])
    assert (first.last_handshake, first.rx_bytes, first.tx_bytes) == (0, 0, 0)
    assert (second.endpoint, second.preshared_key, second.persistent_keepalive) == (None, NO_PRESHARED_KEY, 0)
    # A peer that the plane doesn't count yet has moved nothing.
    monkeypatch.setattr(bench.plane, "stats", lambda: PlaneStats({}))
    assert bench.fixed.show() == shown
    for secret in (PSK, clamp(KEY)):
        assert repr(secret) not in repr(shown)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([f"private_key={'5b' * 32}"], "the private key"),
        ([f"private_key={'00' * 32}"], "the private key"),
        (["listen_port=51821"], "the port"),
        (["listen_port=0"], "the port"),
        (["replace_peers=true"], "which peers there are"),
        ([f"public_key={STRANGER.hex()}"], "which peers there are"),
        ([f"public_key={SECOND.hex()}", "remove=true"], "which peers there are"),
        ([f"public_key={FIRST.hex()}", f"preshared_key={'08' * 32}"], "a peer's preshared key"),
        ([f"public_key={FIRST.hex()}", f"preshared_key={'00' * 32}"], "a peer's preshared key"),
        ([f"public_key={SECOND.hex()}", "persistent_keepalive_interval=1"], "a peer's keepalive"),
        ([f"public_key={FIRST.hex()}", "persistent_keepalive_interval=0"], "a peer's keepalive"),
        ([f"public_key={SECOND.hex()}", "replace_allowed_ips=true"], "a peer's allowed IPs"),
        ([f"public_key={SECOND.hex()}", "allowed_ip=10.8.0.0/16"], "a peer's allowed IPs"),
        ([f"public_key={SECOND.hex()}", "allowed_ip=-10.9.0.0/16"], "a peer's allowed IPs"),
        ([f"public_key={SECOND.hex()}", "allowed_ip=10.0.0.1/32"], "a peer's allowed IPs"),
    ],
)
def test_what_would_contradict_the_state_is_refused_with_everything_else_in_the_request(
    bench: Bench, lines: list[str], what: str
) -> None:
    before = bench.everything()
    with pytest.raises(UapiError) as refused:
        bench.set("fwmark=9", *lines, f"public_key={FIRST.hex()}", "endpoint=198.51.100.7:4")
    assert refused.value.code == errno.EPERM
    assert str(refused.value) == f"{what} can't be changed here: {HINT}"
    assert bench.everything() == before


def test_endpoints_and_the_mark_change_and_the_mark_is_set_only_when_it_does(bench: Bench) -> None:
    bench.set(f"public_key={FIRST.hex()}", "endpoint=198.51.100.7:4")
    assert (bench.endpoint(), bench.endpoint(SECOND), bench.plane.marks) == (("198.51.100.7", 4), None, [])
    bench.set("fwmark=9")
    bench.set("fwmark=9")
    assert (bench.plane.marks, bench.fixed.show().fwmark) == ([9], 9)
    bench.set("fwmark=")
    assert (bench.plane.marks, bench.fixed.show().fwmark) == ([9, 0], 0)
    # A stranger who is only to be updated isn't there.
    bench.set(f"public_key={STRANGER.hex()}", "update_only=true", "endpoint=198.51.100.7:4")
    assert len(bench.fixed.show().peers) == 2


def test_what_is_so_already_may_be_repeated_also_with_all_peers_replaced(bench: Bench) -> None:
    ids = [peer.id for peer in bench.tunnel.node]
    bench.set(
        f"private_key={KEY.hex()}",
        f"listen_port={PORT}",
        "fwmark=0",
        "replace_peers=true",
        *(f"public_key={FIRST.hex()}", f"preshared_key={PSK.hex()}", "persistent_keepalive_interval=25"),
        *("allowed_ip=10.0.0.1/32", "endpoint=192.0.2.1:1"),
        *(f"public_key={SECOND.hex()}", "allowed_ip=10.9.0.0/16", "allowed_ip=10.0.0.2/32"),
    )
    assert [peer.id for peer in bench.tunnel.node] == ids
    assert bench.plane.marks == []


def test_what_wg_syncconf_sends_for_a_file_without_key_port_and_mark_resets_none_of_them(bench: Bench) -> None:
    bench.set("fwmark=9")
    bench.set(f"private_key={'00' * 32}", "listen_port=0", "fwmark=0")
    assert (bench.plane.marks, bench.fixed.show().listen_port, bench.fixed.show().fwmark) == ([9], PORT, 9)
    # It always sends the three. One that is sent without the others is meant.
    bench.set("fwmark=0")
    assert bench.plane.marks == [9, 0]
    for lines in (("listen_port=0", "fwmark=0"), (f"private_key={'00' * 32}", "listen_port=0")):
        with pytest.raises(UapiError):
            bench.set(*lines)


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (("192.0.2.1", 1), "192.0.2.1:1"),
        (("2001:db8::1", 65535), "[2001:db8::1]:65535"),
        (("2001:db8::1", 1, 0, 0), "[2001:db8::1]:1"),
        (("fe80::1", 1, 0, 3), "[fe80::1%3]:1"),
        (("fe80::1%eth0", 1, 0, 3), "[fe80::1%eth0]:1"),
    ],
)
def test_an_endpoint_has_brackets_and_one_scope_at_most(endpoint: Any, text: str) -> None:
    assert format_endpoint(endpoint) == text


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("endpoint=192.0.2.1:1", ("192.0.2.1", 1)),
        ("endpoint=192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("endpoint=[::ffff:192.0.2.1]:7", ("192.0.2.1", 7)),
        ("endpoint=[fe80::1%4294967295]:7", ("fe80::1", 7, 0, 4294967295)),
        ("persistent_keepalive_interval=0", 0),
        ("persistent_keepalive_interval=65535", 65535),
        ("preshared_key=" + "00" * 32, NO_PRESHARED_KEY),
        ("remove=true", True),
        ("update_only=true", True),
        ("replace_allowed_ips=true", True),
    ],
)
def test_the_first_and_the_last_value_are_values(line: str, value: object) -> None:
    (peer,) = parse_set([f"public_key={FIRST.hex()}", line]).peers
    name = line.partition("=")[0].replace("persistent_keepalive_interval", "persistent_keepalive")
    assert getattr(peer, name) == value


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("listen_port=0", 0),
        ("listen_port=65535", 65535),
        ("fwmark=0", 0),
        ("fwmark=0xffffffff", 0xFFFFFFFF),
        ("replace_peers=true", True),
        ("private_key=" + "00" * 32, bytes(32)),
    ],
)
def test_so_are_those_of_the_interface(line: str, value: object) -> None:
    change = parse_set([line])
    assert getattr(change, line.partition("=")[0]) == value
    assert change.peers == []
