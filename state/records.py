"""The state that is saved: a server's identity, pools, peers and used guesses, and a client's networks.

Each record converts to JSON values and back, strictly: a missing, unknown or invalid member is a `StateError` that
names it. Secrets are left out of every repr.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)

from rustguard_py.model import ip
from rustguard_py.model.address import LAST_PORT, check_host
from rustguard_py.model.endpoint import InterfaceAddress, Network
from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.model.keys import KEY_SIZE, NO_PRESHARED_KEY, encode_key, fingerprint
from rustguard_py.model.memif import parse as parse_memif
from rustguard_py.model.offloads import ALL, choose_offloads
from rustguard_py.model.peer_names import FALLBACK, PEER_NAME_LIMIT, dns_name_of, first_free, is_label, label_of
from rustguard_py.state.envelope import Canonical
from rustguard_py.state.members import Members

# Bytes. IPv6 needs the least; a WireGuard datagram has no room for more than the most.
MTU_LEAST, MTU_MOST = 1280, 65000
MOST_ROUTES = 64
_COUNT_LIMIT = 2**53
# Bytes. What earlier versions accepted is still loaded, and brought within the limits above.
_KEPT_MTU_LEAST, _KEPT_MTU_MOST = 576, 65535
# This many further tunnels fit into RESULT besides the rest, with a name of any length.
MOST_TUNNELS = 8
# What the import of the first RustGuard's peer list called a peer: by its IPv4 address, numbered if that was taken.
_IMPORTED_NAME = re.compile(r"peer-([0-9.]+)(?:-[0-9]+)?")
_VERBS = {"server": "serve", "client": "join"}


def _kept_label(name: str) -> str:
    """Return the label of a saved name, which an earlier version may have saved. Raise ValueError for none."""
    if not 1 <= len(name.encode()) <= PEER_NAME_LIMIT:
        raise ValueError(f"a name has 1 to {PEER_NAME_LIMIT} bytes of UTF-8")
    return label_of(name) or FALLBACK


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
            "address4": _text(self.address4),
            "address6": _text(self.address6),
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
            name=members.parsed("name", _kept_label),
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
            "pool6": _text(self.pool6),
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
        _check_role(members, "server")
        state = cls(
            private_key=members.key("private_key"),
            server_id=members.key("server_id"),
            pool4=members.parsed("pool4", ip.ipv4_network),
            pool6=members.optional("pool6", ip.ipv6_network),
            port=members.integer("port", 1, LAST_PORT),
            mtu=_mtu(members),
            peers=_peers(members),
            revoked=set(members.keys("revoked")),
            guesses=GuessRecord.from_json(members.take("guesses")),
            tunnels=members.integer("tunnels", 1, MOST_TUNNELS) if members.has("tunnels") else 1,
            offloads=_offloads(members),
            memif=_memif(members),
            own=members.each("own", ip.interface) if members.has("own") else (),
            interface=members.parsed("interface", _interface_name) if members.has("interface") else None,
        )
        members.end()
        return state


@dataclass(frozen=True, slots=True)
class TunnelRecord:
    """A further tunnel to a server, besides the first.

    Attributes:
        server_key: The server's public key in this tunnel, 32 bytes.
        port: The server's UDP port of this tunnel.
    """

    server_key: bytes
    port: int

    def to_json(self) -> dict[str, object]:
        """Return the members as JSON values."""
        return {"server_key": encode_key(self.server_key), "port": self.port}

    @classmethod
    def from_json(cls, value: object, where: str = "tunnel") -> TunnelRecord:
        """Return the record in JSON values from `to_json`."""
        members = Members(value, where)
        record = cls(members.key("server_key"), members.integer("port", 1, LAST_PORT))
        members.end()
        return record


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network that a client has joined: the content of RESULT, and how to reach the server.

    Attributes:
        host: The server as it was typed. It is resolved again while handshakes fail.
        port: The tunnel's UDP port on the server.
        server_key: The server's public key, 32 bytes. A later join that finds another key is refused.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        name: Our label there.
        address4: Our address with the pool's prefix length, such as `10.150.0.2/24`.
        address6: The same for IPv6.
        routes: The networks behind the server that are routed to it, because the user accepted them.
        mtu: The MTU of the tunnel's interface, bytes.
        keepalive: Seconds between persistent keepalives, 0 for none.
        gateway4: The server's inner IPv4 address.
        gateway6: The server's inner IPv6 address.
        joined: When we joined, Unix time in seconds.
        tunnels: The tunnels besides the first.
        offered: All networks that the server says are behind it.
        accepts_all: Whether the user accepts whatever it will offer.
    """

    host: str
    port: int
    server_key: bytes
    preshared_key: bytes = field(repr=False)
    name: str
    address4: IPv4Interface | None
    address6: IPv6Interface | None
    routes: tuple[Network, ...]
    mtu: int
    keepalive: int
    gateway4: IPv4Address | None
    gateway6: IPv6Address | None
    joined: float
    tunnels: tuple[TunnelRecord, ...] = ()
    offered: tuple[Network, ...] = ()
    accepts_all: bool = False

    @property
    def has_to_join_again(self) -> bool:
        """Whether it was joined with the first RustGuard's protocol, the only one that gave no preshared key."""
        return self.preshared_key == NO_PRESHARED_KEY

    @property
    def fingerprint(self) -> str:
        """The server's fingerprint, for `join --server`."""
        return fingerprint(self.server_key)

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Our own addresses."""
        return tuple(address for address in (self.address4, self.address6) if address is not None)

    @property
    def pools(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of our own addresses."""
        return tuple(address.network for address in self.addresses)

    def to_json(self) -> dict[str, object]:
        """Return the members as JSON values."""
        return {
            "host": self.host,
            "port": self.port,
            "server_key": encode_key(self.server_key),
            "preshared_key": encode_key(self.preshared_key),
            "name": self.name,
            "address4": _text(self.address4),
            "address6": _text(self.address6),
            "routes": [str(route) for route in self.routes],
            "mtu": self.mtu,
            "keepalive": self.keepalive,
            "gateway4": _text(self.gateway4),
            "gateway6": _text(self.gateway6),
            "joined": self.joined,
            **({"tunnels": [each.to_json() for each in self.tunnels]} if self.tunnels else {}),
            **({"offered": [str(route) for route in self.offered]} if self.offered else {}),
            **({"accepts_all": True} if self.accepts_all else {}),
        }

    @classmethod
    def from_json(cls, value: object, where: str = "network") -> NetworkRecord:
        """Return the record in JSON values from `to_json`."""
        members = Members(value, where)
        tunnels = enumerate(members.array("tunnels") if members.has("tunnels") else [])
        record = cls(
            host=members.parsed("host", check_host),
            port=members.integer("port", 1, LAST_PORT),
            server_key=members.key("server_key"),
            preshared_key=members.key("preshared_key"),
            name=members.parsed("name", _kept_label),
            address4=members.optional("address4", ip.ipv4_interface),
            address6=members.optional("address6", ip.ipv6_interface),
            routes=members.each("routes", ip.network),
            mtu=_mtu(members),
            keepalive=members.integer("keepalive", 0, 65535),
            gateway4=members.optional("gateway4", ip.ipv4_address),
            gateway6=members.optional("gateway6", ip.ipv6_address),
            joined=members.seconds("joined"),
            tunnels=tuple(TunnelRecord.from_json(each, f"{where}.tunnels[{index}]") for index, each in tunnels),
            offered=members.each("offered", ip.network) if members.has("offered") else (),
            accepts_all=members.boolean("accepts_all") if members.has("accepts_all") else False,
        )
        members.end()
        record._check_addresses(members)
        return record

    def _check_addresses(self, members: Members) -> None:
        try:
            member = "address4"
            if self.address4 is not None:
                ip.check_own4(self.address4, self.gateway4)
            member = "address6"
            if self.address6 is not None:
                ip.check_own6(self.address6, self.gateway6)
        except ValueError as error:
            raise members.bad(member, str(error)) from error


@dataclass(frozen=True, slots=True)
class ClientState:
    """A client's whole state. It is saved with only the key before the first join sends anything.

    Attributes:
        private_key: 32 bytes. The same for every network, and never changed.
        networks: The networks, the one joined last first.
        offloads: The list of `--offloads` (`model.offloads`); empty for `auto`.
        memif: The value of `--memif` (`model.memif`); empty for an interface.
    """

    private_key: bytes = field(repr=False)
    networks: tuple[NetworkRecord, ...] = ()
    offloads: str = ""
    memif: str = field(default="", repr=False)

    def network(self, host: str | None = None, port: int | None = None) -> NetworkRecord | None:
        """Return the network joined last, or the one of a host (and port) as typed, or None."""
        for network in self.networks:
            if host in (None, network.host) and port in (None, network.port):
                return network
        return None

    def network_of(self, server_key: bytes) -> NetworkRecord | None:
        """Return the network of the server with this public key, or None."""
        return next((network for network in self.networks if network.server_key == server_key), None)

    def with_network(self, network: NetworkRecord) -> ClientState:
        """Return a state with this network first, replacing one with the same server key or host and port."""
        others = (
            other
            for other in self.networks
            if other.server_key != network.server_key and (other.host, other.port) != (network.host, network.port)
        )
        return replace(self, networks=(network, *others))

    def to_json(self) -> dict[str, object]:
        """Return the members as JSON values."""
        return {
            "role": "client",
            "private_key": encode_key(self.private_key),
            "networks": [network.to_json() for network in self.networks],
            **({"offloads": self.offloads} if self.offloads else {}),
            **({"memif": self.memif} if self.memif else {}),
        }

    @classmethod
    def from_json(cls, value: object) -> ClientState:
        """Return the record in JSON values from `to_json`."""
        members = Members(value)
        _check_role(members, "client")
        private_key = members.key("private_key")
        values = enumerate(members.array("networks"))
        networks = tuple(NetworkRecord.from_json(item, f"networks[{index}]") for index, item in values)
        offloads, memif = _offloads(members), _memif(members)
        members.end()
        return cls(private_key, networks, offloads, memif)


def _offloads(members: Members) -> str:
    def check(text: str) -> str:
        try:
            choose_offloads(text, ALL)
        except UsageError as error:
            raise ValueError(error.message) from error
        return text

    return members.parsed("offloads", check) if members.has("offloads") else ""


def _text(address: object) -> str | None:
    return None if address is None else str(address)


def _check_role(members: Members, role: str) -> None:
    found = members.text("role")
    if found == role:
        return
    if found in _VERBS:
        raise StateError(
            f"This state directory is a {found}'s, and a {role} needs another one.",
            f"Choose one with --state DIR (or RUSTGUARD_STATE). To use the {found}'s: rustguard {_VERBS[found]}",
        )
    raise members.bad("role", f'is "{found[:10]}", but a {role} was started with it')


def _dns_name(name: str) -> str:
    if dns_name_of(name) != name:
        raise ValueError("it has other characters than letters, digits and hyphens")
    return name


def _interface_name(name: str) -> str:
    if re.fullmatch(r"[a-zA-Z0-9_=+.-]{1,15}", name) is None:
        raise ValueError("it is no name of an interface")
    return name


def _mtu(members: Members) -> int:
    return min(max(members.integer("mtu", _KEPT_MTU_LEAST, _KEPT_MTU_MOST), MTU_LEAST), MTU_MOST)


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


def _memif(members: Members) -> str:
    def check(text: str) -> str:
        try:
            parse_memif(text)
        except UsageError as error:
            raise ValueError(error.message) from error
        return text

    return members.parsed("memif", check) if members.has("memif") else ""
