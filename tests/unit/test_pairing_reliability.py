"""Faults at the level of the pairing: a lossy link in memory, a virtual clock."""

import os
from collections import Counter
from random import Random

import pytest

from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.pairing.outputs import Guessed
from rustguard_py.enroll.pairing.window import Closed
from support.wire_link import Weather, World

ROUNDS = 10 if os.environ.get("RUSTGUARD_SOAK") else 1
JOINS = 200


def crowd(seed: int, weather: Weather) -> World:
    """Let 200 clients join within 20 s."""
    world = World(seed, weather)
    world.open()
    for number in range(JOINS):
        world.join(number, after=number * 0.1)
    world.run()
    return world


def addresses(world: World) -> list[str]:
    return [str(j.outcome.admission.address4) for j in world.joined() if isinstance(j.outcome, Joined)]


@pytest.mark.fault(1)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_joins_get_through_30_percent_loss_each_way(seed: int) -> None:
    world = crowd(seed, Weather(loss=0.3))
    in_time = sum(joining.seconds <= 30 for joining in world.joined())
    slowest = max(joining.seconds for joining in world.joined())
    print(f"row 1: {in_time} of {JOINS} joined within 30 s at 30 % loss, the slowest in {slowest:.1f} s")
    assert in_time >= 0.99 * JOINS
    assert len(set(addresses(world))) == len(addresses(world))
    assert world.preshared_keys_agree()


@pytest.mark.fault(2)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_reordered_and_duplicated_joins_commit_once_a_key(seed: int) -> None:
    world = crowd(seed, Weather(reorder=0.25, duplicate=0.1))
    commits = Counter(world.disk.commits)
    print(f"row 2: {len(world.joined())} of {JOINS} joined, {max(commits.values())} commit a key")
    assert len(world.joined()) == JOINS
    assert set(commits.values()) == {1}
    assert world.preshared_keys_agree()


@pytest.mark.fault(3)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_joins_get_through_flipped_bits(seed: int) -> None:
    world = crowd(seed, Weather(flip=0.05))
    charged = sum(isinstance(output, Guessed) and output.reply is not None for output in world.outputs)
    print(
        f"row 3: {len(world.joined())} of {JOINS} joined with a bit flipped in 5 % of datagrams; "
        f"{charged} looked like wrong tokens, {world.window.record.used} stayed charged"
    )
    assert charged > 0
    assert len(world.joined()) == JOINS
    assert world.preshared_keys_agree()


@pytest.mark.fault(11)
def test_only_the_monotonic_clock_closes_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def wall_clock() -> float:
        raise AssertionError("the wall clock was read")

    monkeypatch.setattr("time.time", wall_clock)
    world = World(0)
    world.open(60)
    opened = world.now
    before, after = world.join(1, after=59.0), world.join(2, after=60.5)
    assert world.window.remaining(opened + 59.999) == pytest.approx(0.001, abs=1e-6)
    world.run()
    print("row 11: the window closed 60.0 s after it opened, by the monotonic clock alone")
    assert isinstance(before.outcome, Joined)
    assert after.outcome == Failed(Failure.SILENT)
    assert world.window.state(world.now).closed is Closed.TIME


@pytest.mark.fault(22)
def test_a_full_pool_says_so_and_gives_a_freed_address_at_once() -> None:
    world = World(0, pool="10.0.0.0/29")
    world.open()
    first = [world.join(number) for number in range(5)]
    world.run(2)
    late = world.join(9)
    world.run(2)
    assert all(isinstance(joining.outcome, Joined) for joining in first)
    assert late.outcome == Failed(Failure.FULL)
    world.pool.release(first[2].public_key)
    again = world.join(10)
    world.run(2)
    assert isinstance(again.outcome, Joined)
    assert isinstance(first[2].outcome, Joined)
    print(f"row 22: 5 joined a /29, the 6th read 'full'; the freed address went out in {again.seconds:.3f} s")
    assert again.outcome.admission.address4 == first[2].outcome.admission.address4


@pytest.mark.fault(24)
def test_wrong_tokens_are_few_and_a_crash_resets_nothing() -> None:
    world = World(0)
    world.open(3600)
    began, asked = world.now, 0
    for number in range(1000):
        # From twelve sources; the process dies once in a while.
        world.join_from((f"203.0.113.{number % 12}", 2000 + number), token=f"wrong {number}")
        asked += 1
        if number % 7 == 6:
            world.run(2)
            world.start()
            world.window.resume(3600, world.now)
    world.run()
    evaluated = {output.reply for output in world.outputs if isinstance(output, Guessed) and output.reply}
    by_source = Counter(reply.destination[0] for reply in evaluated)
    state = world.window.state(world.now)
    print(
        f"row 24: {len(evaluated)} evaluated of {asked} in {number // 7} crashes, "
        f"{max(by_source.values())} a source at most; {state.guesses} counted in {world.now - began:.0f} s"
    )
    assert 20 < len(evaluated) <= 20 + (world.now - began) / 10
    assert max(by_source.values()) <= 3
    assert state.is_open
    assert state.guesses == len(evaluated)
    assert not world.joined()


def wrong_tokens(world: World) -> set[bytes]:
    """Return the denials that left the server, one per session: a repeated one has the same bytes."""
    return {o.reply.datagram for o in world.outputs if isinstance(o, Guessed) and o.reply is not None}


@pytest.mark.fault(24)
@pytest.mark.parametrize("seed", range(6 * ROUNDS))
def test_whatever_an_attacker_does_few_wrong_tokens_are_checked(seed: int) -> None:
    """Sources, their number and pace, losses, noise and restarts are drawn; the bound holds at each moment."""
    chance = Random(f"attacker {seed}")
    world = World(seed, Weather(loss=chance.choice([0, 0.2]), duplicate=0.1))
    world.open(3600)
    began, sources = world.now, [40, 7, 200, 1, 8, 20][seed % 6]
    for number in range(chance.randrange(60, 160)):
        source = (f"203.0.113.{number % sources}", 2000 + number)
        world.join_from(source, token=f"wrong {number}", after=chance.uniform(0, 120))
    for _ in range(60):
        world.run(chance.uniform(0, 5))
        assert len(wrong_tokens(world)) <= 20 + (world.now - began) / 10
        assert world.window.state(world.now).guesses <= 20 + (world.now - began) / 10
        if chance.random() < 0.1:
            world.start()
            world.window.resume(3600, world.now)
    assert max(world.window.record.by_source.values()) <= 3


@pytest.mark.fault(40)
@pytest.mark.parametrize("seed", range(5 * ROUNDS))
def test_a_right_client_joins_within_30_seconds_beside_sources_that_burn_guesses(seed: int) -> None:
    """Seven sources try wrong tokens as fast as the server lets them, from the moment that the window opens."""
    world = World(seed)
    world.open(600)
    for number in range(7 * 40):
        world.join_from((f"203.0.113.{number % 7}", 2000 + number), token=f"wrong {number}", after=number // 7 * 0.25)
    early, late = world.join(1, after=0.01), world.join(2, after=5.0)
    world.run(60)
    spent = world.window.state(world.now)
    joined = f"joined in {early.seconds:.1f} s and {late.seconds:.1f} s"
    print(f"row 40: {spent.guesses} guesses spent by 7 sources; {joined}")
    assert spent.guesses >= 20
    for joining in (early, late):
        assert isinstance(joining.outcome, Joined)
        assert joining.seconds <= 30
    assert world.preshared_keys_agree()


@pytest.mark.fault(24)
def test_a_session_waits_for_its_turn_for_as_long_as_its_client_repeats_itself() -> None:
    world = World(0)
    world.open(600)
    for number in range(20):
        world.window.charge(f"203.0.113.{number}/32", world.now)
    world.window.charge("203.0.113.99/32", world.now + 8)  # the next turn is 18 s from now
    joining = world.join(1)
    world.run(17)
    waited = world.server.waiting
    assert (waited, joining.outcome) == (1, None)
    world.run(3)
    assert isinstance(joining.outcome, Joined)
    assert 17 < joining.seconds < 19


@pytest.mark.fault(24)
def test_many_right_clients_that_wait_join_at_the_same_turn() -> None:
    """A right token is no guess: it uses up no turn."""
    world = World(0)
    world.open(600)
    for number in range(20):
        world.window.charge(f"203.0.113.{number}/32", world.now)
    joinings = [world.join(number) for number in range(30)]
    world.run(12)
    assert all(isinstance(joining.outcome, Joined) for joining in joinings)
    assert world.window.record.used == 20


@pytest.mark.fault(24)
def test_one_source_is_evaluated_three_times() -> None:
    world = World(0)
    world.open(3600)
    # All sessions are open before the first CONFIRM comes.
    for port in range(50):
        world.join_from(("203.0.113.9", 2000 + port), token=f"wrong {port}", after=port * 0.06)
    world.run()
    record = world.window.record
    print(f"row 24: one source, 50 wrong tokens at once: {record.used} evaluated")
    assert record.used == 3
    assert dict(record.by_source) == {"203.0.113.9/32": 3}
    good = world.join(1)
    world.run()
    assert isinstance(good.outcome, Joined)
