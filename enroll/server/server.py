"""A running server: it pairs clients, admits them, and keeps its peers in the tunnel.

A join: datagram → `PairingServer` → `Admit` → `Admissions` (registry, disk, tunnel) → answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, collapse_addresses
from typing import Any

from rustguard_py.daemon import audit, audit_events
from rustguard_py.daemon.control.asker import asker
from rustguard_py.daemon.overseer import oversee
from rustguard_py.daemon.reports import Reports
from rustguard_py.daemon.runtime import stop_on_signals
from rustguard_py.daemon.service_manager import ServiceManager
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.pairing.admission import Admission, FurtherTunnel
from rustguard_py.enroll.pairing.key_schedule import require_memory, stretch
from rustguard_py.enroll.pairing.outputs import Abandoned, Admit, Forgotten, Guessed, Output, Reply
from rustguard_py.enroll.pairing.server import PairingServer
from rustguard_py.enroll.pairing.window import GUESSES_AT_ONCE, Closed, Limits, Window
from rustguard_py.enroll.server.admissions import Admissions
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.tunnels import derive
from rustguard_py.enroll.tunnels.bundle import Bundle
from rustguard_py.model.address import parse_endpoint
from rustguard_py.model.clock import now
from rustguard_py.model.counted import counted
from rustguard_py.model.defaults import DEFAULT_KEEPALIVE
from rustguard_py.model.endpoint import Endpoint, Network, endpoint_text
from rustguard_py.model.errors import RefusedError, StateError
from rustguard_py.model.keys import NO_PRESHARED_KEY, encode_key
from rustguard_py.model.pairing import PairingGate
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.timers import REJECT_AFTER_TIME
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.state.records import PeerRecord

log = logging.getLogger(__name__)

# After a start the server begins a handshake with each peer whose endpoint is known. Without that, peers would take
# 15 s to notice that their session is gone.
GREETINGS_A_SECOND = 100


class RunningServer:
    """A running server.

    Args:
        tunnel: The first tunnel; its events come here from now on.
        registry: The peers, and the state that holds them.
        saver: Makes that state durable.
        timestamps: The tunnel's.
        pool6: The IPv6 pool in use. None also while this machine has no IPv6, even if the state has a pool.
        bundle: All tunnels, or None if there is only one.

    Attributes:
        admissions: Changes the peers.
        tunnels: All tunnels, the first one first.
        stopped: Set it to stop the server.
        state: What is saved.
        window: The pairing window.
        pairing: Pairs clients; None without a token, when nobody new can join.
        reports: Exchanged with clients inside the tunnel; None until `start` has made them.
    """

    def __init__(
        self,
        tunnel: AnyTunnel,
        registry: Registry,
        saver: Saver,
        timestamps: KeptTimestamps,
        pool6: IPv6Network | None,
        bundle: Bundle | None = None,
    ) -> None:
        self.bundle = bundle
        self.tunnels = [tunnel] if bundle is None else [member.tunnel for member in bundle.members]
        for place, each in enumerate(self.tunnels):
            each.listeners = Listeners(session=partial(self._on_session, place))
        tunnel.listeners.foreign = self._on_foreign
        tunnel.listeners.moved = self._on_moved
        self.tunnel = tunnel
        self.reports: Reports | None = None
        self.stopped = asyncio.Event()
        self.registry = registry
        self.state = registry.state
        self.saver = saver
        self.admissions = Admissions(registry, saver.durable, self)
        self.timestamps = timestamps
        self.pool6 = pool6
        self.window = Window(self.state.guesses)
        self.pairing: PairingServer | None = None
        self._pairing_timer: asyncio.TimerHandle | None = None
        self._pairing_due: float | None = None
        self._guesses_saved = self.state.guesses
        self._guesses_logged = self.state.guesses.by_source
        self._was_open = False
        self._gate: PairingGate | None = None
        self._tasks = Tasks()

    @property
    def public_key(self) -> bytes:
        """The server's public key, 32 bytes."""
        return self.tunnel.node.public_key

    @property
    def addresses(self) -> list[IPv4Interface | IPv6Interface]:
        """The server's own inner addresses."""
        return self.state.addresses(ipv6=self.pool6 is not None)

    @property
    def routes(self) -> tuple[Network, ...]:
        """The networks of peers that no pool has."""
        with_ipv6 = self.pool6 is not None
        own = [each.network for each in self.addresses]
        outside = [
            network
            for record in self.state.peers.values()
            for network in record.allowed
            if (network.version == 4 or with_ipv6) and not any(map(partial(_within, network), own))
        ]
        four = [each for each in outside if isinstance(each, IPv4Network)]
        six = [each for each in outside if isinstance(each, IPv6Network)]
        return (*collapse_addresses(four), *collapse_addresses(six))

    # -- life -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Put the peers into the tunnel, start it, and begin a handshake with each peer whose endpoint is known."""
        stop_on_signals(self.stopped.set)
        self.admissions.begin()
        for tunnel in self.tunnels:
            # Until the window opens, the planes drop what wants to pair. Only the first tunnel ever pairs.
            tunnel.plane.set_pairing(self._gate if tunnel is self.tunnel else None)
            tunnel.start()
        if self.bundle is not None:
            self._tasks.spawn(self.bundle.watch())
        if self.reports is not None:
            self._tasks.spawn(self.reports.run())
        self._tasks.spawn(self._greet())
        self._tasks.spawn(self.timestamps.keep_synced())

    def report_to(self, manager: ServiceManager, interface: str) -> None:
        """Tell the service manager that the server is ready, and from then on how it does."""

        def describe() -> str:
            at = now()
            active = sum(
                peer.session_began is not None and at - peer.session_began <= REJECT_AFTER_TIME
                for peer in self.tunnel.node
            )
            window = "open" if self.window.is_open(at) else "closed"
            return f"{interface}: {counted(len(self.state.peers), 'peer')}, {active} with a session; window {window}"

        manager.ready(describe())
        self._tasks.spawn(oversee(manager, self.tunnels, describe))

    async def finish(self) -> None:
        """Stop the background tasks, close the window, and save."""
        await self._tasks.close()
        if self.window.is_open(now()):
            audit.record(audit_events.WindowClosed("the server stops", None))
        self.window.close()
        self.state.guesses = self.window.record
        await self.saver.finish()

    async def _greet(self) -> None:
        for record in list(self.state.peers.values()):
            peer = self.tunnel.node.get(record.public_key)
            if peer is None or peer.endpoint is None or peer.session_began is not None:
                continue
            self.tunnel.node.begin_handshake(peer, now(), patience=0.0)
            self.tunnel.wake()
            await asyncio.sleep(1 / GREETINGS_A_SECOND)

    # -- the window -----------------------------------------------------------------------------------------

    @property
    def has_token(self) -> bool:
        """Whether a token was given; without one nobody new can join."""
        return self.pairing is not None

    async def take_token(self, token: str) -> None:
        """Admit anyone who knows this token while the window is open. Takes a tenth of a second, in a thread."""
        require_memory()
        loop = asyncio.get_running_loop()
        prs = await loop.run_in_executor(None, stretch, token, self.state.server_id)
        state = self.state
        self.pairing = PairingServer(state.server_id, state.private_key, {0: prs}, self.window, os.urandom, now())

    async def resume_window(self, seconds: float, most: int | None = None) -> None:
        """Open the window at the start, with the counts of one that a crash ended.

        Args:
            seconds: How long.
            most: How many new peers are admitted; None for the number kept, or the usual one.
        """
        self.window.resume(seconds, now(), most)
        try:
            await self._save_guesses()
        except StateError as error:
            log.warning("the window stays closed, as wrong tokens can't be counted on disk: %s", error)
            self.window.close(Closed.UNSAVED)
        else:
            if self.window.is_open(now()):
                audit.record(audit_events.WindowOpened(seconds, None))
        self._mind_pairing()

    async def open_window(self, seconds: float, limits: Limits | None = None) -> None:
        """Open the window because a person asked for it.

        Args:
            seconds: How long.
            limits: Who may try, and how many new peers are admitted; None for everybody and the usual number.

        Raises:
            UsageError: `seconds` is out of bounds.
            RefusedError: There is no token.
            StateError: It couldn't be saved; the window is closed.
        """
        if not self.has_token:
            raise RefusedError("This server was started without a token.", "Start it again with: --token -")
        self.window.open(seconds, now(), limits)
        self._mind_pairing()
        try:
            await self._save_guesses()
        except StateError as error:
            # The person sees an error, so the window must not stay open.
            self.window.close(Closed.UNSAVED)
            self._mind_pairing()
            raise StateError(f"{error.message} So the window is closed.", error.fix) from error
        sources = () if limits is None else tuple(map(str, limits.sources))
        audit.record(audit_events.WindowOpened(seconds, asker(), sources, None if limits is None else limits.most))

    async def close_window(self) -> None:
        """Close the window now, and save that.

        Raises:
            StateError: It couldn't be saved; the window is closed all the same.
        """
        self.window.close()
        self._mind_pairing()
        await self._save_guesses()

    async def _save_guesses(self) -> None:
        self.state.guesses = self.window.record
        await self.saver.save()

    def _mind_pairing(self) -> None:
        """Erase what has expired, and set the timer for what expires next."""
        self._note_closing()
        if self.pairing is None:
            return
        self._carry_out(self.pairing, self.pairing.handle_timeout(now()))
        self._guard(self.pairing)
        self._set_pairing_timer(self.pairing)

    def _guard(self, pairing: PairingServer) -> None:
        """Tell the plane what it needs to guard the pairing, if that has changed."""
        if (gate := pairing.gate) != self._gate:
            self._gate = gate
            self.tunnel.plane.set_pairing(gate)

    def _note_closing(self) -> None:
        """Record that the window closed, and who closed it."""
        state = self.window.state(now())
        if self._was_open and state.closed is not None:
            audit.record(
                audit_events.WindowClosed(state.closed.value, asker() if state.closed is Closed.PERSON else None)
            )
        self._was_open = state.is_open

    def _set_pairing_timer(self, pairing: PairingServer) -> None:
        due = pairing.poll_timeout()
        if due == self._pairing_due and self._pairing_timer is not None:
            return
        if self._pairing_timer is not None:
            self._pairing_timer.cancel()
        self._pairing_due = due
        delay = None if due is None else max(0.0, due - now())
        loop = asyncio.get_running_loop()
        self._pairing_timer = None if delay is None else loop.call_later(delay, self._on_pairing_timer)

    def _on_pairing_timer(self) -> None:
        self._pairing_timer = None
        self._mind_pairing()

    # -- joining --------------------------------------------------------------------------------------------

    def _on_foreign(self, datagram: bytes, source: Endpoint, at: float) -> None:
        if self.pairing is not None:
            self._carry_out(self.pairing, self.pairing.handle(datagram, source, at))
            self._guard(self.pairing)
            self._set_pairing_timer(self.pairing)

    def _carry_out(self, pairing: PairingServer, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Reply():
                    self._send(output)
                case Admit():
                    self._tasks.spawn(self._admit(pairing, output))
                case Guessed():
                    self._tasks.spawn(self._count(output))
                case Forgotten():
                    self._tasks.spawn(self._take_back(output))
                case Abandoned(count, source):
                    text = "pairings begun and never confirmed in this window: %d, the last one from %s"
                    log.warning(text, count, endpoint_text(source))

    def _send(self, reply: Reply) -> None:
        self.tunnel.plane.send(reply.destination, reply.datagram)

    async def _admit(self, pairing: PairingServer, join: Admit) -> None:
        created = join.public_key not in self.state.peers
        try:
            result = await self._let_in(join)
            replies = [] if result is None else pairing.answer(join.session, result, now(), created=created)
        except Exception:
            log.exception("internal error: a join from %s could not be answered", endpoint_text(join.source))
            replies = []
        if not replies:
            # The client asks again. Without this, its session would wait forever.
            pairing.forget(join.session, now())
        self._carry_out(pairing, replies)

    async def _let_in(self, join: Admit) -> dict[str, Any] | None:
        """Return the answer to a join once it is true and durable; None if the client must ask again."""
        endpoint = endpoint_text(join.source) or ""
        is_new = join.public_key not in self.state.peers and join.public_key not in self.state.revoked
        if is_new and not self.window.admit_new():
            count = counted(self.window.state(now()).new_peers, "new peer")
            reason = f"this window has admitted {count}, as many as it may; rustguard open --most N admits more"
            audit.record(audit_events.Refused(reason, endpoint))
            return {"status": "window-full"}
        number = self.window.number
        # Saved together with the peer.
        self.state.guesses = self.window.record
        admitted = None
        try:
            admitted = await self.admissions.admit(join.public_key, join.name, join.preshared_key, endpoint)
        finally:
            if is_new and not isinstance(admitted, PeerRecord):
                self.window.forget_new(number)
        if admitted is None:
            return None
        if not isinstance(admitted, PeerRecord):
            reason = {"full": "the pool is used up", "revoked": "its key is revoked"}[admitted]
            audit.record(audit_events.Refused(reason, endpoint))
            return {"status": admitted}
        if self.bundle is not None:
            # It may have fewer tunnels than before.
            self.bundle.start_over(join.public_key)
        peer = self.tunnel.node.get(join.public_key)
        if peer is not None:
            # The cookie proved the address, and `join` pairs from the port that its tunnel then uses.
            self.tunnel.node.set_endpoint(peer, join.source, now())
        key = encode_key(join.public_key)
        audit.record(audit_events.Joined(admitted.name, key, str(admitted.address4), endpoint, is_new))
        return self._admission(admitted).to_mapping()

    def _admission(self, record: PeerRecord) -> Admission:
        state = self.state
        gateway4, gateway6 = self.registry.pool.server
        address6 = None
        if self.pool6 is not None and record.address6 is not None and record.address6 in self.pool6:
            address6 = IPv6Interface((record.address6, self.pool6.prefixlen))
        return Admission(
            name=record.name,
            address4=IPv4Interface((record.address4, state.pool4.prefixlen)),
            address6=address6,
            server_key=self.public_key,
            port=state.port,
            mtu=state.mtu,
            keepalive=DEFAULT_KEEPALIVE,
            routes=(),
            gateway4=gateway4,
            gateway6=None if address6 is None else gateway6,
            tunnels=tuple(
                FurtherTunnel(tunnel.node.public_key, derive.port(state.port, number))
                for number, tunnel in enumerate(self.tunnels)
                if number
            ),
        )

    async def _count(self, guess: Guessed) -> None:
        """Answer a wrong token once its guess is counted on disk; at once if that was done before."""
        if guess.reply is not None and guess.record.by_source != self._guesses_logged:
            self._guesses_logged = guess.record.by_source
            audit.record(audit_events.WrongToken(endpoint_text(guess.source) or "", guess.record.used))
            if guess.record.used == GUESSES_AT_ONCE:
                audit.record(audit_events.BudgetSpent(GUESSES_AT_ONCE))
        # By now the window may have counted more than this guess.
        record = self.window.record
        if record != self._guesses_saved:
            self.state.guesses = record
            try:
                await self.saver.save()
            except StateError:
                # Not counted on disk, so not answered. When the client asks again, it is saved again.
                return
            self._guesses_saved = record
        if guess.reply is not None:
            self._send(guess.reply)
        self._mind_pairing()

    async def _take_back(self, forgotten: Forgotten) -> None:
        """Remove a peer that can't use its admission, unless it was one before."""
        endpoint = endpoint_text(forgotten.source)
        if not forgotten.created:
            log.info("a peer at %s can't use what it got when it joined again", endpoint)
            return
        record = await self.admissions.take_back(forgotten.public_key, forgotten.preshared_key)
        if record is not None:
            self.window.take_back_new(forgotten.window)
            key = encode_key(record.public_key)
            audit.record(audit_events.TakenBack(record.name, key, str(record.address4), endpoint or ""))

    # -- peers in the tunnel --------------------------------------------------------------------------------

    def put_in(self, record: PeerRecord, *, with_endpoint: bool) -> None:
        """Add a peer to the tunnels, or change it there. Only `admissions` calls this."""
        endpoint = parse_endpoint(record.endpoint) if with_endpoint and record.endpoint else None
        for number, tunnel in enumerate(self.tunnels):
            if number and record.preshared_key == NO_PRESHARED_KEY:
                break  # from a wg-quick file: stock WireGuard uses one tunnel
            tunnel.node.set_peer(
                PeerConfig(
                    record.public_key,
                    record.allowed,
                    derive.preshared_key(record.preshared_key, number),
                    # In the other tunnels the peer begins the handshake, because only then it is known to use them.
                    endpoint if number == 0 else None,
                    previous_preshared_keys=tuple(
                        derive.preshared_key(each, number) for each in record.previous_preshared_keys
                    ),
                )
            )
        if self.bundle is not None:
            self.bundle.add(record.name, [record.public_key] * len(self.tunnels), record.allowed)

    def take_out(self, public_key: bytes) -> None:
        """Remove a peer from the tunnels at once. Only `admissions` calls this."""
        for tunnel in self.tunnels:
            tunnel.node.remove_peer(public_key)
        if self.bundle is not None:
            self.bundle.remove(public_key)

    def _on_session(self, place: int, peer: Peer) -> None:
        if self.bundle is not None:
            self.bundle.session(place, peer)
        if self.admissions.connected(peer.config.public_key):
            self.saver.save_soon()
        record = self.state.peers.get(peer.config.public_key)
        if record is None or not record.previous_preshared_keys:
            return
        # The peer may be joining again, so that the record has a newer key than the tunnel.
        used = peer.config.preshared_keys[peer.key_in_use]
        for age, key in enumerate(record.preshared_keys):
            if derive.preshared_key(key, place) == used:
                if self.admissions.settled(record.public_key, age):
                    self.saver.save_soon()
                return

    def _on_moved(self, peer: Peer, endpoint: Endpoint) -> None:
        self.registry.moved(peer.config.public_key, endpoint_text(endpoint) or "")
        self.saver.save_soon()


def _within(network: Network, other: Network) -> bool:
    return (
        network.version == other.version
        and network.network_address in other
        and (network.prefixlen >= other.prefixlen)
    )
