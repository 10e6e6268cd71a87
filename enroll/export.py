"""wg-quick files for machines that run a stock WireGuard: a client's own tunnel, and peers let in without a join."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from rustguard_py import conf
from rustguard_py.model.keys import decode_key, encode_key, public_key
from rustguard_py.state.records import ClientState, NetworkRecord, PeerRecord, ServerState

# Often enough for the usual NAT; what a client that joins is told.
KEEPALIVE = 25


def of_client(state: ClientState, network: NetworkRecord) -> conf.Config:
    """Write a client's own tunnel as a file; it holds the client's private key."""
    server = conf.PeerSection(
        network.server_key,
        (*network.pools, *network.routes),
        network.preshared_key,
        conf.HostPort(network.host, network.port),
        network.keepalive,
    )
    return conf.Config(state.private_key, addresses=network.addresses, mtu=network.mtu, peers=(server,))


def offer(state: ServerState, record: PeerRecord) -> dict[str, Any]:
    """Say what goes into a peer's file beside its keys, as JSON values."""
    pairs = ((record.address4, state.pool4), (record.address6, state.pool6))
    given = [(address, pool) for address, pool in pairs if address is not None and pool is not None]
    return {
        "name": record.name,
        "addresses": [f"{address}/{pool.prefixlen}" for address, pool in given],
        "networks": [str(pool) for _, pool in given],
        "server_key": encode_key(public_key(state.private_key)),
        "port": state.port,
        "mtu": state.mtu,
    }


def of_peer(
    offered: Mapping[str, Any], private_key: bytes, preshared_key: bytes, host: str, port: int | None
) -> conf.Config:
    """Write the file of a peer.

    Args:
        offered: What `offer` gave.
        private_key: The peer's, 32 bytes.
        preshared_key: 32 bytes.
        host: Where the server is reached.
        port: The same, or None for the server's own.
    """
    server = conf.PeerSection(
        decode_key(offered["server_key"]),
        tuple(map(ip_network, offered["networks"])),
        preshared_key,
        conf.HostPort(host, port or offered["port"]),
        KEEPALIVE,
    )
    addresses = tuple(map(ip_interface, offered["addresses"]))
    return conf.Config(private_key, addresses=addresses, mtu=offered["mtu"], peers=(server,))
