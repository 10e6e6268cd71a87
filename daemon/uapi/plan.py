"""What a `set` request changes, worked out before any of it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from rustguard_py.daemon.uapi.protocol import DeviceChange, PeerChange
from rustguard_py.model.endpoint import Network
from rustguard_py.model.keys import KEY_SIZE, clamp, generate_private_key, public_key
from rustguard_py.model.peer import PeerConfig

_NO_KEY = bytes(KEY_SIZE)


@dataclass(slots=True)
class Plan:
    """An interface as it is to become.

    Attributes:
        private_key: 32 bytes, or None for none.
        public_key: Ours from then on; it can't be a peer's, as in the kernel.
        new_key: The private key to use from now on, random if there is to be none; None if it stays.
        peers: All of them by key, in order; an endpoint is only in those for which the request has one.
        dropped: Keys of peers to remove first. One that is also in `peers` comes back without its session.
        touched: Keys of peers to set.
    """

    private_key: bytes | None = field(repr=False)
    public_key: bytes
    new_key: bytes | None = field(repr=False)
    peers: dict[bytes, PeerConfig]
    dropped: dict[bytes, None] = field(default_factory=dict)
    touched: set[bytes] = field(default_factory=set)
    _owners: dict[Network, bytes] = field(default_factory=dict)

    @classmethod
    def make(
        cls, private_key: bytes | None, own_key: bytes, peers: Mapping[bytes, PeerConfig], change: DeviceChange
    ) -> Plan:
        """Return what a request makes of an interface.

        Args:
            private_key: The interface's, 32 bytes, or None for none.
            own_key: Its public key, 32 bytes.
            peers: Its peers by key.
            change: The request.
        """
        plan = cls(private_key, own_key, None, dict(peers))
        plan._owners = {network: key for key, config in peers.items() for network in config.allowed_ips}
        if change.private_key is not None and change.private_key != (
            _NO_KEY if private_key is None else clamp(private_key)
        ):
            plan.private_key = None if change.private_key == _NO_KEY else change.private_key
            plan.new_key = plan.private_key or generate_private_key()
            plan.public_key = public_key(plan.new_key)
            plan._remove(plan.public_key)
        for key in list(plan.peers) if change.replace_peers else ():
            plan._remove(key)
        for peer in change.peers:
            plan._change(peer)
        return plan

    def changed(self) -> Iterator[PeerConfig]:
        """Return the peers to set, in order."""
        return (config for key, config in self.peers.items() if key in self.touched)

    def _change(self, change: PeerChange) -> None:
        key = change.public_key
        known = self.peers.get(key)
        if change.remove:
            self._remove(key)
            return
        if (known is None and change.update_only) or key == self.public_key:
            return
        config = known or PeerConfig(key, ())
        if change.preshared_key is not None:
            config = replace(config, preshared_key=change.preshared_key)
        if change.persistent_keepalive is not None:
            config = replace(config, persistent_keepalive=change.persistent_keepalive)
        config = replace(config, allowed_ips=self._allow(config, change), endpoint=change.endpoint or config.endpoint)
        self.peers[key] = config
        self.touched.add(key)

    def _allow(self, config: PeerConfig, change: PeerChange) -> tuple[Network, ...]:
        mine = dict.fromkeys(config.allowed_ips)
        if change.replace_allowed_ips:
            for network in mine:
                del self._owners[network]
            mine = {}
        for network, added in change.allowed_ips:
            if not added:
                if network in mine:
                    del mine[network], self._owners[network]
                continue
            owner = self._owners.get(network)
            if owner is not None and owner != config.public_key:
                self._take(owner, network)
            self._owners[network] = config.public_key
            mine[network] = None
        return tuple(mine)

    def _take(self, owner: bytes, network: Network) -> None:
        config = self.peers[owner]
        left = tuple(each for each in config.allowed_ips if each != network)
        self.peers[owner] = replace(config, allowed_ips=left)
        self.touched.add(owner)

    def _remove(self, key: bytes) -> None:
        config = self.peers.pop(key, None)
        if config is None:
            return
        for network in config.allowed_ips:
            del self._owners[network]
        self.dropped[key] = None
        self.touched.discard(key)
