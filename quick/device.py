"""WireGuard on an interface, with nobody enrolling: a private key, and peers that somebody sets.

A peer may be known by a name. It is looked up at the start, again until there is an answer, and again whenever
handshakes go unanswered: behind a name the address may change.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field

from rustguard_py.conf import HostPort
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UnansweredError
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.system.netwatch import NetWatch
from rustguard_py.system.resolve import next_to_try, resolve
from rustguard_py.tunnel import send_keepalive

log = logging.getLogger(__name__)

# How often a name is looked up while it isn't found, seconds.
LOOK_AGAIN = 2.0


@dataclass(slots=True)
class _Name:
    """The name of one peer.

    Attributes:
        host: As it was given.
        tried: Addresses that didn't answer since the last session.
        found: What it stood for when it was last looked up.
        busy: Whether it's being looked up.
    """

    host: HostPort
    tried: list[Endpoint] = field(default_factory=list)
    found: list[Endpoint] = field(default_factory=list)
    busy: bool = False


class Device:
    """A WireGuard interface.

    Args:
        tunnel: Tells us from now on what it hears.
        timestamps: Those of the tunnel.
    """

    def __init__(self, tunnel: AnyTunnel, timestamps: KeptTimestamps) -> None:
        tunnel.listeners = Listeners(unanswered=self._on_unanswered, session=self._on_session)
        self.tunnel = tunnel
        self._timestamps = timestamps
        self._names: dict[bytes, _Name] = {}
        self._tasks = Tasks()
        self._watch: NetWatch | None = None

    def begin(self) -> None:
        """Carry traffic from now on; from within the running loop."""
        self.tunnel.start()
        self._watch = NetWatch(self._say_where_we_are)
        self._tasks.spawn(self._timestamps.keep_synced())
        for key in self._names:
            self._look_up_soon(key)

    async def close(self) -> None:
        """Stop what runs beside the tunnel. May be called twice."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        await self._tasks.close()

    def set_peer(self, config: PeerConfig, name: HostPort | None = None, found: list[Endpoint] | None = None) -> None:
        """Add a peer or change it; its session stays unless its preshared key is another.

        Args:
            config: The peer. Without an endpoint it stays where it is.
            name: What to look its address up by, or None.
            found: What the name was found to be, if that is known already.
        """
        if name is None:
            self._names.pop(config.public_key, None)
        elif config.public_key not in self._names or self._names[config.public_key].host != name:
            self._names[config.public_key] = _Name(name, found=found or [])
        self.tunnel.node.set_peer(config)
        self.tunnel.wake()
        if self._watch is not None:
            self._look_up_soon(config.public_key)

    def set_port(self, port: int) -> int:
        """Move to another UDP port, 0 for any; give which. Who is to reach us hears of it at once.

        Raises:
            RefusedError: It's taken; the one before stays.
        """
        port = self.tunnel.set_port(port)
        self._say_where_we_are()
        return port

    def set_private_key(self, private_key: bytes) -> None:
        """Be another (32 bytes) from now on; the peers stay."""
        self.tunnel.node.set_private_key(private_key, now())
        self.tunnel.wake()

    def remove_peer(self, public_key: bytes) -> None:
        """Forget a peer (32 bytes) and its keys."""
        self._names.pop(public_key, None)
        self.tunnel.node.remove_peer(public_key)
        self.tunnel.wake()

    def name_of(self, public_key: bytes, endpoint: Endpoint | None) -> HostPort | None:
        """Give the name of a peer, if that still stands for this endpoint."""
        name = self._names.get(public_key)
        return name.host if name is not None and (endpoint is None or endpoint in name.found) else None

    # -- what the tunnel and the kernel tell ----------------------------------------------------------------

    def _on_session(self, peer: Peer) -> None:
        if (name := self._names.get(peer.config.public_key)) is not None:
            name.tried.clear()

    def _on_unanswered(self, peer: Peer, attempts: int) -> None:
        name = self._names.get(peer.config.public_key)
        if name is None:
            return
        if peer.endpoint is not None and peer.endpoint not in name.tried:
            name.tried.append(peer.endpoint)
        if attempts == 1:
            log.info("%s does not answer; trying on, with its name looked up again", name.host)
        self._look_up_soon(peer.config.public_key, again=True)

    def _say_where_we_are(self) -> None:
        """Our address may be another: who is to reach us hears of it at once."""
        for peer in self.tunnel.node:
            if peer.endpoint is not None and peer.config.persistent_keepalive:
                send_keepalive(self.tunnel, peer)
        self.tunnel.wake()

    # -- names ----------------------------------------------------------------------------------------------

    def _look_up_soon(self, public_key: bytes, *, again: bool = False) -> None:
        name, peer = self._names.get(public_key), self.tunnel.node.get(public_key)
        if name is None or peer is None or name.busy or (peer.endpoint is not None and not again):
            return
        name.busy = True
        self._tasks.spawn(self._look_up(public_key, name))

    async def _look_up(self, public_key: bytes, name: _Name) -> None:
        try:
            while self._names.get(public_key) is name:
                await self._find(public_key, name)
                peer = self.tunnel.node.get(public_key)
                # Without an endpoint nothing is sent, so nothing fails and has it looked up again.
                if peer is None or peer.endpoint is not None:
                    return
                await asyncio.sleep(LOOK_AGAIN)
        finally:
            name.busy = False

    async def _find(self, public_key: bytes, name: _Name) -> None:
        with suppress(UnansweredError):
            name.found = await resolve(name.host.host, name.host.port)
        peer = self.tunnel.node.get(public_key)
        endpoint = next_to_try(name.found, name.tried)
        if peer is None or endpoint is None or endpoint == peer.endpoint:
            return
        self.tunnel.node.set_endpoint(peer, endpoint, now())
        self.tunnel.node.begin_handshake(peer, now())
        self.tunnel.wake()
