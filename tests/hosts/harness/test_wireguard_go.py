"""The stock WireGuard that interoperability is tested with works by itself in the lab."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.lab.hosts import Lab
from support.wireguard_go import Peer, WireGuardGo

pytestmark = pytest.mark.needs_wireguard_go


def test_two_stock_wireguards_reach_each_other(lab: Lab) -> None:
    alice, bob = lab.host("alice", own_run=True), lab.host("bob", own_run=True)
    _, there = lab.link(alice, bob, ipv4="192.0.2.0/24")
    key, preshared = X25519PrivateKey.generate(), bytes(range(32))
    public = key.public_key().public_bytes_raw()
    server = WireGuardGo(
        bob,
        ["10.9.0.1/32", "fd09::1/128"],
        [Peer(public, ["10.9.0.2/32", "fd09::2/128"], None, preshared)],
        port=51820,
    )
    WireGuardGo(
        alice,
        ["10.9.0.2/32", "fd09::2/128"],
        [Peer(server.public_key, ["10.9.0.1/32", "fd09::1/128"], f"{there.ipv4}:51820", preshared)],
        private_key=key.private_bytes_raw(),
    )
    for address in ("10.9.0.1", "fd09::1"):
        alice.run(["ping", "-c1", "-W20", address])
    assert server.port == 51820
    assert server.peer(public).last_handshake > 0
