"""A server with its tunnel in memory: how it handles a bug of its own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.pairing.client import Joined, PairingClient
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.model.clock import now
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import EventfulPlane
from rustguard_py.state.records import ServerState
from rustguard_py.tunnel import Tunnel
from support.memory_plane import MemoryPlane

TOKEN = "maple-comet-fjord"  # noqa: S105 - the test's own
HERE, THERE = ("192.0.2.2", 40000), ("192.0.2.1", 51820)


def fails_once(function: Callable[..., Any], said: list[str]) -> Callable[..., Any]:
    def replacement(*arguments: Any, **options: Any) -> Any:
        if not said:
            said.append("an error of our own")
            raise ZeroDivisionError(said[0])
        return function(*arguments, **options)

    return replacement


async def join(server: RunningServer, plane: MemoryPlane) -> Joined:
    client = PairingClient(TOKEN, os.urandom(32), "laptop", os.urandom, now())
    tell = server.tunnel.listeners.foreign
    assert tell is not None
    async with asyncio.timeout(60):
        while client.outcome is None:
            client.handle_timeout(now())
            while (transmit := client.poll_transmit()) is not None:
                tell(transmit.datagram, HERE, now())
            await asyncio.sleep(0.005)
            for _, datagram in plane.take_outgoing():
                client.handle(datagram, THERE, now())
    assert isinstance(client.outcome, Joined)
    return client.outcome


@pytest.mark.parametrize(
    ("place", "name"),
    [(Registry, "admit"), (Saver, "durable"), (RunningServer, "put_in"), (RunningServer, "_admission")],
)
def test_a_join_that_met_an_error_of_ours_goes_through_when_the_client_asks_again(
    place: type, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    saved: list[Mapping[str, Any]] = []
    monkeypatch.setattr(place, name, fails_once(getattr(place, name), said))

    async def main() -> Joined:
        state = ServerState(os.urandom(32), os.urandom(32), IPv4Network("10.150.0.0/24"), None, 51820, 1420)
        timestamps = KeptTimestamps(tmp_path)
        plane = MemoryPlane(os.urandom(32))
        tunnel = Tunnel.make(state.private_key, cast(EventfulPlane, plane), timestamps, Listeners())
        server = RunningServer(tunnel, Registry(state), Saver(state, saved.append), timestamps, None)
        await server.take_token(TOKEN)
        await server.open_window(60)
        joined = await join(server, plane)
        await server.finish()
        timestamps.close()
        return joined

    joined = asyncio.run(main())
    assert said
    assert said[0] in caplog.text
    assert str(joined.admission.address4) == "10.150.0.2/24"
    assert [peer["name"] for peer in json.loads(saved[-1]["peers"])] == ["laptop"]
