"""A server without a network, under the virtual loop: its real shell, a plane in memory, and a disk that can be full.

A server is started from what is on the disk, as the program does it; so a test sees what a restart loads.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.outcome import Failed, Joined
from rustguard_py.enroll.server import server, settings
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.enroll.server.settings import Settings
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import StateError
from rustguard_py.model.keys import public_key
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import Event, EventfulPlane, ForeignReceived
from rustguard_py.state.document import Document
from rustguard_py.state.records import PeerRecord, ServerState
from rustguard_py.tunnel import Tunnel
from support import virtual_loop
from support.memory_plane import MemoryPlane
from support.wire_link import TOKEN, cheap_stretch

Test = Callable[["Shell"], Awaitable[None]]
Run = Callable[[Test], None]

HERE: Endpoint = ("192.0.2.2", 40000)
THERE: Endpoint = ("192.0.2.1", 51820)
FIRST = Settings(IPv4Network("10.150.0.0/24"), IPv6Network("fd00:1::/64"))


class ShellPlane(MemoryPlane):
    """A plane in memory whose events wake a loop. Its time is the loop's."""

    def __init__(self, key: bytes) -> None:
        self._signal = os.eventfd(0, os.EFD_NONBLOCK)
        super().__init__(key)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @now.setter
    def now(self, value: float) -> None:
        """The loop decides."""

    def tell(self, event: Event) -> None:
        """Let something have happened."""
        self.events.append(event)
        os.eventfd_write(self._signal, 1)

    def fileno(self) -> int:
        return self._signal

    def poll_events(self) -> list[Event]:
        os.eventfd_read(self._signal)
        return self.take_events()

    def close(self) -> None:
        if not self.closed:
            os.close(self._signal)
        super().close()


class Shell:
    """A server on a directory, which survives `crash` and `stop`.

    Attributes:
        full: Whether the disk refuses.
        tried: When each write was tried.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.full = False
        self.tried: list[float] = []
        self._document: Document | None = None
        self._mail: dict[Endpoint, list[bytes]] = {}

    def start(self, changes: Settings | None = None) -> None:
        """Start as `serve` does: with these settings, and whatever was saved."""
        self._document = Document.open(self._directory)
        kept = self._document.load()
        self.state = settings.apply(changes or (FIRST if kept is None else Settings()), kept)
        if (wanted := self.state.to_json()) != kept:
            self._document.save(wanted)
        self.timestamps = KeptTimestamps(self._directory)
        self.plane = ShellPlane(public_key(self.state.private_key))
        tunnel = Tunnel.make(self.state.private_key, cast(EventfulPlane, self.plane), self.timestamps, Listeners())
        self.server = RunningServer(
            tunnel, Registry(self.state), Saver(self.state, self._write), self.timestamps, self.state.pool6
        )
        program: Any = SimpleNamespace(engine=SimpleNamespace(in_kernel=False))
        self._answers = ServerControl(self.server, program, None).handlers()
        self.server.begin()

    async def crash(self) -> None:
        """End without any of what the end of a program does."""
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
        self._end()

    async def stop(self) -> None:
        """End in order."""
        await self.server.finish()
        self._end()

    def _end(self) -> None:
        saver = self.server.saver
        for timer in (saver._timer, self.server._pairing_timer):
            if timer is not None:
                timer.cancel()
        self.server.tunnels[0].close()
        self.timestamps.close()
        assert self._document is not None
        self._document.close()

    def _write(self, document: Mapping[str, object]) -> None:
        self.tried.append(asyncio.get_running_loop().time())
        if self.full:
            raise StateError("The disk is full.")
        assert self._document is not None
        self._document.save(document)

    def on_disk(self) -> ServerState:
        """Return what a server would load now."""
        return ServerState.from_json(Document.peek(self._directory))

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        result = self._answers[method](params)
        return await result if inspect.isawaitable(result) else result

    async def open(self, seconds: float = 600) -> None:
        if not self.server.has_token:
            await self.server.take_token(TOKEN)
        await self.ask("open", seconds=seconds)

    async def join(
        self, name: str = "laptop", *, key: bytes = b"", token: str = TOKEN, source: Endpoint = HERE
    ) -> Joined | Failed:
        """Pair as `rustguard join` does, and return how that ended."""
        loop = asyncio.get_running_loop()
        mail = self._mail
        client = PairingClient(token, key or os.urandom(32), name, os.urandom, loop.time(), stretching=cheap_stretch)
        while client.outcome is None:
            client.handle_timeout(loop.time())
            while (transmit := client.poll_transmit()) is not None:
                self.plane.tell(ForeignReceived(transmit.datagram, source))
            await asyncio.sleep(0.01)
            for destination, datagram in self.plane.take_outgoing():
                mail.setdefault(destination, []).append(datagram)
            for datagram in mail.pop(source, ()):
                client.handle(datagram, THERE, loop.time())
        return client.outcome

    def record(self, name: str) -> PeerRecord:
        return self.server.registry.find(name)

    def live(self) -> set[bytes]:
        return {each.config.public_key for each in self.server.tunnel.node}


def runner(monkeypatch: pytest.MonkeyPatch, state: Path) -> Run:
    """Return what runs a test with a server that was just started, and stops that afterwards."""
    monkeypatch.setattr(server, "stretch", cheap_stretch)

    def in_loop(test: Test) -> None:
        async def main() -> None:
            shell = Shell(state)
            shell.start()
            await test(shell)
            await shell.stop()

        virtual_loop.run(monkeypatch, main)

    return in_loop
