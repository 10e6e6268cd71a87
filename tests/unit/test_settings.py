"""The settings of a server: what a start takes over, and which pools it refuses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import pytest

from rustguard_py.enroll.server import settings
from rustguard_py.enroll.server.settings import Settings, apply, check_pools
from rustguard_py.enroll.tunnels import derive
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.state.records import PeerRecord, ServerState

POOL = IPv4Network("10.150.0.0/24")


def with_peer(state: ServerState) -> ServerState:
    peer = PeerRecord("laptop", bytes([7]) * 32, bytes([8]) * 32, IPv4Address("10.150.0.2"), None, 0.0, None)
    return replace(state, peers={peer.public_key: peer})


def test_the_first_start_needs_a_pool_and_makes_the_rest() -> None:
    with pytest.raises(UsageError, match="which addresses to give out"):
        apply(Settings(), None)
    state = apply(Settings(POOL), None)
    assert (state.pool4, state.port, state.mtu, state.tunnels) == (POOL, 51820, 1420, 1)
    assert state.pool6 is not None
    assert state.pool6.prefixlen == 64
    assert state.pool6.subnet_of(IPv6Network("fd00::/8"))
    assert apply(Settings(POOL, use_pool6=False), None).pool6 is None


def test_what_a_later_start_names_is_changed_and_all_else_is_kept() -> None:
    kept = apply(Settings(POOL, IPv6Network("fd00:1::/64"), port=4000, mtu=1300, tunnels=2), None)
    assert apply(Settings(), kept.to_json()) == kept
    for change in ({"port": 4001}, {"mtu": 1280}, {"tunnels": 3}, {"pool4": IPv4Network("10.9.0.0/24")}):
        assert apply(Settings(**change), kept.to_json()) == replace(kept, **change)


def test_the_last_port_of_several_tunnels_may_be_the_last_there_is() -> None:
    last = 65535 - (derive.port(1000, 3) - 1000)
    assert apply(Settings(POOL, port=last, tunnels=4), None).port == last
    with pytest.raises(UsageError, match=f"4 tunnels need the UDP ports {last + 1} to 65536"):
        apply(Settings(POOL, port=last + 1, tunnels=4), None)


def test_a_pool_without_the_addresses_of_known_peers_is_refused() -> None:
    kept = with_peer(apply(Settings(POOL), None)).to_json()
    with pytest.raises(RefusedError, match=r"The pool 10\.9\.0\.0/24 lacks the addresses of 1 peer, such as"):
        apply(Settings(IPv4Network("10.9.0.0/24")), kept)
    assert apply(Settings(IPv4Network("10.150.0.0/16")), kept).pool4 == IPv4Network("10.150.0.0/16")


def test_a_pool_that_the_machine_uses_is_refused_with_a_free_one_while_no_peer_has_its_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = [(ip_network("10.150.0.0/16"), "address 10.150.3.4/16 on eth0")]
    asked = []

    def taken_networks(exclude: object) -> object:
        asked.append(exclude)
        return taken

    monkeypatch.setattr(settings, "taken_networks", taken_networks)
    state = apply(Settings(POOL), None)
    with pytest.raises(RefusedError, match=r"collides with .* 10\.150\.3\.4/16 on eth0") as caught:
        check_pools(state, ["rg0"])
    assert asked == [["rg0"]]
    assert "Choose a free one: --pool 10." in caught.value.fix
    with pytest.raises(RefusedError) as caught:
        check_pools(with_peer(state), ["rg0"])
    assert caught.value.fix == "Choose another pool, or remove that."
    taken[:] = [(ip_network("fd00::/8"), "route fd00::/8")]
    with pytest.raises(RefusedError) as caught:
        check_pools(state, ["rg0"])
    assert caught.value.fix == "Choose another pool, or remove that."
    check_pools(replace(state, pool6=None), ["rg0"])
