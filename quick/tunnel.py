"""A tunnel without enrollment: a private key, and peers that a file names.

A peer may be known by a name. The name is looked up at the start, repeated until there is an answer, and looked up
again whenever handshakes go unanswered, because the address behind it may have changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from rustguard_py.conf import HostPort
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.uapi.apply import Settings
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UnansweredError
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.system.netwatch import NetWatch
from rustguard_py.system.resolve import next_to_try, resolve
from rustguard_py.tunnel import send_keepalive

log = logging.getLogger(__name__)

# Time between two look-ups of a name while it isn't found, seconds.
LOOK_AGAIN = 2.0


class Synced(Protocol):
    """Timestamps that may have to be brought to the disk: `daemon.timestamps.KeptTimestamps`, or only memory."""

    async def keep_synced(self) -> None:
        """Bring them there again and again, until cancelled."""


@dataclass(slots=True)
class _Name:
    """The name of one peer.

    Attributes:
        host: As the file has it.
        tried: Addresses that haven't answered since the last session.
        found: Addresses of the last look-up.
        busy: Whether it is being looked up.
    """

    host: HostPort
    tried: list[Endpoint] = field(default_factory=list)
    found: list[Endpoint] = field(default_factory=list)
    busy: bool = False


class PlainTunnel:
    """A tunnel whose peers are set from outside and looked up by their names.

    Args:
        tunnel: The tunnel; this object becomes its listener.
        timestamps: The tunnel's.
        private_key: Ours, 32 bytes; None if it is still to be set.

    Attributes:
        tunnel: The tunnel itself.
        private_key: Ours as it is now, 32 bytes, or None.
    """

    def __init__(self, tunnel: AnyTunnel, timestamps: Synced, private_key: bytes | None = None) -> None:
        tunnel.listeners = Listeners(unanswered=self._on_unanswered, session=self._on_session)
        self.tunnel = tunnel
        self.private_key = private_key
        self._timestamps = timestamps
        self._names: dict[bytes, _Name] = {}
        self._tasks = Tasks()
        self._watch: NetWatch | None = None

    def begin(self) -> None:
        """Begin to carry traffic; to be called within the running loop."""
        self.tunnel.start()
        self._watch = NetWatch(self.send_keepalives)
        self._tasks.spawn(self._timestamps.keep_synced())
        for key in self._names:
            self._look_up_soon(key)

    async def close(self) -> None:
        """Stop watching the network and looking names up. May be called twice."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        await self._tasks.close()

    def set_peer(self, config: PeerConfig, name: HostPort | None = None, found: list[Endpoint] | None = None) -> None:
        """Add a peer or change it; its session stays unless its preshared key changes.

        Args:
            config: The peer. Without an endpoint the peer keeps the one it has.
            name: Name to look its address up by, or None.
            found: Addresses of the name, if it has been looked up already.
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
        """Move to another UDP port (0: any) and return it. Peers with a keepalive hear from it at once.

        Raises:
            RefusedError: It is taken; the port stays as it was.
        """
        port = self.tunnel.set_port(port)
        self.send_keepalives()
        return port

    def set_private_key(self, private_key: bytes) -> None:
        """Change our private key (32 bytes); the peers stay."""
        self.private_key = private_key
        self.tunnel.node.set_private_key(private_key, now())
        self.tunnel.wake()

    def remove_peer(self, public_key: bytes) -> None:
        """Forget a peer (32 bytes) and its keys."""
        self._names.pop(public_key, None)
        self.tunnel.node.remove_peer(public_key)
        self.tunnel.wake()

    def settings_changed(self, settings: Settings, moved: Collection[bytes]) -> None:
        """Take note of what wg(8) changed in the tunnel.

        Args:
            settings: The tunnel's from now on.
            moved: Public keys of peers that were given another endpoint, so that their names no longer count.
        """
        self.private_key = settings.private_key
        for key in [each for each in self._names if each in moved or each not in settings.peers]:
            del self._names[key]

    def adopted(self, private_key: bytes | None) -> None:
        """Take note of what wg(8) changed in the kernel: our key (32 bytes) unless None, and peers that are gone."""
        self.private_key = private_key or self.private_key
        for key in [each for each in self._names if self.tunnel.node.get(each) is None]:
            del self._names[key]

    def name_of(self, public_key: bytes, endpoint: Endpoint | None) -> HostPort | None:
        """Return the name of a peer if it still stands for this endpoint, else None."""
        name = self._names.get(public_key)
        return name.host if name is not None and (endpoint is None or endpoint in name.found) else None

    # -- events ---------------------------------------------------------------------------------------------

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
            log.info("%s does not answer; trying again, with its name looked up again", name.host)
        self._look_up_soon(peer.config.public_key, again=True)

    def send_keepalives(self) -> None:
        """Let the peers that keep up a path to us learn our address at once, as it may have changed."""
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
                # A failed handshake starts a look-up, but without an endpoint there is no handshake that could fail.
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
