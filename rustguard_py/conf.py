"""Configuration files of wg(8) and wg-quick(8): what a file holds, and how two files differ.

`conf_reader` reads a file and `conf_writer` writes one. All three do no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from rustguard_py.model.endpoint import InterfaceAddress, IpAddress, Network
from rustguard_py.model.keys import NO_PRESHARED_KEY, encode_key

AUTO, OFF = "auto", "off"
# The names that iproute2 knows without /etc/iproute2/rt_tables.
TABLES: Mapping[str, int] = {"default": 253, "main": 254, "local": 255}
MTU_LEAST, MTU_MOST = 576, 65000


@dataclass(frozen=True, slots=True)
class HostPort:
    """An Endpoint value of the file.

    Attributes:
        host: A name, or an address without brackets.
        port: The UDP port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_name(self) -> bool:
        """Whether the host is a name that must be resolved."""
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
        allowed_ips: Networks with host bits cleared. A network that several peers name belongs to the last one.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        endpoint: None for a peer that contacts us.
        keepalive: Seconds, 0 for none.
        name: From the comment above the section or at its top; empty for none. Not compared.
        line: The line of the public key in the file, 0 for none. Not compared.
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
    """Shell commands, in order. `%i` stands for the interface's name."""

    pre_up: tuple[str, ...] = ()
    post_up: tuple[str, ...] = ()
    pre_down: tuple[str, ...] = ()
    post_down: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """The content of a file.

    Attributes:
        private_key: 32 bytes; None if a hook sets it once the interface is there.
        listen_port: None for any free port.
        fwmark: The mark of datagrams to peers: None if the file has none, 0 for `off`.
        addresses: The interface's addresses.
        dns: Name servers.
        search: Search domains.
        mtu: None to choose it automatically.
        table: `AUTO`, `OFF`, or the number of a routing table.
        hooks: The commands to run.
        save: Whether `down` writes the current state back to the file (SaveConfig).
        peers: In the file's order.
    """

    private_key: bytes | None = field(repr=False)
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
        """All networks behind the interface, each once, the narrowest first."""
        found = dict.fromkeys(network for peer in self.peers for network in peer.allowed_ips)
        return tuple(sorted(found, key=lambda network: -network.prefixlen))


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes to peers between two versions of a file.

    Attributes:
        peers: New and changed peers.
        moved: Public keys of those `peers` whose endpoint changed in the file. The others keep their current one.
        removed: Public keys of removed peers.
    """

    peers: tuple[PeerSection, ...]
    moved: frozenset[bytes]
    removed: tuple[bytes, ...]


def compare(old: Config, new: Config) -> Changes:
    """Return which peers differ. Other settings need no comparison: they are simply set again."""
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
    """Return the first characters of a public key in base64, enough for people to recognise it."""
    return f"{encode_key(key)[:8]}…"
