"""A client that leaves is removed by its server before it is answered, and nobody else can make a server do that."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustguard_py.daemon import audit
from rustguard_py.daemon.control.asker import ASKER
from rustguard_py.daemon.reports import FAREWELL, Partner, Reports
from rustguard_py.enroll.client.control import ClientControl
from rustguard_py.enroll.server.admissions import Admissions
from rustguard_py.enroll.server.farewells import CHECK_AGAIN, Farewells
from rustguard_py.enroll.server.partners import Partners
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.tunnels import farewell
from rustguard_py.model.errors import RefusedError, StateError, UsageError
from rustguard_py.model.keys import NO_PRESHARED_KEY, generate_private_key, public_key
from rustguard_py.protocol.report import Hello, Leave, Left
from rustguard_py.state.records import PeerRecord, ServerState
from support import virtual_loop
from support.joined import NETWORK
from support.report_exchange import KEY, Exchange, exchange

keys = st.binary(min_size=32, max_size=32)
SERVER, CLIENT = (generate_private_key() for _ in range(2))


# -- proofs ----------------------------------------------------------------------------------------------------


@given(keys)
@settings(max_examples=20, deadline=None)
def test_both_ends_make_the_same_proofs_and_nobody_else(preshared: bytes) -> None:
    ours = farewell.of_client(CLIENT, public_key(SERVER), preshared)
    assert farewell.of_server(SERVER, public_key(CLIENT), preshared) == ours
    assert ours.leave != ours.left
    # Another join, another machine, another server.
    different = [
        farewell.of_client(CLIENT, public_key(SERVER), bytes(each ^ 1 for each in preshared)),
        farewell.of_client(generate_private_key(), public_key(SERVER), preshared),
        farewell.of_client(CLIENT, public_key(generate_private_key()), preshared),
        # Its peer's, in the other role.
        farewell.of_client(SERVER, public_key(CLIENT), preshared),
    ]
    for theirs in different:
        assert {theirs.leave, theirs.left}.isdisjoint({ours.leave, ours.left})
    assert ours.leave.hex() not in repr(ours)


def test_a_key_that_gives_everybody_the_same_secret_is_refused() -> None:
    with pytest.raises(UsageError):
        farewell.of_client(CLIENT, bytes(32), b"p" * 32)


# -- on the wire -----------------------------------------------------------------------------------------------


def test_a_client_asks_for_three_seconds_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        await asyncio.sleep(60)
        its.take()
        began = asyncio.get_running_loop().time()
        assert not await its.reports.leave(IPv4Address(its.there), b"a" * 32, b"b" * 32)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3.0)
        assert [item for _, item in its.take()] == [Leave(b"a" * 32)] * 6

    exchange(monkeypatch, test)


def test_only_the_servers_own_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        leaving = asyncio.ensure_future(its.reports.leave(IPv4Address(its.there), b"a" * 32, b"b" * 32))
        await asyncio.sleep(0.1)
        its.say(Left(b"c" * 32), Left(b"a" * 32), Leave(b"b" * 32), Hello(asks=False))
        await asyncio.sleep(1)
        assert not leaving.done()
        its.say(Left(b"b" * 32))
        await asyncio.sleep(0.1)
        assert leaving.done()
        assert await leaving
        # It comes again because it was asked for again.
        its.say(Left(b"b" * 32))

    exchange(monkeypatch, test)


def test_before_there_is_a_socket_nobody_is_told() -> None:
    reports = Reports([], ["lo"], IPv4Address("127.0.0.1"), lambda _: None)
    assert not asyncio.run(reports.leave(IPv4Address("127.0.0.2"), b"a" * 32, b"b" * 32))


def test_a_server_answers_once_the_peer_is_removed_and_again_if_the_answer_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(its: Exchange) -> None:
        removed: list[tuple[float, Partner]] = []
        known = {its.there: Partner("laptop", (KEY,))}

        async def remove(partner: Partner, proof: bytes) -> bytes | None:
            if proof != b"a" * 32:
                return None
            await asyncio.sleep(2)
            removed.append((asyncio.get_running_loop().time(), partner))
            known.clear()
            return b"b" * 32

        its.reports._find = known.get
        its.reports._remove = remove
        its.say(Hello(asks=False), Leave(b"x" * 32))
        await asyncio.sleep(1)
        assert its.take() == []
        its.say(Leave(b"a" * 32))
        await asyncio.sleep(1.9)
        assert its.take() == []
        await asyncio.sleep(0.2)
        [(at, item)] = its.take()
        assert (item, len(removed)) == (Left(b"b" * 32), 1)
        assert at >= removed[0][0] - virtual_loop.BEGAN
        # Its arrivals are no longer looked at.
        assert its.reports._speakers == {}
        its.say(Leave(b"a" * 32))
        its.say(Leave(b"x" * 32), Hello(asks=True))
        await asyncio.sleep(1)
        assert [item for _, item in its.take()] == [Left(b"b" * 32)]
        await asyncio.sleep(FAREWELL)
        its.say(Leave(b"a" * 32))
        await asyncio.sleep(1)
        assert its.take() == []
        assert len(removed) == 1

    exchange(monkeypatch, test)


def test_with_the_kernels_engine_only_leaving_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        async def remove(_partner: Partner, _proof: bytes) -> bytes | None:
            return b"b" * 32

        its.reports._looks = False
        its.reports._remove = remove
        its.reports.session()
        its.say(Hello(asks=True))
        await asyncio.sleep(60)
        assert its.take() == []
        assert its.session.looks == []
        its.say(Leave(b"a" * 32))
        await asyncio.sleep(1)
        assert [item for _, item in its.take()] == [Left(b"b" * 32)]

    exchange(monkeypatch, test)


# -- the server ------------------------------------------------------------------------------------------------


class Live:
    """The peers in the tunnel, noted."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()

    def put_in(self, record: PeerRecord, *, with_endpoint: bool) -> None:  # noqa: ARG002 - as `LiveSet` has it
        self.keys.add(record.public_key)

    def take_out(self, public_key: bytes) -> None:
        self.keys.discard(public_key)


class Server:
    """A server's peers, its disk, and who leaves."""

    def __init__(self) -> None:
        self.state = ServerState(SERVER, os.urandom(32), IPv4Network("10.9.0.0/29"), None, 51820, 1420)
        self.disk: list[set[str]] = []
        self.fails = False
        self.live = Live()
        self.saver = Saver(self.state, self._write)
        self.admissions = Admissions(Registry(self.state), self.saver.durable, self.live)
        self.farewells = Farewells(self.state, self.admissions)

    def _write(self, document: Mapping[str, Any]) -> None:
        if self.fails:
            raise StateError("full")
        self.disk.append({peer["name"] for peer in json.loads(document["peers"])})

    async def join(self, name: str = "laptop", key: bytes = CLIENT) -> Partner:
        record = await self.admissions.admit(public_key(key), name, os.urandom(32), "192.0.2.9:5")
        assert isinstance(record, PeerRecord)
        return Partner(record.name, (record.public_key,))

    def proof(self, key: bytes = CLIENT) -> farewell.Proofs:
        record = self.state.peers[public_key(key)]
        return farewell.of_client(key, public_key(SERVER), record.preshared_key)


def served(monkeypatch: pytest.MonkeyPatch, test: Any) -> None:
    async def main() -> None:
        server = Server()
        await test(server)
        await server.saver.finish()

    virtual_loop.run(monkeypatch, main)


def test_a_peer_that_leaves_is_gone_from_disk_before_the_answer_and_hears_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def test(server: Server) -> None:
        with audit.recording(tmp_path):
            partner, other = await server.join(), await server.join("other", generate_private_key())
            proofs = server.proof()
            assert server.disk[-1] == {"laptop", "other"}
            assert await server.farewells.remove(partner, proofs.leave) == proofs.left
        assert server.disk[-1] == {"other"}
        assert partner.keys[0] in server.live.keys
        await asyncio.sleep(FAREWELL + 0.1)
        assert server.live.keys == {other.keys[0]}
        # Its key isn't refused: with the token it may come back, as the same key at a free address.
        assert server.state.revoked == set()
        assert await server.join() == partner

    served(monkeypatch, test)
    events = [event for event in audit.read(tmp_path) or [] if event["event"] == "left"]
    assert [(event["name"], event["address"]) for event in events] == [("laptop", "10.9.0.2")]


def test_a_wrong_proof_removes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        stranger = generate_private_key()
        partner, other = await server.join(), await server.join("other", stranger)
        right, theirs = server.proof(), server.proof(stranger)
        forged = farewell.of_client(stranger, public_key(SERVER), NO_PRESHARED_KEY)
        for proof in (bytes(32), right.left, theirs.leave, forged.leave, b""):
            assert await server.farewells.remove(partner, proof) is None
            await asyncio.sleep(CHECK_AGAIN)
        assert server.disk[-1] == {"laptop", "other"}
        assert server.live.keys == {partner.keys[0], other.keys[0]}
        assert await server.farewells.remove(Partner("nobody", (b"n" * 32,)), right.leave) is None

    served(monkeypatch, test)


def test_many_wrong_proofs_cost_little_and_do_not_hold_up_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        partner = await server.join()
        proofs = server.proof()
        checked: list[bytes] = []
        check = server.farewells._check

        def counted(key: bytes, proof: bytes) -> farewell.Proofs | None:
            checked.append(proof)
            return check(key, proof)

        monkeypatch.setattr(server.farewells, "_check", counted)
        for _ in range(1000):
            assert await server.farewells.remove(partner, bytes(32)) is None
        assert len(checked) == 1
        # A client asks twice a second.
        await asyncio.sleep(0.5)
        assert await server.farewells.remove(partner, proofs.leave) == proofs.left

    served(monkeypatch, test)


def test_what_proved_an_earlier_leaving_proves_nothing_after_the_next_join(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        partner = await server.join()
        recorded = server.proof()
        assert await server.farewells.remove(partner, recorded.leave) == recorded.left
        await server.join()
        assert await server.farewells.remove(partner, recorded.leave) is None
        assert server.disk[-1] == {"laptop"}
        # The time for the answer of the first leaving ends, and the peer that joined again stays in the tunnel.
        await asyncio.sleep(FAREWELL + 1)
        assert server.live.keys == {partner.keys[0]}

    served(monkeypatch, test)


def test_a_peer_without_a_preshared_key_cannot_be_made_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        partner = await server.join()
        key = partner.keys[0]
        server.state.peers[key] = replace(server.state.peers[key], preshared_key=NO_PRESHARED_KEY)
        assert await server.farewells.remove(partner, server.proof().leave) is None

    served(monkeypatch, test)


def test_if_it_cannot_be_saved_there_is_no_answer_and_the_peer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        partner = await server.join()
        proofs = server.proof()
        server.fails = True
        assert await server.farewells.remove(partner, proofs.leave) is None
        assert partner.keys[0] in server.state.peers
        assert partner.keys[0] in server.live.keys
        server.fails = False
        # The client asks again, and by then there is room.
        assert await server.farewells.remove(partner, proofs.leave) == proofs.left
        assert server.disk[-1] == set()

    served(monkeypatch, test)


def test_asked_twice_at_once_it_is_removed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        partner = await server.join()
        proofs = server.proof()
        saves = len(server.disk)
        both = await asyncio.gather(*(server.farewells.remove(partner, proofs.leave) for _ in range(2)))
        assert sorted(both, key=bool) == [None, proofs.left]
        assert len(server.disk) == saves + 1

    served(monkeypatch, test)


def test_a_host_behind_a_peer_is_not_that_peer() -> None:
    # What a router's LAN sends has the LAN's addresses, which cryptokey routing lets in as well.
    key = public_key(CLIENT)
    record = PeerRecord("router", key, os.urandom(32), IPv4Address("10.9.0.2"), None, 0.0, None)
    record = replace(record, networks=(ip_network("192.168.7.0/24"), ip_network("10.9.0.3/32")))
    state = ServerState(SERVER, os.urandom(32), IPv4Network("10.9.0.0/24"), None, 51820, 1420, {key: record})
    assert Partners(state).find("10.9.0.2") is not None
    for address in ("192.168.7.1", "192.168.7.255", "10.9.0.3", "10.9.0.1"):
        assert Partners(state).find(address) is None


# -- the client ------------------------------------------------------------------------------------------------


def test_only_root_and_the_clients_own_user_may_have_it_leave_its_network() -> None:
    asked: list[bytes] = []

    async def leave(private_key: bytes) -> bool:
        asked.append(private_key)
        return True

    client = cast(Any, SimpleNamespace(network=NETWORK, leave=leave))
    control = ClientControl(client, cast(Any, None), cast(Any, None), CLIENT, 40000)
    right = {"host": NETWORK.host, "port": NETWORK.port}

    async def ask(user: int | None, params: dict[str, Any]) -> Any:
        ASKER.set(user)
        handler: Any = control.handlers()["leave"]
        return await handler(params)

    for user, params in ((os.geteuid() + 1, right), (0, {**right, "port": 1}), (0, {}), (None, right)):
        with suppress(RefusedError):
            asyncio.run(ask(user, params))
            pytest.fail("it wasn't refused")
    assert asked == []
    assert asyncio.run(ask(os.geteuid(), right)) == {"answered": True}
    assert asked == [CLIENT]
