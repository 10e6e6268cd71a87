"""Two ends with several tunnels between them, under one virtual clock: their bundles, nodes and planes are real.

Each tunnel is a pair of hosts on a link of its own, which can be cut one way or both. An end can stall, as a program
does whose processor others have: its planes go on moving packets, but it decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, cast

from rustguard_py.enroll.tunnels.bundle import TICK, Bundle, Member
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.node import Node, SessionStarted
from rustguard_py.planes.contract import Event
from support.link import Host, Network, Weather, packet
from support.memory_plane import MemoryPlane

INNER = {"client": "10.0.0.2", "server": "10.0.0.1"}
OTHER = {"client": "server", "server": "client"}
DATA = {name: packet(INNER[name], INNER[OTHER[name]], b"x" * 100) for name in OTHER}
KEEPALIVE = 25
STEP = 0.05


@dataclass(slots=True)
class _Tunnel:
    """What a bundle asks of a tunnel, around a host of the link."""

    node: Node
    plane: MemoryPlane
    listeners: Listeners = field(default_factory=Listeners)
    fault: RustGuardError | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """The clock is the test's."""

    def close(self) -> None:
        """Nothing is open."""

    def has_interface(self) -> bool:
        return True

    def wake(self) -> None:
        """The link settles by itself."""


class _Routes:
    """Takes what would be routes."""

    notes: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Nothing is set."""

    def apply(self, routes: Mapping[Any, tuple[int, ...]]) -> None:
        """Who sends asks the bundle."""

    def close(self) -> None:
        """Nothing is left."""


class _Stalling:
    """Takes a host's events away from it while its program stalls."""

    def __init__(self, host: Host) -> None:
        self._take, self.stalled = host.plane.take_events, False
        host.plane.take_events = self._events  # type: ignore[method-assign]

    def _events(self) -> list[Event]:
        return [] if self.stalled else self._take()


class End:
    """One of the two, and how it sees the other."""

    def __init__(self, name: str, hosts: list[Host], others: list[Host], first_look: float) -> None:
        self.name = name
        self.hosts = hosts
        self.keys = [other.public_key for other in others]
        members = [
            Member(cast(AnyTunnel, _Tunnel(host.node, host.plane)), f"rg0-{n}", n) for n, host in enumerate(hosts)
        ]
        self.bundle = Bundle(members, _Routes(), first_has_routes=name == "server")  # type: ignore[arg-type]
        self.bundle.add(OTHER[name], self.keys, [ip_network(INNER[OTHER[name]])])
        self.stalled_until = 0.0
        self._stalling = [_Stalling(host) for host in hosts]
        self._look_at = first_look

    def act(self, now: float) -> None:
        """Do what is due, unless it stalls."""
        for each in self._stalling:
            each.stalled = now < self.stalled_until
        if now < self.stalled_until:
            return
        for place, host in enumerate(self.hosts):
            while host.events:
                event = host.events.pop(0)
                if isinstance(event, SessionStarted):
                    self.bundle.session(place, event.peer)
        if now >= self._look_at:
            self.bundle.observe(now)
            self._look_at = now + TICK

    @property
    def carrying(self) -> tuple[int, ...]:
        return self.bundle.carrying(self.keys[0])


class Tunnels:
    """Server and client, with some tunnels between them that have a session each."""

    def __init__(self, number: int, seed: int = 1) -> None:
        self.network = Network(Weather(), seed)
        self.random = self.network.random
        clients = [self.network.host(f"client {n}", f"192.0.2.{n}") for n in range(number)]
        servers = [self.network.host(f"server {n}", f"198.51.100.{n}") for n in range(number)]
        for client, server in zip(clients, servers, strict=True):
            client.add(server, INNER["server"], keepalive=KEEPALIVE)
            server.add(client, INNER["client"], know_endpoint=False)
        # (tunnel, towards whom) of those that carry nothing.
        self.cut: set[tuple[int, str]] = set()
        self._places = {
            host.endpoint: (place, name)
            for name, hosts in (("client", clients), ("server", servers))
            for place, host in enumerate(hosts)
        }
        self.network.observer = lambda _, to, __: self._passes(to)
        self.ends = {
            "client": End("client", clients, servers, self.network.now + self.random.uniform(0, TICK)),
            "server": End("server", servers, clients, self.network.now + self.random.uniform(0, TICK)),
        }
        for client in clients:
            client.node.begin_handshake(next(iter(client.node)), self.network.now)
        self.run(1.0)

    def _passes(self, destination: Endpoint) -> bool:
        return self._places[destination] not in self.cut

    @property
    def now(self) -> float:
        return self.network.now

    def run(self, seconds: float) -> None:
        """Let time pass, and both ends act."""
        until = self.now + seconds
        while self.now < until:
            self.network.run(min(STEP, until - self.now))
            for end in self.ends.values():
                end.act(self.now)

    def send(self, name: str, flow: int) -> None:
        """Send a packet of a flow from an end; the flow's tunnel is one of those that carry there."""
        self.ends[name].hosts[self.way_of(name, flow)].send(DATA[name])

    def way_of(self, name: str, flow: int) -> int:
        """Which tunnel a flow has at an end now."""
        carrying = self.ends[name].carrying
        return carrying[flow * 7919 % 9973 % len(carrying)]

    def delivered(self, name: str) -> int:
        """How many packets came to an end since the last time."""
        return sum(len(host.plane.take_delivered()) for host in self.ends[name].hosts)

    def stall(self, name: str, seconds: float) -> None:
        """Have an end decide nothing for a while."""
        self.ends[name].stalled_until = self.now + seconds

    def carry(self) -> bool:
        """Whether each end sends over every tunnel."""
        return all(len(end.carrying) == len(end.hosts) for end in self.ends.values())
