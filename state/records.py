"""The state that a server saves: its identity, pools, peers and used guesses. See `client_records` for a client's.

Each record converts to JSON values and back, strictly: a missing, unknown or invalid member is a `StateError` that
names it. Secrets are left out of every repr.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_interface,
)

from rustguard_py.model import ip
from rustguard_py.model.address import LAST_PORT
from rustguard_py.model.endpoint import InterfaceAddress, Network
from rustguard_py.model.keys import KEY_SIZE, NO_PRESHARED_KEY, encode_key
from rustguard_py.model.peer_names import PEER_NAME_LIMIT, dns_name_of, first_free, is_label
from rustguard_py.state.envelope import Canonical
from rustguard_py.state.members import Members
from rustguard_py.state.shared_members import check_role, kept_label, memif_of, mtu_of, offloads_of, text_of

MOST_ROUTES = 64
_COUNT_LIMIT = 2**53
# This many further tunnels fit into RESULT besides the rest, with a name of any length.
MOST_TUNNELS = 8
# What the import of the first RustGuard's peer list called a peer: by its IPv4 address, numbered if that was taken.
_IMPORTED_NAME = re.compile(r"peer-([0-9.]+)(?:-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer, as its server keeps it.

    Attributes:
        name: Its label (see `model.peer_names`).
        public_key: 32 bytes.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        previous_preshared_keys: Older keys, the newest first, until the peer was heard with a newer one. A client
            that was killed while it joined again doesn't have the newest key yet.
        address4: Its inner IPv4 address.
        address6: Its inner IPv6 address.
        joined: When it joined, Unix time in seconds.
        endpoint: Its last known endpoint, as text.
        connected: Whether it has ever had a session.
        dns_name: Its DNS name. If it isn't given, it is made from the label.
        networks: Further addresses and networks that it has, from the wg-quick file that it came with.
    """

    name: str
    public_key: bytes
    preshared_key: bytes = field(repr=False)
    address4: IPv4Address | None
    address6: IPv6Address | None
    joined: float
    endpoint: str | None
    previous_preshared_keys: tuple[bytes, ...] = field(default=(), repr=False)
    connected: bool = True
    dns_name: str = ""
    networks: tuple[Network, ...] = ()
    _saved: Canonical | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Checked here too, so that nothing is saved that `from_json` would refuse at the next start.
        if not is_label(self.name):
            raise ValueError(f"a name has 1 to {PEER_NAME_LIMIT} bytes of UTF-8, all of them printable")
        if not self.dns_name:
            object.__setattr__(self, "dns_name", dns_name_of(self.name))
        if dns_name_of(self.dns_name) != self.dns_name:
            raise ValueError("a DNS name has 1 to 63 bytes, all of them letters, digits and hyphens")
        keys = (self.public_key, self.preshared_key, *self.previous_preshared_keys)
        if any(len(key) != KEY_SIZE for key in keys):
            raise ValueError(f"a key has {KEY_SIZE} bytes")

    @property
    def names(self) -> frozenset[str]:
        """What a person can call it: its label and its DNS name."""
        return frozenset((self.name, self.dns_name))

    @property
    def allowed(self) -> tuple[Network, ...]:
        """All that it may send from, and that is sent to it."""
        # By number: a network of an address is made by way of its text, which takes long for thousands of peers.
        four = () if self.address4 is None else (IPv4Network((int(self.address4), 32)),)
        six = () if self.address6 is None else (IPv6Network((int(self.address6), 128)),)
        return (*four, *six, *self.networks)

    @property
    def preshared_keys(self) -> tuple[bytes, ...]:
        """All that the peer may connect with, the newest first."""
        return (self.preshared_key, *self.previous_preshared_keys)

    @property
    def has_to_join_again(self) -> bool:
        """Whether the peer enrolled with the first RustGuard, whose protocol is gone, so that it can't connect.

        Such a peer has no preshared key. Its enrollment saved an empty endpoint; the import of the first RustGuard's
        peer list named it after its IPv4 address and gave it no IPv6 address. A peer of a wg-quick file may lack a
        preshared key too, but has neither mark.
        """
        if self.preshared_key != NO_PRESHARED_KEY:
            return False
        imported = _IMPORTED_NAME.fullmatch(self.name)
        was_imported = imported is not None and imported[1] == str(self.address4) and self.address6 is None
        return self.endpoint == "" or was_imported

    def to_json(self) -> dict[str, object]:
        """Return the members as JSON values."""
        return {
            "name": self.name,
            "public_key": encode_key(self.public_key),
            "preshared_key": encode_key(self.preshared_key),
            "address4": text_of(self.address4),
            "address6": text_of(self.address6),
            "joined": self.joined,
            "endpoint": self.endpoint,
            "previous_preshared_keys": [encode_key(key) for key in self.previous_preshared_keys],
            **({} if self.connected else {"connected": False}),
            # Left out while possible, because earlier versions refuse members that they don't know.
            **({} if self.dns_name == dns_name_of(self.name) else {"dns_name": self.dns_name}),
            **({"networks": [str(network) for network in self.networks]} if self.networks else {}),
        }

    def to_save(self) -> Canonical:
        """Return the JSON to save. It is made once per record, because each save contains all peers."""
        saved = self._saved
        if saved is None:
            saved = Canonical.of(self.to_json())
            object.__setattr__(self, "_saved", saved)
        return saved

    @classmethod
    def from_json(cls, value: object, where: str = "peer") -> PeerRecord:
        """Return the record in JSON values from `to_json`."""
        members = Members(value, where)
        record = cls(
            name=members.parsed("name", kept_label),
            public_key=members.key("public_key"),
            preshared_key=members.key("preshared_key"),
            address4=members.optional("address4", ip.ipv4_address),
            address6=members.optional("address6", ip.ipv6_address),
            joined=members.seconds("joined"),
            endpoint=members.optional("endpoint", str),
            previous_preshared_keys=tuple(members.keys("previous_preshared_keys")),
            connected=members.boolean("connected") if members.has("connected") else True,
            dns_name=members.parsed("dns_name", _dns_name) if members.has("dns_name") else "",
            networks=members.each("networks", ip.network) if members.has("networks") else (),
        )
        members.end()
        return record


@dataclass(frozen=True, slots=True)
class GuessRecord:
    """The guesses used in one enrollment window, which a crash must not reset.

    Attributes:
        window: The window's number, counted from 1 over the server's life; 0 before the first.
        used: Failed confirmations in the window, from all sources.
        by_source: Failed confirmations by source, as the window names sources.
        sources: The networks from which clients may try; empty for all.
        most: How many new peers it admits; None for the usual number.
        new_peers: How many it has admitted.
    """

    window: int = 0
    used: int = 0
    by_source: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    most: int | None = None
    new_peers: int = 0

    def to_json(self) -> dict[str, object]:
        """Return the members as JSON values."""
        return {
            "window": self.window,
            "used": self.used,
            "by_source": dict(self.by_source),
            # Left out as long as they can be: an earlier version refuses what it doesn't know.
            **({"from": [str(network) for network in self.sources]} if self.sources else {}),
            **({"most": self.most} if self.most is not None else {}),
            **({"new_peers": self.new_peers} if self.new_peers else {}),
        }

    @classmethod
    def from_json(cls, value: object, where: str = "guesses") -> GuessRecord:
        """Return the record in JSON values from `to_json`."""
        members = Members(value, where)
        window, used = (members.integer(name, 0, _COUNT_LIMIT) for name in ("window", "used"))
        value = members.take("by_source")
        sources = Members(value, members.name("by_source"))
        names = list(value) if isinstance(value, dict) else []
        by_source = {name: sources.integer(name, 0, _COUNT_LIMIT) for name in names}
        record = cls(
            window,
            used,
            by_source,
            sources=members.each("from", ip.network) if members.has("from") else (),
            most=members.integer("most", 0, _COUNT_LIMIT) if members.has("most") else None,
            new_peers=members.integer("new_peers", 0, _COUNT_LIMIT) if members.has("new_peers") else 0,
        )
        members.end()
        return record


@dataclass(slots=True)
class ServerState:
    """A server's whole state. The loop's thread changes it, and saves its `snapshot`.

    Attributes:
        private_key: 32 bytes, the server's identity.
        server_id: 32 random bytes that strangers may see. They aren't derived from the key.
        pool4: The pool of the peers' IPv4 addresses.
        pool6: The pool of their IPv6 addresses, or None.
        port: The UDP port.
        mtu: The MTU of the tunnel's interface here and on each client, bytes.
        peers: Peers by public key.
        revoked: Public keys that may not join again.
        guesses: The guesses used in the enrollment window.
        tunnels: Number of tunnels to each client that supports several, including the first.
        offloads: The list of `--offloads` (`model.offloads`); empty for `auto`.
        memif: The value of `--memif` (`model.memif`); empty for an interface.
        own: The server's own inner addresses, if they aren't the first ones of its pools.
        interface: The name of its interface, if it came with a wg-quick file: firewalls may have rules for it.
    """

    private_key: bytes = field(repr=False)
    server_id: bytes
    pool4: IPv4Network
    pool6: IPv6Network | None
    port: int
    mtu: int
    peers: dict[bytes, PeerRecord] = field(default_factory=dict, repr=False)
    revoked: set[bytes] = field(default_factory=set, repr=False)
    guesses: GuessRecord = field(default_factory=GuessRecord)
    tunnels: int = 1
    offloads: str = ""
    memif: str = field(default="", repr=False)
    own: tuple[InterfaceAddress, ...] = ()
    interface: str | None = None

    def addresses(self, *, ipv6: bool = True) -> list[InterfaceAddress]:
        """Return the server's own inner addresses, those of a pool with the pool's prefix length."""
        found: list[InterfaceAddress] = []
        for pool in (self.pool4, self.pool6 if ipv6 else None):
            if pool is not None:
                mine = [each for each in self.own if each.version == pool.version]
                first = ip_interface(f"{pool[1]}/{pool.prefixlen}")
                found += mine if any(each.ip in pool for each in mine) else [first, *mine]
        return found

    def snapshot(self) -> ServerState:
        """Return a copy, for which `to_save` can run in another thread. Records never change, so it is quick."""
        return replace(self, peers=dict(self.peers), revoked=set(self.revoked))

    def to_json(self) -> dict[str, object]:
        """Return the members as JSON values."""
        return {
            "role": "server",
            "private_key": encode_key(self.private_key),
            "server_id": encode_key(self.server_id),
            "pool4": str(self.pool4),
            "pool6": text_of(self.pool6),
            "port": self.port,
            "mtu": self.mtu,
            "peers": [peer.to_json() for peer in self.peers.values()],
            "revoked": sorted(encode_key(key) for key in self.revoked),
            "guesses": self.guesses.to_json(),
            # Left out while possible, because earlier versions refuse members that they don't know.
            **({"tunnels": self.tunnels} if self.tunnels > 1 else {}),
            **({"offloads": self.offloads} if self.offloads else {}),
            **({"memif": self.memif} if self.memif else {}),
            **({"own": [str(each) for each in self.own]} if self.own else {}),
            **({} if self.interface is None else {"interface": self.interface}),
        }

    def to_save(self) -> dict[str, object]:
        """Return the members for `Document.save`. It is quick if few peers changed since the last save."""
        others = replace(self, peers={}).to_json()
        return {**others, "peers": Canonical.array(peer.to_save() for peer in self.peers.values())}

    @classmethod
    def from_json(cls, value: object) -> ServerState:
        """Return the record in JSON values from `to_json`. Two peers with one key, name or address are refused."""
        members = Members(value)
        check_role(members, "server")
        state = cls(
            private_key=members.key("private_key"),
            server_id=members.key("server_id"),
            pool4=members.parsed("pool4", ip.ipv4_network),
            pool6=members.optional("pool6", ip.ipv6_network),
            port=members.integer("port", 1, LAST_PORT),
            mtu=mtu_of(members),
            peers=_peers(members),
            revoked=set(members.keys("revoked")),
            guesses=GuessRecord.from_json(members.take("guesses")),
            tunnels=members.integer("tunnels", 1, MOST_TUNNELS) if members.has("tunnels") else 1,
            offloads=offloads_of(members),
            memif=memif_of(members),
            own=members.each("own", ip.interface) if members.has("own") else (),
            interface=members.parsed("interface", _interface_name) if members.has("interface") else None,
        )
        members.end()
        return state


def _dns_name(name: str) -> str:
    if dns_name_of(name) != name:
        raise ValueError("it has other characters than letters, digits and hyphens")
    return name


def _interface_name(name: str) -> str:
    if re.fullmatch(r"[a-zA-Z0-9_=+.-]{1,15}", name) is None:
        raise ValueError("it is no name of an interface")
    return name


def _peers(members: Members) -> dict[bytes, PeerRecord]:
    peers: list[PeerRecord] = []
    saved_names: list[object] = []
    taken: set[object] = set()
    for index, value in enumerate(members.array("peers")):
        where = f"peers[{index}]"
        peer = PeerRecord.from_json(value, where)
        saved_name = value["name"] if isinstance(value, dict) else None
        unique = {
            "public_key": peer.public_key,
            "name": saved_name,
            "address4": peer.address4,
            "address6": peer.address6,
            "dns_name": (peer.dns_name,) if peer.dns_name != dns_name_of(peer.name) else None,
        }
        marks = [*unique.items(), *(("networks", network) for network in peer.networks)]
        for member, mark in marks:
            if mark is not None and mark in taken:
                raise members.bad(f"{where}.{member}", "is also another peer's")
            taken.add(mark)
        peers.append(peer)
        saved_names.append(saved_name)
    return {peer.public_key: peer for peer in _with_distinct_names(peers, saved_names)}


def _with_distinct_names(peers: list[PeerRecord], saved: list[object]) -> list[PeerRecord]:
    """Return the peers so that no two share a name. Only names that an earlier version saved change.

    A label that was saved as it is stays; so does a DNS name that was saved. The others get the first free number, in
    the order of the file, so that each load of one file gives the same names.
    """
    owners: dict[str, bytes] = {}
    for peer, name in zip(peers, saved, strict=True):
        if peer.name == name:
            owners[peer.name] = peer.public_key
    for peer in peers:
        if peer.dns_name != dns_name_of(peer.name):
            owners.setdefault(peer.dns_name, peer.public_key)
    distinct = []
    for peer in peers:
        name = peer.name
        if owners.get(name, peer.public_key) != peer.public_key:
            name = first_free(name, owners)
        owners[name] = peer.public_key
        distinct.append(peer if name == peer.name else replace(peer, name=name, dns_name=""))
    for index, peer in enumerate(distinct):
        if owners.get(peer.dns_name, peer.public_key) != peer.public_key:
            distinct[index] = peer = replace(peer, dns_name=first_free(dns_name_of(peer.name), owners))
        owners[peer.dns_name] = peer.public_key
    return distinct
