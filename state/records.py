"""What the two ends keep: a server its identity, pools, peers and spent guesses; a client what `join` got.

Each record goes to JSON values and back, strictly: a member that is missing, unknown or can't be meant is a
`StateError` that names it. Secrets are left out of every repr.
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
    ip_network,
)

from rustguard_py.model.keys import KEY_SIZE, NO_PRESHARED_KEY, encode_key, fingerprint
from rustguard_py.state.envelope import Canonical
from rustguard_py.state.members import Members

NAME_LIMIT = 45
_COUNT_LIMIT = 2**53
_MTU_LEAST = 576
# So many further ones fit a RESULT beside the rest, with a name of any length.
MOST_TUNNELS = 8


def check_name(name: str) -> str:
    """Give a peer's name back if it is one: 1 to 45 bytes of UTF-8, else ValueError."""
    if not 1 <= len(name.encode()) <= NAME_LIMIT:
        raise ValueError(f"a name has 1 to {NAME_LIMIT} bytes of UTF-8")
    return name


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer as its server knows it.

    Attributes:
        name: 1 to 45 bytes of UTF-8.
        public_key: 32 bytes.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        previous_preshared_keys: Those before, the newest first, until the peer was heard with a newer one: a client
            that was killed while it joined again doesn't have the newest yet.
        address4: Its inner IPv4 address.
        address6: Its inner IPv6 address.
        joined: When, in seconds of Unix time.
        endpoint: Where it was last seen, as the caller writes it.
    """

    name: str
    public_key: bytes
    preshared_key: bytes = field(repr=False)
    address4: IPv4Address | None
    address6: IPv6Address | None
    joined: float
    endpoint: str | None
    previous_preshared_keys: tuple[bytes, ...] = field(default=(), repr=False)
    _saved: Canonical | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Here too, so that what from_json would refuse at the next start can't be saved today.
        check_name(self.name)
        keys = (self.public_key, self.preshared_key, *self.previous_preshared_keys)
        if any(len(key) != KEY_SIZE for key in keys):
            raise ValueError(f"a key has {KEY_SIZE} bytes")

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
        imported = re.fullmatch(rf"peer-{re.escape(str(self.address4))}(-[0-9]+)?", self.name)
        return self.endpoint == "" or (imported is not None and self.address6 is None)

    def to_json(self) -> dict[str, object]:
        """Give its members as JSON values."""
        return {
            "name": self.name,
            "public_key": encode_key(self.public_key),
            "preshared_key": encode_key(self.preshared_key),
            "address4": _text(self.address4),
            "address6": _text(self.address6),
            "joined": self.joined,
            "endpoint": self.endpoint,
            "previous_preshared_keys": [encode_key(key) for key in self.previous_preshared_keys],
        }

    def to_save(self) -> Canonical:
        """Give the same as it is saved: made once, for with each peer that changes all are saved."""
        saved = self._saved
        if saved is None:
            saved = Canonical.of(self.to_json())
            object.__setattr__(self, "_saved", saved)
        return saved

    @classmethod
    def from_json(cls, value: object, where: str = "peer") -> PeerRecord:
        """Read what `to_json` gave."""
        members = Members(value, where)
        record = cls(
            name=members.parsed("name", check_name),
            public_key=members.key("public_key"),
            preshared_key=members.key("preshared_key"),
            address4=members.optional("address4", IPv4Address),
            address6=members.optional("address6", IPv6Address),
            joined=members.seconds("joined"),
            endpoint=members.optional("endpoint", str),
            previous_preshared_keys=tuple(members.keys("previous_preshared_keys")),
        )
        members.end()
        return record


@dataclass(frozen=True, slots=True)
class GuessRecord:
    """The guesses spent in one enrollment window: a crash must not reset them.

    Attributes:
        window: The window's number, counted from 1 over the server's life; 0 before the first.
        used: Failed confirmations in it, from everywhere.
        by_source: The same by source, as the window names sources.
    """

    window: int = 0
    used: int = 0
    by_source: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Give its members as JSON values."""
        return {"window": self.window, "used": self.used, "by_source": dict(self.by_source)}

    @classmethod
    def from_json(cls, value: object, where: str = "guesses") -> GuessRecord:
        """Read what `to_json` gave."""
        members = Members(value, where)
        window, used = (members.integer(name, 0, _COUNT_LIMIT) for name in ("window", "used"))
        value = members.take("by_source")
        sources = Members(value, members.name("by_source"))
        names = list(value) if isinstance(value, dict) else []
        by_source = {name: sources.integer(name, 0, _COUNT_LIMIT) for name in names}
        members.end()
        return cls(window, used, by_source)


@dataclass(slots=True)
class ServerState:
    """All that a server must not forget. Live: the loop's thread changes it and saves its `snapshot`.

    Attributes:
        private_key: 32 bytes, the server's identity.
        server_id: 32 random bytes that strangers may see, not derived from the key.
        pool4: Where peers' IPv4 addresses come from.
        pool6: The same for IPv6, or None.
        port: The UDP port.
        mtu: Of the tunnel's interface, here and on each client, bytes.
        peers: By public key.
        revoked: Public keys that may not join again.
        guesses: What the enrollment window has spent.
        tunnels: How many there are to each client that takes them, the first included.
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

    def snapshot(self) -> ServerState:
        """Copy what changes (the records themselves don't), quickly: `to_save` may then run in another thread."""
        return replace(self, peers=dict(self.peers), revoked=set(self.revoked))

    def to_json(self) -> dict[str, object]:
        """Give its members as JSON values."""
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
            # Left out as long as it can be: an earlier version refuses what it doesn't know.
            **({"tunnels": self.tunnels} if self.tunnels > 1 else {}),
        }

    def to_save(self) -> dict[str, object]:
        """Give the same for `Document.save`, quickly where few peers have changed since the last time."""
        others = replace(self, peers={}).to_json()
        return {**others, "peers": Canonical.array(peer.to_save() for peer in self.peers.values())}

    @classmethod
    def from_json(cls, value: object) -> ServerState:
        """Read what `to_json` gave; two peers with one key, name or address are refused as well."""
        members = Members(value)
        _check_role(members, "server")
        state = cls(
            private_key=members.key("private_key"),
            server_id=members.key("server_id"),
            pool4=members.parsed("pool4", IPv4Network),
            pool6=members.optional("pool6", IPv6Network),
            port=members.integer("port", 1, 65535),
            mtu=members.integer("mtu", _MTU_LEAST, 65535),
            peers=_peers(members),
            revoked=set(members.keys("revoked")),
            guesses=GuessRecord.from_json(members.take("guesses")),
            tunnels=members.integer("tunnels", 1, MOST_TUNNELS) if members.has("tunnels") else 1,
        )
        members.end()
        return state


@dataclass(frozen=True, slots=True)
class TunnelRecord:
    """A tunnel to a server beside the first.

    Attributes:
        server_key: Its public key, 32 bytes.
        port: Its UDP port.
    """

    server_key: bytes
    port: int

    def to_json(self) -> dict[str, object]:
        """Give its members as JSON values."""
        return {"server_key": encode_key(self.server_key), "port": self.port}

    @classmethod
    def from_json(cls, value: object, where: str = "tunnel") -> TunnelRecord:
        """Read what `to_json` gave."""
        members = Members(value, where)
        record = cls(members.key("server_key"), members.integer("port", 1, 65535))
        members.end()
        return record


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """One network that a client has joined: what RESULT gave, and how the server was reached.

    Attributes:
        host: The server, as it was typed: resolved again while handshakes fail.
        port: Its UDP port, the tunnel's.
        server_key: Its public key, 32 bytes; a later join that meets another is refused.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        name: Our name there.
        address4: Our address with the pool's prefix length, `10.150.0.2/24`.
        address6: The same for IPv6.
        routes: What else lies behind the server.
        mtu: Of the tunnel's interface, bytes.
        keepalive: Seconds between persistent keepalives, 0 for none.
        gateway4: The server's inner address.
        gateway6: The same for IPv6.
        joined: When, in seconds of Unix time.
        tunnels: Those beside the first.
    """

    host: str
    port: int
    server_key: bytes
    preshared_key: bytes = field(repr=False)
    name: str
    address4: IPv4Interface | None
    address6: IPv6Interface | None
    routes: tuple[IPv4Network | IPv6Network, ...]
    mtu: int
    keepalive: int
    gateway4: IPv4Address | None
    gateway6: IPv6Address | None
    joined: float
    tunnels: tuple[TunnelRecord, ...] = ()

    @property
    def has_to_join_again(self) -> bool:
        """Whether it was joined with the first RustGuard's protocol, the only one that gave no preshared key."""
        return self.preshared_key == NO_PRESHARED_KEY

    @property
    def fingerprint(self) -> str:
        """The server's, as `join --server` takes it."""
        return fingerprint(self.server_key)

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Our own."""
        return tuple(address for address in (self.address4, self.address6) if address is not None)

    @property
    def pools(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that our own addresses lie in."""
        return tuple(address.network for address in self.addresses)

    def to_json(self) -> dict[str, object]:
        """Give its members as JSON values."""
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
        }

    @classmethod
    def from_json(cls, value: object, where: str = "network") -> NetworkRecord:
        """Read what `to_json` gave."""
        members = Members(value, where)
        tunnels = enumerate(members.array("tunnels") if members.has("tunnels") else [])
        record = cls(
            host=members.text("host"),
            port=members.integer("port", 1, 65535),
            server_key=members.key("server_key"),
            preshared_key=members.key("preshared_key"),
            name=members.parsed("name", check_name),
            address4=members.optional("address4", IPv4Interface),
            address6=members.optional("address6", IPv6Interface),
            routes=members.each("routes", ip_network),
            mtu=members.integer("mtu", _MTU_LEAST, 65535),
            keepalive=members.integer("keepalive", 0, 65535),
            gateway4=members.optional("gateway4", IPv4Address),
            gateway6=members.optional("gateway6", IPv6Address),
            joined=members.seconds("joined"),
            tunnels=tuple(TunnelRecord.from_json(each, f"{where}.tunnels[{index}]") for index, each in tunnels),
        )
        members.end()
        return record


@dataclass(frozen=True, slots=True)
class ClientState:
    """All that a client must not forget. Saved with its key alone before the first join asks anybody anything.

    Attributes:
        private_key: 32 bytes, the same for every network and for good.
        networks: The one joined last first.
    """

    private_key: bytes = field(repr=False)
    networks: tuple[NetworkRecord, ...] = ()

    def network(self, host: str | None = None, port: int | None = None) -> NetworkRecord | None:
        """Find the network joined last, or the one of a host (and port) as typed."""
        for network in self.networks:
            if host in (None, network.host) and port in (None, network.port):
                return network
        return None

    def with_network(self, network: NetworkRecord) -> ClientState:
        """Put a network first, in place of one with the same server key or the same host and port."""
        others = (
            other
            for other in self.networks
            if other.server_key != network.server_key and (other.host, other.port) != (network.host, network.port)
        )
        return replace(self, networks=(network, *others))

    def to_json(self) -> dict[str, object]:
        """Give its members as JSON values."""
        return {
            "role": "client",
            "private_key": encode_key(self.private_key),
            "networks": [network.to_json() for network in self.networks],
        }

    @classmethod
    def from_json(cls, value: object) -> ClientState:
        """Read what `to_json` gave."""
        members = Members(value)
        _check_role(members, "client")
        private_key = members.key("private_key")
        values = enumerate(members.array("networks"))
        networks = tuple(NetworkRecord.from_json(item, f"networks[{index}]") for index, item in values)
        members.end()
        return cls(private_key, networks)


def _text(address: object) -> str | None:
    return None if address is None else str(address)


def _check_role(members: Members, role: str) -> None:
    found = members.text("role")
    if found != role:
        raise members.bad("role", f'is "{found[:10]}", and a {role} was asked to use it')


def _peers(members: Members) -> dict[bytes, PeerRecord]:
    peers: dict[bytes, PeerRecord] = {}
    taken: set[object] = set()
    for index, value in enumerate(members.array("peers")):
        where = f"peers[{index}]"
        peer = PeerRecord.from_json(value, where)
        unique = {
            "public_key": peer.public_key,
            "name": peer.name,
            "address4": peer.address4,
            "address6": peer.address6,
        }
        for member, mark in unique.items():
            if mark is not None and mark in taken:
                raise members.bad(f"{where}.{member}", "is another peer's too")
            taken.add(mark)
        peers[peer.public_key] = peer
    return peers
