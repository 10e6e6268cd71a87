"""An interface that wg(8) sets up: its key, port and peers change while it runs."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import replace

from rustguard_py.daemon.uapi.protocol import DeviceChange, DeviceState, PeerChange, UapiError
from rustguard_py.daemon.uapi.socket import show
from rustguard_py.engine import Engine
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.keys import KEY_SIZE, generate_private_key, public_key
from rustguard_py.model.peer import PeerConfig
from rustguard_py.model.tunnel import Listeners
from rustguard_py.node import Timestamps
from rustguard_py.planes.tun import Tun
from rustguard_py.system.sockets import bind
from rustguard_py.tunnel import Tunnel

_NO_KEY = bytes(KEY_SIZE)


class WgDevice:
    """One interface, from within the running loop.

    Args:
        engine: The engine that moves the packets.
        queues: Of the interface; they stay the caller's.
        mtu: Of the interface, bytes.
        timestamps: Handshake timestamps of its peers.

    Attributes:
        stopped: Set when the plane broke, most likely because the interface is gone.
        fault: The error that broke it.
    """

    def __init__(self, engine: Engine, queues: Sequence[Tun], mtu: int, timestamps: Timestamps) -> None:
        self.stopped = asyncio.Event()
        self.fault: RustGuardError | None = None
        self._private_key: bytes | None = None
        self._fwmark = 0
        self._peers: dict[bytes, PeerConfig] = {}
        # The peer that each network belongs to: the one that it was given to last.
        self._owners: dict[Network, bytes] = {}
        sockets = bind(0)
        self._port = int(sockets[0].getsockname()[1])
        # Until wg(8) sets a key, a random one takes its place: no peer knows it, so nothing is answered.
        key = generate_private_key()
        plane = engine.make_plane(public_key(key), queues[0].name, sockets, mtu, [each.fd for each in queues])
        self._tunnel = Tunnel.make(key, plane, timestamps, Listeners())
        self._tunnel.start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def set_mtu(self, mtu: int) -> None:
        """Follow the interface's MTU."""
        self._tunnel.plane.set_mtu(mtu)

    def show(self) -> DeviceState:
        """Return the state that wg(8) shows."""
        return show(self._tunnel, self._private_key, self._port, self._fwmark)

    def close(self) -> None:
        """Stop. May be called twice."""
        self._watcher.cancel()
        self._tunnel.close()

    # -- changes --------------------------------------------------------------------------------------------

    def change(self, change: DeviceChange) -> None:
        """Apply a change.

        Raises:
            UapiError: EADDRINUSE: the port is taken. Nothing has changed then.
        """
        self._change_port(change.listen_port)
        self._change_key(change.private_key)
        if change.fwmark is not None:
            self._fwmark = change.fwmark
            self._tunnel.plane.set_fwmark(change.fwmark)
        if change.replace_peers:
            for key in list(self._peers):
                self._remove(key)
        for peer in change.peers:
            self._change_peer(peer)
        self._tunnel.wake()

    def _change_port(self, port: int | None) -> None:
        if port is None or port == self._port:
            return
        try:
            self._port = self._tunnel.set_port(port)
        except RefusedError as error:
            raise UapiError(errno.EADDRINUSE, error.message) from error

    def _change_key(self, private_key: bytes | None) -> None:
        if private_key is None or private_key == (self._private_key or _NO_KEY):
            return
        self._private_key = None if private_key == _NO_KEY else private_key
        key = self._private_key or generate_private_key()
        if (ours := public_key(key)) in self._peers:
            self._remove(ours)
        self._tunnel.node.set_private_key(key, now())

    def _change_peer(self, change: PeerChange) -> None:
        known = self._peers.get(change.public_key)
        if change.remove:
            if known is not None:
                self._remove(change.public_key)
            return
        # Our own key can't be a peer, as in the kernel.
        if (known is None and change.update_only) or change.public_key == self._tunnel.node.public_key:
            return
        config = known or PeerConfig(change.public_key, ())
        if change.preshared_key is not None:
            config = replace(config, preshared_key=change.preshared_key)
        if change.persistent_keepalive is not None:
            config = replace(config, persistent_keepalive=change.persistent_keepalive)
        config = replace(config, allowed_ips=self._allow(config, change), endpoint=change.endpoint)
        # Kept without an endpoint, because the node knows where the peer is now.
        self._peers[change.public_key] = replace(config, endpoint=None)
        self._tunnel.node.set_peer(config)

    def _allow(self, config: PeerConfig, change: PeerChange) -> tuple[Network, ...]:
        mine = {} if change.replace_allowed_ips else dict.fromkeys(config.allowed_ips)
        for network in config.allowed_ips if change.replace_allowed_ips else ():
            self._owners.pop(network, None)
        for network, added in change.allowed_ips:
            if not added:
                if network in mine:
                    del mine[network], self._owners[network]
                continue
            owner = self._owners.get(network)
            if owner is not None and owner != config.public_key:
                self._take_network(owner, network)
            self._owners[network] = config.public_key
            mine[network] = None
        return tuple(mine)

    def _take_network(self, owner: bytes, network: Network) -> None:
        config = self._peers[owner]
        left = replace(config, allowed_ips=tuple(each for each in config.allowed_ips if each != network))
        self._peers[owner] = left
        self._tunnel.node.set_peer(left)

    def _remove(self, key: bytes) -> None:
        for network in self._peers.pop(key).allowed_ips:
            self._owners.pop(network, None)
        self._tunnel.node.remove_peer(key)

    async def _watch(self) -> None:
        await self._tunnel.stopped.wait()
        self.fault = self._tunnel.fault
        self.stopped.set()
