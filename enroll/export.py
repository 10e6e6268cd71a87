"""wg-quick files for machines that run stock WireGuard: a client's own tunnel, and peers admitted without a join."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from rustguard_py import conf
from rustguard_py.model.defaults import DEFAULT_KEEPALIVE
from rustguard_py.model.keys import decode_key, encode_key, public_key
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.records import PeerRecord, ServerState


def of_client(state: ClientState, network: NetworkRecord) -> conf.Config:
    """Return a client's own tunnel as a wg-quick file, which holds the client's private key."""
    server = conf.PeerSection(
        network.server_key,
        (*network.pools, *network.routes),
        network.preshared_key,
        conf.HostPort(network.host, network.port),
        network.keepalive,
    )
    return conf.Config(state.private_key, addresses=network.addresses, mtu=network.mtu, peers=(server,))


def offer(state: ServerState, record: PeerRecord) -> dict[str, Any]:
    """Return what goes into a peer's file besides its keys, as JSON values."""
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
    """Return the wg-quick file of a peer.

    Args:
        offered: What `offer` returned.
        private_key: The peer's, 32 bytes.
        preshared_key: 32 bytes.
        host: The address or name that the peer reaches the server at.
        port: The UDP port there, or None for the server's own.
    """
    server = conf.PeerSection(
        decode_key(offered["server_key"]),
        tuple(map(ip_network, offered["networks"])),
        preshared_key,
        conf.HostPort(host, port or offered["port"]),
        DEFAULT_KEEPALIVE,
    )
    addresses = tuple(map(ip_interface, offered["addresses"]))
    return conf.Config(private_key, addresses=addresses, mtu=offered["mtu"], peers=(server,))
