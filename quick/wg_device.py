"""An interface that wg(8) sets up: its key, port and peers change while it runs."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from rustguard_py.daemon.uapi.plan import Plan
from rustguard_py.daemon.uapi.protocol import DeviceChange, DeviceState, UapiError
from rustguard_py.daemon.uapi.socket import show
from rustguard_py.engine import Engine
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.keys import generate_private_key, public_key
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.tunnel import Listeners
from rustguard_py.node import Timestamps
from rustguard_py.planes.tun import Tun
from rustguard_py.system.sockets import bind
from rustguard_py.tunnel import Tunnel


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
        """Apply a change, all of it or nothing.

        It is planned first, which changes nothing. Then everything that can fail is done, with what it takes to undo
        it. What can't fail comes last: removing peers, and the keys.

        Raises:
            UapiError: EADDRINUSE: the port is taken.
            Exception: The plane or the system refused something.
        """
        plan = Plan.make(self._private_key, self._tunnel.node.public_key, self._peers, change)
        with ExitStack() as undo:
            sockets = self._bind(undo, change.listen_port)
            port = sockets[0].getsockname()[1] if sockets else self._port
            for config in plan.changed():
                self._set(undo, config)
            if change.fwmark is not None and change.fwmark != self._fwmark:
                undo.callback(self._tunnel.plane.set_fwmark, self._fwmark)
                self._tunnel.plane.set_fwmark(change.fwmark)
            if sockets:
                self._tunnel.plane.rebind(sockets)
            undo.pop_all()
        self._port = int(port)
        self._commit(change, plan)
        self._tunnel.wake()

    def _bind(self, undo: ExitStack, port: int | None) -> list[socket.socket]:
        """Return sockets bound to another port; none if the port stays."""
        if port is None or port == self._port:
            return []
        try:
            sockets = bind(port)
        except RefusedError as error:
            raise UapiError(errno.EADDRINUSE, error.message) from error
        for each in sockets:
            undo.callback(each.close)
        return sockets

    def _set(self, undo: ExitStack, config: PeerConfig) -> None:
        """Set a peer, except for its preshared key if it is known: a new one ends the session."""
        node = self._tunnel.node
        peer = node.get(config.public_key)
        if peer is None:
            undo.callback(node.remove_peer, config.public_key)
            node.set_peer(config)
            return
        undo.callback(self._set_back, peer, peer.config, peer.endpoint)
        node.set_peer(replace(config, preshared_key=peer.config.preshared_key))

    def _set_back(self, peer: Peer, config: PeerConfig, endpoint: Endpoint | None) -> None:
        self._tunnel.node.set_peer(replace(config, endpoint=endpoint))
        peer.config, peer.endpoint = config, endpoint

    def _commit(self, change: DeviceChange, plan: Plan) -> None:
        node = self._tunnel.node
        self._fwmark = self._fwmark if change.fwmark is None else change.fwmark
        self._private_key = plan.private_key
        for key in plan.dropped:
            node.remove_peer(key)
        if plan.new_key is not None:
            node.set_private_key(plan.new_key, now())
        for config in plan.changed():
            peer = node.get(config.public_key)
            if peer is None or peer.config.preshared_key != config.preshared_key:
                node.set_peer(config)
        # Kept without an endpoint, because the node knows where each peer is now.
        self._peers = {key: replace(config, endpoint=None) for key, config in plan.peers.items()}

    async def _watch(self) -> None:
        await self._tunnel.stopped.wait()
        self.fault = self._tunnel.fault
        self.stopped.set()
