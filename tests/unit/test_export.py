"""The wg-quick files that are written for stock WireGuard: of a client's own tunnel, and of a peer without a join."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network

import pytest

from rustguard_py import conf
from rustguard_py.enroll import export
from rustguard_py.model.keys import encode_key, public_key
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.records import PeerRecord, ServerState

OURS, KEY, PSK = b"o" * 32, b"k" * 32, b"p" * 32
POOL4, POOL6 = IPv4Network("10.150.0.0/24"), IPv6Network("fd00:1::/64")


def test_a_clients_file_is_its_tunnel() -> None:
    network = NetworkRecord(
        host="home.example",
        port=443,
        server_key=KEY,
        preshared_key=PSK,
        name="laptop",
        address4=IPv4Interface("10.150.0.2/24"),
        address6=IPv6Interface("fd00:1::2/64"),
        routes=(ip_network("192.168.7.0/24"),),
        mtu=1380,
        keepalive=15,
        gateway4=None,
        gateway6=None,
        joined=0.0,
    )
    assert export.of_client(ClientState(OURS), network) == conf.Config(
        OURS,
        addresses=(IPv4Interface("10.150.0.2/24"), IPv6Interface("fd00:1::2/64")),
        mtu=1380,
        peers=(
            conf.PeerSection(
                KEY, (POOL4, POOL6, ip_network("192.168.7.0/24")), PSK, conf.HostPort("home.example", 443), 15
            ),
        ),
    )


@pytest.mark.parametrize("pool6", [POOL6, None])
@pytest.mark.parametrize("address6", [IPv6Address("fd00:1::2"), None])
@pytest.mark.parametrize(("port", "expected"), [(None, 51820), (443, 443)])
def test_a_peers_file_has_the_families_that_both_it_and_the_server_have(
    pool6: IPv6Network | None, address6: IPv6Address | None, port: int | None, expected: int
) -> None:
    record = PeerRecord("phone", KEY, PSK, IPv4Address("10.150.0.2"), address6, 0.0, None)
    state = ServerState(OURS, b"i" * 32, POOL4, pool6, 51820, 1380, {KEY: record})
    offered = export.offer(state, record)
    both = pool6 is not None and address6 is not None
    # It goes over the control socket.
    assert json.loads(json.dumps(offered)) == {
        "name": "phone",
        "addresses": ["10.150.0.2/24", "fd00:1::2/64"] if both else ["10.150.0.2/24"],
        "networks": ["10.150.0.0/24", "fd00:1::/64"] if both else ["10.150.0.0/24"],
        "server_key": encode_key(public_key(OURS)),
        "port": 51820,
        "mtu": 1380,
    }
    assert export.of_peer(offered, b"x" * 32, PSK, "home.example", port) == conf.Config(
        b"x" * 32,
        addresses=(IPv4Interface("10.150.0.2/24"), *((IPv6Interface("fd00:1::2/64"),) if both else ())),
        mtu=1380,
        peers=(
            conf.PeerSection(
                public_key(OURS),
                (POOL4, POOL6) if both else (POOL4,),
                PSK,
                conf.HostPort("home.example", expected),
                25,
            ),
        ),
    )
