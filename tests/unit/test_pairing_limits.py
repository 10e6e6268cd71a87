"""Who may try in a window, how many sessions may stay unconfirmed, and how CONFIRMs wait for their turn."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from itertools import islice
from random import Random

import pytest

from rustguard_py.enroll.pairing import messages, unconfirmed
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.cpace import generator
from rustguard_py.enroll.pairing.draw import Draw
from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.pairing.outputs import Abandoned, Admit, Guessed, Output, Reply
from rustguard_py.enroll.pairing.server import PairingServer
from rustguard_py.enroll.pairing.spares import Spares
from rustguard_py.enroll.pairing.window import Limits, Window
from rustguard_py.model.endpoint import Endpoint
from support.wire_link import SERVER, SERVER_PRIVATE, TOKEN, World, cheap_stretch

SERVER_ID = bytes(range(32))
HERE: Endpoint = ("192.0.2.7", 40000)
ELSEWHERE: Endpoint = ("198.51.100.8", 40000)
LIMITS = Limits((ip_network("192.0.2.0/24"),))


def a_server(limits: Limits | None = None) -> PairingServer:
    window = Window()
    window.open(86_400, 0.0, limits)
    tokens = {0: cheap_stretch(TOKEN, SERVER_ID)}
    return PairingServer(SERVER_ID, SERVER_PRIVATE, tokens, window, Random(0).randbytes, 0.0)


class Client:
    """A client that is carried step by step."""

    def __init__(self, server: PairingServer, source: Endpoint, token: str = TOKEN, seed: int = 1) -> None:
        self.server, self.source = server, source
        self.pairing = PairingClient(
            token, bytes([seed % 255 + 1]) * 32, "laptop", Random(seed).randbytes, 0.0, stretching=cheap_stretch
        )

    def share_c(self, now: float = 0.0) -> bytes:
        return self._next(self._sent(), now)

    def confirm(self, now: float = 0.0) -> bytes:
        return self._next(self.share_c(now), now)

    def _next(self, datagram: bytes, now: float) -> bytes:
        (reply,) = self.server.handle(datagram, self.source, now)
        assert isinstance(reply, Reply)
        self.pairing.handle(reply.datagram, SERVER, now)
        return self._sent()

    def _sent(self) -> bytes:
        transmit = self.pairing.poll_transmit()
        assert transmit is not None
        return transmit.datagram


def other_share(share_c: bytes, number: int) -> bytes:
    """Return a SHARE_C under the same cookie that begins another session."""
    return share_c[:68] + generator(b"noise", b"", number.to_bytes(4, "little")) + share_c[100:]


def begun(outputs: list[Output]) -> int:
    return sum(isinstance(o, Reply) and messages.kind_of(o.datagram) == messages.SHARE_S for o in outputs)


# -- open --from ---------------------------------------------------------------------------------------------


def test_a_source_outside_the_networks_named_is_not_heard_and_charged_nothing() -> None:
    server = a_server(LIMITS)
    assert server.handle(Client(server, ELSEWHERE).share_c(), ELSEWHERE, 0.0) == []
    assert (server.half_open, server.window.record.used) == (0, 0)
    assert isinstance(server.handle(Client(server, HERE).confirm(), HERE, 0.0)[0], Admit)


def test_a_session_from_elsewhere_ends_when_a_window_is_opened_for_some_networks_only() -> None:
    server = a_server()
    wrong, right = Client(server, ELSEWHERE, "wrong").confirm(), Client(server, ELSEWHERE, seed=2).confirm(0.1)
    server.window.open(600, 1.0, LIMITS)
    assert server.handle(wrong, ELSEWHERE, 1.0) == []
    assert server.handle(right, ELSEWHERE, 1.0) == []
    assert server.window.record.used == 0


# -- begun and never confirmed -------------------------------------------------------------------------------


def test_a_source_that_never_confirms_begins_20_sessions_and_then_one_a_second() -> None:
    server = a_server()
    share_c = Client(server, HERE).share_c()
    total = sum(begun(server.handle(other_share(share_c, n), HERE, n / 10)) for n in range(600))
    assert 20 + 55 <= total <= 20 + 61
    # Others don't notice.
    assert isinstance(server.handle(Client(server, ELSEWHERE, seed=2).confirm(60.0), ELSEWHERE, 60.0)[0], Admit)


def test_beyond_the_bound_of_a_window_ten_sessions_begin_each_second_half_of_them_newcomers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unconfirmed, "WINDOW_BOUND", 60)
    server = a_server()
    sources: list[Endpoint] = [(f"198.51.100.{n}", 40000) for n in range(30)]
    shares = {source: Client(server, source).share_c() for source in sources}
    for number in range(2):
        for source, share_c in shares.items():
            assert begun(server.handle(other_share(share_c, number), source, float(number)))
    assert server.unconfirmed.is_slow
    total = 0
    for number in range(400):
        source = sources[number % 30]
        total += begun(server.handle(other_share(shares[source], 10 + number), source, 2 + number / 40))
    assert 45 <= total <= 55
    newcomers = [Client(server, (f"203.0.113.{n}", 40000), seed=n + 1) for n in range(20)]
    firsts = [client.share_c(12.0) for client in newcomers]
    heard = [
        begun(server.handle(first, client.source, 12 + n / 20))
        for n, (client, first) in enumerate(zip(newcomers, firsts, strict=True))
    ]
    assert 5 <= sum(heard) <= 6
    # The next window begins at zero.
    server.window.open(600, 14.0)
    server.handle_timeout(14.0)
    assert not server.unconfirmed.is_slow


def test_one_ipv6_48_is_no_newcomer_with_each_of_its_64s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unconfirmed, "SOURCES", 50)
    counter = unconfirmed.Unconfirmed()
    sources = (f"2001:db8:1:{number:x}::/64" for number in range(65536))
    for source in islice(sources, unconfirmed.WINDOW_BOUND):
        counter.begin(source)
    assert counter.is_slow
    for number, source in enumerate(islice(sources, 800)):
        if counter.may_begin(source, number / 80):
            counter.begin(source)
    # The other site is heard at once, and so is another /48.
    assert counter.may_begin("192.0.2.7/32", 10.0)
    assert counter.may_begin("2001:db8:2::/64", 10.2)
    for number in range(1000):
        counter.confirm(f"2001:db8:1:{number:x}::/64")
    assert not counter._by_site


def test_confirmed_sessions_are_not_counted() -> None:
    world = World(0)
    world.open()
    joinings = [world.join_from(("198.18.0.9", 1 + number), after=number / 10) for number in range(60)]
    world.run(30)
    assert all(isinstance(joining.outcome, Joined) for joining in joinings)
    assert (world.server.unconfirmed.abandoned, world.server.unconfirmed.sources) == (0, 0)
    assert max(joining.seconds for joining in joinings) < 1
    assert not any(isinstance(output, Abandoned) for output in world.outputs)


def test_abandoned_sessions_are_reported_for_the_first_one_and_each_tenfold() -> None:
    server = a_server()
    reported = []
    for number in range(12):
        source = (f"198.51.100.{number}", 40000)
        share_c = Client(server, source).share_c(number * 100.0)
        assert begun(server.handle(share_c, source, number * 100.0))
        assert server.handle_timeout(number * 100.0 + 14.9) == []
        reported.append(server.handle_timeout(number * 100.0 + 15))
    assert reported[0] == [Abandoned(1, ("198.51.100.0", 40000))]
    assert reported[9] == [Abandoned(10, ("198.51.100.9", 40000))]
    assert not any(reported[1:9] + reported[10:])
    assert (server.unconfirmed.abandoned, server.unconfirmed.sources) == (12, 12)


def test_what_didnt_prove_its_source_is_not_counted() -> None:
    server = a_server()
    share_c = Client(server, HERE).share_c()
    for number in range(30):
        server.handle(other_share(share_c, number), ELSEWHERE, float(number))
    server.handle_timeout(100.0)
    assert server.unconfirmed.abandoned == 0


def test_sources_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unconfirmed, "SOURCES", 10)
    counter = unconfirmed.Unconfirmed()
    for number in range(100):
        counter.begin(f"192.0.2.{number}/32")
    for number in range(100):
        counter.abandon(f"192.0.2.{number}/32")
    assert (len(counter._by_source), counter.sources, counter.abandoned) == (10, 10, 100)


# -- waiting for a turn --------------------------------------------------------------------------------------


def with_turns(server: PairingServer, now: float = 0.0) -> None:
    for number in range(20):
        server.window.charge(f"203.0.113.{number}/32", now)


def test_a_confirm_waits_for_its_turn_and_is_then_evaluated_once() -> None:
    server = a_server()
    confirm = Client(server, HERE, "wrong").confirm()
    with_turns(server)
    assert server.handle(confirm, HERE, 0.0) == []
    assert server.handle(confirm, HERE, 9.9) == []
    assert (server.waiting, server.poll_timeout(), server.window.record.used) == (1, 10.0, 20)
    (guessed,) = server.handle_timeout(10.0)
    assert isinstance(guessed, Guessed)
    assert (server.waiting, guessed.record.used, guessed.record.by_source[f"{HERE[0]}/32"]) == (0, 21, 1)
    # Its repetition gets the same answer, and needs no turn.
    assert server.handle(confirm, HERE, 10.5) == [guessed]


def test_a_session_that_waits_ends_15_seconds_after_its_client_fell_silent() -> None:
    server = a_server()
    confirm = Client(server, HERE).confirm()
    with_turns(server)
    server.window.charge("203.0.113.99/32", 90.0)
    for now in (0.0, 14.0, 28.0):
        assert server.handle(confirm, HERE, now) == []
    server.handle_timeout(42.9)
    assert server.waiting == 1
    server.handle_timeout(43.0)
    assert server.waiting == 0
    assert server.handle(confirm, HERE, 43.0) == []


def test_a_session_that_proved_the_token_needs_no_second_turn() -> None:
    """The admission couldn't be saved; the client's next CONFIRM is evaluated at once."""
    server = a_server()
    confirm = Client(server, HERE).confirm()
    (admit,) = server.handle(confirm, HERE, 0.0)
    assert isinstance(admit, Admit)
    with_turns(server)
    server.forget(admit.session, 1.0)
    assert server.handle(confirm, HERE, 2.0) == [admit]


def test_closing_the_window_ends_what_waits() -> None:
    server = a_server()
    confirm = Client(server, HERE).confirm()
    with_turns(server)
    server.handle(confirm, HERE, 0.0)
    server.window.close()
    assert server.handle_timeout(20.0) == []
    assert (server.waiting, server.poll_timeout()) == (0, None)


def test_opening_the_window_again_hears_those_who_wait_at_once() -> None:
    server = a_server()
    confirm = Client(server, HERE).confirm()
    with_turns(server)
    server.handle(confirm, HERE, 0.0)
    server.window.open(60, 1.0)
    (admit,) = server.handle_timeout(1.0)
    assert isinstance(admit, Admit)


def test_a_source_has_a_bounded_number_of_waiting_sessions() -> None:
    draw = Draw(Random(0).randbytes)
    assert [draw.put("a", bytes([n]), b"") for n in range(9)] == [True] * 8 + [False]
    assert draw.put("a", bytes([3]), b"again")
    assert draw.put("b", bytes([9]), b"")
    draw.remove("a", bytes([0]))
    draw.remove("a", bytes([77]))
    assert draw.put("a", bytes([8]), b"")
    assert len(draw) == 9


def test_the_draw_prefers_who_has_guessed_least_and_is_fair_among_them() -> None:
    draw, wrong = Draw(Random(0).randbytes), {"a": (0, 0), "b": (0, 0), "c": (1, 1)}
    seen: Counter[bytes] = Counter()
    for _ in range(3000):
        for source in wrong:
            # Who has many sessions waiting is as likely as who has one.
            for number in range(5 if source == "a" else 1):
                draw.put(source, source.encode() + bytes([number]), b"")
        first = draw.take(wrong.__getitem__)
        assert first is not None
        seen[first[0][:1]] += 1
        while draw.take(wrong.__getitem__) is not None:
            pass
    assert set(seen) == {b"a", b"b"}
    assert 1380 < seen[b"a"] < 1620
    assert not draw


def test_the_draw_takes_an_ipv6_48_for_one() -> None:
    """65,536 sources that never guessed are no better than one once their site has guessed."""
    window = Window()
    window.open(600, 0.0)
    alone = 0
    for seed in range(400):
        draw = Draw(Random(seed).randbytes)
        for number in range(50):
            draw.put(f"2001:db8:1:{number:x}::/64", number.to_bytes(2), b"")
        draw.put("192.0.2.7/32", b"client", b"")
        alone += draw.take(window.guesses_of) == (b"client", b"")
    assert 160 < alone < 240
    draw.put("192.0.2.7/32", b"client", b"")
    window.charge("2001:db8:1:ffff::/64", 0.0)
    assert draw.take(window.guesses_of) == (b"client", b"")
    window.refund("2001:db8:1:ffff::/64")
    assert window.guesses_of("2001:db8:1:ffff::/64") == (0, 0)
    # A start that goes on with a window counts its sites again.
    window.charge("2001:db8:1:7::/64", 0.0)
    assert Window(window.record).guesses_of("2001:db8:1:8::/64") == (1, 0)


def test_a_confirm_that_nobody_looks_at_begins_no_further_session() -> None:
    """While CONFIRMs wait for turns, one with anything in it must not make room for the next session."""
    server = a_server()
    share_c = Client(server, HERE).share_c()
    with_turns(server)
    total = 0
    for number in range(300):
        now = number / 40
        outputs = server.handle(other_share(share_c, number), HERE, now)
        total += begun(outputs)
        for output in outputs:
            assert isinstance(output, Reply)
            session = output.datagram[8:16]
            assert (
                server.handle(messages.Confirm(session, bytes(1088), bytes(96), bytes(32)).encode(), HERE, now) == []
            )
    assert total <= 20 + 8
    assert server.waiting == 8
    # Those that waited in vain are no news: they did confirm.
    assert not any(isinstance(output, Abandoned) and output.count > 20 for output in server.handle_timeout(60.0))


def test_a_blocked_source_that_waits_uses_up_no_turn() -> None:
    world = World(0)
    world.open(600)
    for number in range(20):
        world.window.charge(f"203.0.113.{number}/32", world.now)
    for port in range(6):
        world.join_from(("198.51.100.1", 2000 + port), token=f"wrong {port}", after=port / 10)
    world.run(35)
    assert world.window.record.by_source["198.51.100.1/32"] == 3
    late = world.join(1)
    world.run(15)
    assert isinstance(late.outcome, Joined)


def test_a_client_that_a_full_window_refuses_says_what_to_do() -> None:
    error = Failed(Failure.WINDOW_FULL).error()
    assert "as many new machines as it may" in error.message
    assert "rustguard open 60 --most 100" in error.fix


def test_what_an_earlier_round_said_is_drawn_first_in_any_round() -> None:
    spares: Spares[str] = Spares(bytes, lambda answer: answer[:1])
    spares.put("a1")
    for number, said in ((2, "b"), (3, "c")):
        spares.next_round()
        assert spares.rounds == number
        spares.put(f"{said}1")
    spares.next_round()
    for said in ("x", "c", "y"):
        spares.put(f"{said}2")
    assert spares.repeated == 1
    assert spares.take() == "c2"
