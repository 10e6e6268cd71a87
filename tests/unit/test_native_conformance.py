"""The native plane decides as the Python planes do: the same suite, and one script that drives both.

In a script both worlds have the same keys, the same chance and the same clock, so their datagrams are the same byte
for byte; after each step everything that can be seen of the two is compared.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.planes.contract import HandshakeReceived, HandshakeWanted, Keypair, KeypairConfirmed, Reason
from rustguard_py.planes.gate import LOADED_QUEUE
from rustguard_py.planes.offload import PLAIN_VNET, Vnet
from rustguard_py.protocol import cookie
from rustguard_py.protocol.wire import COOKIE_REPLY, INITIATION, INITIATION_SIZE, RESPONSE_SIZE, parse_cookie_reply
from support.batch_plane import BatchPlane, Host
from support.memory_plane import MemoryPlane
from support.native_memory_plane import NativeMemoryPlane
from support.packets import checksums_hold, superpacket, tcp_packet, udp_packet, with_mark
from support.plane_conformance import PEER, Pair, PlaneConformance, to_alice

if TYPE_CHECKING:
    from rustguard_py import _native

pytest.importorskip("rustguard_py._native", reason="the native plane isn't built here (no cargo at installation)")

EXAMPLES = 5_000 if os.environ.get("RUSTGUARD_SOAK") else 100
ALICE: Endpoint = ("192.0.2.1", 51820)
BOB: Endpoint = ("192.0.2.2", 51820)
PLACES: list[Endpoint] = [ALICE, BOB, ("192.0.2.77", 1), ("2001:db8::9", 4000, 0, 0), ("2001:db8::9", 4001, 0, 0)]
ADDRESSES = {"alice": ["10.9.0.1", "fd00::1"], "bob": ["10.9.0.2", "fd00::2"]}
STRANGER = ["10.9.0.3", "fd00::3"]
STEPS = [0.01, 0.3, 1.0, 4.9, 5.0, 10.0, 10.1, 15.0, 15.4, 30.0, 119.0, 120.0, 165.0, 180.0]


class NativeBatchPlane(NativeMemoryPlane):
    """The same, a batch at a time: what goes to the device is cut again as the host does it.

    Attributes:
        written: What was written to the device, with virtio_net_hdr.
    """

    def __init__(self, public_key: bytes, **options: Any) -> None:
        super().__init__(public_key, **options)
        self.written: list[bytes] = []
        self._host = Host()
        self._rules = cast("_native.Transport", self.transport)

    def from_host(self, packets: list[tuple[Vnet | None, bytes]]) -> None:
        frames = [(vnet.encode() if vnet else PLAIN_VNET) + packet for vnet, packet in packets]
        self._rules.handle_frames(frames, self.now)
        self._flush()

    def packet_out(self, packet: bytes) -> None:
        self.from_host([(None, packet)])

    def message_in(self, datagrams: list[bytes], source: Endpoint, tos: int = 0) -> None:
        message = (b"".join(datagrams), len(datagrams[0]), source, tos)
        frames = self._rules.handle_messages([message], self.now)
        self._flush()
        self.written += frames
        for frame in frames:
            self.delivered += self._host.take(frame)

    def datagram_in(self, datagram: bytes, source: Endpoint, tos: int = 0) -> None:
        self.message_in([datagram], source, tos)


class _NativeConformance(PlaneConformance):
    def test_a_responder_uses_its_keypair_once_it_is_confirmed(self, pair: Pair) -> None:
        pair.handshake()
        pair.bob.packet_out(to_alice())
        assert pair.bob.outgoing == []
        assert pair.bob.take_events() == [HandshakeWanted(PEER, Reason.NO_SESSION)]
        pair.carry()
        (confirmed,) = pair.bob.take_events()
        assert isinstance(confirmed, KeypairConfirmed)
        assert confirmed.peer == PEER
        pair.carry()
        assert pair.alice.delivered == [to_alice()]


class TestNativeRules(_NativeConformance):
    def make_plane(self, public_key: bytes) -> MemoryPlane:
        return NativeMemoryPlane(public_key)


class TestNativeBatches(_NativeConformance):
    def make_plane(self, public_key: bytes) -> MemoryPlane:
        return NativeBatchPlane(public_key)


# -- one script, two worlds -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class World:
    """Alice and Bob on one kind of plane, and the datagrams under way between them: (to whom, datagram)."""

    ends: dict[str, Any]
    backlog: list[int]
    wire: list[tuple[str, bytes]]

    @classmethod
    def make(cls, kind: Callable[..., MemoryPlane], seed: int) -> World:
        backlog = [0]
        ends = {
            name: kind(
                name.encode().ljust(32), random=random.Random(f"{seed} {name}").randbytes, backlog=lambda: backlog[0]
            )
            for name in ADDRESSES
        }
        world = cls(ends, backlog, [])
        for name in ends:
            world.set_peer(name, 0)
        return world

    def set_peer(self, name: str, keepalive: int, endpoint: Endpoint | None = None) -> None:
        far = other(name)
        networks = [ip_network(each) for each in ADDRESSES[far]]
        self.ends[name].set_peer(PEER, endpoint or (ALICE if far == "alice" else BOB), networks, keepalive)

    def handshake(self, initiator: str, keys: bytes, installed: str) -> None:
        """Fresh keys at both ends, or at one alone: the other's message was lost."""
        indices = {name: end.reserve_index(PEER) for name, end in self.ends.items()}
        for name in (other(initiator), initiator):
            send, receive = (keys[:32], keys[32:]) if name == "alice" else (keys[32:], keys[:32])
            end = self.ends[name]
            pair = Keypair(indices[name], indices[other(name)], send, receive, name == initiator, end.now)
            if installed in ("both", name):
                end.install_keypair(PEER, pair)

    def collect(self) -> None:
        """Put on the wire what the ends have sent since."""
        for name, end in self.ends.items():
            self.wire += [(other(name), datagram) for _, datagram in end.outgoing]

    def seen(self) -> dict[str, Any]:
        """All that can be seen since the last look."""
        self.collect()
        looks = {
            name: (
                (list(end.tos), end.take_outgoing()),
                end.take_events(),
                end.take_delivered(),
                end.stats(),
                end.transport.poll_timeout(),
            )
            for name, end in self.ends.items()
        }
        del self.wire[:-200]
        return looks


def other(name: str) -> str:
    return "bob" if name == "alice" else "alice"


names = st.sampled_from(["alice", "bob"])
places = st.sampled_from(PLACES)
families = st.integers(0, 1)
picks = st.integers(0, 199)
steps = st.one_of(
    st.tuples(
        st.just("packet"),
        names,
        families,
        st.sampled_from(["own", "own", "own", "forged", "stray"]),
        st.integers(0, 1500),
    ),
    st.tuples(st.just("packet"), names, families, st.sampled_from(["own", "forged"]), st.integers(0, 99)),
    st.tuples(st.just("carry"), st.integers(1, 8)),
    st.tuples(
        st.just("deliver"), picks, st.sampled_from(["take", "copy", "copy", "roam", "flip", "cut"]), places, picks
    ),
    st.tuples(st.just("lose"), picks),
    st.tuples(
        st.just("handshake"),
        names,
        st.binary(min_size=64, max_size=64),
        st.sampled_from(["both", "both", "alice", "bob"]),
    ),
    st.tuples(st.just("advance"), st.sampled_from(STEPS)),
    st.tuples(st.just("peer"), names, st.sampled_from([0, 1, 25]), places),
    st.tuples(
        st.just("command"), names, st.sampled_from(["remove_peer", "erase_keypairs", "drop_held", "reserve_index"])
    ),
    st.tuples(st.just("endpoint"), names, places),
    st.tuples(st.just("link"), names, st.sampled_from([True, True, False])),
    st.tuples(st.just("key"), names, st.booleans()),
    st.tuples(
        st.just("knock"),
        names,
        st.sampled_from([1, 2, 3]),
        places,
        st.booleans(),
        st.binary(min_size=60, max_size=60),
    ),
    st.tuples(st.just("noise"), names, st.binary(max_size=80), places),
    st.tuples(st.just("load"), st.sampled_from([0, LOADED_QUEUE])),
)


def packet_step(world: World, name: str, family: int, kind: str, size: int) -> None:
    source = STRANGER[family] if kind == "forged" else ADDRESSES[name][family]
    target = STRANGER[family] if kind == "stray" else ADDRESSES[other(name)][family]
    world.ends[name].packet_out(with_mark(udp_packet(source, target, bytes(size)), size % 4))


def knock_step(world: World, name: str, kind: int, source: Endpoint, known: bool, body: bytes) -> None:
    """A handshake message with a right or wrong MAC1, and with the cookie for it where one was given."""
    if kind == COOKIE_REPLY:
        index = world.ends[name].reserve_index(PEER) if known else 1
        world.ends[name].datagram_in(b"\3\0\0\0" + index.to_bytes(4, "little") + body[:56], source)
        return
    size = INITIATION_SIZE if kind == INITIATION else RESPONSE_SIZE
    message = (bytes([kind, 0, 0, 0]) + body + bytes(100))[: size - 32]
    ours = cookie.mac1_key(name.encode().ljust(32) if known else bytes(32))
    end = world.ends[name]
    end.datagram_in(cookie.add_macs(message, ours, None), source)
    if end.outgoing and (reply := parse_cookie_reply(end.outgoing[-1][1])):
        sent = cookie.add_macs(message, ours, None)
        given_cookie = cookie.open_cookie(reply, sent[-32:-16], cookie.cookie_key(name.encode().ljust(32)))
        end.datagram_in(cookie.add_macs(message, ours, given_cookie), source)


def deliver_step(world: World, pick: int, how: str, source: Endpoint, where: int) -> None:
    if not world.wire:
        return
    at = pick % len(world.wire)
    name, datagram = world.wire[at]
    if how == "take":
        del world.wire[at]
    if how == "flip":
        bit = where % (8 * len(datagram))
        datagram = bytes(byte ^ (1 << bit % 8 if number == bit // 8 else 0) for number, byte in enumerate(datagram))
    if how == "cut":
        datagram = datagram[: where % len(datagram)]
    usual = ALICE if name == "bob" else BOB
    world.ends[name].datagram_in(datagram, source if how == "roam" else usual, pick % 4)


def do(world: World, step: tuple[Any, ...]) -> None:
    match step:
        case ("packet", name, family, kind, size):
            packet_step(world, name, family, kind, size)
        case ("carry", count):
            for _ in range(min(count, len(world.wire))):
                deliver_step(world, 0, "take", ALICE, 0)
        case ("deliver", pick, how, source, where):
            deliver_step(world, pick, how, source, where)
        case ("lose", pick):
            del world.wire[pick % (len(world.wire) or 1) :][:1]
        case ("handshake", initiator, keys, installed):
            world.handshake(initiator, keys, installed)
        case ("advance", seconds):
            for end in world.ends.values():
                end.advance(end.now + seconds)
        case ("peer", name, keepalive, endpoint):
            world.set_peer(name, keepalive, endpoint)
        case ("command", name, command):
            getattr(world.ends[name], command)(PEER)
            if command == "remove_peer":
                world.set_peer(name, 0)
        case ("endpoint", name, endpoint):
            world.ends[name].set_endpoint(PEER, endpoint)
        case ("link", name, up):
            world.ends[name].set_up(up)
        case ("key", name, known):
            world.ends[name].set_public_key(name.encode().ljust(32) if known else bytes(32))
        case ("knock", name, kind, source, known, body):
            knock_step(world, name, kind, source, known, body)
        case ("noise", name, datagram, source):
            world.ends[name].datagram_in(datagram, source)
        case ("load", backlog):
            world.backlog[0] = backlog


OPENING = [("handshake", "alice", bytes(range(64)), "both"), ("carry", 8), ("packet", "alice", 0, "own", 100)]


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(seed=st.integers(0, 2**32), script=st.lists(steps, max_size=60))
def test_one_script_gives_the_same_decisions_packet_for_packet(seed: int, script: list[tuple[Any, ...]]) -> None:
    ours, theirs = World.make(MemoryPlane, seed), World.make(NativeMemoryPlane, seed)
    for step in [*OPENING, *script]:
        event(step[0])
        do(ours, step)
        do(theirs, step)
        assert theirs.seen() == ours.seen(), step


def test_both_are_under_load_as_long() -> None:
    ours, theirs = World.make(MemoryPlane, 5), World.make(NativeMemoryPlane, 5)
    body = bytes([INITIATION, 0, 0, 0]) + bytes(INITIATION_SIZE - 36)
    knock = cookie.add_macs(body, cookie.mac1_key(b"alice".ljust(32)), None)
    for world in (ours, theirs):
        world.backlog[0] = LOADED_QUEUE
        for seconds, times in ((0.0, 1), (0.8, LOADED_QUEUE - 1), (0.8, 1), (0.8, 1)):
            do(world, ("advance", seconds))
            for number in range(times):
                source = (f"198.51.{number // 256}.{number % 256}", 1000)
                world.ends["alice"].datagram_in(knock, source)
            world.backlog[0] = 0
    seen = ours.seen()
    assert theirs.seen() == seen
    (_, challenges), passed, *_ = seen["alice"]
    assert len(challenges) == LOADED_QUEUE + 1
    assert passed == [HandshakeReceived(knock, ("198.51.0.0", 1000))]


# -- batches --------------------------------------------------------------------------------------------------------

frames = st.one_of(
    st.tuples(st.just("udp"), families, st.integers(0, 1400)),
    st.tuples(st.just("tcp"), families, st.integers(0, 1380)),
    st.tuples(
        st.just("super-tcp"),
        families,
        st.integers(1, 20_000),
        st.integers(1, 1380),
        st.sampled_from([0x10, 0x18, 0x19, 0x91]),
    ),
    st.tuples(st.just("super-udp"), families, st.integers(1, 20_000), st.integers(300, 1392)),
)


def frame_of(name: str, sequence: int, what: tuple[Any, ...]) -> tuple[Vnet | None, bytes]:
    source, target = ADDRESSES[name][what[1]], ADDRESSES[other(name)][what[1]]
    payload, mark = random.Random(sequence).randbytes(what[2]), what[2] % 4
    match what:
        case ("udp", _, _):
            return None, with_mark(udp_packet(source, target, payload), mark)
        case ("tcp", _, _):
            return None, with_mark(tcp_packet(source, target, payload, seq=sequence), mark)
        case (kind, _, _, mss, *flags):
            tcp = kind == "super-tcp"
            flag = flags[0] if flags else 0
            vnet, whole = superpacket(source, target, payload, mss, tcp=tcp, seq=sequence, flags=flag)
            return vnet, with_mark(whole, mark)
    raise AssertionError(what)


def messages_of(datagrams: list[bytes]) -> list[list[bytes]]:
    """As the kernel gives them: neighbours of one size, the last perhaps shorter, 64 and 64 KiB at most."""
    messages: list[list[bytes]] = []
    for datagram in datagrams:
        last = messages[-1] if messages else None
        if (
            last is not None
            and len(last[-1]) == len(last[0]) >= len(datagram)
            and len(last) < 64
            and sum(map(len, last)) + len(datagram) < 65_000
        ):
            last.append(datagram)
        else:
            messages.append([datagram])
    return messages


mishaps = st.lists(st.tuples(st.sampled_from(["lose", "copy", "swap", "flip"]), st.integers(0, 10_000)), max_size=6)


def mishandle(datagrams: list[bytes], what: list[tuple[str, int]]) -> list[bytes]:
    """What the network does to datagrams: loss, copies, reordering, damage."""
    datagrams = list(datagrams)
    for kind, where in what:
        if not datagrams:
            break
        at = where % len(datagrams)
        if kind == "lose":
            del datagrams[at]
        elif kind == "copy":
            datagrams.insert(where // 7 % len(datagrams), datagrams[at])
        elif kind == "swap":
            datagrams.append(datagrams.pop(at))
        else:
            damaged = bytearray(datagrams[at])
            damaged[where % len(damaged)] ^= 1
            datagrams[at] = bytes(damaged)
    return datagrams


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    seed=st.integers(0, 2**32),
    bursts=st.lists(st.tuples(names, st.lists(frames, min_size=1, max_size=12), mishaps), min_size=1, max_size=4),
    connected=st.booleans(),
)
def test_batches_carry_the_same_packets(
    seed: int, bursts: list[tuple[str, list[tuple[Any, ...]], list[tuple[str, int]]]], connected: bool
) -> None:
    """Superpackets in, loss and disorder on the way: the same datagrams, the same packets, the same drops."""
    worlds = World.make(BatchPlane, seed), World.make(NativeBatchPlane, seed)
    try:
        if connected:
            for world in worlds:
                do(world, OPENING[0])
                do(world, OPENING[1])
                world.seen()
        for number, (name, whats, mishap) in enumerate(bursts):
            carry_burst(worlds, name, [frame_of(name, number * 1_000_000, what) for what in whats], mishap)
    finally:
        for world in worlds:
            for end in world.ends.values():
                end.close()


def carry_burst(
    worlds: tuple[World, World], name: str, frames: list[tuple[Vnet | None, bytes]], mishap: list[tuple[str, int]]
) -> None:
    """Send the same from one end in both worlds, and compare what came of it."""
    sent = []
    for world in worlds:
        world.ends[name].from_host(frames)
        sent.append((list(world.ends[name].tos), world.ends[name].take_outgoing()))
    assert sent[1] == sent[0]
    datagrams = mishandle([datagram for _, datagram in sent[0][1]], mishap)
    looks = []
    for world in worlds:
        far = world.ends[other(name)]
        for message in messages_of(datagrams):
            far.message_in(message, ALICE if name == "alice" else BOB, len(message[0]) % 4)
        assert all(checksums_hold(packet) for packet in far.delivered)
        looks.append([(end.take_delivered(), end.take_events(), end.stats()) for end in world.ends.values()])
    assert looks[1] == looks[0]
