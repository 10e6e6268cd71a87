"""A server made from a wg-quick file: its identity, port, pools and peers. The peers need no change.

The peers keep the addresses that they have, whatever they are. The pools only say what new peers get.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar

from rustguard_py import conf
from rustguard_py.model.defaults import DEFAULT_MTU, DEFAULT_PORT
from rustguard_py.model.endpoint import InterfaceAddress, Network
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.peer_names import dns_name_of, first_free, label_of
from rustguard_py.state.document import Document
from rustguard_py.state.records import PeerRecord, ServerState
from rustguard_py.state.shared_members import MTU_LEAST

Address = TypeVar("Address", IPv4Address, IPv6Address)

# Of the pool of a server whose address has no network, as linuxserver writes it.
_WIDE4, _WIDE6 = 24, 64
# The narrowest pools that our clients accept.
_NARROWEST4, _NARROWEST6 = 30, 126


@dataclass(frozen=True, slots=True)
class Imported:
    """A server read from a file.

    Attributes:
        state: The server's state.
        left_out: Keys of the file that a server doesn't use.
        named: Peers whose endpoint is a name, which a server doesn't look up.
    """

    state: ServerState
    left_out: tuple[str, ...]
    named: tuple[str, ...] = ()


def read_server(config: conf.Config, where: str, interface: str | None = None) -> Imported:
    """Return the server that a wg-quick file describes.

    Args:
        config: The file.
        where: Name of the file for errors.
        interface: The name of its interface, or None if the file has no name for one.

    Raises:
        UsageError: The file isn't a server's, or describes something that our server can't do.
    """
    if config.private_key is None:
        raise UsageError(
            f"{where} has no PrivateKey: a hook sets it.", "Write that key into a copy of the file: PrivateKey = …"
        )
    if config.mtu is not None and config.mtu < MTU_LEAST:
        raise UsageError(
            f"{where} has MTU = {config.mtu}, and a server's is {MTU_LEAST} or more.", "Change it there."
        )
    pool4, pool6, own = _pools(config, where)
    state = ServerState(
        private_key=config.private_key,
        server_id=os.urandom(32),
        pool4=pool4,
        pool6=pool6,
        port=config.listen_port or DEFAULT_PORT,
        mtu=config.mtu or DEFAULT_MTU,
        interface=interface,
    )
    state.own = () if list(own) == state.addresses() else own
    names: set[str] = set()
    for number, peer in enumerate(config.peers, 1):
        record = _record(peer, state, _name(peer, number, names), f"{where}, line {peer.line}")
        if record.has_to_join_again:
            # Such a name is the mark of the first RustGuard's peers.
            record = replace(record, name=first_free(f"peer {number}", names), dns_name="")
        record = replace(record, dns_name=first_free(dns_name_of(record.name), names))
        state.peers[record.public_key] = record
        names |= record.names
    return Imported(state, tuple(_left_out(config)), tuple(_named(config, state)))


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


def _pools(config: conf.Config, where: str) -> tuple[IPv4Network, IPv6Network | None, tuple[InterfaceAddress, ...]]:
    """Return the pools, and the server's own addresses with the prefix lengths of their pools."""
    _refuse_clients(config, where)
    four = next((each for each in config.addresses if isinstance(each, IPv4Interface)), None)
    six = next(
        (each for each in config.addresses if isinstance(each, IPv6Interface) and not each.is_link_local), None
    )
    if four is None:
        raise UsageError(
            f"{where} has no IPv4 address, and a server gives one to each peer.",
            "Write one with its network, such as Address = 10.0.0.1/24, or keep the file for `rustguard up`.",
        )
    own: list[InterfaceAddress] = []
    for each in config.addresses:
        length = each.network.prefixlen
        if each == four and length > _NARROWEST4:
            each = four = IPv4Interface((each.ip, _WIDE4))
        elif each == six and length > _NARROWEST6:
            each = six = IPv6Interface((each.ip, _WIDE6))
        own.append(each)
    return four.network, None if six is None else six.network, tuple(own)


def _refuse_clients(config: conf.Config, where: str) -> None:
    own = [each.ip for each in config.addresses]
    for network in (network for peer in config.peers for network in peer.allowed_ips):
        if network.prefixlen == 0:
            what = "everything"
        elif network.prefixlen < network.max_prefixlen and any(each in network for each in own):
            what = f"{network}, where its own address is,"
        else:
            continue
        raise UsageError(
            f"{where} is a client's file: it sends {what} through its peer.",
            "Use it without import: rustguard up FILE",
        )


def _record(peer: conf.PeerSection, state: ServerState, name: str, where: str) -> PeerRecord:
    singles = [each.network_address for each in peer.allowed_ips if each.prefixlen == each.max_prefixlen]
    for address in singles:
        if any(address == own.ip for own in state.addresses()):
            raise UsageError(
                f"{where}: {address} is not free: it is the server's own address.", "Give this peer another address."
            )
    address4 = _main([each for each in singles if isinstance(each, IPv4Address)], state.pool4)
    address6 = _main([each for each in singles if isinstance(each, IPv6Address)], state.pool6)
    endpoint = None if peer.endpoint is None or peer.endpoint.is_name else str(peer.endpoint)
    main = [ip_network(each) for each in (address4, address6) if each is not None]
    others = tuple(each for each in peer.allowed_ips if each not in main)
    return PeerRecord(
        name, peer.public_key, peer.preshared_key, address4, address6, time.time(), endpoint, networks=others
    )


def _main(addresses: Sequence[Address], pool: Network | None) -> Address | None:
    """Return the address to show of a peer: the first one in the pool, else the first one."""
    for address in addresses:
        if pool is not None and address in pool:
            return address
    return addresses[0] if addresses else None


def _named(config: conf.Config, state: ServerState) -> Iterator[str]:
    for peer in config.peers:
        if peer.endpoint is not None and peer.endpoint.is_name:
            yield f"{state.peers[peer.public_key].name} ({peer.endpoint})"


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
