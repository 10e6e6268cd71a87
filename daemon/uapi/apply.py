"""A `set` request done on a running tunnel of ours: all of it or nothing."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from rustguard_py.daemon.uapi.plan import Plan
from rustguard_py.daemon.uapi.protocol import DeviceChange, UapiError
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.system.sockets import bind
from rustguard_py.tunnel import Tunnel


@dataclass(frozen=True, slots=True)
class Settings:
    """What wg(8) can set of a tunnel.

    Attributes:
        private_key: 32 bytes, or None if there is none.
        port: The UDP port.
        fwmark: 0 for none.
        peers: By public key, without endpoints, because the node knows where each peer is now.
    """

    private_key: bytes | None = field(repr=False)
    port: int
    fwmark: int = 0
    peers: Mapping[bytes, PeerConfig] = field(default_factory=dict)


def peers_of(tunnel: Tunnel) -> dict[bytes, PeerConfig]:
    """Return the peers of a tunnel as `Settings` has them."""
    return {peer.config.public_key: replace(peer.config, endpoint=None) for peer in tunnel.node}


def apply(tunnel: Tunnel, before: Settings, change: DeviceChange) -> Settings:
    """Apply a change to a tunnel, all of it or nothing, and return the settings after it.

    It is planned first, which changes nothing. Then everything that can fail is done, with what it takes to undo it.
    What can't fail comes last: removing peers, and the keys.

    Raises:
        UapiError: EADDRINUSE: the port is taken.
        Exception: The plane or the system refused something.
    """
    plan = Plan.make(before.private_key, tunnel.node.public_key, before.peers, change)
    fwmark = before.fwmark if change.fwmark is None else change.fwmark
    with ExitStack() as undo:
        sockets = _bind(undo, change.listen_port, before.port)
        port = int(sockets[0].getsockname()[1]) if sockets else before.port
        for config in plan.changed():
            _set(tunnel, undo, config)
        if fwmark != before.fwmark:
            undo.callback(tunnel.plane.set_fwmark, before.fwmark)
            tunnel.plane.set_fwmark(fwmark)
        if sockets:
            tunnel.plane.rebind(sockets)
        undo.pop_all()
    _commit(tunnel, plan)
    tunnel.wake()
    peers = {key: replace(config, endpoint=None) for key, config in plan.peers.items()}
    return Settings(plan.private_key, port, fwmark, peers)


def _bind(undo: ExitStack, port: int | None, before: int) -> list[socket.socket]:
    """Return sockets bound to another port; none if the port stays."""
    if port is None or port == before:
        return []
    try:
        sockets = bind(port)
    except RefusedError as error:
        raise UapiError(errno.EADDRINUSE, error.message) from error
    for each in sockets:
        undo.callback(each.close)
    return sockets


def _set(tunnel: Tunnel, undo: ExitStack, config: PeerConfig) -> None:
    """Set a peer, except for its preshared key if it is known: a new one ends the session."""
    node = tunnel.node
    peer = node.get(config.public_key)
    if peer is None:
        undo.callback(node.remove_peer, config.public_key)
        node.set_peer(config)
        return
    undo.callback(_set_back, tunnel, peer, peer.config, peer.endpoint)
    node.set_peer(replace(config, preshared_key=peer.config.preshared_key))


def _set_back(tunnel: Tunnel, peer: Peer, config: PeerConfig, endpoint: Endpoint | None) -> None:
    tunnel.node.set_peer(replace(config, endpoint=endpoint))
    peer.config, peer.endpoint = config, endpoint


def _commit(tunnel: Tunnel, plan: Plan) -> None:
    node = tunnel.node
    for key in plan.dropped:
        node.remove_peer(key)
    if plan.new_key is not None:
        node.set_private_key(plan.new_key, now())
    for config in plan.changed():
        peer = node.get(config.public_key)
        if peer is None or peer.config.preshared_key != config.preshared_key:
            node.set_peer(config)
