"""A tunnel of the kernel's goes on with a new interface when another program removed its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, cast

import pytest

from rustguard_py.kernel.kernel_tunnel import KernelTunnel
from rustguard_py.kernel.messages import KernelPeerChange
from rustguard_py.kernel.netlink import KernelInterface
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.peer import PeerConfig
from rustguard_py.system.sockets import bind

KEY, PEER = bytes([1]) * 32, bytes([2]) * 32
ENDPOINT = ("192.0.2.7", 51820)


class Device:
    """A kernel's interface that can be removed by somebody else."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.settings: dict[str, Any] = {}
        self.changes: list[KernelPeerChange] = []
        self.there = True
        self.closed = self.removed = False
        self._refuses = refuses

    def exists(self) -> bool:
        return self.there

    def configure(self, **settings: Any) -> None:
        if self._refuses:
            raise RustGuardError("The port is taken.")
        self.settings |= settings

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        if not self.there:
            raise RustGuardError("The interface is gone.")
        self.changes += changes

    def read_counters(self) -> dict[bytes, Any]:
        if not self.there:
            raise RustGuardError("The interface is gone.")
        return {}

    def close(self) -> None:
        self.closed = True

    def remove(self) -> None:
        self.removed = True


def _tunnel(first: Device, later: list[Device]) -> KernelTunnel:
    return KernelTunnel(KEY, cast(KernelInterface, first), bind(0), make=lambda: cast(KernelInterface, later.pop(0)))


def test_settings_and_peers_move_to_the_new_interface_where_they_were_last_seen() -> None:
    first, second = Device(), Device()
    tunnel = _tunnel(first, [second])
    tunnel.set_fwmark(51820)
    peer = tunnel.node.set_peer(PeerConfig(PEER, (ip_network("10.9.0.2/32"),), persistent_keepalive=25))
    peer.endpoint = ENDPOINT
    first.there = False
    assert not tunnel.has_interface()
    tunnel.reattach()
    assert tunnel.has_interface()
    assert first.closed
    assert second.settings == {**first.settings, "fwmark": 51820}
    assert second.settings["port"] > 0
    put = [change for change in second.changes if change.allowed_ips]
    assert [(change.public_key, change.endpoint, change.keepalive) for change in put] == [(PEER, ENDPOINT, 25)]
    # Keepalives are turned off and on, which makes the kernel shake hands.
    assert [change.keepalive for change in second.changes][-3:] == [0, 25, 25]


def test_one_that_can_not_be_set_up_is_removed_again_and_the_next_try_works() -> None:
    first, refusing, third = Device(), Device(refuses=True), Device()
    tunnel = _tunnel(first, [refusing, third])
    first.there = False
    with pytest.raises(RustGuardError):
        tunnel.reattach()
    assert refusing.removed
    assert not tunnel.has_interface()
    tunnel.reattach()
    assert tunnel.has_interface()


def test_without_a_listener_it_ends_and_with_one_it_goes_on() -> None:
    async def main(*, listens: bool) -> KernelTunnel:
        first = Device()
        tunnel = _tunnel(first, [Device()])
        lost: list[None] = []
        if listens:
            tunnel.listeners.lost = lambda: lost.append(None)
        tunnel.start()
        first.there = False
        tunnel.stats()
        assert bool(lost) == listens
        tunnel.close()
        return tunnel

    assert asyncio.run(main(listens=False)).fault is not None
    assert asyncio.run(main(listens=True)).fault is None
