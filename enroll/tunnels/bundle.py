"""Several tunnels between the same two ends, each with its own plane: who is reached over which of them.

Every half second: counters of each tunnel → `TunnelHealth` → which tunnels carry → `Multipath` routes. While data
moves, something is sent over each tunnel between two checks, so that the other end can tell which ones work.

Every peer has the first tunnel. Another tunnel carries traffic for a peer once it has a session with it, so nothing
is sent to a peer over tunnels that it doesn't know. It stops when it is found dead while another tunnel works, and
starts again after the next handshake. If no tunnel is known to work, the first one carries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rustguard_py.enroll.tunnels.health import TunnelHealth
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Network
from rustguard_py.model.peer import Peer
from rustguard_py.model.statistics import PeerStats, PlaneStats
from rustguard_py.model.timers import REJECT_AFTER_TIME
from rustguard_py.model.tunnel import AnyTunnel
from rustguard_py.system.kernel_view import View
from rustguard_py.system.multipath import Multipath
from rustguard_py.tunnel import send_keepalive

log = logging.getLogger(__name__)

TICK = 0.5
# A check that runs this long after the one before is ignored: what arrived may not be handled yet either.
_LATE = 2 * TICK
# Seconds. After data moved this recently, more may come.
_ACTIVE = 10.0
# Seconds. A peer that wasn't heard for longer, over any tunnel, is away: its dead tunnels aren't tried.
_NEAR = 15.0
_NOTHING = PeerStats()


@dataclass(frozen=True, slots=True)
class Member:
    """One tunnel of a bundle.

    Attributes:
        tunnel: The running tunnel. The caller closes it.
        interface: The name of its interface.
        port: Its UDP port at the server.
    """

    tunnel: AnyTunnel
    interface: str
    port: int


@dataclass(slots=True)
class _Partner:
    """The other end of the tunnels.

    Attributes:
        name: For the log.
        keys: Its public key in each tunnel.
        networks: The networks behind it.
        health: The health of each tunnel to it.
        several: Whether it ever had a session in a tunnel other than the first.
        moved_at: When data last moved, over any tunnel.
        heard_at: When anything last arrived, over any tunnel.
    """

    name: str
    keys: tuple[bytes, ...]
    networks: tuple[Network, ...]
    health: list[TunnelHealth] = field(default_factory=list)
    several: bool = False
    moved_at: float = float("-inf")
    heard_at: float = float("-inf")

    def carrying(self) -> tuple[int, ...]:
        return tuple(self.proven()) or (0,)

    def proven(self) -> list[int]:
        return [place for place, health in enumerate(self.health) if health.proven]

    def is_active(self, at: float) -> bool:
        return at - self.moved_at < _ACTIVE


class Bundle:
    """All tunnels, and who is reached over them.

    Args:
        members: The tunnels, the first one first.
        routes: Routes over their interfaces, in the same order.
        first_has_routes: Whether the first interface already has the routes that it needs when it carries alone.
    """

    def __init__(self, members: Sequence[Member], routes: Multipath, *, first_has_routes: bool) -> None:
        self.members = tuple(members)
        self._routes = routes
        self._first_has_routes = first_has_routes
        self._changed = asyncio.Event()
        self._partners: dict[bytes, _Partner] = {}
        self._by_key: dict[tuple[int, bytes], _Partner] = {}
        self._asks_freely = all(member.tunnel.node.asks_freely for member in self.members)
        self._checked = float("-inf")

    # -- partners -------------------------------------------------------------------------------------------

    def add(self, name: str, keys: Sequence[bytes], networks: Sequence[Network]) -> None:
        """Add a partner, or change it. A new one is reached over the first tunnel at first.

        Args:
            name: For the log.
            keys: Its public key in each tunnel, 32 bytes.
            networks: The networks behind it.
        """
        known = self._partners.get(keys[0])
        health = known.health if known is not None else [TunnelHealth() for _ in self.members]
        several = known is not None and known.several
        partner = _Partner(name, tuple(keys), tuple(networks), health, several)
        self._partners[partner.keys[0]] = partner
        for place, key in enumerate(partner.keys):
            self._by_key[place, key] = partner

    def start_over(self, key: bytes) -> None:
        """Reach a partner over the first tunnel alone, until others are proven again. `key`: in the first tunnel."""
        if (partner := self._partners.get(key)) is not None:
            partner.health = [TunnelHealth() for _ in self.members]
            partner.several = False

    def remove(self, key: bytes) -> None:
        """Remove a partner, by its key in the first tunnel."""
        if (partner := self._partners.pop(key, None)) is not None:
            for place, each in enumerate(partner.keys):
                self._by_key.pop((place, each), None)

    def session(self, place: int, peer: Peer) -> None:
        """Note that a peer's session began in the tunnel at `place`."""
        partner = self._by_key.get((place, peer.config.public_key))
        if partner is None:
            return
        health = partner.health[place]
        if not health.proven and len(partner.carrying()) < len(self.members):
            log.info("%s is reached over %s", partner.name, self.members[place].interface)
        health.prove()
        self._changed.set()
        partner.several = partner.several or place > 0

    # -- checking -------------------------------------------------------------------------------------------

    def begin(self) -> list[str]:
        """Prepare the system and make the first routes. Return what was refused, as sentences."""
        self._routes.prepare()
        self._routes.apply(self.wanted_routes())
        return self._routes.notes

    async def watch(self) -> None:
        """Keep the routes on the tunnels that carry, until cancelled."""
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
        """Return the places of the tunnels that carry for a partner, by its key in the first tunnel."""
        return self._partners[key].carrying()

    def wanted_routes(self) -> dict[Network, tuple[int, ...]]:
        """Return the places of the tunnels that each network is to be reached over."""
        routes: dict[Network, tuple[int, ...]] = {}
        for partner in self._partners.values():
            carrying = partner.carrying()
            if carrying != (0,) or not self._first_has_routes:
                routes |= dict.fromkeys(partner.networks, carrying)
        return routes

    def observe(self, at: float) -> None:
        """Check each tunnel: keep those that carry alive, leave dead ones, ask over silent ones and dead ones."""
        late, self._checked = at - self._checked > _LATE, at
        several = [each for each in self._partners.values() if each.several]
        if not several:
            return
        stats = [None if _broken(member) else member.tunnel.plane.stats() for member in self.members]
        for partner in several:
            self._check(partner, stats, at)
            if not late:
                self._leave_dead(partner, at)
            self._reach(partner, at)
        for member in self.members:
            if not _broken(member):
                member.tunnel.wake()

    def _check(self, partner: _Partner, stats: Sequence[PlaneStats | None], at: float) -> None:
        for place, (health, read) in enumerate(zip(partner.health, stats, strict=True)):
            peer = self._peer(partner, place)
            if peer is None or read is None:
                health.proven = health.heard = False
                continue
            health.observe(read.peers.get(peer.id, _NOTHING), at)
            if health.moved:
                partner.moved_at = at
            if health.heard:
                partner.heard_at = at

    def _leave_dead(self, partner: _Partner, at: float) -> None:
        peers = self._peers(partner)
        heard = any(partner.health[place].heard for place in partner.proven())
        dead: dict[int, str] = {}
        for place in partner.proven():
            health, peer = partner.health[place], peers[place]
            assert peer is not None  # noqa: S101 - without a peer it isn't proven
            session = _has_session(peer, at)
            if not partner.is_active(at):
                health.missed = 0
            elif heard and not health.heard and session:
                health.missed += 1
            if why := health.why_dead(peer, at, session=session, asks_freely=self._asks_freely):
                dead[place] = why
        sound = [place for place in partner.proven() if place not in dead and not partner.health[place].is_silent(at)]
        for place, why in dead.items() if sound else ():
            partner.health[place].proven = False
            log.info("%s is no longer reached over %s: %s", partner.name, self.members[place].interface, why)

    def _reach(self, partner: _Partner, at: float) -> None:
        """Send what the other end needs to hear, and begin the handshakes that this end needs."""
        for place, (health, peer) in enumerate(zip(partner.health, self._peers(partner), strict=True)):
            if peer is None or peer.endpoint is None:
                continue
            tunnel, session = self.members[place].tunnel, _has_session(peer, at)
            if not health.proven:
                asks = at - partner.heard_at < _NEAR
            else:
                # Only one end renews a session that expired while idle, because two handshakes that start at once
                # cancel each other.
                renews = not session and partner.is_active(at) and not self._first_has_routes
                asks = renews or (health.is_silent(at) and self._asks_freely)
                if session and partner.is_active(at) and not health.sent:
                    send_keepalive(tunnel, peer)
            if asks:
                tunnel.node.ask(peer, at)

    def _peers(self, partner: _Partner) -> list[Peer | None]:
        return [self._peer(partner, place) for place in range(len(self.members))]

    def _peer(self, partner: _Partner, place: int) -> Peer | None:
        member = self.members[place]
        return None if _broken(member) else member.tunnel.node.get(partner.keys[place])

    # -- reporting ------------------------------------------------------------------------------------------

    def report(self, at: float) -> list[dict[str, Any]]:
        """Return each tunnel for the status, as JSON values: its share of the traffic, how many it carries for."""
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

    def to_keep(self) -> dict[str, tuple[Callable[[View], bool], Callable[[], None]]]:
        """Return the routes as `daemon.keeper.Keeper` keeps them."""
        return {"the routes over several tunnels": (self._routes.holds, self._routes.restore)}

    def close(self) -> None:
        """Remove the routes and restore what was set."""
        self._routes.close()


def _broken(member: Member) -> bool:
    return member.tunnel.fault is not None or not member.tunnel.has_interface()


def _has_session(peer: Peer, at: float) -> bool:
    return peer.session_began is not None and at - peer.session_began < REJECT_AFTER_TIME
