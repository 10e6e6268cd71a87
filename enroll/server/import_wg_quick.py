"""A server made from a wg-quick file: its identity, port, pools and peers. The peers need no change."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

from rustguard_py import conf
from rustguard_py.enroll.server.pool import Pool
from rustguard_py.model.defaults import DEFAULT_MTU, DEFAULT_PORT
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.peer_names import dns_name_of, first_free, label_of
from rustguard_py.state.document import Document
from rustguard_py.state.records import MTU_LEAST, PeerRecord, ServerState


@dataclass(frozen=True, slots=True)
class Imported:
    """A server read from a file.

    Attributes:
        state: The server's state.
        left_out: Keys of the file that a server doesn't use.
    """

    state: ServerState
    left_out: tuple[str, ...]


def read_server(config: conf.Config, where: str) -> Imported:
    """Return the server that a wg-quick file describes.

    Args:
        config: The file.
        where: Name of the file for errors.

    Raises:
        UsageError: The file isn't a server's, or describes something that our server can't do.
    """
    if config.mtu is not None and config.mtu < MTU_LEAST:
        raise UsageError(
            f"{where} has MTU = {config.mtu}, and a server's is {MTU_LEAST} or more.", "Change it there."
        )
    pool4, pool6 = _pools(config, where)
    pool = Pool(pool4, pool6)
    state = ServerState(
        private_key=config.private_key,
        server_id=os.urandom(32),
        pool4=pool4,
        pool6=pool6,
        port=config.listen_port or DEFAULT_PORT,
        mtu=config.mtu or DEFAULT_MTU,
    )
    names: set[str] = set()
    for number, peer in enumerate(config.peers, 1):
        record = _record(peer, pool, _name(peer, number, names), f"{where}, line {peer.line}")
        record = replace(record, dns_name=first_free(dns_name_of(record.name), names))
        state.peers[record.public_key] = record
        names |= record.names
    return Imported(state, tuple(_left_out(config)))


def save(directory: Path, state: ServerState) -> None:
    """Save a server's first state.

    Raises:
        RefusedError: The directory has a server's state already.
        StateError: It can't be saved, or a server is running on that directory.
    """
    document = Document.open(directory)
    try:
        if document.load() is not None:
            raise RefusedError(
                f"There is a server here already ({directory}), with a key of its own.",
                "Make another one with: --state DIR, here and for `rustguard serve`.",
            )
        document.save(state.to_json())
    finally:
        document.close()


def _pools(config: conf.Config, where: str) -> tuple[IPv4Network, IPv6Network | None]:
    if any(network.prefixlen == 0 for peer in config.peers for network in peer.allowed_ips):
        raise UsageError(
            f"{where} is a client's file: it sends everything through its peer.",
            "Use it without import: rustguard up FILE",
        )
    every = config.addresses
    four = [each for each in every if isinstance(each, IPv4Interface) and each.network.prefixlen <= 30]
    six = [each for each in every if isinstance(each, IPv6Interface) and each.network.prefixlen <= 64]
    if len(four) != 1 or len(six) > 1:
        raise UsageError(
            f"{where} has {len(four)} IPv4 and {len(six)} IPv6 networks, but a server has one pool of each.",
            "Write one address with its network, such as Address = 10.0.0.1/24, and for IPv6 one of a /64, or none.",
        )
    _check_own(four[0].ip, four[0].network[1], where)
    if not six:
        return four[0].network, None
    _check_own(six[0].ip, six[0].network[1], where)
    return four[0].network, six[0].network


def _check_own(given: object, wanted: object, where: str) -> None:
    if given != wanted:
        raise UsageError(
            f"{where}: a server has the first address of its pool, {wanted}, but this file has {given}.",
            "Give it that address, or keep the file for `rustguard up`.",
        )


def _record(peer: conf.PeerSection, pool: Pool, name: str, where: str) -> PeerRecord:
    addresses = [each.network_address for each in peer.allowed_ips if each.prefixlen == each.max_prefixlen]
    four = [each for each in addresses if isinstance(each, IPv4Address)]
    six = [each for each in addresses if isinstance(each, IPv6Address)]
    if len(addresses) != len(peer.allowed_ips) or len(four) != 1 or len(six) > 1:
        raise UsageError(
            f"{where}: this peer has AllowedIPs {', '.join(map(str, peer.allowed_ips)) or 'none'}, but a RustGuard "
            "server gives each peer one IPv4 address, and one IPv6 address that goes with it.",
            "Write only those, or keep the file for `rustguard up`.",
        )
    if not pool.take(peer.public_key, four[0]):
        raise UsageError(
            f"{where}: {four[0]} is not free in the pool {pool.network4}.", "Give this peer another address."
        )
    _, address6 = pool.allocate(peer.public_key) or (None, None)
    if six and six[0] != address6:
        wanted = f"{address6}, with the same last number as {four[0]}" if address6 else "none: Address has no IPv6"
        raise UsageError(
            f"{where}: the IPv6 address of this peer would be {wanted}.",
            "Change it here and on the peer, or remove it.",
        )
    endpoint = None if peer.endpoint is None or peer.endpoint.is_name else str(peer.endpoint)
    given6 = six[0] if six else None
    return PeerRecord(name, peer.public_key, peer.preshared_key, four[0], given6, time.time(), endpoint)


def _name(peer: conf.PeerSection, number: int, taken: set[str]) -> str:
    name = label_of(peer.name) or f"peer-{number}"
    while name in taken:
        name = f"peer-{number}"
        number += 1
    return name


def _left_out(config: conf.Config) -> list[str]:
    hooks = config.hooks
    has = {
        "DNS": config.dns or config.search,
        "FwMark": config.fwmark,
        "Table": config.table != conf.AUTO,
        "PreUp": hooks.pre_up,
        "PostUp": hooks.post_up,
        "PreDown": hooks.pre_down,
        "PostDown": hooks.post_down,
        "SaveConfig": config.save,
        "PersistentKeepalive": any(peer.keepalive for peer in config.peers),
    }
    return [key for key, value in has.items() if value]
