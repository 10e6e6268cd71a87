"""Several tunnels between the same two ends, each with a plane of its own: who is reached over which of them.

Every half second: what went and came over each tunnel → `way` → which tunnels carry → `multipath` routes.

The first tunnel is the one that everybody has. Another carries for a peer once a session stands there, so that who
knows nothing of further tunnels is left alone; it carries no longer when it is found dead while another isn't, and
again when a handshake succeeds. With none that is known to be good, the first carries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rustguard_py.clock import now
from rustguard_py.enroll.way import Way
from rustguard_py.multipath import Multipath
from rustguard_py.peer import Peer
from rustguard_py.planes.contract import REJECT_AFTER_TIME, Network, PeerStats, PlaneStats
from rustguard_py.tunnel import AnyTunnel

log = logging.getLogger(__name__)

TICK = 0.5
# A peer that wasn't heard for longer, over any tunnel, is away: it isn't asked about those that are dead.
_NEAR = 15.0
_NOTHING = PeerStats()


@dataclass(frozen=True, slots=True)
class Member:
    """One tunnel of a bundle.

    Attributes:
        tunnel: Runs; the caller's.
        interface: Its name.
        port: UDP, the server's.
    """

    tunnel: AnyTunnel
    interface: str
    port: int


@dataclass(slots=True)
class _Partner:
    """Who is reached over the tunnels.

    Attributes:
        name: For the log.
        keys: Its public key in each tunnel.
        networks: Those that lie behind it.
        ways: One each tunnel.
        several: Whether a session ever stood in a tunnel but the first: there is more than one to look at.
    """

    name: str
    keys: tuple[bytes, ...]
    networks: tuple[Network, ...]
    ways: list[Way] = field(default_factory=list)
    several: bool = False

    def carrying(self) -> tuple[int, ...]:
        return tuple(place for place, way in enumerate(self.ways) if way.proven) or (0,)


class Bundle:
    """The tunnels and who is reached over them.

    Args:
        members: The first tunnel first.
        routes: Over their interfaces, in this order.
        first_has_routes: Whether what goes over the first alone needs no route of ours.
    """

    def __init__(self, members: Sequence[Member], routes: Multipath, *, first_has_routes: bool) -> None:
        self.members = tuple(members)
        self._routes = routes
        self._first_has_routes = first_has_routes
        self._changed = asyncio.Event()
        self._partners: dict[bytes, _Partner] = {}
        self._by_key: dict[tuple[int, bytes], _Partner] = {}

    # -- who there is ---------------------------------------------------------------------------------------

    def add(self, name: str, keys: Sequence[bytes], networks: Sequence[Network]) -> None:
        """Reach somebody over the tunnels, or take a change of whom; at first over the first.

        Args:
            name: For the log.
            keys: Its public key in each tunnel, 32 bytes.
            networks: What lies behind it.
        """
        known = self._partners.get(keys[0])
        ways = known.ways if known is not None else [Way() for _ in self.members]
        several = known is not None and known.several
        partner = _Partner(name, tuple(keys), tuple(networks), ways, several)
        self._partners[partner.keys[0]] = partner
        for place, key in enumerate(partner.keys):
            self._by_key[place, key] = partner

    def forget_ways(self, key: bytes) -> None:
        """Begin anew with somebody: over the first tunnel, until others are proven."""
        if (partner := self._partners.get(key)) is not None:
            partner.ways = [Way() for _ in self.members]
            partner.several = False

    def remove(self, key: bytes) -> None:
        """Forget somebody, by the key in the first tunnel."""
        if (partner := self._partners.pop(key, None)) is not None:
            for place, each in enumerate(partner.keys):
                self._by_key.pop((place, each), None)

    def session(self, place: int, peer: Peer) -> None:
        """Note that a session began in a tunnel."""
        partner = self._by_key.get((place, peer.config.public_key))
        if partner is None:
            return
        way = partner.ways[place]
        if not way.proven and len(partner.carrying()) < len(self.members):
            log.info("%s is reached over %s", partner.name, self.members[place].interface)
        way.prove()
        self._changed.set()
        partner.several = partner.several or place > 0

    # -- watching -------------------------------------------------------------------------------------------

    def begin(self) -> list[str]:
        """Set what the system needs and make the first routes; give what was refused, for people."""
        self._routes.prepare()
        self._routes.apply(self.wanted_routes())
        return self._routes.notes

    async def watch(self) -> None:
        """Keep the routes to what carries; ends when it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self.observe(now())
            wanted = self.wanted_routes()
            if self._routes.differs(wanted):
                await loop.run_in_executor(None, partial(self._routes.apply, wanted))
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), TICK)

    def carrying(self, key: bytes) -> tuple[int, ...]:
        """Give the places of the tunnels that carry for somebody, by the key in the first."""
        return self._partners[key].carrying()

    def wanted_routes(self) -> dict[Network, tuple[int, ...]]:
        """Give the places of the tunnels that each network is to be reached over."""
        routes: dict[Network, tuple[int, ...]] = {}
        for partner in self._partners.values():
            carrying = partner.carrying()
            if carrying != (0,) or not self._first_has_routes:
                routes |= dict.fromkeys(partner.networks, carrying)
        return routes

    def observe(self, at: float) -> None:
        """Look at each tunnel once: leave those that are dead, ask those that are silent or were dead."""
        several = [each for each in self._partners.values() if each.several]
        if not several:
            return
        stats = [None if _broken(member) else member.tunnel.plane.stats() for member in self.members]
        for partner in several:
            self._observe_one(partner, stats, at)
        for member in self.members:
            if not _broken(member):
                member.tunnel.wake()

    def _observe_one(self, partner: _Partner, stats: Sequence[PlaneStats | None], at: float) -> None:
        peers = [self._peer(partner, place) for place in range(len(self.members))]
        near = False
        for way, peer, read in zip(partner.ways, peers, stats, strict=True):
            if peer is None or read is None:
                way.proven = False
                continue
            counters = read.peers.get(peer.id, _NOTHING)
            way.observe(counters, at)
            near = near or (counters.last_received is not None and at - counters.last_received < _NEAR)
        suspects = {
            place
            for place, (way, peer) in enumerate(zip(partner.ways, peers, strict=True))
            if way.proven and peer is not None and (self._asks(way, at) or way.is_dead(peer, at))
        }
        sound = [place for place, way in enumerate(partner.ways) if way.proven and place not in suspects]
        for place, (way, peer) in enumerate(zip(partner.ways, peers, strict=True)):
            if peer is None or stats[place] is None:
                continue
            if place in suspects and sound and way.is_dead(peer, at):
                way.proven = False
                log.info("%s is reached over %s no longer", partner.name, self.members[place].interface)
            if place in suspects or (near and not way.proven and peer.endpoint is not None):
                self.members[place].tunnel.node.begin_handshake(peer, at)

    def _asks(self, way: Way, at: float) -> bool:
        # Who only answers sends nothing while nothing comes, so the server asks about quiet too; the server alone, as
        # two handshakes that cross end each other.
        return way.is_silent(at) or (self._first_has_routes and way.went_quiet(at))

    def _peer(self, partner: _Partner, place: int) -> Peer | None:
        member = self.members[place]
        return None if _broken(member) else member.tunnel.node.get(partner.keys[place])

    # -- telling --------------------------------------------------------------------------------------------

    def report(self, at: float) -> list[dict[str, Any]]:
        """Describe each tunnel, for the status: its share of what all of them moved, and who it carries for."""
        stats = [member.tunnel.plane.stats() for member in self.members]
        sizes = [
            (sum(p.rx_bytes for p in s.peers.values()), sum(p.tx_bytes for p in s.peers.values())) for s in stats
        ]
        every = sum(map(sum, sizes))
        carrying = [partner.carrying() for partner in self._partners.values()]
        return [
            {
                "interface": member.interface,
                "port": member.port,
                "state": "broken" if _broken(member) else "running",
                "sessions": sum(_has_session(peer, at) for peer in member.tunnel.node),
                "carries_for": sum(place in each for each in carrying),
                "rx_bytes": received,
                "tx_bytes": sent,
                "share": round((received + sent) / every, 4) if every else 0.0,
            }
            for place, (member, (received, sent)) in enumerate(zip(self.members, sizes, strict=True))
        ]

    def close(self) -> None:
        """Take the routes out and put back what was set."""
        self._routes.close()


def _broken(member: Member) -> bool:
    return member.tunnel.fault is not None


def _has_session(peer: Peer, at: float) -> bool:
    return peer.session_began is not None and at - peer.session_began < REJECT_AFTER_TIME
