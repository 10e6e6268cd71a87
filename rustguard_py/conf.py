"""Configuration files of wg(8) and wg-quick(8): what a file holds, and how two files differ.

`conf_reader` reads a file and `conf_writer` writes one. All three do no I/O.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from rustguard_py.model.endpoint import InterfaceAddress, IpAddress, Network
from rustguard_py.model.keys import NO_PRESHARED_KEY

AUTO, OFF = "auto", "off"
# What iproute2 knows by name without /etc/iproute2/rt_tables.
TABLES: Mapping[str, int] = {"default": 253, "main": 254, "local": 255}
MTU_LEAST, MTU_MOST = 576, 65000


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where a peer is, as the file has it.

    Attributes:
        host: A name, or an address without brackets.
        port: UDP.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_name(self) -> bool:
        """Whether it has to be looked up."""
        try:
            ip_address(self.host.partition("%")[0])
        except ValueError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class PeerSection:
    """A [Peer] section.

    Attributes:
        public_key: 32 bytes.
        preshared_key: 32 bytes, zeros for none.
        allowed_ips: Host bits cleared; each network belongs to one peer of a file, the last that names it.
        endpoint: None when it finds us.
        keepalive: Seconds, 0 for none.
        name: From the comment above or at the top of the section; empty for none.
        line: Of its public key in the file, 0 for none; not compared.
    """

    public_key: bytes
    allowed_ips: tuple[Network, ...] = ()
    preshared_key: bytes = field(default=NO_PRESHARED_KEY, repr=False)
    endpoint: HostPort | None = None
    keepalive: int = 0
    name: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Lines for a shell, in order; `%i` stands for the interface."""

    pre_up: tuple[str, ...] = ()
    post_up: tuple[str, ...] = ()
    pre_down: tuple[str, ...] = ()
    post_down: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file.

    Attributes:
        private_key: 32 bytes.
        listen_port: None for any.
        fwmark: Of what is sent to peers; None where the file says nothing, 0 for `off`.
        addresses: Of the interface.
        dns: Name servers.
        search: Domains to look names up in.
        mtu: None to find it out.
        table: `AUTO`, `OFF`, or a routing table's number.
        hooks: What to run when.
        save: Whether going down writes the file anew.
        peers: In the file's order.
    """

    private_key: bytes = field(repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    addresses: tuple[InterfaceAddress, ...] = ()
    dns: tuple[IpAddress, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int | None = None
    table: int | str = AUTO
    hooks: Hooks = Hooks()
    save: bool = False
    peers: tuple[PeerSection, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """What lies behind the interface: all allowed IPs, each once, the narrowest first."""
        found = dict.fromkeys(network for peer in self.peers for network in peer.allowed_ips)
        return tuple(sorted(found, key=lambda network: -network.prefixlen))


# -- reading ------------------------------------------------------------------------------------------------


# -- writing ------------------------------------------------------------------------------------------------


def _base64(key: bytes) -> str:
    return b64encode(key).decode()


# -- comparing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """What leads from one file to another while the tunnel runs.

    Attributes:
        peers: New ones, and those that something changed of.
        moved: Public keys of those of them whose endpoint the file has anew: another stays where it is.
        removed: Public keys.
    """

    peers: tuple[PeerSection, ...]
    moved: frozenset[bytes]
    removed: tuple[bytes, ...]


def compare(old: Config, new: Config) -> Changes:
    """Find which peers differ. All else is not here: key, port and system are told how they shall be."""
    before = {peer.public_key: peer for peer in old.peers}
    after = {peer.public_key: peer for peer in new.peers}
    changed = tuple(peer for key, peer in after.items() if before.get(key) != peer)
    moved = (peer for peer in changed if _endpoint_of(before.get(peer.public_key)) != peer.endpoint)
    return Changes(
        peers=changed,
        moved=frozenset(peer.public_key for peer in moved),
        removed=tuple(key for key in before if key not in after),
    )


def _endpoint_of(peer: PeerSection | None) -> HostPort | None:
    return None if peer is None else peer.endpoint


def short(key: bytes) -> str:
    """Give enough of a public key to tell it from others, as people see it."""
    return f"{_base64(key)[:8]}…"
