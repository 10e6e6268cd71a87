"""An interface that wg(8) sets up: its key, port and peers change while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import cast

from rustguard_py.daemon.uapi.apply import Settings, apply
from rustguard_py.daemon.uapi.protocol import DeviceChange, DeviceState
from rustguard_py.daemon.uapi.socket import show
from rustguard_py.engine import Engine
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.keys import generate_private_key, public_key
from rustguard_py.model.tunnel import Listeners
from rustguard_py.node import Timestamps
from rustguard_py.planes.contract import AnsweringPlane
from rustguard_py.planes.tun import Tun
from rustguard_py.system.sockets import bind
from rustguard_py.tunnel import Tunnel


class WgDevice:
    """One interface, from within the running loop.

    Args:
        engine: The engine that moves the packets.
        name: The interface's.
        queues: Of the interface; they stay the caller's. None of them if the engine has a memif.
        mtu: Of the interface, bytes.
        timestamps: Handshake timestamps of its peers.

    Attributes:
        stopped: Set when the plane broke, most likely because the interface is gone.
        fault: The error that broke it.
    """

    def __init__(self, engine: Engine, name: str, queues: Sequence[Tun], mtu: int, timestamps: Timestamps) -> None:
        self.stopped = asyncio.Event()
        self._has_memif = engine.memif is not None
        self.fault: RustGuardError | None = None
        sockets = bind(0)
        self._settings = Settings(None, int(sockets[0].getsockname()[1]))
        # Until wg(8) sets a key, a random one takes its place: no peer knows it, so nothing is answered.
        key = generate_private_key()
        plane = engine.make_plane(public_key(key), name, sockets, mtu, [each.fd for each in queues])
        self._tunnel = Tunnel.make(key, plane, timestamps, Listeners())
        self._tunnel.start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def set_mtu(self, mtu: int) -> None:
        """Follow the interface's MTU."""
        self._tunnel.plane.set_mtu(mtu)

    def memif(self) -> str:
        """Return what stands for the interface, and how it is connected. Empty for an interface."""
        return self._tunnel.plane.stats().device if self._has_memif else ""

    def is_connected(self) -> bool:
        """Return whether somebody is at the other end of the memif."""
        return ": connected to " in self.memif()

    def answered_fileno(self) -> int:
        """Return the descriptor that is readable while `take_answered` has something, or -1 without Ethernet."""
        return cast(AnsweringPlane, self._tunnel.plane).answered_fileno() if self._has_memif else -1

    def take_answered(self) -> list[IPv4Address | IPv6Address]:
        """Return the addresses for which the memif answered ARP and NDP since the last call."""
        return cast(AnsweringPlane, self._tunnel.plane).take_answered() if self._has_memif else []

    def show(self) -> DeviceState:
        """Return the state that wg(8) shows."""
        return show(self._tunnel, self._settings)

    def close(self) -> None:
        """Stop. May be called twice."""
        self._watcher.cancel()
        self._tunnel.close()

    def change(self, change: DeviceChange) -> None:
        """Apply a change, all of it or nothing. `apply` documents the errors."""
        self._settings = apply(self._tunnel, self._settings, change)

    async def _watch(self) -> None:
        await self._tunnel.stopped.wait()
        self.fault = self._tunnel.fault
        self.stopped.set()
