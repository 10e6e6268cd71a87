"""The state that a client saves: its key, and the networks that it has joined. See `records` for a server's.

Each record converts to JSON values and back, as strictly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from rustguard_py.model import ip
from rustguard_py.model.address import LAST_PORT, check_host
from rustguard_py.model.endpoint import Network
from rustguard_py.model.keys import NO_PRESHARED_KEY, encode_key, fingerprint
from rustguard_py.state.members import Members
from rustguard_py.state.shared_members import check_role, kept_label, memif_of, mtu_of, offloads_of, text_of


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
            "address4": text_of(self.address4),
            "address6": text_of(self.address6),
            "routes": [str(route) for route in self.routes],
            "mtu": self.mtu,
            "keepalive": self.keepalive,
            "gateway4": text_of(self.gateway4),
            "gateway6": text_of(self.gateway6),
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
            name=members.parsed("name", kept_label),
            address4=members.optional("address4", ip.ipv4_interface),
            address6=members.optional("address6", ip.ipv6_interface),
            routes=members.each("routes", ip.network),
            mtu=mtu_of(members),
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
        check_role(members, "client")
        private_key = members.key("private_key")
        values = enumerate(members.array("networks"))
        networks = tuple(NetworkRecord.from_json(item, f"networks[{index}]") for index, item in values)
        offloads, memif = offloads_of(members), memif_of(members)
        members.end()
        return cls(private_key, networks, offloads, memif)
