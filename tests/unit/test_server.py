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

from rustguard_py.daemon import audit
from rustguard_py.daemon.control.client import call
from rustguard_py.daemon.control.server import ControlServer
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.outcome import Joined
from rustguard_py.enroll.pairing.window import GUESSES_A_SOURCE
from rustguard_py.enroll.server.control import ServerControl
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


async def join(server: RunningServer, plane: MemoryPlane, token: str = TOKEN) -> Joined:
    client = PairingClient(token, os.urandom(32), "laptop", os.urandom, now())
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


def test_a_server_records_who_joined_and_who_changed_what(tmp_path: Path) -> None:
    async def main() -> None:
        state = ServerState(os.urandom(32), os.urandom(32), IPv4Network("10.150.0.0/29"), None, 51820, 1420)
        timestamps = KeptTimestamps(tmp_path)
        plane = MemoryPlane(os.urandom(32))
        tunnel = Tunnel.make(state.private_key, cast(EventfulPlane, plane), timestamps, Listeners())
        server = RunningServer(tunnel, Registry(state), Saver(state, lambda _: None), timestamps, None)
        control = ControlServer(tmp_path / "socket", ServerControl(server, cast(Any, None), None).handlers())
        await server.take_token(TOKEN)
        await control.start()

        async def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
            return await asyncio.to_thread(call, tmp_path / "socket", method, params)

        await ask("open", {"seconds": 60})
        await join(server, plane)
        await ask("rename", {"old": "laptop", "new": "desk"})
        revoked = await ask("revoke", {"who": "desk"})
        assert revoked["may_know_token"]
        key = revoked["peer"]["public_key"]
        await ask("restore", {"key": key})
        for _ in range(GUESSES_A_SOURCE):
            with pytest.raises(AssertionError):
                await join(server, plane, token="wrong")  # noqa: S106 - it is
        await ask("close", {})
        await ask("open", {"seconds": 0.2})
        await asyncio.sleep(0.4)
        await control.close()
        await server.finish()
        timestamps.close()

    with audit.recording(tmp_path):
        asyncio.run(main())
    events = audit.read(tmp_path) or []
    user = os.geteuid()
    assert [(event["event"], event.get("by", "-")) for event in events] == [
        ("window-opened", user),
        ("joined", "-"),
        ("renamed", user),
        ("revoked", user),
        ("restored", user),
        *[("wrong-token", "-")] * GUESSES_A_SOURCE,
        ("window-closed", user),
        ("window-opened", user),
        ("window-closed", None),
    ]
    assert events[1]["source"] == "192.0.2.2:40000"
    assert (events[2]["old"], events[2]["new"], events[3]["name"]) == ("laptop", "desk", "desk")
    text = (tmp_path / audit.NAME).read_text()
    assert TOKEN not in text
