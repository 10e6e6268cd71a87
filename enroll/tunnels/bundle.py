"""Several tunnels between the same two ends, each with a plane of its own: who is reached over which of them.

Every half second a look: what went and came over each tunnel → `way` → which tunnels carry → `multipath` routes.
While data moves, something is sent over each of them from look to look, so that the other end can tell which live.

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

from rustguard_py.enroll.tunnels.health import Way
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Network
from rustguard_py.model.peer import Peer
from rustguard_py.model.statistics import PeerStats, PlaneStats
from rustguard_py.model.timers import REJECT_AFTER_TIME
from rustguard_py.model.tunnel import AnyTunnel
from rustguard_py.system.multipath import Multipath
from rustguard_py.tunnel import send_keepalive

log = logging.getLogger(__name__)

TICK = 0.5
# A look so long after the one before shows nothing: who looks late may also have what came still to be handled.
_LATE = 2 * TICK
# Data that moved within so many seconds may have more to come.
_ACTIVE = 10.0
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
        moved_at: When data last went or came, over any tunnel.
        heard_at: When anything last came, over any tunnel.
    """

    name: str
    keys: tuple[bytes, ...]
    networks: tuple[Network, ...]
    ways: list[Way] = field(default_factory=list)
    several: bool = False
    moved_at: float = float("-inf")
    heard_at: float = float("-inf")

    def carrying(self) -> tuple[int, ...]:
        return tuple(self.proven()) or (0,)

    def proven(self) -> list[int]:
        return [place for place, way in enumerate(self.ways) if way.proven]

    def is_active(self, at: float) -> bool:
        return at - self.moved_at < _ACTIVE


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
        self._asks_freely = all(member.tunnel.node.asks_freely for member in self.members)
        self._looked = float("-inf")

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
        """Look at each tunnel once: keep alive what carries, leave what is dead, ask what is silent or was dead."""
        late, self._looked = at - self._looked > _LATE, at
        several = [each for each in self._partners.values() if each.several]
        if not several:
            return
        stats = [None if _broken(member) else member.tunnel.plane.stats() for member in self.members]
        for partner in several:
            self._look_at(partner, stats, at)
            if not late:
                self._leave_dead(partner, at)
            self._reach(partner, at)
        for member in self.members:
            if not _broken(member):
                member.tunnel.wake()

    def _look_at(self, partner: _Partner, stats: Sequence[PlaneStats | None], at: float) -> None:
        for place, (way, read) in enumerate(zip(partner.ways, stats, strict=True)):
            peer = self._peer(partner, place)
            if peer is None or read is None:
                way.proven = way.heard = False
                continue
            way.observe(read.peers.get(peer.id, _NOTHING), at)
            if way.moved:
                partner.moved_at = at
            if way.heard:
                partner.heard_at = at

    def _leave_dead(self, partner: _Partner, at: float) -> None:
        peers = self._peers(partner)
        heard = any(partner.ways[place].heard for place in partner.proven())
        dead: dict[int, str] = {}
        for place in partner.proven():
            way, peer = partner.ways[place], peers[place]
            assert peer is not None  # noqa: S101 - else it isn't proven
            session = _has_session(peer, at)
            if not partner.is_active(at):
                way.missed = 0
            elif heard and not way.heard and session:
                way.missed += 1
            if why := way.why_dead(peer, at, session=session, asks_freely=self._asks_freely):
                dead[place] = why
        sound = [place for place in partner.proven() if place not in dead and not partner.ways[place].is_silent(at)]
        for place, why in dead.items() if sound else ():
            partner.ways[place].proven = False
            log.info("%s is reached over %s no longer: %s", partner.name, self.members[place].interface, why)

    def _reach(self, partner: _Partner, at: float) -> None:
        """Send what the other end needs to hear, and ask for what we do."""
        for place, (way, peer) in enumerate(zip(partner.ways, self._peers(partner), strict=True)):
            if peer is None or peer.endpoint is None:
                continue
            tunnel, session = self.members[place].tunnel, _has_session(peer, at)
            if not way.proven:
                asks = at - partner.heard_at < _NEAR
            else:
                # A session that ended with nothing to say is made anew by one end: two handshakes that cross end
                # each other.
                renews = not session and partner.is_active(at) and not self._first_has_routes
                asks = renews or (way.is_silent(at) and self._asks_freely)
                if session and partner.is_active(at) and not way.sent:
                    send_keepalive(tunnel, peer)
            if asks:
                tunnel.node.ask(peer, at)

    def _peers(self, partner: _Partner) -> list[Peer | None]:
        return [self._peer(partner, place) for place in range(len(self.members))]

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
