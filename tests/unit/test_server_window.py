"""A server's window, with its tunnel in memory: who is admitted, who is taken back, and what `status` shows of it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.cli import render
from rustguard_py.daemon import audit
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.engine import Engine
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import EventfulPlane
from rustguard_py.state.records import PeerRecord, ServerState
from rustguard_py.tunnel import Tunnel
from support.memory_plane import MemoryPlane

TOKEN = "maple-comet-fjord"  # noqa: S105 - the test's own
HERE: Endpoint = ("192.0.2.2", 40000)
THERE: Endpoint = ("192.0.2.1", 51820)
NEVER = 3600.0


class Running:
    """A server with a token, and clients that pair with it."""

    def __init__(self, directory: Path, pool: str = "10.150.0.0/24") -> None:
        self.state = ServerState(os.urandom(32), os.urandom(32), IPv4Network(pool), None, 51820, 1420)
        self.timestamps = KeptTimestamps(directory)
        self.plane = MemoryPlane(os.urandom(32))
        self.tunnel = Tunnel.make(
            self.state.private_key, cast(EventfulPlane, self.plane), self.timestamps, Listeners()
        )
        self.saved: list[Mapping[str, Any]] = []
        self.broken = False
        saver = Saver(self.state, self._write, lazy=NEVER, retry=NEVER)
        self.server = RunningServer(self.tunnel, Registry(self.state), saver, self.timestamps, None)
        self.control = ServerControl(self.server, None, None)  # type: ignore[arg-type]  # for the status alone

    def _write(self, document: Mapping[str, Any]) -> None:
        if self.broken:
            raise StateError("The disk is full.")
        self.saved.append(document)

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        result = self.control.handlers()[method](params)
        return await result if inspect.isawaitable(result) else result

    def tell(self, datagram: bytes, source: Endpoint = HERE) -> None:
        listener = self.tunnel.listeners.foreign
        assert listener is not None
        listener(datagram, source, now())

    async def join(self, key: bytes | None = None, *, token: str = TOKEN, source: Endpoint = HERE) -> Joined | Failed:
        client = PairingClient(token, key or os.urandom(32), "laptop", os.urandom, now())
        async with asyncio.timeout(60):
            while client.outcome is None:
                client.handle_timeout(now())
                while (transmit := client.poll_transmit()) is not None:
                    self.tell(transmit.datagram, source)
                await asyncio.sleep(0.005)
                for _, datagram in self.plane.take_outgoing():
                    client.handle(datagram, THERE, now())
        return client.outcome

    def live(self) -> set[bytes]:
        return {each.config.public_key for each in self.tunnel.node}

    def record(self, name: str) -> PeerRecord:
        return self.server.registry.find(name)

    async def finish(self) -> None:
        await self.server.finish()
        self.timestamps.close()


def run(directory: Path, test: Callable[[Running], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        running = Running(directory, **options)
        await running.server.take_token(TOKEN)
        await running.ask("open", seconds=600)
        await test(running)
        await running.finish()

    asyncio.run(main())


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0.001)


# -- new peers in a window -------------------------------------------------------------------------------------


def test_a_window_admits_as_many_new_peers_as_it_may_and_those_that_are_known_always(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(running: Running) -> None:
        await running.ask("open", seconds=600, most=2)
        first = os.urandom(32)
        assert isinstance(await running.join(first), Joined)
        assert isinstance(await running.join(), Joined)
        assert await running.join() == Failed(Failure.WINDOW_FULL)
        assert isinstance(await running.join(first), Joined)
        assert "refused: this window has admitted 2 new peers, as many as it may" in caplog.text
        assert len(running.state.peers) == 2
        window = (await running.ask("open", seconds=600))["before"]
        assert (window["new_peers"], window["new_peers_allowed"]) == (2, 2)
        assert isinstance(await running.join(source=("192.0.2.3", 40000)), Joined)

    run(tmp_path, test)


def test_the_count_of_new_peers_is_saved_together_with_the_peer(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        assert isinstance(await running.join(), Joined)
        saved = next(each for each in running.saved if each["peers"] != running.saved[0]["peers"])
        assert saved["guesses"]["new_peers"] == 1

    run(tmp_path, test)


def test_what_is_taken_back_counts_for_the_window_that_it_was_admitted_in(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        joined = await running.join()
        assert isinstance(joined, Joined)
        await running.ask("open", seconds=600, most=1)
        assert isinstance(await running.join(source=("192.0.2.3", 40000)), Joined)
        running.tell(joined.forget)
        async with asyncio.timeout(60):
            while len(running.state.peers) > 1:
                await asyncio.sleep(0.005)
        assert await running.join(source=("192.0.2.4", 40000)) == Failed(Failure.WINDOW_FULL)

    run(tmp_path, test)


def test_a_join_that_is_refused_otherwise_is_not_counted(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        assert isinstance(await running.join(), Joined)
        assert await running.join() == Failed(Failure.FULL)
        assert (await running.ask("close"))["window"]["new_peers"] == 1

    run(tmp_path, test, pool="10.150.0.0/30")


def test_a_machine_that_takes_each_of_its_joins_back_uses_the_window_up_all_the_same(tmp_path: Path) -> None:
    """Otherwise it could join as a new peer for ever, and each time add lines to the audit log."""

    async def test(running: Running) -> None:
        await running.ask("open", seconds=600, most=2)
        outcomes = []
        for _ in range(5):
            outcomes.append(await running.join(bytes([1]) * 32))
            if isinstance(outcomes[-1], Joined):
                running.tell(outcomes[-1].forget)
                await settle()
        assert [isinstance(each, Joined) for each in outcomes] == [True] * 4 + [False]
        assert outcomes[4] == Failed(Failure.WINDOW_FULL)
        await running.ask("open", seconds=600, most=2)
        assert isinstance(await running.join(), Joined)

    run(tmp_path, test)


@pytest.mark.parametrize("most", [0, -1, 10**7, True, "5", 1.5])
def test_a_number_of_new_peers_out_of_bounds_is_refused(tmp_path: Path, most: object) -> None:
    async def test(running: Running) -> None:
        number = running.server.window.number
        with pytest.raises(UsageError, match="--most"):
            await running.ask("open", seconds=600, most=most)
        assert running.server.window.number == number

    run(tmp_path, test)


@pytest.mark.parametrize("networks", [["192.0.2.1/24"], ["x"], "192.0.2.0/24", [7], ["192.0.2.0/24"] * 65])
def test_networks_that_are_none_are_refused(tmp_path: Path, networks: object) -> None:
    async def test(running: Running) -> None:
        number = running.server.window.number
        with pytest.raises(UsageError):
            await running.ask("open", seconds=600, **{"from": networks})
        assert running.server.window.number == number

    run(tmp_path, test)


# -- taken back ------------------------------------------------------------------------------------------------


def test_a_new_peer_that_cant_use_its_admission_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(running: Running) -> None:
        joined = await running.join()
        assert isinstance(joined, Joined)
        assert len(running.live()) == 1
        with caplog.at_level(logging.INFO), audit.recording(tmp_path):
            running.tell(joined.forget)
            await settle()
        assert [event["event"] for event in audit.read(tmp_path) or []] == ["taken-back"]
        assert not running.state.peers
        assert not running.state.revoked
        assert not running.live()
        assert bytes(running.saved[-1]["peers"]) == b"[]"
        assert "laptop at 192.0.2.2:40000 can't use its admission and was removed: 10.150.0.2 is free" in caplog.text
        running.tell(joined.forget)
        await settle()
        assert running.server.window.state(now()).new_peers == 0

    run(tmp_path, test)


def test_a_peer_that_joined_again_stays_though_it_cant_use_that(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        key = os.urandom(32)
        first, second = await running.join(key), await running.join(key)
        assert isinstance(first, Joined)
        assert isinstance(second, Joined)
        # Neither the later admission, which made no peer, nor the earlier one, which is no longer what it has.
        for outcome in (second, first):
            running.tell(outcome.forget)
            await settle()
        assert running.record("laptop").preshared_key == second.preshared_key
        assert len(running.live()) == 1

    run(tmp_path, test)


def test_a_removal_that_cant_be_saved_leaves_the_peer(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        joined = await running.join()
        assert isinstance(joined, Joined)
        running.broken = True
        running.tell(joined.forget)
        await settle()
        running.broken = False
        assert running.record("laptop").preshared_key == joined.preshared_key
        assert len(running.live()) == 1

    run(tmp_path, test)


# -- peers that never connected ----------------------------------------------------------------------------------


def test_a_peer_is_shown_as_not_connected_until_its_first_session(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        assert isinstance(await running.join(), Joined)
        (peer,) = (await running.ask("peers"))["peers"]
        assert peer["state"] == "never-connected"
        assert render.peer_state(peer) == "has not connected yet"
        assert ServerState.from_json(running.state.to_json()).peers == running.state.peers
        assert not running.record("laptop").connected
        (live,) = running.tunnel.node
        assert running.tunnel.listeners.session is not None
        running.tunnel.listeners.session(live)
        assert running.record("laptop").connected
        assert (await running.ask("peers"))["peers"][0]["state"] == "idle"
        assert "connected" not in running.record("laptop").to_json()

    run(tmp_path, test)


def test_a_full_pool_gives_away_the_address_of_the_oldest_that_never_connected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool has room for five: stock, connected, two that never did, and one that joined a moment ago."""

    async def test(running: Running) -> None:
        admissions, clock = running.server.admissions, [1000.0]
        monkeypatch.setattr("rustguard_py.enroll.server.admissions.now", lambda: clock[0])
        await admissions.admit_stock("stock", b"s" * 32, b"p" * 32)
        for number, name in enumerate(["connected", "newer", "older", "fresh"]):
            clock[0] = {"newer": 1020.0, "older": 1010.0, "fresh": 1650.0}.get(name, 1000.0)
            await admissions.admit(bytes([number]) * 32, name, b"p" * 32, "192.0.2.9:4000")
        admissions.connected(bytes(32))
        clock[0] = 1600.0
        assert await running.join() == Failed(Failure.FULL)
        clock[0] = 1700.0
        with audit.recording(tmp_path):
            outcomes = [await running.join() for _ in range(3)]
        given = [event for event in audit.read(tmp_path) or [] if event["event"] == "given-away"]
        assert [(event["name"], event["address"]) for event in given] == [
            ("older", "10.150.0.5"),
            ("newer", "10.150.0.4"),
        ]
        addresses = [str(each.admission.address4.ip) for each in outcomes if isinstance(each, Joined)]
        assert addresses == ["10.150.0.5", "10.150.0.4"]
        assert outcomes[2] == Failed(Failure.FULL)
        assert "older never connected and was removed: the pool is full, 10.150.0.5 is free" in caplog.text
        names = {record.name for record in running.state.peers.values()}
        assert names == {"stock", "connected", "fresh", "laptop", "laptop-2"}
        assert running.live() == set(running.state.peers)

    run(tmp_path, test, pool="10.150.0.0/29")


def test_an_address_stays_where_it_is_if_giving_it_away_cant_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(running: Running) -> None:
        admissions, clock = running.server.admissions, [1000.0]
        monkeypatch.setattr("rustguard_py.enroll.server.admissions.now", lambda: clock[0])
        await admissions.admit(b"a" * 32, "attic", b"p" * 32, "192.0.2.9:4000")
        clock[0], running.broken = 2000.0, True
        assert await admissions.admit(b"b" * 32, "boiler", b"p" * 32, "192.0.2.9:4001") is None
        running.broken = False
        assert set(running.state.peers) == running.live() == {b"a" * 32}

    run(tmp_path, test, pool="10.150.0.0/30")


# -- what is shown -----------------------------------------------------------------------------------------------


def test_wrong_tokens_and_blocked_sources_are_shown(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        assert running.control._warnings() == []
        for number in range(3):
            assert await running.join(token=f"wrong {number}") == Failed(Failure.WRONG_TOKEN)
        window = running.control._window()
        assert (window["guesses_used"], window["guessing_sources"], window["blocked"]) == (3, 1, ["192.0.2.2/32"])
        for number in range(17):
            running.server.window.charge(f"203.0.113.{number}/32", now())
        assert "only one token is checked every 10 s. To let only some" in running.control._warnings()[0]
        opened = await running.ask("open", seconds=60, **{"from": ["198.51.100.0/24"]})
        assert (opened["before"]["guesses_used"], opened["before"]["guessing_sources"]) == (20, 18)
        assert opened["window"]["from"] == ["198.51.100.0/24"]
        assert running.control._warnings() == []

    run(tmp_path, test)


def test_a_confirm_that_waits_is_answered_by_the_servers_own_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rustguard_py.enroll.pairing.window.TURN_SECONDS", 0.3)

    async def test(running: Running) -> None:
        for number in range(20):
            running.server.window.charge(f"203.0.113.{number}/32", now())
        began = now()
        assert isinstance(await running.join(), Joined)
        assert now() - began < 5

    run(tmp_path, test)


def test_a_machine_with_another_version_is_warned_of(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        hello = b"RGE2\1\0\0\0" + bytes(120)
        for _ in range(5):
            running.tell(hello)
        assert running.control._warnings() == [
            "A machine asked with another version of RustGuard: install the same version there."
        ]
        running.tell(hello, ("192.0.2.3", 40000))
        assert running.server.pairing is not None
        assert running.server.pairing.outdated == 2

    run(tmp_path, test)


def test_pairings_that_are_begun_and_never_confirmed_are_logged_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(running: Running) -> None:
        client = PairingClient(TOKEN, os.urandom(32), "laptop", os.urandom, now())
        for _ in range(2):
            transmit = client.poll_transmit()
            assert transmit is not None
            running.tell(transmit.datagram)
            for _, datagram in running.plane.take_outgoing():
                client.handle(datagram, THERE, now())
        later = now() + 16
        monkeypatch.setattr("rustguard_py.enroll.server.server.now", lambda: later)
        running.server._mind_pairing()
        window = running.control._window()
        assert (window["unconfirmed"], window["unconfirmed_sources"]) == (1, 1)
        assert "begun and never confirmed in this window: 1, the last one from 192.0.2.2:40000" in caplog.text

    run(tmp_path, test)


# -- the end -------------------------------------------------------------------------------------------------------


def test_a_stop_closes_the_window_and_the_audit_log_says_so(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        with audit.recording(tmp_path):
            await running.server.finish()
            await running.server.finish()
        events = audit.read(tmp_path) or []
        assert [(event["event"], event["reason"]) for event in events] == [("window-closed", "the server stops")]

    run(tmp_path, test)


# -- what the plane counts -----------------------------------------------------------------------------------------


def test_a_machine_of_another_version_that_the_plane_stopped_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(running: Running) -> None:
        program = Program("server", tmp_path, "rg0", Engine("portable", "the only one here"), now())
        running.control = ServerControl(running.server, program, None)
        text = "A machine asked with another version of RustGuard: install the same version there."
        assert text not in (await running.ask("status"))["warnings"]
        stats = running.plane.stats()
        monkeypatch.setattr(running.plane, "stats", lambda: replace(stats, drops={"pairing_revision": 1}))
        assert (await running.ask("status"))["warnings"].count(text) == 1

    run(tmp_path, test)
