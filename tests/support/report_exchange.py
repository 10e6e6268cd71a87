"""Reports on the loopback interface, under the virtual loop: what one end says, and what it hears."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.daemon.reports import Partner, Reports
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import Flow
from rustguard_py.protocol.report import REPORT_PORT, Item, decode, encode
from rustguard_py.tunnel import Tunnel
from support import virtual_loop
from support.virtual_loop import BEGAN

KEY = b"k" * 32


class OneSession:
    """A tunnel with one peer: its counters, and what is done with them."""

    def __init__(self) -> None:
        self.flow = Flow(local_index=7, remote_index=8, sent=0, next=0, received=0)
        self.looks: list[float] = []
        self.segmenting: list[bool] = []
        peer = SimpleNamespace(id=1, endpoint=("192.0.2.1", 51820))
        plane = SimpleNamespace(flows=self._flows, set_segmenting=lambda _, on: self.segmenting.append(on))
        node = SimpleNamespace(get=lambda key: peer if key == KEY else None)
        self.tunnel = Tunnel(cast(Any, node), cast(Any, plane), Listeners())

    def _flows(self, _peer: int) -> list[Flow]:
        self.looks.append(asyncio.get_running_loop().time())
        return [self.flow]


class Exchange:
    """Reports on an address of the loopback interface, and what a socket on another one hears from them."""

    def __init__(self, *, asks: bool, segments: bool = True) -> None:
        # Workers run tests at the same time, and the port is always the same.
        host = f"127.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF}"
        self.here, self.there = f"{host}.1", f"{host}.2"
        self.session = OneSession()
        self.reports = Reports(
            [self.session.tunnel],
            ["lo"],
            IPv4Address(self.here),
            {self.there: Partner("laptop", (KEY,))}.get,
            segments=segments,
            ask=IPv4Address(self.there) if asks else None,
        )
        self.heard: list[tuple[float, Item]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind((self.there, REPORT_PORT))

    def say(self, *items: Item) -> None:
        self._socket.sendto(encode(items), (self.here, REPORT_PORT))

    def take(self) -> list[tuple[float, Item]]:
        """Return what was heard since the last call, with the times."""
        taken, self.heard = self.heard, []
        return taken

    def _hear(self) -> None:
        at = asyncio.get_running_loop().time() - BEGAN
        self.heard += [(at, item) for item in decode(self._socket.recv(2000))]

    async def run(self, test: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket.fileno(), self._hear)
        task = loop.create_task(self.reports.run())
        try:
            await asyncio.sleep(0)
            await test(self)
        finally:
            task.cancel()
            await asyncio.wait([task])
            loop.remove_reader(self._socket.fileno())
            self._socket.close()


def exchange(
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[Exchange], Coroutine[Any, Any, None]],
    *,
    asks: bool = False,
    segments: bool = True,
) -> None:
    async def main() -> None:
        await Exchange(asks=asks, segments=segments).run(test)

    virtual_loop.run(monkeypatch, main)
