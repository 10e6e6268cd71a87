"""The client while it runs: it carries traffic and stays connected.

While handshakes fail the server's name is resolved again. When the network changes the server hears from us at once.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.overseer import oversee
from rustguard_py.daemon.reports import Reports
from rustguard_py.daemon.runtime import stop_on_signals, until_all_stopped
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.tunnels import derive, farewell
from rustguard_py.enroll.tunnels.bundle import TICK, Bundle
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint, endpoint_text, with_port
from rustguard_py.model.errors import UnansweredError
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.timers import REJECT_AFTER_TIME
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.state.client_records import NetworkRecord
from rustguard_py.system.netwatch import NetWatch
from rustguard_py.system.resolve import has_route, next_to_try, resolve
from rustguard_py.tunnel import send_keepalive

log = logging.getLogger(__name__)

# Time between two look-ups of the server's name while it isn't found, seconds.
LOOK_AGAIN = 2.0


class RunningClient:
    """A client that runs.

    Args:
        tunnel: The first tunnel; this client becomes its listener.
        network: The network to connect to.
        timestamps: The tunnel's.
        interface: Name of the tunnel's interface.
        voice: Prints what happens.
        bundle: All tunnels, or None if there is only one.

    Attributes:
        tunnels: All tunnels, the first one first.
        server_keys: The server's public key in each tunnel, 32 bytes.
        interface: Name of the first tunnel's interface.
        stopped: Set to stop the client.
        unanswered: Number of handshakes in a row that the server left unanswered.
        reports: Exchanged with the server inside the tunnel; None if there is no address for them.
    """

    def __init__(
        self,
        tunnel: AnyTunnel,
        network: NetworkRecord,
        timestamps: KeptTimestamps,
        interface: str,
        voice: Voice,
        bundle: Bundle | None = None,
    ) -> None:
        self.bundle = bundle
        self.tunnels = [tunnel] if bundle is None else [member.tunnel for member in bundle.members]
        self.server_keys = [network.server_key, *(each.server_key for each in network.tunnels)][: len(self.tunnels)]
        self._ports = [network.port, *(each.port for each in network.tunnels)]
        for place, each in enumerate(self.tunnels):
            each.listeners = Listeners(session=partial(self._on_session, place))
        tunnel.listeners.unanswered = self._on_unanswered
        self.tunnel = tunnel
        self.reports: Reports | None = None
        self.stopped = asyncio.Event()
        self.network = network
        self.unanswered = 0
        self._timestamps = timestamps
        self.interface = interface
        self._voice = voice
        self._tasks = Tasks()
        self._resolving = False
        self._tried: list[Endpoint] = []
        self._connected = False

    def connect(self, endpoint: Endpoint | None) -> None:
        """Set the server as the peer of every tunnel, at this endpoint if it is known."""
        network = self.network
        allowed = (*network.pools, *network.routes)
        for number, (tunnel, key) in enumerate(zip(self.tunnels, self.server_keys, strict=True)):
            preshared_key = derive.preshared_key(network.preshared_key, number)
            place = endpoint if number == 0 or endpoint is None else with_port(endpoint, self._ports[number])
            tunnel.node.set_peer(PeerConfig(key, allowed, preshared_key, place, network.keepalive))
        if self.bundle is not None:
            self.bundle.add(network.host, self.server_keys, allowed)

    async def leave(self, private_key: bytes) -> bool | None:
        """Tell the server inside the tunnel that this client leaves for good.

        Args:
            private_key: Ours, 32 bytes.

        Returns:
            Whether the server has answered, within three seconds, that it has removed us. None if it can't be asked,
            because our inner address isn't on this machine.
        """
        network = self.network
        if self.reports is None or network.gateway4 is None:
            return None
        proofs = farewell.of_client(private_key, network.server_key, network.preshared_key)
        return await self.reports.leave(network.gateway4, proofs.leave, proofs.left)

    async def run(self) -> None:
        """Carry traffic until a signal or a fault stops the client. To be called after `connect`.

        Raises:
            RustGuardError: The data plane broke.
        """
        stop_on_signals(self.stopped.set)
        for tunnel in self.tunnels:
            tunnel.start()
        watch = NetWatch(self._on_network_change)
        self._tasks.spawn(self._timestamps.keep_synced())
        if self.reports is not None:
            self._tasks.spawn(self.reports.run())
        try:
            self._reach_out()
            # The network may still be down: what waits for this unit waits for the interface, not for the server.
            self._voice.manager.ready(self._describe())
            self._tasks.spawn(oversee(self._voice.manager, self.tunnels, self._describe))
            if self.bundle is not None:
                self._tasks.spawn(self.bundle.watch())
                self._tasks.spawn(self._follow())
            await until_all_stopped(self.stopped, self.tunnels)
            self._voice.manager.stopping()
        finally:
            watch.close()
            await self._tasks.close()

    def _describe(self) -> str:
        """Return the status line for the service manager."""
        host, began = self.network.host, self._server.session_began
        if self.unanswered:
            return f"{self.interface}: {host} doesn't answer ({self.unanswered} tried)"
        if began is None or now() - began > REJECT_AFTER_TIME:
            return f"{self.interface}: {'no session with' if self._connected else 'connecting to'} {host}"
        return f"{self.interface}: connected to {host} at {endpoint_text(self._server.endpoint)}"

    @property
    def _server(self) -> Peer:
        return self._peer(0)

    def _peer(self, number: int) -> Peer:
        """Return the server as one of the tunnels knows it."""
        peer = self.tunnels[number].node.get(self.server_keys[number])
        assert peer is not None  # noqa: S101 - `connect` put it there and nothing takes it out
        return peer

    async def _follow(self) -> None:
        """Point the tunnels that don't carry at the address where the first one has found the server."""
        bundle = self.bundle
        assert bundle is not None  # noqa: S101 - `run` starts this with a bundle only
        while True:
            await asyncio.sleep(TICK)
            found, carrying = self._server.endpoint, bundle.carrying(self.network.server_key)
            for number, tunnel in enumerate(self.tunnels):
                if number and number not in carrying and found is not None and tunnel.fault is None:
                    tunnel.node.set_endpoint(self._peer(number), with_port(found, self._ports[number]), now())
                    tunnel.wake()

    def _reach_out(self) -> None:
        """Begin a handshake now, at an address that this machine has a route to."""
        endpoint = self._server.endpoint
        if endpoint is None or not has_route(endpoint):
            self._resolve()
            return
        for number, tunnel in enumerate(self.tunnels):
            if tunnel.fault is None:
                tunnel.node.begin_handshake(self._peer(number), now())
                tunnel.wake()

    def _on_session(self, place: int, peer: Peer) -> None:
        if self.bundle is not None:
            self.bundle.session(place, peer)
        if place:
            return
        self._tried.clear()
        self.unanswered = 0
        if self.reports is not None:
            self.reports.session()
        if not self._connected:
            self._connected = True
            where = endpoint_text(peer.endpoint)
            self._voice.say(f"Connected to {self.network.host} at {where} on {self.interface}.")
        self._voice.manager.status(self._describe())

    def _on_unanswered(self, peer: Peer, attempts: int) -> None:
        self.unanswered = attempts
        self._voice.manager.status(self._describe())
        if peer.endpoint is not None and peer.endpoint not in self._tried:
            self._tried.append(peer.endpoint)
        if attempts == 1:
            log.info("%s does not answer; trying again, with its name looked up again", self.network.host)
        self._resolve()

    def _on_network_change(self) -> None:
        # Our address may have changed. The server learns the new one from our next datagram, so one is sent at once.
        self._reach_out()
        self._send_keepalives()

    def _send_keepalives(self) -> None:
        """Send an empty datagram over every tunnel, however recent its last handshake is."""
        for number, tunnel in enumerate(self.tunnels):
            if (peer := self._peer(number)).config.persistent_keepalive:
                send_keepalive(tunnel, peer)

    def _resolve(self) -> None:
        if self._resolving:
            return
        self._resolving = True
        self._tasks.spawn(self._look_up())

    async def _look_up(self) -> None:
        try:
            # A failed handshake starts a look-up, but without an endpoint there is no handshake that could fail.
            while not await self._find() and self._server.endpoint is None:
                await asyncio.sleep(LOOK_AGAIN)
        finally:
            self._resolving = False

    async def _find(self) -> bool:
        try:
            found = await resolve(self.network.host, self.network.port)
        except UnansweredError:
            return False  # there is no network or no name server
        endpoint = next_to_try(found, self._tried)
        if endpoint is not None:
            self._tried.append(endpoint)
        if endpoint is not None and endpoint != self._server.endpoint:
            self.tunnel.node.set_endpoint(self._server, endpoint, now())
            self.tunnel.node.begin_handshake(self._server, now())
            self._send_keepalives()
            self.tunnel.wake()
        return endpoint is not None
