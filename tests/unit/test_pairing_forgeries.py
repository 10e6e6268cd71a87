"""Somebody on the path who writes faster than the server and the client, but can't drop what they send."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from rustguard_py.enroll.pairing.client import Failed, Failure, Joined
from rustguard_py.enroll.pairing.messages import Challenge, Confirm, Hello
from support.wire_link import SERVER, Joining, Meddler, World

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


@pytest.mark.parametrize("rate", [32, 100, 400])
def test_forged_confirms_in_a_session_delay_the_right_one_and_do_not_end_it(rate: int) -> None:
    for seed in range(3):
        assert joined_beside_forged_confirms(rate, seed).window.record.used == 0


def test_a_denial_that_is_not_remembered_is_the_same_again() -> None:
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
