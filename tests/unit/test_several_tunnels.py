"""Several tunnels: their keys, what a RESULT says about them, what is kept, and when one of them is left."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

import pytest

from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.pairing.admission import Admission, FurtherTunnel, encode_outcome, parse_outcome
from rustguard_py.enroll.pairing.messages import MAX_RESULT_JSON
from rustguard_py.enroll.tunnels import derive
from rustguard_py.enroll.tunnels.health import MISSES, PATIENCE, SECOND_PATIENCE, SILENCE, TunnelHealth
from rustguard_py.handshaking_peer import HandshakingPeer
from rustguard_py.model.address import pairing_port
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import NO_PRESHARED_KEY, public_key
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.statistics import PeerStats
from rustguard_py.state.records import MOST_TUNNELS

KEY = bytes(range(32))
ADMISSION = Admission(
    name="\U0001f40c" * 11,
    address4=IPv4Interface("223.255.255.254/30"),
    address6=IPv6Interface("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/64"),
    server_key=KEY,
    port=65528,
    mtu=65000,
    keepalive=25,
    routes=(),
    gateway4=IPv4Address("223.255.255.253"),
    gateway6=IPv6Address("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffd"),
    tunnels=tuple(FurtherTunnel(bytes([number]) * 32, 65528 + number) for number in range(1, MOST_TUNNELS)),
)


def test_the_most_tunnels_fit_a_result_with_the_longest_of_everything_else() -> None:
    padded = encode_outcome(ADMISSION.to_mapping())
    assert len(padded) <= MAX_RESULT_JSON
    outcome = parse_outcome(padded)
    assert outcome is not None
    assert Admission.from_mapping(outcome) == ADMISSION


def test_one_tunnel_is_told_as_it_always_was() -> None:
    assert "tunnels" not in replace(ADMISSION, tunnels=()).to_mapping()


@pytest.mark.parametrize("tunnels", [7, [7], [{}], [{"key": "AAAA", "port": 1}], [{"key": None}], ["x"]])
def test_tunnels_that_cannot_be_meant_are_refused(tunnels: object) -> None:
    assert Admission.from_mapping({**ADMISSION.to_mapping(), "tunnels": tunnels}) is None


def test_no_key_is_used_by_two_tunnels_and_the_first_has_those_of_old() -> None:
    private = [derive.private_key(KEY, number) for number in range(MOST_TUNNELS)]
    shared = [derive.preshared_key(KEY, number) for number in range(MOST_TUNNELS)]
    assert private[0] == shared[0] == KEY
    assert len({*private, *shared}) == 2 * MOST_TUNNELS - 1
    assert len({public_key(each) for each in private}) == MOST_TUNNELS
    assert private == [derive.private_key(KEY, number) for number in range(MOST_TUNNELS)]
    assert derive.preshared_key(NO_PRESHARED_KEY, 3) == NO_PRESHARED_KEY


def test_no_tunnel_has_the_port_that_pairing_has_with_the_kernels_engine() -> None:
    assert [derive.port(51820, number) for number in range(4)] == [51820, 51822, 51823, 51824]
    assert pairing_port(51820) == 51821


def test_an_interface_is_named_after_the_first_and_fits() -> None:
    assert [derive.interface("rg0", number) for number in range(3)] == ["rg0", "rg0-1", "rg0-2"]
    with pytest.raises(UsageError, match="too long"):
        derive.interface("fourteen-bytes", 1)


def test_each_tunnel_has_its_own_greatest_timestamp_and_they_outlive_the_process(tmp_path: Path) -> None:
    kept = KeptTimestamps(tmp_path)
    early, late = b"\1" * 12, b"\2" * 12
    derive.FurtherTimestamps(kept, 1).record(KEY, late)
    kept.record(KEY, early)
    derive.FurtherTimestamps(kept, 2).record(KEY, early)
    kept.close()
    kept = KeptTimestamps(tmp_path)
    assert kept.greatest(KEY) == early
    assert [derive.FurtherTimestamps(kept, number).greatest(KEY) for number in (1, 2, 3)] == [late, early, None]
    kept.close()


def counters(rx: int, tx: int, *, size: int = 128) -> PeerStats:
    return PeerStats(rx_packets=rx, rx_bytes=size * rx, tx_packets=tx, tx_bytes=size * tx)


def test_data_without_an_answer_makes_a_way_ask_and_any_answer_ends_that() -> None:
    health = TunnelHealth()
    health.observe(counters(1, 1), 0.0)
    health.observe(counters(1, 2), 1.0)
    health.observe(counters(1, 3), 1.0 + SILENCE / 2)
    assert not health.is_silent(1.0 + SILENCE / 2)
    assert health.is_silent(1.0 + SILENCE)
    health.observe(counters(2, 4), 1.0 + SILENCE)
    assert not health.is_silent(100.0)


def test_keepalives_owe_nobody_an_answer_and_are_no_data() -> None:
    health = TunnelHealth()
    health.observe(counters(0, 5, size=32), 0.0)
    assert not health.is_silent(100.0)
    health.observe(counters(9, 5, size=32), 1.0)
    assert health.heard
    assert not health.moved
    assert not health.sent


def of_the_kernel(rx_bytes: int, tx_bytes: int) -> PeerStats:
    return PeerStats(rx_bytes=rx_bytes, tx_bytes=tx_bytes)


def test_bytes_alone_tell_data_from_keepalives_and_those_from_handshakes() -> None:
    health, received, sent = TunnelHealth(), 0, 0
    for receives, sends, heard, data_sent, moved in (
        (0, 148, False, False, False),
        (148 + 92, 92, False, False, False),
        (32, 32, True, False, False),
        (92 + 32, 148 + 32, True, False, False),
        (0, 128, False, True, True),
        (1452, 32, True, False, True),
    ):
        received, sent = received + receives, sent + sends
        health.observe(of_the_kernel(received, sent), 0.0)
        assert (health.heard, health.sent, health.moved) == (heard, data_sent, moved)


def test_a_way_missed_at_look_after_look_is_dead_and_one_that_is_heard_is_not() -> None:
    health, peer = TunnelHealth(), Peer(1, PeerConfig(os.urandom(32), ()))
    health.missed = MISSES - 1
    assert health.why_dead(peer, 0.0, session=True) is None
    health.missed = MISSES
    assert health.why_dead(peer, 0.0, session=True) is not None
    health.observe(counters(1, 0), 0.5)
    assert health.why_dead(peer, 0.5, session=True) is None


def test_a_handshake_unanswered_for_long_enough_says_that_a_silent_way_is_dead() -> None:
    health, peer = TunnelHealth(), Peer(1, PeerConfig(os.urandom(32), ()))
    health.observe(counters(0, 1), 100.0 - SILENCE)
    assert health.why_dead(peer, 100.0, session=True) is None
    peer.attempt_began = peer.initiation_sent = 100.0
    peer.attempts = 1
    assert health.why_dead(peer, 100.0 + PATIENCE / 2, session=True) is None
    assert health.why_dead(peer, 100.0 + PATIENCE, session=True) is not None
    # Something came, whatever becomes of that handshake.
    health.observe(counters(1, 1), 100.0 + PATIENCE)
    assert health.why_dead(peer, 100.0 + PATIENCE, session=True) is None


def test_the_handshake_of_a_new_session_may_be_lost_once() -> None:
    health, peer = TunnelHealth(), HandshakingPeer(1, PeerConfig(os.urandom(32), ()))
    peer.attempt_began = peer.initiation_sent = 100.0
    peer.attempts = 1
    assert health.why_dead(peer, 104.9, session=False) is None
    peer.attempts, peer.initiation_sent = 2, 105.0
    assert health.why_dead(peer, 105.0, session=False) is None
    assert health.why_dead(peer, 105.0 + SECOND_PATIENCE, session=False) is not None
    peer.end_attempt()
    assert health.why_dead(peer, 200.0, session=False) is None


def test_the_keys_of_further_tunnels_never_change() -> None:
    """Clients that joined earlier know them."""
    assert derive.preshared_key(KEY, 0) == derive.private_key(KEY, 0) == KEY
    assert derive.preshared_key(KEY, 1).hex() == "9fa2e4365bab8c8f7eacb3ebe3110c72d682079e4b7d133a0bab751c7d935d9f"
    assert derive.private_key(KEY, 3).hex() == "a8b8bf80cdbb279f0d62ee825a1f26b6d87a8e3292ebe786e116958fc0664541"
