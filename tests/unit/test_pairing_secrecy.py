"""Nobody who records or edits every packet learns a token or joins."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterable
from itertools import product
from random import Random

import pytest

from rustguard_py.enroll.pairing import messages
from rustguard_py.enroll.pairing.cpace import Share, generator, intermediate_session_key
from rustguard_py.enroll.pairing.key_schedule import (
    Opening,
    associated_data,
    channel_identifier,
    session_id,
    shared_secret,
)
from rustguard_py.enroll.pairing.messages import Challenge, Confirm, Hello, Result, ShareC, ShareS
from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.pairing.outputs import Guessed
from support.wire_link import TOKEN, World, cheap_stretch, flip_bit

DICTIONARY = [f"guess {number}" for number in range(40)] + [TOKEN] + [f"more {number}" for number in range(9)]
BITS = 12 if os.environ.get("RUSTGUARD_SOAK") else 2


# -- a recorder with a dictionary ------------------------------------------------------------------


class Record:
    """What passed on the wire in one join."""

    def __init__(self, datagrams: Iterable[bytes]) -> None:
        kinds = {messages.kind_of(datagram): datagram for datagram in datagrams}
        hello, challenge = Hello.parse(kinds[1]), Challenge.parse(kinds[2])
        share_c, share_s = ShareC.parse(kinds[3]), ShareS.parse(kinds[4])
        confirm, result = Confirm.parse(kinds[5]), Result.parse(kinds[6])
        assert hello
        assert challenge
        assert share_c
        assert share_s
        assert confirm
        assert result
        self.hello, self.challenge, self.share_c = hello, challenge, share_c
        self.share_s, self.confirm, self.result = share_s, confirm, result
        self.transcript = b"".join(kinds[kind] for kind in (1, 2, 3, 4))
        self.confirm_datagram = kinds[5]


def given(drawn: bytes) -> Callable[[int], bytes]:
    """A source of randomness that gives this."""
    return lambda _size: drawn


def signs(
    record: Record, candidate: str, scalars: list[bytes], secrets: list[bytes], owned: Iterable[bytes] = ()
) -> list[str]:
    """Name every check that a candidate token passes.

    Args:
        record: Of one join.
        candidate: A token.
        scalars: Those to try as ya or yb.
        secrets: Those to try as ML-KEM's.
        owned: Those to try as the secret of the server's ephemeral and the client's static key.
    """
    prs = cheap_stretch(candidate, record.challenge.server_id)
    sid = record.challenge.nonce_c + record.challenge.nonce_s
    point = generator(prs, channel_identifier(record.challenge.server_id, record.hello.token_id), sid)
    ya, yb = record.share_c.share, record.share_s.share
    found = []
    values = [ya, yb, point, bytes(32), prs]
    for scalar in scalars:
        share = Share(point, given(scalar))
        if share.public in (ya, yb):
            found.append("a share is the candidate's")
        values += [k for k in (share.exchange(ya), share.exchange(yb), share.public) if k is not None]
    ad = associated_data(record.hello, record.challenge)
    for k, ss in product(values, [*secrets, bytes(32), prs]):
        isk = intermediate_session_key(sid, k, ya, ad, yb, ad)
        opening = Opening.derive(record.transcript, record.confirm.ct, isk, ss, b"")
        if opening.open_details(record.confirm.sealed) is not None:
            found.append("the details open")
        for client_secret in (bytes(32), *owned):
            keys = opening.keys(client_secret)
            if hmac.compare_digest(keys.client_tag(record.confirm.sealed), record.confirm.tag):
                found.append("Ta fits")
            if hmac.compare_digest(keys.server_tag(record.confirm_datagram, record.result.sealed), record.result.tag):
                found.append("Tb fits")
            if keys.open_outcome(record.result.sealed) is not None:
                found.append("the result opens")
    return found


def recorded_join() -> tuple[World, Record, bytes, bytes]:
    """Let one client join; return also its scalar, which no recorder has, and its public key."""
    world = World(25)
    drawn: list[bytes] = []
    world.open()
    plain = world.random

    def noted(size: int) -> bytes:
        drawn.append(plain(size))
        return drawn[-1]

    world.random = noted
    joining = world.join(1)
    world.run()
    assert isinstance(joining.outcome, Joined)
    record = Record(datagram for datagram, _ in world.carried)
    prs = cheap_stretch(TOKEN, world.disk.server_id)
    sid = record.challenge.nonce_c + record.challenge.nonce_s
    point = generator(prs, channel_identifier(world.disk.server_id, 0), sid)
    scalar = next(
        value
        for value in drawn
        if len(value) == 32 and any(value) and Share(point, given(value)).public == record.share_c.share
    )
    return world, record, scalar, joining.public_key


@pytest.mark.fault(25)
def test_a_recorder_with_the_token_in_a_dictionary_tells_nothing_apart() -> None:
    world, record, scalar, public = recorded_join()
    guesses = [Random(1).randbytes(32), bytes([1] + [0] * 31)]
    told = {candidate for candidate in DICTIONARY if signs(record, candidate, guesses, [])}
    print(f"row 25: {len(DICTIONARY)} candidates, {len(told)} told apart")
    assert told == set()
    # The checks are able to find: told the client's scalar, they name the token and it alone.
    told = {
        candidate
        for candidate in DICTIONARY
        if "a share is the candidate's" in signs(record, candidate, [scalar], [])
    }
    assert told == {TOKEN}
    # And told ML-KEM's secret too, they get in; without it the scalar alone (a quantum computer's) opens nothing.
    kem = world.server._kem
    assert kem is not None
    ss = kem.private.decapsulate(record.confirm.ct)
    inside = {"Ta fits", "Tb fits", "the details open", "the result opens"}
    client_secret = shared_secret(world.server._cookies.ephemeral, public)
    assert client_secret is not None
    assert inside < set(signs(record, TOKEN, [scalar], [ss], [client_secret]))
    assert not inside & set(signs(record, TOKEN, [scalar], [], [client_secret]))
    # Without the client's own key the details open, and nothing that came after them.
    assert inside & set(signs(record, TOKEN, [scalar], [ss])) == {"the details open"}


@pytest.mark.fault(25)
def test_datagrams_of_every_token_are_of_the_same_sizes() -> None:
    sizes = set()
    for token in ("a", TOKEN, "ü" * 300):
        world = World(3, token=token)
        world.open()
        world.join(1)
        world.run()
        assert world.joined()
        sizes.add(tuple(len(datagram) for datagram, _ in world.carried))
    assert len(sizes) == 1


# -- somebody in the middle ------------------------------------------------------------------------

FIELDS: dict[int, dict[str, tuple[int, int | None]]] = {
    messages.HELLO: {"header": (0, 8), "nonce_c": (8, 24), "token_id": (24, 28), "zeros": (28, 128)},
    messages.CHALLENGE: {
        "header": (0, 8),
        "nonce_c": (8, 24),
        "nonce_s": (24, 40),
        "epoch": (40, 44),
        "cookie": (44, 60),
        "server_id": (60, 92),
        "zeros": (92, 96),
    },
    messages.SHARE_C: {
        "header": (0, 8),
        "nonce_c": (8, 24),
        "nonce_s": (24, 40),
        "epoch": (40, 44),
        "cookie": (44, 60),
        "token_id": (60, 64),
        "Ya": (64, 96),
    },
    messages.SHARE_S: {"header": (0, 8), "session": (8, 16), "Yb": (16, 48), "ek": (48, 1232)},
    messages.CONFIRM: {
        "header": (0, 8),
        "session": (8, 16),
        "ct": (16, 1104),
        "sealed": (1104, 1200),
        "Ta": (1200, 1232),
    },
    messages.RESULT: {"header": (0, 8), "session": (8, 16), "sealed": (16, -32), "Tb": (-32, None)},
}
EDITS = [(kind, name) for kind, fields in FIELDS.items() for name in fields]


def edit(datagram: bytes, kind: int, name: str, chance: Random) -> bytes:
    start, stop, _ = slice(*FIELDS[kind][name]).indices(len(datagram))
    return flip_bit(datagram, chance.randrange(start * 8, stop * 8))


@pytest.mark.fault(26)
@pytest.mark.parametrize(("kind", "name"), EDITS)
def test_an_edit_of_any_field_lets_nobody_join(kind: int, name: str) -> None:
    for seed in range(BITS):
        chance = Random(seed)

        def meddle(datagram: bytes, _to_server: bool, chance: Random = chance) -> list[bytes]:
            return [edit(datagram, kind, name, chance)] if messages.kind_of(datagram) == kind else [datagram]

        world = World(seed, meddler=meddle)
        world.open()
        joining = world.join(1)
        world.run()
        assert isinstance(joining.outcome, Failed)
        assert world.disk.commits == [] or kind == messages.RESULT
    print(f"row 26: {name} of message {kind} edited {BITS} times: no join")


@pytest.mark.fault(26)
@pytest.mark.parametrize("name", ["nonce_c", "nonce_s", "epoch", "cookie", "token_id"])
def test_an_edit_undone_on_the_way_back_lets_nobody_join(name: str) -> None:
    """Who changes a value one way and changes it back the other way is still caught by the transcript."""

    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        kind = messages.kind_of(datagram)
        if kind in FIELDS and kind <= messages.SHARE_C and name in FIELDS[kind]:
            start = FIELDS[kind][name][0]
            assert isinstance(start, int)
            return [flip_bit(datagram, start * 8)]
        return [datagram]

    world = World(1, meddler=meddle)
    world.open()
    joining = world.join(1)
    world.run()
    assert isinstance(joining.outcome, Failed)
    assert world.disk.commits == []


@pytest.mark.fault(26)
@pytest.mark.parametrize("kind", [messages.CHALLENGE, messages.SHARE_S, messages.CONFIRM, messages.RESULT])
def test_messages_swapped_between_two_joins_let_nobody_join(kind: int) -> None:
    """Two clients join at once; one kind of message carries the other one's content."""
    latest: dict[bytes, bytes] = {}

    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        if messages.kind_of(datagram) != kind:
            return [datagram]
        # The nonce or session names the join; what follows it is the other's.
        end = 24 if kind == messages.CHALLENGE else 16
        others = [body for head, body in latest.items() if head != datagram[:end]]
        latest[datagram[:end]] = datagram[end:]
        return [datagram[:end] + others[-1]] if others else []

    world = World(4, meddler=meddle)
    world.open()
    joinings = [world.join(number) for number in (1, 2)]
    world.run()
    assert len(latest) >= 2
    assert all(isinstance(joining.outcome, Failed) for joining in joinings)
    assert world.disk.commits == [] or kind == messages.RESULT


@pytest.mark.fault(26)
def test_who_answers_in_the_servers_place_tests_three_tokens_at_most() -> None:
    honest, impostor = World(5), World(6, token="a guess")  # noqa: S106
    impostor.open()
    joining = impostor.join(1, token=honest.token)
    impostor.run()
    confirms = {d for d, _ in impostor.carried if messages.kind_of(d) == messages.CONFIRM}
    assert joining.outcome == Failed(Failure.WRONG_TOKEN)
    assert len(confirms) == 1

    def with_fresh_shares(datagram: bytes, to_server: bool) -> list[bytes]:
        """Return a new share, made for another guess, each time the client asks."""
        share_s = ShareS.parse(datagram)
        if to_server or share_s is None:
            return [datagram]
        nonces = {c.nonce_s for d, _ in eager.carried if (c := Challenge.parse(d)) is not None}
        client = next(hello for d, _ in eager.carried if (hello := Hello.parse(d)) is not None)
        made = []
        for nonce_s, number in product(nonces, range(5)):
            forged = Share(generator(b"noise", b"", b""), given(bytes([number + 1]) * 32)).public
            session = session_id(client.nonce_c, nonce_s, forged, share_s.ek)
            made.append(ShareS(session, forged, share_s.ek).encode())
        return made

    eager = World(7, meddler=with_fresh_shares)
    eager.open()
    stubborn = eager.join(1)
    eager.run()
    confirms = {d for d, _ in eager.carried if messages.kind_of(d) == messages.CONFIRM}
    print(f"row 26: an impostor got {len(confirms)} confirmations of one join")
    assert isinstance(stubborn.outcome, Failed)
    assert len(confirms) == 3


@pytest.mark.fault(26)
def test_a_relay_of_everything_is_only_a_longer_wire() -> None:
    """Nothing changed: the join succeeds, and its preshared key is nobody's but the two ends'."""
    seen: list[bytes] = []

    def relay(datagram: bytes, _to_server: bool) -> list[bytes]:
        seen.append(datagram)
        return [datagram]

    world = World(8, meddler=relay)
    world.open()
    joining = world.join(1)
    world.run()
    assert isinstance(joining.outcome, Joined)
    assert world.preshared_keys_agree()
    assert not any(joining.outcome.preshared_key in datagram for datagram in seen)
    assert not any(joining.public_key in datagram for datagram in seen)
    assert not any(isinstance(output, Guessed) for output in world.outputs)
