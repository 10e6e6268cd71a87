"""What each end of a pairing must do: budgets, silence, repetition, and a join that strangers can't end."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.enroll.pairing import key_schedule, messages
from rustguard_py.enroll.pairing import server as pairing_server
from rustguard_py.enroll.pairing.client import MAX_ATTEMPTS, PairingClient
from rustguard_py.enroll.pairing.cookies import Cookies
from rustguard_py.enroll.pairing.cpace import generator
from rustguard_py.enroll.pairing.key_schedule import session_id, stretch
from rustguard_py.enroll.pairing.messages import Challenge, Confirm, Details, Hello, Result, Revision, ShareC, ShareS
from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.pairing.outputs import Abandoned, Admit, Forgotten, Guessed, Output, Reply
from rustguard_py.enroll.pairing.server import PairingServer
from rustguard_py.enroll.pairing.spares import POOL
from rustguard_py.enroll.pairing.window import Window
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, UnansweredError, UsageError
from rustguard_py.model.keys import encode_key, fingerprint, public_key
from rustguard_py.model.rate_limit import SourceRateLimits, source_of
from support.wire_link import SERVER, SERVER_KEY, SERVER_PRIVATE, TOKEN, World, admission, cheap_stretch, flip_bit

HERE: Endpoint = ("192.0.2.7", 40000)
ELSEWHERE: Endpoint = ("192.0.2.8", 40000)
SERVER_ID = bytes(range(32))


def element(number: int) -> bytes:
    """Return an element of the group, and so a share that somebody could have made."""
    return generator(b"noise", b"", bytes([number]))


def a_server(seed: int = 0, *, opened: bool = True) -> PairingServer:
    window = Window()
    if opened:
        window.open(600, 0.0)
    return PairingServer(
        SERVER_ID, SERVER_PRIVATE, {0: cheap_stretch(TOKEN, SERVER_ID)}, window, Random(seed).randbytes, 0.0
    )


def a_client(seed: int = 1, token: str = TOKEN, **options: object) -> PairingClient:
    key = bytes([seed]) * 32
    options.setdefault("stretching", cheap_stretch)
    return PairingClient(token, key, "laptop", Random(seed).randbytes, 0.0, **options)  # type: ignore[arg-type]


def only_reply(outputs: list[Output]) -> bytes:
    assert len(outputs) == 1
    assert isinstance(outputs[0], Reply)
    return outputs[0].datagram


def sent(client: PairingClient) -> bytes:
    transmit = client.poll_transmit()
    assert transmit is not None
    return transmit.datagram


def to_share_c(server: PairingServer, client: PairingClient, source: Endpoint = HERE, now: float = 0.0) -> bytes:
    client.handle(only_reply(server.handle(sent(client), source, now)), SERVER, now)
    return sent(client)


def to_confirm(server: PairingServer, client: PairingClient, source: Endpoint = HERE, now: float = 0.0) -> bytes:
    share_s = only_reply(server.handle(to_share_c(server, client, source, now), source, now))
    client.handle(share_s, SERVER, now)
    return sent(client)


def to_admit(server: PairingServer, client: PairingClient, source: Endpoint = HERE) -> tuple[bytes, Admit]:
    confirm = to_confirm(server, client, source)
    (admit,) = server.handle(confirm, source, 0.0)
    assert isinstance(admit, Admit)
    return confirm, admit


# -- the server ----------------------------------------------------------------------------------------------


def test_an_admission_names_what_the_client_proved() -> None:
    client = a_client()
    _, admit = to_admit(a_server(), client)
    assert (admit.public_key, admit.name, admit.source, admit.token_id) == (
        public_key(bytes([1]) * 32),
        "laptop",
        HERE,
        0,
    )
    assert str(admit.preshared_key) not in repr(admit)
    assert "preshared" not in repr(admit)


def test_a_closed_window_is_silent() -> None:
    server = a_server(opened=False)
    assert server.handle(sent(a_client()), HERE, 0.0) == []
    server = a_server()
    client = a_client()
    share_c = to_share_c(server, client)
    server.window.close()
    assert server.handle(share_c, HERE, 0.0) == []
    assert server.handle(sent(a_client(2)), HERE, 0.0) == []


def test_closing_the_window_ends_what_was_half_open() -> None:
    server, client = a_server(), a_client()
    confirm = to_confirm(server, client)
    server.window.close()
    server.handle_timeout(1.0)
    assert server.half_open == 0
    assert server.handle(confirm, HERE, 1.0) == []
    assert server.poll_timeout() is None


def test_the_same_datagram_gets_the_same_reply_for_120_seconds_also_after_the_window_closed() -> None:
    server, client = a_server(), a_client()
    share_c = to_share_c(server, client)
    share_s = only_reply(server.handle(share_c, HERE, 0.0))
    client.handle(share_s, SERVER, 0.0)
    confirm = sent(client)
    (admit,) = server.handle(confirm, HERE, 0.0)
    assert isinstance(admit, Admit)
    assert server.handle(confirm, HERE, 0.0) == []
    result = only_reply(server.answer(admit.session, {"status": "full"}, 1.0))
    assert only_reply(server.handle(share_c, HERE, 120.9)) == share_s
    server.window.close()
    assert only_reply(server.handle(confirm, HERE, 120.9)) == result
    assert server.handle(flip_bit(confirm, 9000), HERE, 120.9) == []
    assert server.handle(confirm, HERE, 121.0) == []


def test_a_confirm_from_elsewhere_is_dropped() -> None:
    server, client = a_server(), a_client()
    confirm = to_confirm(server, client)
    assert server.handle(confirm, ELSEWHERE, 0.0) == []
    assert isinstance(server.handle(confirm, HERE, 0.0)[0], Admit)


def test_what_could_not_be_saved_is_asked_for_again() -> None:
    server, client = a_server(), a_client()
    confirm, admit = to_admit(server, client)
    server.forget(admit.session, 1.0)
    assert server.answer(admit.session, {"status": "full"}, 1.0) == []
    assert server.handle(confirm, HERE, 2.0) == [admit]
    assert isinstance(server.answer(admit.session, {"status": "full"}, 3.0)[0], Reply)


def test_one_run_of_a_client_is_admitted_once() -> None:
    """A CONFIRM that arrives late in another session must not replace the preshared key already in use."""
    server, client = a_server(), a_client()
    hello = sent(client)
    runs = []
    for _ in range(2):
        twin = a_client()
        assert sent(twin) == hello
        twin.handle(only_reply(server.handle(hello, HERE, 0.0)), SERVER, 0.0)
        twin.handle(only_reply(server.handle(sent(twin), HERE, 0.0)), SERVER, 0.0)
        runs.append(sent(twin))
    assert runs[0] != runs[1]
    (admit,) = server.handle(runs[0], HERE, 0.0)
    assert isinstance(admit, Admit)
    assert server.handle(runs[1], HERE, 0.0) == []
    server.answer(admit.session, {"status": "full"}, 0.0)
    assert server.handle(runs[1], HERE, 0.0) == []


def test_anyone_else_who_pairs_with_a_clients_nonce_keeps_it_from_nothing() -> None:
    """The nonce is seen on the path. Somebody there who knows the token joins first, with a key of its own."""
    server, insider = (
        a_server(),
        PairingClient(TOKEN, bytes([9]) * 32, "insider", Random(5).randbytes, 0.0, stretching=cheap_stretch),
    )
    client = a_client()
    insider._hello = client._hello
    confirms = []
    for each, source in ((insider, ELSEWHERE), (client, HERE)):
        each.handle(only_reply(server.handle(client._hello.encode(), source, 0.0)), SERVER, 0.0)
        share_c = [each.poll_transmit(), each.poll_transmit()][1]
        assert share_c is not None
        each.handle(only_reply(server.handle(share_c.datagram, source, 0.0)), SERVER, 0.0)
        confirms.append((sent(each), source))
    (first,), (second,) = (server.handle(confirm, source, 0.0) for confirm, source in confirms)
    assert isinstance(first, Admit)
    assert isinstance(second, Admit)
    assert second.public_key == public_key(bytes([1]) * 32)


def test_an_answer_too_long_leaves_the_session_waiting() -> None:
    server, client = a_server(), a_client()
    _, admit = to_admit(server, client)
    with pytest.raises(ValueError, match="1152"):
        server.answer(admit.session, {"status": "x" * 2000}, 0.0)
    assert server.answer(admit.session, {"status": "full"}, 0.0) != []


def test_a_wrong_token_is_counted_before_it_is_answered() -> None:
    server = a_server()
    confirm = to_confirm(server, a_client(token="wrong"))  # noqa: S106
    outputs = server.handle(confirm, HERE, 0.0)
    assert len(outputs) == 1
    guessed = outputs[0]
    assert isinstance(guessed, Guessed)
    assert (guessed.record.used, dict(guessed.record.by_source)) == (1, {"192.0.2.7/32": 1})
    assert guessed.reply is not None
    assert server.handle(confirm, HERE, 1.0) == [guessed]


def test_an_unknown_token_id_looks_like_a_wrong_token() -> None:
    shapes = []
    for options in ({"token": "wrong"}, {"token_id": 7}):
        server = a_server()
        client = a_client(**options)
        (guessed,) = server.handle(to_confirm(server, client), HERE, 0.0)
        assert isinstance(guessed, Guessed)
        assert guessed.reply
        shapes.append((len(guessed.reply.datagram), guessed.record))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("prs", [bytes(32), cheap_stretch(TOKEN, SERVER_ID), b""])
def test_an_unknown_token_id_has_no_secret_that_could_be_guessed(prs: bytes) -> None:
    client = a_client(token_id=7, stretching=lambda _token, _server_id: prs)
    (guessed,) = server_outputs(client)
    assert isinstance(guessed, Guessed)


def server_outputs(client: PairingClient) -> list[Output]:
    server = a_server()
    return server.handle(to_confirm(server, client), HERE, 0.0)


def test_a_garbled_confirm_is_charged_and_given_back() -> None:
    server, client = a_server(), a_client()
    confirm = to_confirm(server, client)
    for bit in (200, 9000, 9700):
        (guessed,) = server.handle(flip_bit(confirm, bit), HERE, 0.0)
        assert isinstance(guessed, Guessed)
        assert guessed.record.used == 1
    returned, admit = server.handle(confirm, HERE, 0.0)
    assert isinstance(returned, Guessed)
    assert (returned.record.used, returned.reply) == (0, None)
    assert isinstance(admit, Admit)


def test_a_flood_of_wrong_confirms_in_a_session_is_cut_off() -> None:
    server, client = a_server(), a_client()
    confirm = to_confirm(server, client)
    answered = sum(bool(server.handle(flip_bit(confirm, 200 + n), HERE, 0.0)) for n in range(100))
    assert answered == 32
    assert server.window.record.used == 1


def test_sessions_opened_before_the_first_failure_share_one_budget() -> None:
    server = a_server()
    confirms = [to_confirm(server, a_client(n + 1, token=f"wrong {n}"), now=n * 0.1) for n in range(6)]
    outcomes = [server.handle(confirm, HERE, 1.0) for confirm in confirms]
    assert [len(outcome) for outcome in outcomes] == [1, 1, 1, 0, 0, 0]


def test_half_open_sessions_are_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing_server, "HALF_OPEN_SESSIONS", 10)
    server = a_server()
    confirms = [to_confirm(server, a_client(n + 1), (f"192.0.2.{n}", 40000)) for n in range(12)]
    assert server.half_open == 10
    admitted = [bool(server.handle(c, (f"192.0.2.{n}", 40000), 0.0)) for n, c in enumerate(confirms)]
    assert admitted == [False] * 2 + [True] * 10


def test_answers_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing_server, "FINISHED_SESSIONS", 10)
    server = a_server()
    confirms = []
    for n in range(12):
        confirm, admit = to_admit(server, a_client(n + 1), (f"192.0.2.{n}", 40000))
        server.answer(admit.session, {"status": "full"}, 0.0)
        confirms.append(confirm)
    kept = [bool(server.handle(c, (f"192.0.2.{n}", 40000), 0.0)) for n, c in enumerate(confirms)]
    assert kept == [False] * 2 + [True] * 10


def test_half_open_sessions_end_after_15_seconds() -> None:
    server, client = a_server(), a_client()
    confirm = to_confirm(server, client)
    assert server.poll_timeout() == 15.0
    server.handle_timeout(15.0)
    assert server.half_open == 0
    assert server.handle(confirm, HERE, 15.0) == []


def test_a_source_gets_20_challenges_a_second_and_5_at_once() -> None:
    server = a_server()
    hello = sent(a_client())
    assert sum(bool(server.handle(hello, HERE, 0.0)) for _ in range(50)) == 5
    assert sum(bool(server.handle(hello, HERE, 1 + n / 1000)) for n in range(1000)) in (24, 25)
    assert server.handle(hello, ELSEWHERE, 2.0)
    six: list[Endpoint] = [(f"2001:db8:0:1::{n}", 40000, 0, 0) for n in range(20)]
    assert sum(bool(server.handle(hello, source, 3.0)) for source in six) == 5
    assert server.handle(hello, ("2001:db8:0:2::1", 40000, 0, 0), 3.0)


def test_500_shares_a_second_are_taken_in_all() -> None:
    server = a_server()
    taken = 0
    for n in range(700):
        source = (f"10.0.{n // 250}.{n % 250}", 40000)
        share_c = to_share_c(server, a_client(n % 250 + 1), source, now=1.0 + n / 7000)
        taken += bool(server.handle(share_c, source, 1.0 + n / 7000))
    assert taken in (149, 150)


def test_a_source_begins_five_sessions_at_once_with_one_cookie() -> None:
    server, client = a_server(), a_client()
    share_c = to_share_c(server, client)
    begun = sum(bool(server.handle(share_c[:68] + element(n) + share_c[100:], HERE, 0.0)) for n in range(50))
    assert begun == 5


def test_hello_leaves_nothing_behind() -> None:
    server = a_server()
    hello = sent(a_client())
    before = server.poll_timeout()
    for n in range(2000):
        server.handle(hello, (f"10.1.{n // 250}.{n % 250}", 40000), 1.0)
    assert server.half_open == 0
    assert server.poll_timeout() == before


def test_answers_to_strangers_are_no_longer_than_what_they_sent() -> None:
    server = a_server()
    hello = sent(a_client())
    assert len(only_reply(server.handle(hello, HERE, 0.0))) <= len(hello)


@pytest.mark.parametrize("field", ["nonce_s", "epoch", "cookie", "token_id"])
def test_a_share_without_its_cookie_is_dropped(field: str) -> None:
    server, client = a_server(), a_client()
    share_c = to_share_c(server, client)
    start = {"nonce_s": 24, "epoch": 40, "cookie": 44, "token_id": 60}[field]
    assert server.handle(flip_bit(share_c, start * 8), HERE, 0.0) == []
    assert server.handle(share_c, ELSEWHERE, 0.0) == []
    assert server.handle(share_c, ("192.0.2.7", 40001), 0.0) == []
    assert server.handle(share_c, ("::ffff:192.0.2.7", 40000, 0, 0), 0.0) != []


def test_a_share_of_low_order_is_dropped() -> None:
    server, client = a_server(), a_client()
    share_c = to_share_c(server, client)
    # Nobody is answered, but it is counted: the token was used for it, and somebody could time that.
    outputs = server.handle(share_c[:68] + bytes(32) + share_c[100:], HERE, 0.0)
    assert outputs == [Abandoned(1, HERE)]
    assert (server.half_open, server.unconfirmed.abandoned) == (0, 1)


datagrams = st.one_of(
    st.binary(max_size=1300),
    st.tuples(st.integers(0, 7), st.sampled_from([96, 128, 432, 1232])).flatmap(
        lambda kind: st.binary(min_size=kind[1] - 8, max_size=kind[1] - 8).map(
            (b"RGE3" + bytes([kind[0], 0, 0, 0])).__add__
        )
    ),
)


@given(st.lists(datagrams, max_size=5))
def test_strange_datagrams_move_nobody(strange: list[bytes]) -> None:
    server, client = a_server(), a_client()
    confirm = to_confirm(server, client)
    for datagram in strange:
        server.handle(datagram, HERE, 0.0)
        client.handle(datagram, SERVER, 0.0)
    assert client.outcome is None
    assert isinstance(server.handle(confirm, HERE, 0.0)[-1], Admit)


def test_cookies_hold_for_their_epoch_and_the_next() -> None:
    cookies = Cookies(Random(0).randbytes, 0.0)
    epoch = cookies.epoch
    cookie = cookies.make(HERE, bytes(16), bytes(16), 0)
    for now, valid in [(0.0, True), (119.9, True), (120.0, True), (239.9, True), (240.0, False)]:
        cookies.rotate(now)
        assert cookies.check(cookie, epoch, HERE, bytes(16), bytes(16), 0) is valid
    idle = Cookies(Random(0).randbytes, 0.0)
    old = idle.make(HERE, bytes(16), bytes(16), 0)
    idle.rotate(1000.0)
    assert idle.epoch == (epoch + 8) % 2**32
    assert not idle.check(old, idle.epoch - 1, HERE, bytes(16), bytes(16), 0)


def test_sources_are_counted_by_32_and_64() -> None:
    assert source_of(("192.0.2.7", 1)) == "192.0.2.7/32"
    assert source_of(("::ffff:192.0.2.7", 1, 0, 0)) == "192.0.2.7/32"
    assert source_of(("2001:db8:1:2:3:4:5:6", 1, 0, 0)) == "2001:db8:1:2::/64"
    assert source_of(("fe80::1%eth0", 1, 0, 2)) == "fe80::/64"


def test_rate_limits_take_no_memory_per_source() -> None:
    limits = SourceRateLimits(20, 5, Random(0).randbytes)
    slots = len(limits._due)
    for n in range(10_000):
        limits.take(f"10.0.{n // 256}.{n % 256}/32", 0.0)
    assert len(limits._due) == slots


# -- the client ----------------------------------------------------------------------------------------------


def test_it_repeats_the_same_bytes_ten_times_about_a_second_apart() -> None:
    client = a_client()
    first = sent(client)
    times = [0.0]
    while (deadline := client.poll_timeout()) is not None:
        client.handle_timeout(deadline - 0.001)
        assert client.poll_transmit() is None
        client.handle_timeout(deadline)
        if client.outcome is None:
            times.append(deadline)
            assert sent(client) == first
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(gaps) == 10
    assert all(1 <= gap <= 1.25 for gap in gaps)
    assert len(set(gaps)) > 1
    assert client.outcome == Failed(Failure.SILENT)


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        ("full", Failure.FULL),
        ("window-full", Failure.WINDOW_FULL),
        ("revoked", Failure.REVOKED),
        ("invite-used", Failure.INVITE_USED),
        ("ok", Failure.INCOMPATIBLE),
        ("what?", Failure.INCOMPATIBLE),
    ],
)
def test_each_refusal_is_told_apart(status: str, failure: Failure) -> None:
    server, client = a_server(), a_client()
    _, admit = to_admit(server, client)
    client.handle(only_reply(server.answer(admit.session, {"status": status}, 0.0)), SERVER, 0.0)
    assert isinstance(client.outcome, Failed)
    assert client.outcome.failure is failure
    if failure is Failure.REVOKED:
        # The command, typed on the server, fixes it.
        assert str(client.outcome.error().fix).endswith(f"peers restore {encode_key(admit.public_key)}")


def test_each_failure_has_words_a_fix_and_an_exit_code() -> None:
    for failure in Failure:
        error = Failed(failure).error()
        assert error.message
        assert error.fix
        silent = failure in (Failure.SILENT, Failure.IGNORED, Failure.UNCONFIRMED)
        assert isinstance(error, UnansweredError if silent else RefusedError)


def test_silence_after_an_answer_is_told_apart() -> None:
    world = World(0)
    world.open()
    ignored = world.join(1)
    world.meddler = lambda datagram, _to_server: [] if messages.kind_of(datagram) == messages.SHARE_S else [datagram]
    world.run()
    assert ignored.outcome == Failed(Failure.IGNORED)
    world = World(0)
    world.open()
    unconfirmed = world.join(1)
    world.disk.broken = True
    world.run()
    assert unconfirmed.outcome == Failed(Failure.UNCONFIRMED)


def test_a_save_that_fails_for_a_while_is_no_lost_join() -> None:
    world = World(0)
    world.open()
    world.disk.broken = True
    joining = world.join(1)
    world.run(4)
    early = joining.outcome
    assert early is None
    world.disk.broken = False
    world.run()
    assert isinstance(joining.outcome, Joined)
    assert world.preshared_keys_agree()


def test_a_wrong_token_ends_the_join_within_two_seconds_at_the_cost_of_one_guess() -> None:
    world = World(0)
    world.open()
    joining = world.join(1, token="wrong")  # noqa: S106
    world.run()
    assert joining.outcome == Failed(Failure.WRONG_TOKEN)
    assert joining.seconds < 2
    assert world.window.record.used == 1


def test_a_wrong_token_is_told_also_when_it_is_the_last_one_before_the_turns() -> None:
    world = World(0)
    world.open()
    for number in range(19):
        world.window.charge(f"192.0.2.{number}/32", world.now)
    joining = world.join(1, token="wrong")  # noqa: S106
    world.run()
    assert joining.outcome == Failed(Failure.WRONG_TOKEN)


def test_challenges_written_by_others_do_not_end_the_join() -> None:
    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        """An attacker is always faster than the server."""
        hello = Hello.parse(datagram)
        if hello is not None:
            for server_id in (bytes(32), world.disk.server_id):
                forged = Challenge(
                    hello.nonce_c, world.random(16), 5, world.random(16), server_id, world.random(32)
                ).encode()
                world.at(world.now, partial(joining.client.handle, forged, SERVER, world.now))
        return [datagram]

    world = World(0, meddler=meddle)
    world.open()
    joining = world.join(1)
    world.run()
    assert isinstance(joining.outcome, Joined)


def test_shares_written_by_others_do_not_end_the_join() -> None:
    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        share_s, share_c = ShareS.parse(datagram), ShareC.parse(datagram)
        if share_c is not None:
            seen.append(share_c)
        if share_s is None:
            return [datagram]
        share = element(9)
        session = session_id(seen[0].nonce_c, seen[0].nonce_s, share, share_s.ek)
        return [ShareS(session, share, share_s.ek).encode(), bytes(4) + datagram, datagram]

    seen: list[ShareC] = []
    world = World(0, meddler=meddle)
    world.open()
    joining = world.join(1)
    world.run()
    assert isinstance(joining.outcome, Joined)


def test_a_share_garbled_on_the_way_is_no_wrong_token_even_when_the_next_answer_is_lost() -> None:
    """Ya arrives as another element: denied. What SHARE_C's repetition brings is then lost a few times."""
    losses = {messages.SHARE_S: 0}

    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        kind = messages.kind_of(datagram)
        if kind == messages.SHARE_C and not losses[messages.SHARE_S]:
            return [datagram[:68] + element(9) + datagram[100:]]
        if kind == messages.SHARE_S:
            losses[kind] += 1
            return [] if losses[kind] in (2, 3) else [datagram]
        return [datagram]

    world = World(0, meddler=meddle)
    world.open()
    joining = world.join(1)
    world.run()
    assert losses[messages.SHARE_S] >= 4
    assert isinstance(joining.outcome, Joined)


def test_a_result_garbled_on_the_way_is_no_wrong_token_even_when_the_next_ones_are_lost() -> None:
    results = []

    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        if messages.kind_of(datagram) != messages.RESULT:
            return [datagram]
        results.append(datagram)
        return {1: [flip_bit(datagram, 200)], 2: [], 3: []}.get(len(results), [datagram])

    world = World(0, meddler=meddle)
    world.open()
    joining = world.join(1)
    world.run()
    assert len(results) >= 4
    assert isinstance(joining.outcome, Joined)


def test_an_impostor_who_denies_and_offers_new_shares_gets_three_confirmations() -> None:
    server, client = a_server(), a_client()
    share_c = ShareC.parse(to_share_c(server, client))
    assert share_c is not None
    confirmed = set()
    for number in range(20):
        share = element(number)
        ek = server._kem.ek if server._kem else b""
        session = session_id(share_c.nonce_c, share_c.nonce_s, share, ek)
        client.handle(ShareS(session, share, ek).encode(), SERVER, 0.0)
        client.handle(Result(session, bytes(80), bytes(32)).encode(), SERVER, 0.0)
        while (transmit := client.poll_transmit()) is not None:
            confirmed.add(transmit.datagram)
    assert len(confirmed) == 3


def test_challenges_written_by_others_are_kept_within_bounds() -> None:
    client = a_client()
    hello = Hello.parse(sent(client))
    assert hello is not None
    for number in range(100):
        client.handle(
            Challenge(hello.nonce_c, bytes([number]) * 16, 0, bytes(16), SERVER_ID, element(1)).encode(), SERVER, 0.0
        )
    shares = set()
    while (deadline := client.poll_timeout()) is not None:
        while (transmit := client.poll_transmit()) is not None:
            if messages.kind_of(transmit.datagram) == messages.SHARE_C:
                shares.add(transmit.datagram)
        client.handle_timeout(deadline)
    assert 8 <= len(shares) <= MAX_ATTEMPTS


def test_a_flood_of_challenges_of_many_servers_is_kept_within_bounds() -> None:
    client = a_client()
    hello = Hello.parse(sent(client))
    assert hello is not None
    for number in range(6000):
        name = number.to_bytes(2, "big") * 16
        challenge = Challenge(hello.nonce_c, name[:16], 0, bytes(16), name, element(1))
        client.handle(challenge.encode(), SERVER, 0.0)
    spares = client._spare_challenges
    assert (len(list(spares)), len(spares._met)) == (POOL, 4096)
    shares = set()
    while (deadline := client.poll_timeout()) is not None:
        while (transmit := client.poll_transmit()) is not None:
            if messages.kind_of(transmit.datagram) == messages.SHARE_C:
                shares.add(transmit.datagram)
        client.handle_timeout(deadline)
    assert len(shares) == MAX_ATTEMPTS
    assert client.outcome == Failed(Failure.IGNORED)


def test_results_written_by_others_do_not_end_the_join() -> None:
    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        confirm = Confirm.parse(datagram)
        if confirm is not None:
            forged = Result(confirm.session, bytes(80), bytes(32)).encode()
            for _ in range(3):
                world.at(world.now, lambda: joining.client.handle(forged, SERVER, world.now))
        return [datagram]

    world = World(0, meddler=meddle)
    world.open()
    joining = world.join(1)
    world.run()
    assert isinstance(joining.outcome, Joined)


def test_confirms_written_by_others_cost_the_client_nothing() -> None:
    def meddle(datagram: bytes, _to_server: bool) -> list[bytes]:
        return [flip_bit(datagram, 9700), datagram] if Confirm.parse(datagram) else [datagram]

    world = World(0, meddler=meddle)
    world.open()
    joinings = [world.join_from(("198.18.0.9", 1 + number), after=number) for number in range(10)]
    world.run()
    assert all(isinstance(joining.outcome, Joined) for joining in joinings)
    assert world.window.record.used == 0


@pytest.mark.parametrize(
    "text", [fingerprint(SERVER_KEY), fingerprint(SERVER_KEY).lower(), " - ".join(fingerprint(SERVER_KEY))]
)
def test_the_expected_server_is_taken(text: str) -> None:
    client = joined_with(a_client(expected=text, known_server=SERVER_KEY))
    assert isinstance(client.outcome, Joined)
    assert "preshared" not in repr(client.outcome)


def test_another_server_is_refused_though_it_knows_the_token() -> None:
    server = a_server()
    client = joined_with(a_client(expected="A" * 16), server)
    assert client.outcome == Failed(Failure.WRONG_SERVER, f"Its fingerprint is {fingerprint(SERVER_KEY)}.")
    # It admitted this machine, and is told to forget that.
    told = []
    while (transmit := client.poll_transmit()) is not None:
        told.append(transmit.datagram)
    assert [messages.kind_of(datagram) for datagram in told] == [messages.FORGET] * 3
    (output,) = server.handle(told[0], HERE, 0.0)
    assert isinstance(output, Forgotten)


def test_a_server_without_the_known_servers_key_learns_nothing_of_the_token() -> None:
    """Two servers have the token, one has the key too: to the other each CONFIRM looks like a wrong token."""
    confirms = []
    for private_key in (SERVER_PRIVATE, bytes([7]) * 32):
        window = Window()
        window.open(600, 0.0)
        tokens = {0: cheap_stretch(TOKEN, SERVER_ID)}
        server = PairingServer(SERVER_ID, private_key, tokens, window, Random(1).randbytes, 0.0)
        client = a_client(known_server=SERVER_KEY)
        (output,) = server.handle(to_confirm(server, client), HERE, 0.0)
        confirms.append(type(output))
    assert confirms == [Admit, Guessed]
    denied = a_client(known_server=SERVER_KEY)._denied()
    assert fingerprint(SERVER_KEY) in denied.error().message


def test_a_token_holder_cannot_join_with_a_key_that_isnt_its_own() -> None:
    """The impostor knows the token and another's public key, and names that one in its details."""
    server, client = a_server(), a_client()
    client._details = Details(public_key(bytes([9]) * 32), "victim").encode()
    (output,) = server.handle(to_confirm(server, client), HERE, 0.0)
    assert isinstance(output, Guessed)


def test_a_client_that_was_admitted_can_take_it_back_and_nobody_else_can() -> None:
    server, client = a_server(), a_client()
    joined_with(client, server)
    assert isinstance(client.outcome, Joined)
    forget = client.outcome.forget
    assert server.handle(flip_bit(forget, 20 * 8), HERE, 0.0) == []
    assert server.handle(forget, ("198.51.100.66", 1), 0.0) == []
    (output,) = server.handle(forget, HERE, 0.0)
    assert output == Forgotten(public_key(bytes([1]) * 32), client.outcome.preshared_key, True, HERE, 1)


def test_a_hello_of_another_revision_is_answered_with_ours() -> None:
    server, client = a_server(), a_client()
    hello = sent(client)
    older = b"RGE2" + hello[4:]
    reply = only_reply(server.handle(older, HERE, 0.0))
    assert len(reply) < len(older)
    assert Revision.parse(reply) == Revision(hello[8:24])
    assert server.outdated == 1
    assert a_server(opened=False).handle(older, HERE, 0.0) == []
    # As a server of a later revision would answer us, and what a person is then told.
    client.handle(Revision(hello[8:24], b"4").encode(), SERVER, 0.0)
    while (deadline := client.poll_timeout()) is not None:
        client.handle_timeout(deadline)
    assert client.outcome == Failed(Failure.OTHER_REVISION)


def joined_with(client: PairingClient, server: PairingServer | None = None) -> PairingClient:
    server = a_server() if server is None else server
    _, admit = to_admit(server, client)
    result = admission(IPv4Address("10.150.0.2")).to_mapping()
    client.handle(only_reply(server.answer(admit.session, result, 0.0, created=True)), SERVER, 0.0)
    return client


@pytest.mark.parametrize("text", ["", "AAAA", "A" * 17, "1" * 16, "ä" * 16])
def test_a_fingerprint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="base32"):
        a_client(expected=text)


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="45"):
        PairingClient(TOKEN, bytes(32), "x" * 46, Random(0).randbytes, 0.0)


def test_the_answer_is_sent_to_who_gave_the_challenge() -> None:
    server, client = a_server(), a_client()
    transmit = client.poll_transmit()
    assert transmit is not None
    assert transmit.destination is None
    client.handle(only_reply(server.handle(transmit.datagram, HERE, 0.0)), ("192.0.2.1", 51821), 0.0)
    transmit = client.poll_transmit()
    assert transmit is not None
    assert transmit.destination == ("192.0.2.1", 51821)


def test_the_token_is_stretched_once_for_each_server() -> None:
    calls: list[bytes] = []

    def counted(token: str, server_id: bytes) -> bytes:
        calls.append(server_id)
        return cheap_stretch(token, server_id)

    client = a_client(stretching=counted)
    hello = Hello.parse(sent(client))
    assert hello is not None
    for number in range(20):
        challenge = Challenge(
            hello.nonce_c, bytes([number]) * 16, 0, bytes(16), bytes([number // 2]) * 32, element(1)
        )
        client.handle(challenge.encode(), SERVER, 0.0)
    for _ in range(9):
        deadline = client.poll_timeout()
        assert deadline is not None
        client.handle_timeout(deadline)
    assert len(calls) == len(set(calls))
    assert calls[0] == bytes(32)
    assert set(calls) <= {bytes([number]) * 32 for number in range(10)}


def test_stretching_takes_the_same_token_in_any_unicode_form() -> None:
    assert stretch("é", SERVER_ID) == stretch("e\u0301", SERVER_ID)
    assert len(stretch("é", SERVER_ID)) == 32


def test_a_join_with_the_real_stretching() -> None:
    window = Window()
    window.open(60, 0.0)
    server = PairingServer(
        SERVER_ID, SERVER_PRIVATE, {0: stretch(TOKEN, SERVER_ID)}, window, Random(0).randbytes, 0.0
    )
    client = a_client(stretching=key_schedule.stretch)
    assert isinstance(server.handle(to_confirm(server, client), HERE, 0.0)[0], Admit)
