"""The server around its pairing, without a network and under a virtual clock.

How often it does things, not only that it does them; and what a restart loads, not only what was answered.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.pairing.window import GUESSES_A_SOURCE, GUESSES_AT_ONCE, TURN_SECONDS
from rustguard_py.enroll.server import admissions
from rustguard_py.enroll.server.registry import UNCONNECTED_SECONDS
from rustguard_py.enroll.server.saver import LAZY_SECONDS, RETRY_SECONDS
from rustguard_py.enroll.server.settings import Settings
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, StateError, UsageError
from rustguard_py.model.keys import encode_key
from rustguard_py.planes.contract import EndpointMoved
from rustguard_py.state.records import GuessRecord
from support import virtual_loop
from support.shell import FIRST, HERE, Run, Shell, runner
from support.wire_link import TOKEN

WRONG = "wrong"
ELSEWHERE: Endpoint = ("198.51.100.8", 41000)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(monkeypatch, tmp_path / "state")


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def opened_window(shell: Shell) -> int:
    return shell.server.window.state(asyncio.get_running_loop().time()).number


# -- what a restart loads --------------------------------------------------------------------------------------


def test_a_rename_onto_a_taken_name_is_refused_and_the_server_starts_again(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        for name in ("laptop", "desk"):
            assert isinstance(await shell.join(name), Joined)
        with pytest.raises(RefusedError, match="There is a peer laptop already"):
            await shell.ask("rename", old="desk", new="laptop")
        # Its own name, in other letters, is no other peer's.
        await shell.ask("rename", old="desk", new="Desk")
        await shell.crash()
        shell.start()
        assert sorted(peer.name for peer in shell.state.peers.values()) == ["Desk", "laptop"]

    run(test)


def test_a_window_opened_by_hand_is_on_disk_at_once_with_fresh_guesses(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        assert await shell.join(token=WRONG) == Failed(Failure.WRONG_TOKEN)
        assert shell.on_disk().guesses.used == 1
        await shell.open()
        number = opened_window(shell)
        assert shell.on_disk().guesses == GuessRecord(number)
        # The next one is known as a window that was open, so a crash gives nobody a second budget.
        assert await shell.join(token=WRONG) == Failed(Failure.WRONG_TOKEN)
        await shell.crash()
        shell.start()
        await shell.server.resume_window(600)
        assert (opened_window(shell), shell.server.window.record.used) == (number, 1)

    run(test)


def test_a_window_that_was_closed_by_hand_begins_at_zero_after_a_crash(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        await shell.join(token=WRONG)
        await shell.ask("close")
        number = opened_window(shell)
        await shell.crash()
        shell.start()
        await shell.server.resume_window(600)
        assert (opened_window(shell), shell.server.window.record.used) == (number + 1, 0)

    run(test)


def test_a_revocation_that_couldnt_be_saved_leaves_the_peer_live_where_it_was_and_after_a_restart(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        await shell.join()
        before = shell.record("laptop")
        shell.full = True
        with pytest.raises(StateError):
            await shell.ask("revoke", who="laptop")
        assert shell.record("laptop") == before
        peer = shell.server.tunnel.node.get(before.public_key)
        assert peer is not None
        assert peer.endpoint == HERE
        shell.full = False
        await asyncio.sleep(RETRY_SECONDS + 0.1)
        await shell.crash()
        shell.start()
        assert list(shell.state.peers) == [before.public_key]
        assert not shell.state.revoked
        assert shell.live() == {before.public_key}

    run(test)


def test_a_revoked_key_stays_out_over_a_crash_and_a_restored_one_joins(run: Run) -> None:
    async def test(shell: Shell) -> None:
        key = os.urandom(32)
        await shell.open()
        await shell.join(key=key)
        revoked = await shell.ask("revoke", who="laptop")
        await shell.crash()
        shell.start()
        await shell.open()
        assert not shell.live()
        assert await shell.join(key=key) == Failed(Failure.REVOKED)
        await shell.ask("restore", key=revoked["peer"]["public_key"])
        await shell.crash()
        shell.start()
        await shell.open()
        assert isinstance(await shell.join(key=key), Joined)

    run(test)


def test_where_a_peer_was_last_is_saved_within_30_s_once_and_greeted_after_a_crash(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        await shell.join()
        record = shell.record("laptop")
        peer = shell.server.tunnel.node.get(record.public_key)
        assert peer is not None
        tried = len(shell.tried)
        for number in range(100):
            shell.plane.tell(EndpointMoved(peer.id, ("198.51.100.8", 40000 + number)))
            await asyncio.sleep(0.1)
        shell.plane.tell(EndpointMoved(peer.id, ELSEWHERE))
        await asyncio.sleep(LAZY_SECONDS - 10 - 0.5)
        assert shell.record("laptop").endpoint == "198.51.100.8:41000"
        assert len(shell.tried) == tried
        await asyncio.sleep(1)
        assert len(shell.tried) == tried + 1
        await asyncio.sleep(10 * LAZY_SECONDS)
        assert len(shell.tried) == tried + 1
        await shell.crash()
        shell.start()
        await asyncio.sleep(1)
        assert [where for where, _ in shell.plane.take_outgoing()] == [ELSEWHERE]

    run(test)


def test_a_pool_of_ipv6_stays_over_a_restart_and_a_changed_one_is_kept(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        joined = await shell.join()
        assert isinstance(joined, Joined)
        assert str(joined.admission.address6) == "fd00:1::2/64"
        assert str(joined.admission.gateway6) == "fd00:1::1"
        await shell.stop()
        shell.start()
        assert shell.state.pool6 == FIRST.pool6
        assert [str(each) for each in shell.server.addresses] == ["10.150.0.1/24", "fd00:1::1/64"]
        await shell.ask("revoke", who="laptop")
        await shell.stop()
        shell.start(replace(Settings(), pool6=IPv6Network("fd00:2::/64"), port=4000, mtu=1300))
        await shell.crash()
        shell.start()
        assert (str(shell.state.pool6), shell.state.port, shell.state.mtu) == ("fd00:2::/64", 4000, 1300)
        await shell.stop()
        shell.start(Settings(use_pool6=False))
        await shell.crash()
        shell.start()
        assert shell.state.pool6 is None

    run(test)


# -- not sooner, not more often --------------------------------------------------------------------------------


def test_a_full_disk_is_tried_again_every_3_s_and_no_more_once_it_took_it(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        shell.full = True
        with pytest.raises(StateError):
            await shell.ask("close")
        began = len(shell.tried) - 1
        await asyncio.sleep(61)
        tried = shell.tried[began:]
        assert gaps(tried) == pytest.approx([RETRY_SECONDS] * 20)
        assert RETRY_SECONDS == 3
        shell.full = False
        await asyncio.sleep(RETRY_SECONDS)
        count = len(shell.tried)
        assert not shell.server.saver.failed
        await asyncio.sleep(3600)
        assert len(shell.tried) == count

    run(test)


def test_a_blocked_source_begins_no_session_and_costs_no_write(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        for _ in range(GUESSES_A_SOURCE):
            assert await shell.join(token=WRONG) == Failed(Failure.WRONG_TOKEN)
        tried = len(shell.tried)
        pairing = shell.server.pairing
        assert pairing is not None
        for token in (TOKEN, WRONG) * 5:
            assert isinstance(await shell.join(token=token), Failed)
            assert pairing.half_open == pairing.waiting == 0
        assert len(shell.tried) == tried
        assert isinstance(await shell.join(source=ELSEWHERE), Joined)
        # Also after a crash in the same window.
        await shell.crash()
        shell.start()
        await shell.server.take_token(TOKEN)
        await shell.server.resume_window(600)
        assert (await shell.ask("close"))["window"]["blocked"] == ["192.0.2.2/32"]

    run(test)


def test_after_20_wrong_tokens_one_is_checked_every_10_s(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        sources: list[Endpoint] = [(f"198.18.0.{number}", 4000) for number in range(1, 200)]
        for number in range(GUESSES_AT_ONCE):
            assert await shell.join(token=WRONG, source=sources[number]) == Failed(Failure.WRONG_TOKEN)
        counts = []
        tasks = [asyncio.ensure_future(shell.join(token=WRONG, source=each)) for each in sources[30:40]]
        await asyncio.sleep(0.5)
        for _ in range(6):
            await asyncio.sleep(TURN_SECONDS / 2)
            counts.append(shell.on_disk().guesses.used - GUESSES_AT_ONCE)
        # None sooner, and no turn is left out while somebody waits.
        assert counts == [0, 1, 1, 2, 2, 3]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(test)


def test_known_peers_are_greeted_100_a_second_each_once(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        for number in range(30):
            joined = await shell.join(f"host-{number}", source=(f"198.18.0.{number + 1}", 4000))
            assert isinstance(joined, Joined)
        await shell.stop()
        shell.start()
        counts = []
        for _ in range(5):
            await asyncio.sleep(0.0999)
            counts.append(len(shell.plane.take_outgoing()))
        assert counts == [10, 10, 10, 0, 0]

    run(test)


def test_the_window_closes_at_its_second_and_its_secrets_are_gone(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open(60)
        pairing = shell.server.pairing
        assert pairing is not None
        held = []
        for seconds in (59.9, 0.2):
            await asyncio.sleep(seconds)
            held.append((pairing.gate is not None, shell.server.window.ends is not None))
        assert held == [(True, True), (False, False)]

    run(test)


def test_a_peer_with_keys_made_here_is_admitted_over_the_control_socket_and_loaded_again(run: Run) -> None:
    async def test(shell: Shell) -> None:
        public, preshared = os.urandom(32), os.urandom(32)
        keys = {"public_key": encode_key(public), "preshared_key": encode_key(preshared)}
        for name in keys:
            with pytest.raises(UsageError, match=name):
                await shell.ask("admit", name="phone", **{**keys, name: None})
        await shell.ask("admit", name="phone", **keys)
        with pytest.raises(UsageError, match="name"):
            await shell.ask("admit", **keys)
        await shell.crash()
        shell.start()
        record = shell.record("phone")
        assert (record.public_key, record.preshared_key) == (public, preshared)
        assert shell.live() == {public}
        assert not shell.server.saver.failed

    run(test)


def test_a_peer_that_was_never_heard_is_not_greeted_and_the_others_are(run: Run) -> None:
    async def test(shell: Shell) -> None:
        keys = {"public_key": encode_key(os.urandom(32)), "preshared_key": encode_key(os.urandom(32))}
        await shell.ask("admit", name="phone", **keys)
        await shell.open()
        await shell.join()
        await shell.stop()
        shell.start()
        await asyncio.sleep(0.5)
        assert [where for where, _ in shell.plane.take_outgoing()] == [HERE]

    run(test)


def test_a_full_pool_gives_away_the_oldest_that_never_connected_after_10_minutes_not_sooner(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.stop()
        shell.start(replace(FIRST, pool4=IPv4Network("10.150.0.0/29")))
        await shell.open(86_400)
        for number in range(5):
            assert isinstance(await shell.join(f"host-{number}"), Joined)
            await asyncio.sleep(60)
        # The first joined five minutes ago.
        await asyncio.sleep(UNCONNECTED_SECONDS - 5 * 60 - 5)
        assert await shell.join("late") == Failed(Failure.FULL)
        await asyncio.sleep(10)
        shell.full = True
        assert isinstance(await asyncio.wait_for(shell.join("late"), 120), Failed)
        shell.full = False
        await asyncio.sleep(RETRY_SECONDS + 1)
        joined = await shell.join("late")
        assert isinstance(joined, Joined)
        await shell.crash()
        shell.start()
        names = sorted(peer.name for peer in shell.state.peers.values())
        assert names == ["host-1", "host-2", "host-3", "host-4", "late"]

    run(test)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_wall_clock_that_jumps_gives_away_no_address_and_delays_it_for_nobody(
    run: Run, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    async def test(shell: Shell) -> None:
        await shell.stop()
        shell.start(replace(FIRST, pool4=IPv4Network("10.150.0.0/30")))
        await shell.open(86_400)
        assert isinstance(await shell.join("early"), Joined)
        if restarted:
            await shell.crash()
            shell.start()
            await shell.open(86_400)
        for hours in (1, -1):
            jumped = SimpleNamespace(time=lambda hours=hours: virtual_loop.WALL_BEGAN + 3600 * hours)
            monkeypatch.setattr(admissions, "time", jumped)
            await asyncio.sleep(60)
            assert await shell.join("late") == Failed(Failure.FULL)
        await asyncio.sleep(UNCONNECTED_SECONDS - 110)
        assert isinstance(await shell.join("late"), Joined)
        assert [peer.name for peer in shell.state.peers.values()] == ["late"]

    run(test)


def test_a_peer_that_joined_long_before_a_restart_makes_room_soon_after_it(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.stop()
        shell.start(replace(FIRST, pool4=IPv4Network("10.150.0.0/30")))
        await shell.open(86_400)
        assert isinstance(await shell.join("early"), Joined)
        await asyncio.sleep(UNCONNECTED_SECONDS - 5)
        await shell.crash()
        shell.start()
        await shell.open(86_400)
        assert await shell.join("late") == Failed(Failure.FULL)
        await asyncio.sleep(10)
        assert isinstance(await shell.join("late"), Joined)

    run(test)


def test_a_key_of_an_earlier_join_is_dropped_once_the_newer_one_is_used_and_stays_so(run: Run) -> None:
    async def test(shell: Shell) -> None:
        key = os.urandom(32)
        await shell.open()
        joins = [await shell.join(key=key) for _ in range(2)]
        newest, older = (each.preshared_key for each in reversed(joins) if isinstance(each, Joined))
        assert shell.record("laptop").preshared_keys == (newest, older)
        assert not shell.record("laptop").connected
        peer = shell.server.tunnel.node.get(shell.record("laptop").public_key)
        heard = shell.server.tunnel.listeners.session
        assert peer is not None
        assert heard is not None
        heard(peer)
        assert shell.record("laptop").preshared_keys == (newest,)
        tried = len(shell.tried)
        await asyncio.sleep(LAZY_SECONDS + 1)
        assert len(shell.tried) == tried + 1
        # What is known needs no further save.
        heard(peer)
        await asyncio.sleep(LAZY_SECONDS + 1)
        assert len(shell.tried) == tried + 1
        await shell.crash()
        shell.start()
        record = shell.record("laptop")
        assert (record.preshared_keys, record.connected) == ((newest,), True)

    run(test)
