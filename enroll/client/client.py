"""The client while it runs: it carries traffic and stays connected.

While handshakes fail the server's name is resolved again, and when the network changes we say so at once.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.runtime import stop_on_signals, until_all_stopped
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.tunnels import derive
from rustguard_py.enroll.tunnels.bundle import TICK, Bundle
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint, endpoint_text
from rustguard_py.model.errors import UnansweredError
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.state.records import NetworkRecord
from rustguard_py.system.netwatch import NetWatch
from rustguard_py.system.resolve import has_route, next_to_try, resolve
from rustguard_py.tunnel import send_keepalive

log = logging.getLogger(__name__)

# How often the server's name is looked up while it isn't found, seconds.
LOOK_AGAIN = 2.0


class RunningClient:
    """A client that runs.

    Args:
        tunnel: Tells us from now on what it hears.
        network: What to connect to.
        timestamps: Those of the tunnel.
        interface: Its name.
        voice: How to talk.
        bundle: That tunnel and those beside it, or None where there is one.

    Attributes:
        tunnels: All of them, the first first.
        server_keys: The server's public key in each, 32 bytes.
        stopped: Set to end it.
        unanswered: How many handshakes in a row the server left unanswered.
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
        self.stopped = asyncio.Event()
        self.network = network
        self.unanswered = 0
        self._timestamps = timestamps
        self._interface = interface
        self._voice = voice
        self._tasks = Tasks()
        self._resolving = False
        self._tried: list[Endpoint] = []
        self._connected = False

    def connect(self, endpoint: Endpoint | None) -> None:
        """Tell the tunnels of the server."""
        network = self.network
        allowed = (*network.pools, *network.routes)
        for number, (tunnel, key) in enumerate(zip(self.tunnels, self.server_keys, strict=True)):
            preshared_key = derive.preshared_key(network.preshared_key, number)
            place = endpoint if number == 0 or endpoint is None else self._beside(endpoint, number)
            tunnel.node.set_peer(PeerConfig(key, allowed, preshared_key, place, network.keepalive))
        if self.bundle is not None:
            self.bundle.add(network.host, self.server_keys, allowed)

    async def run(self) -> None:
        """Carry traffic until a signal or a fault stops the tunnel; `connect` comes before.

        Raises:
            RustGuardError: The data plane broke.
        """
        stop_on_signals(self.stopped)
        for tunnel in self.tunnels:
            tunnel.start()
        watch = NetWatch(self._on_network_change)
        self._tasks.spawn(self._timestamps.keep_synced())
        try:
            self._reach_out()
            if self.bundle is not None:
                self._tasks.spawn(self.bundle.watch())
                self._tasks.spawn(self._follow())
            await until_all_stopped(self.stopped, self.tunnels)
        finally:
            watch.close()
            await self._tasks.close()

    @property
    def _server(self) -> Peer:
        return self._peer(0)

    def _peer(self, number: int) -> Peer:
        """The server, as one of the tunnels knows it."""
        peer = self.tunnels[number].node.get(self.server_keys[number])
        assert peer is not None  # noqa: S101 - `connect` put it there and nothing takes it out
        return peer

    def _beside(self, endpoint: Endpoint, number: int) -> Endpoint:
        """Where another tunnel's port is, by the first's."""
        return (endpoint[0], self._ports[number], *endpoint[2:])

    async def _follow(self) -> None:
        """Have those that don't carry look for the server where the first one has found it."""
        bundle = self.bundle
        assert bundle is not None  # noqa: S101 - there are several
        while True:
            await asyncio.sleep(TICK)
            found, carrying = self._server.endpoint, bundle.carrying(self.network.server_key)
            for number, tunnel in enumerate(self.tunnels):
                if number and number not in carrying and found is not None and tunnel.fault is None:
                    tunnel.node.set_endpoint(self._peer(number), self._beside(found, number), now())
                    tunnel.wake()

    def _reach_out(self) -> None:
        """Shake hands now, with an address that this machine has a route to."""
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
        if not self._connected:
            self._connected = True
            where = endpoint_text(peer.endpoint)
            self._voice.say(f"Connected to {self.network.host} at {where} on {self._interface}.")

    def _on_unanswered(self, peer: Peer, attempts: int) -> None:
        self.unanswered = attempts
        if peer.endpoint is not None and peer.endpoint not in self._tried:
            self._tried.append(peer.endpoint)
        if attempts == 1:
            log.info("%s does not answer; trying on, with its name resolved again", self.network.host)
        self._resolve()

    def _on_network_change(self) -> None:
        # Our address may be another: the server learns it from the next datagram, which this makes come at once.
        self._reach_out()
        self._say_we_are_here()

    def _say_we_are_here(self) -> None:
        """Send an empty datagram, whenever the last handshake was."""
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
            # Without an endpoint nothing is sent, so nothing fails and has the name looked up again.
            while not await self._find() and self._server.endpoint is None:
                await asyncio.sleep(LOOK_AGAIN)
        finally:
            self._resolving = False

    async def _find(self) -> bool:
        try:
            found = await resolve(self.network.host, self.network.port)
        except UnansweredError:
            return False  # no network or no name server
        endpoint = next_to_try(found, self._tried)
        if endpoint is not None:
            self._tried.append(endpoint)
        if endpoint is not None and endpoint != self._server.endpoint:
            self.tunnel.node.set_endpoint(self._server, endpoint, now())
            self.tunnel.node.begin_handshake(self._server, now())
            self._say_we_are_here()
            self.tunnel.wake()
        return endpoint is not None
