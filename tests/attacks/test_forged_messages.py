"""Somebody on the path who writes faster than the server and the client, but can't drop what they send."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from rustguard_py.enroll.pairing import client as pairing_client
from rustguard_py.enroll.pairing import server as pairing_server
from rustguard_py.enroll.pairing import sessions
from rustguard_py.enroll.pairing.cpace import generator
from rustguard_py.enroll.pairing.key_schedule import session_id
from rustguard_py.enroll.pairing.messages import Challenge, Confirm, Hello, Result, ShareC, ShareS
from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.pairing.spares import Spares
from support.attack_table import Row
from support.wire_link import SERVER, SERVER_KEY, Joining, Meddler, World

Forge = Callable[[World, Hello, int], Challenge]


def of_another_server(world: World, hello: Hello, _number: int) -> Challenge:
    return Challenge(hello.nonce_c, world.random(16), 5, world.random(16), world.random(32), world.random(32))


def of_the_same_other_servers(world: World, hello: Hello, number: int) -> Challenge:
    name = bytes([number + 1]) * 32
    return Challenge(hello.nonce_c, world.random(16), 5, world.random(16), name, name)


def in_the_servers_name(world: World, hello: Hello, _number: int) -> Challenge:
    return Challenge(hello.nonce_c, world.random(16), 5, world.random(16), world.disk.server_id, world.random(32))


def with_a_wrong_cookie(world: World, hello: Hello, _number: int) -> Challenge:
    cookies = world.server._cookies
    ephemeral = cookies.ephemeral.public_key().public_bytes_raw()
    nonce_s, cookie = world.random(16), world.random(16)
    return Challenge(hello.nonce_c, nonce_s, cookies.epoch, cookie, world.disk.server_id, ephemeral)


def flooding_client(forge: Forge, count: int, begun: list[Joining], worlds: list[World]) -> Meddler:
    """Forge `count` CHALLENGEs for each HELLO, all before the real one."""

    def meddle(datagram: bytes, to_server: bool) -> list[bytes]:
        hello = Hello.parse(datagram) if to_server else None
        for number in range(count if hello is not None else 0):
            assert hello is not None
            forged = forge(worlds[0], hello, number).encode()
            worlds[0].at(worlds[0].now, partial(begun[0].client.handle, forged, SERVER, worlds[0].now))
        return [datagram]

    return meddle


def joined(forge: Forge, count: int, seed: int) -> bool:
    begun: list[Joining] = []
    worlds: list[World] = []
    world = World(seed, meddler=flooding_client(forge, count, begun, worlds))
    worlds.append(world)
    world.open()
    begun.append(world.join(1))
    world.run()
    return isinstance(begun[0].outcome, Joined)


FORGERIES = [of_another_server, of_the_same_other_servers, in_the_servers_name, with_a_wrong_cookie]


@pytest.mark.parametrize("forge", FORGERIES)
def test_eight_forged_challenges_before_each_real_one_do_not_stop_a_join(forge: Forge) -> None:
    assert sum(joined(forge, 8, seed) for seed in range(20)) >= 19


@pytest.mark.parametrize("forge", [of_another_server, in_the_servers_name])
def test_a_thousand_forged_challenges_that_never_come_again_do_not_stop_a_join(forge: Forge) -> None:
    assert all(joined(forge, 1000, seed) for seed in range(3))


def test_forged_challenges_of_a_server_do_not_tell_a_wrong_token_from_a_right_one() -> None:
    begun: list[Joining] = []
    worlds: list[World] = []
    world = World(0, meddler=flooding_client(of_another_server, 8, begun, worlds))
    worlds.append(world)
    world.open()
    begun.append(world.join(1, token="wrong"))  # noqa: S106 - it is
    world.run()
    assert begun[0].outcome == Failed(Failure.WRONG_TOKEN)


def joined_beside_forged_confirms(rate: int, seed: int) -> World:
    """Join while somebody forges 64 CONFIRMs before the first one, then `rate` per second, in the same session."""
    begun: list[Joining] = []
    worlds: list[World] = []
    seen: list[Confirm] = []

    def forge(confirm: Confirm) -> None:
        (world,) = worlds
        forged = Confirm(confirm.session, confirm.ct, confirm.sealed, world.random(32)).encode()
        world._serve(world.server.handle(forged, begun[0].source, world.now))

    def meddle(datagram: bytes, to_server: bool) -> list[bytes]:
        confirm = Confirm.parse(datagram) if to_server else None
        if confirm is not None and not seen:
            seen.append(confirm)
            for number in range(64 + rate * 20):
                worlds[0].at(worlds[0].now + max(0, number - 64) / rate, partial(forge, confirm))
        return [datagram]

    world = World(seed, meddler=meddle)
    worlds.append(world)
    world.open()
    begun.append(world.join(1))
    world.run(60)
    assert isinstance(begun[0].outcome, Joined), begun[0].outcome
    return world


def joined_beside_confirms_before_each(count: int, seed: int) -> Joining:
    """Join while somebody forges so many CONFIRMs before each real one."""
    worlds: list[World] = []
    begun: list[Joining] = []

    def meddle(datagram: bytes, to_server: bool) -> list[bytes]:
        confirm = Confirm.parse(datagram) if to_server else None
        for _ in range(count if confirm is not None else 0):
            assert confirm is not None
            forged = Confirm(confirm.session, confirm.ct, confirm.sealed, worlds[0].random(32)).encode()
            worlds[0].at(worlds[0].now, partial(worlds[0]._deliver, forged, begun[0].source, to_server=True))
        return [datagram]

    worlds.append(World(seed, meddler=meddle))
    worlds[0].open()
    begun.append(worlds[0].join(1))
    worlds[0].run(90)
    return begun[0]


@pytest.mark.parametrize("count", [32, 64, 127])
def test_forged_confirms_before_each_real_one_do_not_stop_a_join(count: int) -> None:
    for seed in range(5):
        joining = joined_beside_confirms_before_each(count, seed)
        assert isinstance(joining.outcome, Joined)
        assert joining.seconds < 5


@pytest.mark.parametrize("rate", [32, 100, 400])
def test_forged_confirms_in_a_session_delay_the_right_one_and_do_not_end_it(rate: int) -> None:
    for seed in range(3):
        assert joined_beside_forged_confirms(rate, seed).window.record.used == 0


# -- SHARE_S -------------------------------------------------------------------------------------------------


class ShareForger:
    """Forges `count` SHARE_Ss for each SHARE_C, which all reach the client before the server's own.

    Args:
        count: How many.
        again: Whether the same ones come each time, as the server's does; else they are fresh ones.
        denies: Whether each CONFIRM of theirs is denied at once, in the manner of a server, with all that would
            have a client believe it.
    """

    def __init__(self, count: int, *, again: bool, denies: bool) -> None:
        self.count, self.again, self.denies = count, again, denies
        self.made: dict[bytes, list[bytes]] = {}
        self.shares: dict[bytes, bytes] = {}
        self.confirmed: set[bytes] = set()
        self.guesses = 0

    def meddle(self, world: World, joining: Joining, datagram: bytes) -> None:
        self.guesses = world.window.record.used
        share_c, confirm = ShareC.parse(datagram), Confirm.parse(datagram)
        if share_c is not None:
            if not (self.again and datagram in self.made):
                self.made[datagram] = [self._forge(world, share_c) for _ in range(self.count)]
            for forged in self.made[datagram]:
                self._hand(world, joining, forged)
        if confirm is not None and confirm.session in self.shares:
            self.confirmed.add(confirm.session)
            if self.denies:
                denial = Result(confirm.session, bytes(80), bytes(32)).encode()
                for each in (denial, denial, self.shares[confirm.session]):
                    self._hand(world, joining, each)

    def _forge(self, world: World, share_c: ShareC) -> bytes:
        # Any key will do, so the server's own.
        assert world.server._kem is not None
        share, ek = generator(world.random(32), b"", b""), world.server._kem.ek
        session = session_id(share_c.nonce_c, share_c.nonce_s, share, ek)
        self.shares[session] = ShareS(session, share, ek).encode()
        return self.shares[session]

    def _hand(self, world: World, joining: Joining, datagram: bytes) -> None:
        world.at(world.now, partial(world._deliver, datagram, joining.source, to_server=False))


def join_beside(forger: ShareForger, seed: int, *, token: str | None = None, knows: bool = False) -> Joining:
    joinings: list[Joining] = []
    worlds: list[World] = []

    def meddle(datagram: bytes, to_server: bool) -> list[bytes]:
        if to_server:
            forger.meddle(worlds[0], joinings[0], datagram)
        return [datagram]

    worlds.append(World(seed, meddler=meddle))
    worlds[0].open()
    joinings.append(worlds[0].join(1, token=token, server=SERVER_KEY if knows else None))
    worlds[0].run()
    return joinings[0]


@pytest.mark.parametrize("denies", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_fresh_forged_shares_before_each_real_one_do_not_stop_a_join(count: int, denies: bool) -> None:
    for seed in range(5):
        forger = ShareForger(count, again=False, denies=denies)
        joining = join_beside(forger, seed)
        assert isinstance(joining.outcome, Joined), joining.outcome
        assert joining.seconds < 10
        # Whoever forges tests no more tokens than before.
        assert len(forger.confirmed) <= 2


@pytest.mark.parametrize("count", [1, 2])
def test_forged_shares_that_are_repeated_do_not_stop_a_join_within_the_limit(count: int) -> None:
    for seed in range(5):
        assert isinstance(join_beside(ShareForger(count, again=True, denies=True), seed).outcome, Joined)


def test_of_more_forged_shares_that_are_repeated_three_are_drawn_whoever_is_first() -> None:
    forgers = [ShareForger(3, again=True, denies=False) for _ in range(60)]
    joined = sum(isinstance(join_beside(forger, seed).outcome, Joined) for seed, forger in enumerate(forgers))
    # Two of three, after the first of all was confirmed at once.
    assert 28 <= joined <= 52
    assert max(len(forger.confirmed) for forger in forgers) <= 3


@pytest.mark.parametrize("denies", [False, True])
def test_no_number_of_forged_shares_stops_a_client_that_knows_the_server(denies: bool) -> None:
    for seed in range(5):
        joining = join_beside(ShareForger(20, again=True, denies=denies), seed, knows=True)
        assert isinstance(joining.outcome, Joined), joining.outcome


def test_a_client_that_could_not_join_beside_forged_shares_says_so() -> None:
    joinings = [join_beside(ShareForger(40, again=True, denies=denies), 1) for denies in (False, True)]
    for joining in joinings:
        assert isinstance(joining.outcome, Failed)
        assert "somebody on the way" in joining.outcome.error().message


def test_forged_shares_do_not_make_a_wrong_token_right_nor_cost_more_guesses() -> None:
    for count in (0, 3):
        forger = ShareForger(count, again=False, denies=False)
        joining = join_beside(forger, 1, token="wrong")  # noqa: S106 - it is
        assert isinstance(joining.outcome, Failed)
        assert joining.outcome.failure is Failure.WRONG_TOKEN
        assert forger.guesses == 1


# -- controls ------------------------------------------------------------------------------------------------

on_the_path = pytest.mark.attack("forged messages on the path")


@on_the_path
def test_control_a_client_that_takes_the_fastest_shares_is_kept_out(
    monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """The client confirms the first three SHARE_Ss that come, and drops the others."""
    put = Spares.put

    def put_first(spares: Spares[object], answer: object) -> None:
        if len(spares) < 2 or isinstance(answer[0], Challenge):  # type: ignore[index]
            put(spares, answer)

    monkeypatch.setattr(Spares, "put", put_first)
    joinings = [join_beside(ShareForger(3, again=False, denies=False), seed) for seed in range(20)]
    joined = sum(isinstance(joining.outcome, Joined) for joining in joinings)
    assert joined == 0
    row.control(f"3 SHARE_Ss against a client that takes the first three: {joined} of 20 joined")


@on_the_path
def test_control_a_client_that_takes_the_fastest_challenges_is_kept_out(
    monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """The client answers the first eight CHALLENGEs that come."""
    monkeypatch.setattr(pairing_client, "MAX_ATTEMPTS", 8)
    monkeypatch.setattr(Spares, "take", lambda spares, _=(): spares._once.pop(0) if spares._once else None)
    monkeypatch.setattr(Spares, "meet", lambda *_: False)
    count = sum(joined(of_another_server, 8, seed) for seed in range(20))
    assert count == 0
    row.control(f"8 CHALLENGEs against a client that answers the first eight: {count} of 20 joined")


@on_the_path
def test_control_a_session_that_looks_at_32_confirms_is_ended_by_forged_ones(
    monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """A session evaluates the first 32 CONFIRMs, and then those that come next at its pace."""
    monkeypatch.setattr(sessions, "_MISSED", 0)
    joinings = [joined_beside_confirms_before_each(64, seed) for seed in range(6)]
    count = sum(isinstance(joining.outcome, Joined) for joining in joinings)
    # Between two of the client's own, a token of the pace is sometimes left for it.
    assert count <= 1
    row.control(f"64 CONFIRMs against a session that evaluates the first 32: {count} of 6 joined")


# -- CONFIRM and RESULT --------------------------------------------------------------------------------------


def test_a_denial_that_is_not_remembered_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing_server, "_DENIALS", 32)
    seen: list[bytes] = []

    def listen(datagram: bytes, to_server: bool) -> list[bytes]:
        if to_server:
            seen.append(datagram)
        return [datagram]

    world = World(0, meddler=listen)
    world.open()
    joining = world.join(1, token="wrong")  # noqa: S106 - it is
    world.run(0.5)
    confirm = next(message for message in map(Confirm.parse, seen) if message is not None)
    variants = [Confirm(confirm.session, confirm.ct, confirm.sealed, world.random(32)).encode() for _ in range(60)]
    replies = []
    for _ in range(2):
        for variant in variants:
            world.now += 1 / 16
            outputs = world.server.handle(variant, joining.source, world.now)
            replies.append(outputs[0])
    assert replies[:60] == replies[60:]
    (session,) = world.server._sessions.values()
    assert session.denials is not None
    assert len(session.denials) <= 32
