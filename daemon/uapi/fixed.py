"""wg(8) on a tunnel that `serve` or `join` made: it shows all, and changes what can't contradict the state."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from rustguard_py.daemon.uapi.apply import Settings, peers_of
from rustguard_py.daemon.uapi.plan import Plan
from rustguard_py.daemon.uapi.protocol import DeviceChange, DeviceState, UapiError
from rustguard_py.daemon.uapi.socket import show
from rustguard_py.model.clock import now
from rustguard_py.tunnel import Tunnel


class FixedTunnel:
    """The answers for one tunnel.

    A peer's endpoint can be set, because the peer may move at any time anyway, and so can the mark, which nothing
    else uses. A request may repeat what is so already, as `wg syncconf` does. Everything else is refused.

    Args:
        tunnel: The tunnel.
        private_key: 32 bytes.
        port: The UDP port.
        hint: What changes the rest, for the log.
    """

    def __init__(self, tunnel: Tunnel, private_key: bytes, port: int, hint: str) -> None:
        self._tunnel = tunnel
        self._private_key = private_key
        self._port = port
        self._fwmark = 0
        self._hint = hint

    def show(self) -> DeviceState:
        """Return the state that wg(8) shows."""
        return show(self._tunnel, self._settings())

    def change(self, change: DeviceChange) -> None:
        """Apply a change, all of it or nothing.

        Raises:
            UapiError: EPERM: it would contradict the state.
        """
        change = change.without_omissions()
        before = self._settings()
        plan = Plan.make(before.private_key, self._tunnel.node.public_key, before.peers, change)
        if (what := next(self._contradictions(before, plan, change), None)) is not None:
            raise UapiError(errno.EPERM, f"{what} can't be changed here: {self._hint}")
        if change.fwmark is not None and change.fwmark != self._fwmark:
            self._tunnel.plane.set_fwmark(change.fwmark)
            self._fwmark = change.fwmark
        for each in change.peers:
            peer = self._tunnel.node.get(each.public_key)
            if peer is not None and each.endpoint is not None:
                self._tunnel.node.set_endpoint(peer, each.endpoint, now())
        self._tunnel.wake()

    def _settings(self) -> Settings:
        return Settings(self._private_key, self._port, self._fwmark, peers_of(self._tunnel))

    @staticmethod
    def _contradictions(before: Settings, plan: Plan, change: DeviceChange) -> Iterator[str]:
        """Yield what the plan changes besides endpoints and the mark."""
        if plan.new_key is not None:
            yield "the private key"
        if change.listen_port not in (None, before.port):
            yield "the port"
        if before.peers.keys() != plan.peers.keys():
            yield "which peers there are"
        for key, old in before.peers.items():
            new = plan.peers[key]
            if new.preshared_key != old.preshared_key:
                yield "a peer's preshared key"
            if new.persistent_keepalive != old.persistent_keepalive:
                yield "a peer's keepalive"
            if set(new.allowed_ips) != set(old.allowed_ips):
                yield "a peer's allowed IPs"
