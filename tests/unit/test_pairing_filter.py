"""What a plane lets through of pairing, and what it answers itself: Python's rules and Rust's, by one suite."""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.engine import has_native
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.pairing import PairingEpoch, PairingGate
from rustguard_py.planes.contract import ForeignReceived
from rustguard_py.protocol.pairing_filter import (
    HELLO_BURST,
    HELLO_RATE,
    PASS_BURST,
    SESSION_BURST,
    SESSION_SECONDS,
    SESSIONS,
    SIZES,
    SOURCE_BURST,
)
from support.memory_plane import MemoryPlane
from support.native_memory_plane import NativeMemoryPlane

HERE: Endpoint = ("192.0.2.7", 1000)
KEY = b"k" * 32
needs_native = pytest.mark.skipif(not has_native(), reason="no native plane")
PLANES = [MemoryPlane, pytest.param(NativeMemoryPlane, marks=needs_native)]


def epoch(number: int) -> PairingEpoch:
    return PairingEpoch(number, bytes([number]) * 32, bytes([number + 100]) * 32)


def gate(number: int, **options: Any) -> PairingGate:
    return PairingGate(b"i" * 32, epoch(number), epoch(number - 1), **options)


def head(kind: int, revision: bytes = b"3") -> bytes:
    return b"RGE" + revision + bytes([kind, 0, 0, 0])


def hello(nonce: bytes = b"c" * 16, token: int = 0) -> bytes:
    return head(1) + nonce + token.to_bytes(4, "little") + bytes(100)


def cookie(source: Endpoint, number: int, covered: bytes) -> bytes:
    """The cookie, by the words of the wire's description."""
    message = ip_address(source[0]).packed + source[1].to_bytes(2, "little") + covered
    return hmac.new(bytes([number]) * 32, message, hashlib.sha256).digest()[:16]


def share(source: Endpoint, number: int = 5, *, nonce: bytes = b"c" * 16, token: int = 0) -> bytes:
    """A SHARE_C whose cookie holds."""
    nonces, id_ = nonce + b"s" * 16, token.to_bytes(4, "little")
    made = cookie(source, number, nonces + id_)
    return head(3) + nonces + number.to_bytes(4, "little") + made + id_ + bytes(4) + b"Y" * 32 + b"E" * 32


def confirm(session: bytes) -> bytes:
    return head(5) + session + bytes(1216)


def forget(session: bytes) -> bytes:
    return head(7) + session + bytes(32)


def shown(session: bytes) -> bytes:
    """A SHARE_S, as Python sends it."""
    return head(4) + session + bytes(1216)


@pytest.fixture(params=PLANES, ids=["portable", "native"])
def plane(request: pytest.FixtureRequest) -> MemoryPlane:
    make: Callable[..., MemoryPlane] = request.param
    made = make(KEY, random=random.Random(3).randbytes)
    made.set_pairing(gate(5))
    return made


def passed(plane: MemoryPlane, datagram: bytes, source: Endpoint = HERE) -> bool:
    """Whether a datagram goes to Python, unchanged; nothing is answered."""
    plane.datagram_in(datagram, source)
    assert plane.take_outgoing() == []
    events = plane.take_events()
    assert events in ([], [ForeignReceived(datagram, source)])
    return bool(events)


def answers(plane: MemoryPlane, datagram: bytes, source: Endpoint = HERE) -> list[bytes]:
    """What is answered, to the source; nothing goes to Python."""
    plane.datagram_in(datagram, source)
    assert plane.take_events() == []
    sent = plane.take_outgoing()
    assert {to for to, _ in sent} <= {source}
    return [answer for _, answer in sent]


def test_a_hello_is_answered_by_a_challenge_whose_cookie_is_good_for_its_source_only(plane: MemoryPlane) -> None:
    for source in (HERE, ("2001:db8::9", 7, 0, 0)):
        (challenge,) = answers(plane, hello(token=9), source)
        assert len(challenge) == 124 < len(hello())
        nonce_s, made = challenge[24:40], challenge[44:60]
        assert challenge == (
            head(2) + b"c" * 16 + nonce_s + (5).to_bytes(4, "little") + made + b"i" * 32 + bytes([105]) * 32
        )
        assert made == cookie(source, 5, b"c" * 16 + nonce_s + (9).to_bytes(4, "little"))
        rest = (9).to_bytes(4, "little") + bytes(4) + b"Y" * 32 + b"E" * 32
        back = head(3) + challenge[8:60] + rest
        assert passed(plane, back, source)
        assert not passed(plane, back, (source[0], source[1] + 1, *source[2:]))
        for bit in (8, 24, 40, 44, 60):
            assert not passed(plane, back[:bit] + bytes([back[bit] ^ 1]) + back[bit + 1 :], source)
    assert plane.stats().drops == {"pairing_cookie": 12}


def test_no_two_challenges_are_the_same(plane: MemoryPlane) -> None:
    assert len({answers(plane, hello())[0] for _ in range(100)}) == 100


def test_a_hello_of_another_revision_is_told_ours(plane: MemoryPlane) -> None:
    for revision in (b"2", b"4", b"\0"):
        theirs = head(1, revision) + b"n" * 16
        assert answers(plane, theirs) == [head(8) + b"n" * 16]
        assert answers(plane, theirs + bytes(104)) == [head(8) + b"n" * 16]
        assert answers(plane, theirs[:-1]) == []
        # Only a HELLO is answered: two servers don't keep telling each other.
        for kind in (0, *range(2, 9)):
            assert answers(plane, head(kind, revision) + bytes(120)) == []
    # So a server can warn of machines with another version.
    assert plane.stats().drops == {"pairing_malformed": 27, "pairing_revision": 6}


def test_any_other_length_or_type_is_dropped(plane: MemoryPlane) -> None:
    count = 0
    for kind in range(256):
        for size in (3, 5, 7, 8, 24, 48, 96, 124, 128, 131, 132, 1231, 1232, 1400):
            if SIZES.get(kind) == size:
                continue
            plane.datagram_in((head(kind) + bytes(1400))[:size], HERE)
            count += 1
    reserved = hello()[:5] + b"\1" + hello()[6:]
    trailing = hello()[:-1] + b"\1"
    plane.datagram_in(reserved, HERE)
    plane.datagram_in(trailing, HERE)
    assert plane.take_outgoing() == []
    assert plane.take_events() == []
    assert plane.stats().drops == {"pairing_malformed": count + 2}


def test_the_epoch_before_is_good_and_no_other(plane: MemoryPlane) -> None:
    assert [passed(plane, share(HERE, number)) for number in (3, 4, 5, 6)] == [False, True, True, False]
    plane.set_pairing(gate(6))
    assert [passed(plane, share(HERE, number)) for number in (4, 5, 6)] == [False, True, True]
    assert answers(plane, hello())[0][40:44] == (6).to_bytes(4, "little")
    plane.set_pairing(PairingGate(b"i" * 32, epoch(7)))
    assert [passed(plane, share(HERE, number)) for number in (6, 7)] == [False, True]


@pytest.mark.fault(42)
def test_a_source_has_a_pace_and_no_forgery_in_its_name_is_charged_to_it(plane: MemoryPlane) -> None:
    forged = share(HERE)[:44] + bytes(16) + share(HERE)[60:]
    for _ in range(10_000):
        plane.datagram_in(forged, HERE)
        plane.datagram_in(b"RGE3\3", HERE)
    assert plane.take_events() == []
    # Nor do HELLOs in its name count.
    for _ in range(1000):
        plane.datagram_in(hello(), HERE)
    plane.take_outgoing()
    assert [passed(plane, share(HERE)) for _ in range(SOURCE_BURST + 2)] == [True] * SOURCE_BURST + [False] * 2
    assert passed(plane, share(("192.0.2.8", 1000)), ("192.0.2.8", 1000))
    plane.now = 1.0
    assert [passed(plane, share(HERE)) for _ in range(SOURCE_BURST + 1)] == [True] * SOURCE_BURST + [False]


def test_a_source_is_an_ipv4_address_or_an_ipv6_64_and_48(plane: MemoryPlane) -> None:
    def took(source: Endpoint) -> bool:
        return passed(plane, share(source), source)

    def v6(site: int, network: int, host: int) -> Endpoint:
        return (f"2001:db8:{site:x}:{network:x}::{host + 1:x}", 5, 0, 0)

    assert [took(v6(1, 1, host)) for host in range(6)] == [True] * 5 + [False]
    # 20 of a /48 at once, five of them are taken.
    assert sum(took(v6(1, network, 1)) for network in range(2, 40)) == 15
    assert took(v6(2, 1, 1))


def test_heavy_sources_leave_room_for_one_that_has_not_been_heard(plane: MemoryPlane) -> None:
    busy = [(f"198.51.100.{number}", 5) for number in range(250)]
    requests = [(share(source), source) for source in busy]
    counted = 0
    for step in range(120):
        plane.now = step * 0.05
        for request in requests:
            plane.datagram_in(*request)
        counted = len(plane.take_events())
        newcomer = (f"203.0.113.{step}", 9)
        assert passed(plane, share(newcomer), newcomer), step
    # All of them together keep to the pace for all.
    assert 30 <= counted <= 60


def test_a_flood_of_hellos_from_one_source_leaves_the_others_theirs(plane: MemoryPlane) -> None:
    answered = 0
    for step in range(30_000):
        plane.now = step / 100_000
        plane.datagram_in(hello(), HERE)
        answered += len(plane.take_outgoing())
        if step % 100 == 0:
            other = (f"203.0.{step // 100 // 256}.{step // 100 % 256}", 9)
            assert answers(plane, hello(), other), step
    assert HELLO_RATE * 0.2 < answered < HELLO_BURST + HELLO_RATE * 0.3


def test_a_confirm_must_name_a_session(plane: MemoryPlane) -> None:
    session, later = b"session1", b"session2"
    assert not passed(plane, confirm(session))
    plane.send(HERE, shown(session))
    plane.take_outgoing()
    assert passed(plane, confirm(session))
    assert passed(plane, forget(session))
    assert not passed(plane, confirm(b"session3"))
    assert not passed(plane, forget(b"session3"))
    # A RESULT renews it: repeats are answered for 120 s from then on.
    plane.now = 100.0
    plane.send(HERE, head(6) + session + bytes(80))
    plane.send(HERE, shown(later))
    plane.take_outgoing()
    plane.now = 100.0 + SESSION_SECONDS - 1
    assert passed(plane, confirm(session))
    plane.now = 100.0 + SESSION_SECONDS
    assert not passed(plane, confirm(session))
    assert not passed(plane, confirm(later))
    assert plane.stats().drops == {"pairing_session": 5}


def test_confirms_of_one_session_take_nothing_from_another(plane: MemoryPlane) -> None:
    for session in (b"session1", b"session2"):
        plane.send(HERE, shown(session))
    plane.take_outgoing()
    assert sum(passed(plane, confirm(b"session1")) for _ in range(1000)) == SESSION_BURST
    assert not any(passed(plane, confirm(b"unknown1")) for _ in range(1000))
    assert passed(plane, confirm(b"session2"))


def test_sessions_that_are_flooded_leave_room_for_the_confirms_of_others(plane: MemoryPlane) -> None:
    floods = [b"session%d" % number for number in range(9)]
    for session in (*floods, b"the last"):
        plane.send(HERE, shown(session))
    plane.take_outgoing()
    for tick in range(1000):
        plane.now = 100.0 + tick / 100
        for session in floods:
            for _ in range(4):
                passed(plane, confirm(session))
    assert plane.stats().drops["pairing_pace"] > 9000
    assert passed(plane, confirm(b"the last"))


def test_sessions_take_a_bounded_memory_and_the_oldest_gives_way(plane: MemoryPlane) -> None:
    for number in range(SESSIONS + 10):
        plane.send(HERE, shown(number.to_bytes(8, "big")))
        plane.take_outgoing()
    assert not passed(plane, confirm((9).to_bytes(8, "big")))
    assert passed(plane, confirm((10).to_bytes(8, "big")))


def test_a_closed_window_passes_only_what_lingers(plane: MemoryPlane) -> None:
    plane.send(HERE, shown(b"session1"))
    plane.take_outgoing()
    plane.now = 10.0
    plane.set_pairing(None)
    plane.set_pairing(None)
    assert answers(plane, hello()) == []
    assert answers(plane, head(1, b"2") + bytes(16)) == []
    assert not passed(plane, share(HERE))
    assert passed(plane, confirm(b"session1"))
    assert passed(plane, forget(b"session1"))
    assert not passed(plane, confirm(b"session2"))
    plane.now = 130.0
    assert not passed(plane, forget(b"session1"))
    assert plane.stats().drops == {"pairing_closed": 4, "pairing_session": 1}
    plane.set_pairing(gate(8, linger=0.0))
    assert len(answers(plane, hello())) == 1
    assert passed(plane, forget(b"session1"))
    plane.set_pairing(None)
    assert not passed(plane, forget(b"session1"))


@pytest.mark.parametrize("make", PLANES)
def test_a_plane_that_was_never_told_of_a_window_passes_everything_at_its_pace(make: type[MemoryPlane]) -> None:
    plane = make(KEY)
    for kind in range(1, 9):
        assert passed(plane, head(kind) + bytes(3))
    assert passed(plane, b"RGE")
    assert sum(passed(plane, hello()) for _ in range(2 * PASS_BURST)) < PASS_BURST
    assert set(plane.stats().drops) == {"foreign_rate"}


@pytest.mark.parametrize("make", PLANES)
def test_a_plane_whose_window_was_closed_from_the_start_passes_nothing(make: type[MemoryPlane]) -> None:
    plane = make(KEY)
    plane.set_pairing(None)
    for datagram in (hello(), share(HERE), confirm(b"session1"), forget(b"session1")):
        assert not passed(plane, datagram)
    assert plane.stats().drops == {"pairing_closed": 4}


sources: st.SearchStrategy[Endpoint] = st.sampled_from(
    [HERE, ("192.0.2.7", 2), ("192.0.2.8", 1), ("2001:db8::9", 7, 0, 0)]
)
sessions = st.sampled_from([b"session1", b"session2"])
datagrams = st.one_of(
    st.builds(hello, st.binary(min_size=16, max_size=16), st.integers(0, 3)),
    st.builds(
        lambda revision, size: (head(1, bytes([revision])) + bytes(150))[:size],
        st.integers(0, 255),
        st.integers(3, 150),
    ),
    st.builds(confirm, sessions),
    st.builds(forget, sessions),
    st.builds(lambda kind, size: (head(kind) + bytes(1300))[:size], st.integers(0, 9), st.integers(3, 1300)),
    st.builds(lambda start, rest: b"RGE" + start + rest, st.binary(max_size=6), st.binary(max_size=200)),
)
steps = st.one_of(
    st.tuples(st.just("datagram"), datagrams, sources, st.integers(1, 12)),
    st.tuples(st.just("share"), sources, st.integers(3, 7), st.integers(1, 12)),
    st.tuples(st.just("sent"), st.sampled_from([4, 6]), sessions),
    st.tuples(st.just("advance"), st.sampled_from([0.001, 0.013, 0.05, 0.3, 20.0, 70.0, 140.0])),
    st.tuples(st.just("gate"), st.one_of(st.none(), st.builds(gate, st.integers(4, 7)))),
)


def do(plane: MemoryPlane, step: tuple[Any, ...]) -> None:
    match step:
        case ("datagram", datagram, source, times):
            for _ in range(times):
                plane.datagram_in(datagram, source)
        case ("share", source, number, times):
            for _ in range(times):
                plane.datagram_in(share(source, number), source)
        case ("sent", kind, session):
            plane.send(HERE, head(kind) + session + bytes(60))
        case ("advance", seconds):
            plane.advance(plane.now + seconds)
        case ("gate", opened):
            plane.set_pairing(opened)


@needs_native
@given(st.lists(steps, max_size=60))
def test_one_script_gives_the_same_verdicts(script: list[tuple[Any, ...]]) -> None:
    ours, theirs = (make(KEY, random=random.Random(5).randbytes) for make in (MemoryPlane, NativeMemoryPlane))
    for step in [("gate", gate(5)), *script]:
        do(ours, step)
        do(theirs, step)
        assert theirs.take_outgoing() == ours.take_outgoing(), step
        assert theirs.take_events() == ours.take_events(), step
        assert theirs.stats() == ours.stats(), step
