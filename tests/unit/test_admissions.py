"""Changes of a server's peers: each becomes durable and then live, whatever other change comes between."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.daemon.control.server import Handler
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.pairing.outputs import Admit
from rustguard_py.enroll.server.admissions import Admissions
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.enroll.server.registry import PeerChange, Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.model.errors import RefusedError, StateError
from rustguard_py.model.keys import encode_key
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import EventfulPlane
from rustguard_py.state.records import PeerRecord, ServerState
from rustguard_py.tunnel import Tunnel
from support.memory_plane import MemoryPlane

KEYS = [bytes([number]) * 32 for number in range(1, 4)]
NAMES = ["laptop", "desk"]
NEVER = 3600.0


class Saves(ThreadPoolExecutor):
    """The loop's executor: what is submitted waits until the test lets it run, or fails it."""

    def __init__(self) -> None:
        super().__init__(1)
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, lambda: function(*arguments, **options)))
        return future

    def complete(self, *, succeeds: bool) -> bool:
        """End the oldest one; return False if there is none."""
        if not self._waiting:
            return False
        future, work = self._waiting.pop(0)
        if succeeds:
            future.set_result(work())
        else:
            future.set_exception(StateError("The disk is full."))
        return True


class Live(dict[bytes, PeerRecord]):
    """The peers in the tunnel."""

    def put_in(self, record: PeerRecord, *, with_endpoint: bool) -> None:  # noqa: ARG002 - of no concern here
        self[record.public_key] = record

    def take_out(self, public_key: bytes) -> None:
        self.pop(public_key, None)


class Fixture:
    """Admissions with a real saver, whose saves end when the test says so."""

    def __init__(self, state: ServerState | None = None) -> None:
        self.saves, self.live = Saves(), Live()
        self.saved: list[Mapping[str, Any]] = []
        asyncio.get_running_loop().set_default_executor(self.saves)
        self.state = state or new_state()
        self.registry = Registry(self.state)
        saver = Saver(self.state, self.saved.append, lazy=NEVER, retry=NEVER)
        self.admissions = Admissions(self.registry, saver.durable, self.live)

    async def after(self, work: Coroutine[Any, Any, Any], *, succeeds: bool = True) -> Any:
        """Return the outcome of one change with no other one beside it."""
        task = asyncio.ensure_future(work)
        await settle()
        self.saves.complete(succeeds=succeeds)
        await settle()
        return await task

    async def join(self, key: bytes = KEYS[0], name: str = "laptop", preshared_key: bytes = b"p" * 32) -> Any:
        return await self.admissions.admit(key, name, preshared_key, "192.0.2.2:4000")

    def agrees(self) -> bool:
        """Return whether exactly the listed peers are live, as they are listed."""
        return dict(self.live) == self.state.peers


def new_state() -> ServerState:
    return ServerState(os.urandom(32), os.urandom(32), IPv4Network("10.150.0.0/24"), None, 51820, 1420)


async def settle() -> None:
    """Let everything run that waits for nothing but its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


async def answered(handler: Handler, params: dict[str, Any]) -> dict[str, Any]:
    """Call a handler of the control socket, whichever kind it is."""
    result = handler(params)
    return await result if inspect.isawaitable(result) else result


# -- one key, several changes ---------------------------------------------------------------------------------


def test_a_peer_that_is_renamed_and_revoked_while_its_join_is_saved_is_not_in_the_tunnel(tmp_path: Path) -> None:
    async def main() -> None:
        saves = Saves()
        asyncio.get_running_loop().set_default_executor(saves)
        state, timestamps = new_state(), KeptTimestamps(tmp_path)
        tunnel = Tunnel.make(
            state.private_key, cast(EventfulPlane, MemoryPlane(os.urandom(32))), timestamps, Listeners()
        )
        saver = Saver(state, lambda _: None, lazy=NEVER, retry=NEVER)
        server = RunningServer(tunnel, Registry(state), saver, timestamps, None)
        ask = ServerControl(server, None, None).handlers()  # type: ignore[arg-type]  # for the status alone
        join = asyncio.ensure_future(
            server._let_in(Admit(bytes(8), 0, KEYS[0], "laptop", b"p" * 32, ("192.0.2.2", 4000)))
        )
        await settle()
        rename = asyncio.ensure_future(answered(ask["rename"], {"old": "laptop", "new": "desk"}))
        revoke = asyncio.ensure_future(answered(ask["revoke"], {"who": "desk"}))
        await settle()
        while saves.complete(succeeds=True):
            await settle()
        assert await join == {"status": "revoked"}
        assert (await rename)["peer"]["name"] == (await revoke)["peer"]["name"] == "desk"
        assert state.revoked == {KEYS[0]}
        assert not state.peers
        assert not list(tunnel.node)
        timestamps.close()

    asyncio.run(main())


def test_a_join_is_answered_with_the_name_that_the_peer_has_by_then() -> None:
    async def main() -> None:
        fixture = Fixture()
        join = asyncio.ensure_future(fixture.join())
        await settle()
        rename = asyncio.ensure_future(fixture.admissions.rename("laptop", "desk"))
        await settle()
        fixture.saves.complete(succeeds=True)
        await settle()
        assert (await join).name == "desk"
        assert set(fixture.live) == {KEYS[0]}
        fixture.saves.complete(succeeds=True)
        assert (await rename).name == "desk"
        assert fixture.agrees()

    asyncio.run(main())


def test_a_newer_key_is_not_in_the_tunnel_before_it_is_saved() -> None:
    async def main() -> None:
        fixture = Fixture()
        joins = []
        for key in (b"1" * 32, b"2" * 32):
            joins.append(asyncio.ensure_future(fixture.join(preshared_key=key)))
            await settle()
        fixture.saves.complete(succeeds=True)
        await settle()
        assert fixture.live[KEYS[0]].preshared_keys == (b"1" * 32,)
        fixture.saves.complete(succeeds=True)
        await settle()
        assert fixture.live[KEYS[0]].preshared_keys == (b"2" * 32, b"1" * 32)
        assert fixture.agrees()
        assert (await joins[0]).preshared_key == (await joins[1]).preshared_key == b"2" * 32

    asyncio.run(main())


# -- a disk that refuses --------------------------------------------------------------------------------------


def test_a_revocation_that_could_not_be_saved_puts_the_peer_back_with_its_name_and_address() -> None:
    async def main() -> None:
        fixture = Fixture()
        before = await fixture.after(fixture.join())
        revoke = asyncio.ensure_future(fixture.admissions.revoke("laptop"))
        await settle()
        assert not fixture.live
        # Both are still reserved for the peer that is being revoked.
        other = asyncio.ensure_future(fixture.join(KEYS[1]))
        await settle()
        fixture.saves.complete(succeeds=False)
        await settle()
        with pytest.raises(StateError):
            await revoke
        fixture.saves.complete(succeeds=True)
        assert ((await other).name, str((await other).address4)) == ("laptop-2", "10.150.0.3")
        assert fixture.state.peers[KEYS[0]] == before
        assert fixture.agrees()

    asyncio.run(main())


def test_a_rename_that_could_not_be_saved_gives_the_old_name_back_and_nobody_got_it_meanwhile() -> None:
    async def main() -> None:
        fixture = Fixture()
        await fixture.after(fixture.join())
        rename = asyncio.ensure_future(fixture.admissions.rename("laptop", "desk"))
        await settle()
        other = asyncio.ensure_future(fixture.join(KEYS[1]))
        await settle()
        with pytest.raises(RefusedError):
            fixture.registry.find("laptop")
        fixture.saves.complete(succeeds=False)
        await settle()
        with pytest.raises(StateError):
            await rename
        fixture.saves.complete(succeeds=True)
        assert (await other).name == "laptop-2"
        assert fixture.registry.find("laptop").public_key == KEYS[0]
        assert fixture.agrees()
        # The name that was given up is free again.
        assert (await fixture.after(fixture.join(KEYS[2], "desk"))).name == "desk"

    asyncio.run(main())


def test_a_join_that_could_not_be_saved_leaves_nothing_and_its_address_is_free() -> None:
    async def main() -> None:
        fixture = Fixture()
        assert await fixture.after(fixture.join(), succeeds=False) is None
        assert not fixture.state.peers
        assert fixture.agrees()
        other = await fixture.after(fixture.join(KEYS[1]))
        assert (other.name, str(other.address4)) == ("laptop", "10.150.0.2")

    asyncio.run(main())


def test_a_change_that_is_cancelled_while_it_is_saved_is_undone() -> None:
    async def main() -> None:
        fixture = Fixture()
        await fixture.after(fixture.join())
        revoke = asyncio.ensure_future(fixture.admissions.revoke("laptop"))
        await settle()
        revoke.cancel()
        await settle()
        assert revoke.cancelled()
        assert set(fixture.state.peers) == {KEYS[0]}
        assert not fixture.state.revoked
        assert fixture.agrees()

    asyncio.run(main())


def test_a_restore_that_could_not_be_saved_leaves_the_key_revoked() -> None:
    async def main() -> None:
        fixture = Fixture()
        await fixture.after(fixture.join())
        await fixture.after(fixture.admissions.revoke("laptop"))
        with pytest.raises(StateError):
            await fixture.after(fixture.admissions.restore(encode_key(KEYS[0])), succeeds=False)
        assert fixture.state.revoked == {KEYS[0]}
        assert await fixture.join() == "revoked"
        assert fixture.agrees()

    asyncio.run(main())


# -- every order ----------------------------------------------------------------------------------------------


class Interleaving:
    """Random changes of a few keys that share a name, with saves that end or fail at random moments."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.fixture = Fixture()
        self.tasks: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        for _ in range(60):
            if self.random.random() < 0.6:
                self.tasks.append(asyncio.ensure_future(self._try(self._change())))
            else:
                self.fixture.saves.complete(succeeds=self.random.random() < 0.7)
            for _ in range(self.random.choice([0, 1, 2, 3, 20])):
                await asyncio.sleep(0)
                self._check()
        last_succeeds = self.random.random() < 0.5
        await settle()
        while self.fixture.saves.complete(succeeds=last_succeeds):
            await settle()
            self._check()
        await asyncio.gather(*self.tasks)
        await self._check_end()

    def _change(self) -> Coroutine[Any, Any, Any]:
        fixture, key, name = self.fixture, self.random.choice(KEYS), self.random.choice(NAMES)
        admissions = fixture.admissions
        match self.random.choice(["join", "join", "revoke", "rename", "restore", "stock", "take back"]):
            case "join":
                return fixture.join(key, "laptop", self.random.randbytes(32))
            case "revoke":
                return admissions.revoke(self.random.choice([name, encode_key(key)]))
            case "rename":
                return admissions.rename(self.random.choice([*NAMES, encode_key(key)]), name)
            case "take back":
                listed = fixture.state.peers.get(key)
                return admissions.take_back(key, bytes(32) if listed is None else listed.preshared_key)
            case "restore":
                return admissions.restore(encode_key(key))
            case _:
                return admissions.admit_stock("laptop", key, self.random.randbytes(32))

    async def _try(self, work: Coroutine[Any, Any, Any]) -> None:
        with suppress(RefusedError, StateError):
            await work

    def _check(self) -> None:
        """What holds at every moment."""
        state, live = self.fixture.state, self.fixture.live
        assert not state.revoked & (live.keys() | state.peers.keys())
        # Two peers with one name or address would be refused at the next start.
        assert ServerState.from_json(state.to_json()).peers == state.peers
        for record in state.peers.values():
            assert self.fixture.registry.find(record.name) is record

    async def _check_end(self) -> None:
        fixture = self.fixture
        assert fixture.agrees()
        assert len(fixture.registry.pool) == len(fixture.state.peers)
        # Nothing stays reserved: names that nobody has are free, and all keys can join with the lowest addresses.
        listed = {record.name for record in fixture.state.peers.values()}
        for name in {"laptop", "desk", *(f"laptop-{number}" for number in range(2, 9))} - listed:
            change = fixture.registry.admit(b"n" * 32, name, bytes(32), None, 0.0)
            assert isinstance(change, PeerChange)
            assert change.record.name == name
            change.undo()
        for key in set(KEYS) & fixture.state.revoked:
            await fixture.after(fixture.admissions.restore(encode_key(key)))
        for key in KEYS:
            assert isinstance(await fixture.after(fixture.join(key)), PeerRecord)
        assert sorted(str(each.address4) for each in fixture.state.peers.values()) == [
            "10.150.0.2",
            "10.150.0.3",
            "10.150.0.4",
        ]
        assert fixture.agrees()
        on_disk = {each["name"] for each in json.loads(fixture.saved[-1]["peers"])}
        assert on_disk == {record.name for record in fixture.live.values()}


@pytest.mark.fault(37)
@pytest.mark.parametrize("seed", range(200))
def test_exactly_the_listed_peers_are_live_after_any_order_of_changes_and_saves(seed: int) -> None:
    asyncio.run(_interleave(seed))


async def _interleave(seed: int) -> None:
    async with asyncio.timeout(60):
        await Interleaving(seed).run()
