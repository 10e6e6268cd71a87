"""The client while it joins and while it runs: what it sends where, and what it says, without a server."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.program import Program
from rustguard_py.engine import Engine
from rustguard_py.enroll.client import client as running
from rustguard_py.enroll.client import connect, obtain, pair, start
from rustguard_py.enroll.client.client import RunningClient
from rustguard_py.enroll.client.control import ClientControl
from rustguard_py.enroll.pairing.admission import Admission, FurtherTunnel
from rustguard_py.enroll.pairing.client import Transmit
from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.enroll.tunnels import derive
from rustguard_py.enroll.tunnels.bundle import TICK
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, RustGuardError, UnansweredError
from rustguard_py.model.keys import fingerprint
from rustguard_py.model.peer import Peer, PeerConfig
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.model.tunnel import Listeners
from rustguard_py.protocol.report import Hello, encode
from rustguard_py.state.client_records import NetworkRecord, TunnelRecord
from support import virtual_loop

SERVER: Endpoint = ("192.0.2.1", 51820)
MOVED: Endpoint = ("192.0.2.9", 51820)
KEY, SECOND_KEY, PSK = b"s" * 32, b"t" * 32, b"p" * 32
NETWORK = NetworkRecord(
    host="home.example",
    port=51820,
    server_key=KEY,
    preshared_key=PSK,
    name="laptop",
    address4=IPv4Interface("10.150.0.2/24"),
    address6=None,
    routes=(ip_network("192.168.7.0/24"),),
    mtu=1420,
    keepalive=25,
    gateway4=IPv4Address("10.150.0.1"),
    gateway6=None,
    joined=0.0,
)
TWO = replace(NETWORK, tunnels=(TunnelRecord(SECOND_KEY, 51830),))


class FakeTunnel:
    """A tunnel that notes what is asked of it."""

    def __init__(self) -> None:
        self.listeners = Listeners()
        self.fault: RustGuardError | None = None
        self.silent: list[str] = []
        self.stopped = asyncio.Event()
        self.peer: Any = None
        self.handshakes: list[float] = []
        self.keepalives = 0
        self.woken = 0
        self.node = self
        self.plane = SimpleNamespace(stats=PlaneStats)
        self.public_key = b"o" * 32

    def set_peer(self, config: PeerConfig) -> Peer:
        if self.peer is not None:
            self.keepalives += config.persistent_keepalive > 0
            config = replace(config, endpoint=config.endpoint or self.peer.endpoint)
        self.peer = SimpleNamespace(id=1, config=config, endpoint=config.endpoint, session_began=None)
        return cast(Peer, self.peer)

    def get(self, key: bytes) -> Peer | None:
        return cast(Peer, self.peer) if self.peer is not None and self.peer.config.public_key == key else None

    def set_endpoint(self, peer: Any, endpoint: Endpoint, _now: float) -> None:
        peer.endpoint = endpoint

    def begin_handshake(self, _peer: Peer, at: float, _patience: float = 0.0) -> None:
        self.handshakes.append(at - virtual_loop.BEGAN)

    def start(self) -> None:
        """It has begun."""

    def wake(self) -> None:
        self.woken += 1


class World:
    """A running client, with the name server and the routes that it sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, network: NetworkRecord = NETWORK) -> None:
        self.said: list[str] = []
        self.found: list[Endpoint] | None = [SERVER]
        self.lookups: list[float] = []
        self.routed = True
        self.tunnels = [FakeTunnel() for _ in range(1 + len(network.tunnels))]
        self.carrying: tuple[int, ...] = (0,)
        self.sessions: list[int] = []
        self.added: list[Any] = []
        bundle = SimpleNamespace(
            members=[SimpleNamespace(tunnel=each, interface=f"rg{place}") for place, each in enumerate(self.tunnels)],
            add=lambda *what: self.added.append(what),
            session=lambda place, _: self.sessions.append(place),
            carrying=lambda _: self.carrying,
            watch=lambda: asyncio.sleep(1e6),
            report=lambda _: [{"interface": "rg1"}],
        )
        timestamps = SimpleNamespace(keep_synced=lambda: asyncio.sleep(1e6))
        self.changed: Callable[[], None] = lambda: None
        monkeypatch.setattr(running, "resolve", self._resolve)
        for module in (running, connect):
            monkeypatch.setattr(module, "has_route", lambda _: self.routed)
        monkeypatch.setattr(running, "next_to_try", lambda found, tried: next(iter(set(found) - set(tried)), None))
        monkeypatch.setattr(running, "NetWatch", self._watch)
        monkeypatch.setattr(running, "stop_on_signals", lambda _: None)
        self.client = RunningClient(
            cast(Any, self.tunnels[0]),
            network,
            cast(Any, timestamps),
            "rg0",
            Voice(change=self.said.append, say=self.said.append),
            cast(Any, bundle) if network.tunnels else None,
        )

    def _watch(self, changed: Callable[[], None]) -> SimpleNamespace:
        self.changed = changed
        return SimpleNamespace(close=lambda: None)

    async def _resolve(self, host: str, port: int) -> list[Endpoint]:
        assert (host, port) == ("home.example", 51820)
        self.lookups.append(now() - virtual_loop.BEGAN)
        if self.found is None:
            raise UnansweredError("no name server")
        return self.found


def run(
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[World], Coroutine[Any, Any, None]],
    network: NetworkRecord = NETWORK,
    endpoint: Endpoint | None = SERVER,
    before: Callable[[World], None] = lambda _: None,
) -> None:
    async def main() -> None:
        world = World(monkeypatch, network)
        before(world)
        world.client.connect(endpoint)
        task = asyncio.get_running_loop().create_task(world.client.run())
        await asyncio.sleep(0)
        await test(world)
        world.client.stopped.set()
        await task

    virtual_loop.run(monkeypatch, main)


def test_the_server_is_the_peer_of_each_tunnel_at_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        allowed = (ip_network("10.150.0.0/24"), ip_network("192.168.7.0/24"))
        assert [each.peer.config for each in world.tunnels] == [
            PeerConfig(KEY, allowed, PSK, SERVER, 25),
            PeerConfig(SECOND_KEY, allowed, derive.preshared_key(PSK, 1), ("192.0.2.1", 51830), 25),
        ]
        assert world.added == [("home.example", [KEY, SECOND_KEY], allowed)]
        # All of them reach out at once.
        assert [each.handshakes for each in world.tunnels] == [[0.0], [0.0]]

    run(monkeypatch, test, TWO)


def test_the_first_session_is_said_once_with_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        client, tunnel = world.client, world.tunnels[0]
        sessions: list[str] = []
        client.reports = cast(Any, SimpleNamespace(session=lambda: sessions.append("hello")))
        client.unanswered = 3
        for _ in range(2):
            assert tunnel.listeners.session is not None
            tunnel.listeners.session(tunnel.peer)
        assert world.said == ["Connected to home.example at 192.0.2.1:51820 on rg0."]
        assert client.unanswered == 0
        assert sessions == ["hello", "hello"]

    run(monkeypatch, test)


def test_a_session_of_a_further_tunnel_is_the_bundles_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        second = world.tunnels[1]
        assert second.listeners.session is not None
        second.listeners.session(second.peer)
        assert (world.sessions, world.said) == ([1], [])

    run(monkeypatch, test, TWO)


def test_while_the_server_does_not_answer_its_name_is_resolved_and_the_new_address_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(world: World) -> None:
        tunnel = world.tunnels[0]
        world.found = [SERVER, MOVED]
        assert tunnel.listeners.unanswered is not None
        tunnel.listeners.unanswered(tunnel.peer, 1)
        await asyncio.sleep(1)
        assert tunnel.peer.endpoint == MOVED
        assert len(tunnel.handshakes) == 2
        assert tunnel.keepalives == 1
        assert world.client.unanswered == 1
        assert len(world.lookups) == 1

    run(monkeypatch, test)


def test_a_name_that_is_not_found_is_looked_up_every_two_seconds_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        world.found = None
        await asyncio.sleep(20)
        assert world.lookups == [2.0 * number for number in range(len(world.lookups))]
        assert len(world.lookups) >= 10
        assert world.tunnels[0].handshakes == []
        world.found = [MOVED]
        await asyncio.sleep(3)
        assert world.tunnels[0].peer.endpoint == MOVED
        assert len(world.tunnels[0].handshakes) == 1
        looked = len(world.lookups)
        await asyncio.sleep(60)
        assert len(world.lookups) == looked

    run(monkeypatch, test, endpoint=None, before=lambda world: setattr(world, "found", None))


def test_after_a_change_of_the_network_the_server_hears_from_us_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        world.tunnels[1].fault = RustGuardError("broken")
        before = [each.keepalives for each in world.tunnels]
        world.changed()
        assert [len(each.handshakes) for each in world.tunnels] == [2, 1]
        assert [each.keepalives for each in world.tunnels] == [number + 1 for number in before]
        # Without a route to the old address, the name may have another one.
        world.routed = False
        world.changed()
        await asyncio.sleep(0.1)
        assert len(world.lookups) == 1
        assert len(world.tunnels[0].handshakes) == 2

    run(monkeypatch, test, TWO)


def test_tunnels_that_do_not_carry_follow_the_first_to_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        first, second = world.tunnels
        first.peer.endpoint = MOVED
        await asyncio.sleep(TICK + 0.1)
        assert second.peer.endpoint == ("192.0.2.9", 51830)
        world.carrying = (0, 1)
        first.peer.endpoint = SERVER
        await asyncio.sleep(60)
        # One that carries knows better.
        assert second.peer.endpoint == ("192.0.2.9", 51830)
        assert 0 < second.woken < 10

    run(monkeypatch, test, TWO)


# -- what it says of itself ---------------------------------------------------------------------------------


def control(world: World, warnings: list[str]) -> ClientControl:
    engine = Engine("native", "it is there")
    keeper = SimpleNamespace(warnings=lambda: warnings)
    program = Program("client", Path("/var/lib/x"), "rg0", engine, now())
    return ClientControl(world.client, program, cast(Any, keeper), b"o" * 32, 40000)


def test_the_status_is_the_networks_with_the_server_as_its_only_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        said = cast(dict[str, Any], control(world, ["The MTU was changed."]).handlers()["status"]({}))
        assert said["warnings"] == ["The MTU was changed."]
        assert (said["name"], said["port"], said["mtu"], said["role"]) == ("laptop", 51820, 1420, "client")
        assert said["listen_port"] == 40000, "its own port, not the server's"
        assert (said["addresses"], said["routes"]) == (["10.150.0.2/24"], ["192.168.7.0/24"])
        assert (said["pool"], said["window"], said["tunnels"]) == (None, None, [{"interface": "rg1"}])
        [peer] = said["peers"]
        assert (peer["name"], peer["address4"], peer["keepalive"]) == ("home.example", "10.150.0.1", 25)

    run(monkeypatch, test, TWO)


@pytest.mark.parametrize(("unanswered", "warned"), [(0, False), (1, False), (2, True)])
def test_a_server_that_left_two_handshakes_unanswered_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, unanswered: int, *, warned: bool
) -> None:
    async def test(world: World) -> None:
        world.client.unanswered = unanswered
        world.tunnels[0].fault = RustGuardError("The device is gone.")
        warnings = cast(dict[str, Any], control(world, ["x"]).handlers()["status"]({}))["warnings"]
        world.tunnels[0].fault = None
        assert warnings[:2] == ["Tunnel 0 of 1 broke: The device is gone. The others go on; a restart fixes it.", "x"]
        assert (len(warnings) == 3) is warned
        if warned:
            assert f"does not answer handshakes ({unanswered} tried)" in warnings[2]
            assert fingerprint(KEY) in warnings[2]

    run(monkeypatch, test)


def test_what_only_a_server_can_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        handlers = control(world, []).handlers()
        for method in ("open", "close", "revoke", "restore", "rename"):
            with pytest.raises(RefusedError, match="This daemon is a client"):
                handlers[method]({})

    run(monkeypatch, test)


def test_reports_are_the_servers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        made = connect.make_reports(world.client, Engine("native", ""))
        assert made is not None
        for stranger in ("10.150.0.9", "10.150.0.1"):
            made._take(encode([Hello(asks=False)]), stranger)
        assert list(made._speakers) == ["10.150.0.1"]
        in_kernel = connect.make_reports(world.client, Engine("kernel", ""))
        assert in_kernel is not None
        # The kernel has no counters to report: only leaving goes this way.
        assert (in_kernel._ask, in_kernel._looks) == (None, False)
        world.client.network = replace(world.client.network, gateway4=None)
        assert connect.make_reports(world.client, Engine("native", "")) is None

    run(monkeypatch, test)


# -- joining, over the loopback interface -------------------------------------------------------------------


class Scripted:
    """A pairing's client that sends `hello` each second, and ends with what comes back, or after a while."""

    def __init__(self, answer_to: Endpoint | None = None) -> None:
        self.outcome: Joined | Failed | None = None
        self.handled: list[tuple[bytes, Endpoint]] = []
        self._destination = answer_to
        self._began = now()
        self._due = self._began + 1.0
        self._waiting = True

    def poll_transmit(self) -> Transmit | None:
        waiting, self._waiting = self._waiting, False
        return Transmit(b"hello", self._destination) if waiting else None

    def poll_timeout(self) -> float | None:
        return None if self.outcome is not None else self._due

    def handle_timeout(self, at: float) -> None:
        if at >= self._due:
            self._due, self._waiting = at + 1.0, True
        if at - self._began >= 8.0:
            self.outcome, self._waiting = Failed(Failure.SILENT), False

    def handle(self, datagram: bytes, source: Endpoint, _at: float) -> None:
        self.handled.append((datagram, source))
        if datagram == b"come":
            self.outcome = Joined(cast(Any, None), PSK, source, b"")


class Sockets:
    """Ours, and a server's two ports; on addresses of this process alone."""

    def __init__(self) -> None:
        # Workers run tests at the same time.
        host = f"127.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF}"
        self.own, self.tunnels, self.other = (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(3)
        )
        self.own.bind((f"{host}.1", 0))
        self.tunnels.bind((f"{host}.2", 0))
        self.other.bind((f"{host}.2", 0))
        self.server, self.beside = self.tunnels.getsockname(), self.other.getsockname()

    def close(self) -> None:
        for each in (self.own, self.tunnels, self.other):
            each.close()


def join(monkeypatch: pytest.MonkeyPatch, test: Callable[[Sockets], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        sockets = Sockets()
        try:
            await test(sockets)
        finally:
            sockets.close()

    virtual_loop.run(monkeypatch, main)


def received(each: socket.socket) -> int:
    """Return how many datagrams have come to a socket."""
    count = 0
    while True:
        try:
            each.recv(100)
        except BlockingIOError:
            return count
        count += 1


def test_a_join_ends_with_what_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Sockets) -> None:
        client = Scripted()
        task = asyncio.ensure_future(pair.ask(cast(Any, client), [its.own], [its.server], [its.beside]))
        await asyncio.sleep(0.1)
        assert (received(its.tunnels), received(its.other)) == (1, 0)
        its.tunnels.sendto(b"come", its.own.getsockname())
        joined = await asyncio.wait_for(task, 0.1)
        assert joined.server == its.server
        await asyncio.sleep(2)
        # An answer in time spares the other port, which may be another server's.
        assert received(its.other) == 0

    join(monkeypatch, test)


def test_without_an_answer_the_other_port_is_tried_too_but_not_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Sockets) -> None:
        task = asyncio.ensure_future(pair.ask(cast(Any, Scripted()), [its.own], [its.server], [its.beside]))
        await asyncio.sleep(0.29)
        assert received(its.other) == 0
        await asyncio.sleep(0.1)
        assert received(its.other) == 1
        await asyncio.sleep(2)
        assert received(its.other) == 2
        with pytest.raises(UnansweredError, match="Nobody answered"):
            await task

    join(monkeypatch, test)


def test_a_port_where_nothing_listens_is_said_only_if_every_address_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Sockets) -> None:
        host, port = its.server
        its.tunnels.close()
        with pytest.raises(UnansweredError, match=f"Nothing listens on UDP port {port} of {host}"):
            await pair.ask(cast(Any, Scripted()), [its.own], [its.server])
        # One that is merely silent may be the right one.
        with pytest.raises(UnansweredError, match="Nobody answered"):
            await pair.ask(cast(Any, Scripted()), [its.own], [its.server, its.beside])

    join(monkeypatch, test)


def test_a_server_of_a_family_that_we_have_no_socket_of_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Sockets) -> None:
        began = now()
        with pytest.raises(UnansweredError, match="no address of that family"):
            await pair.ask(cast(Any, Scripted()), [its.own], [("2001:db8::1", 51820, 0, 0)])
        assert now() - began == pytest.approx(2.0, abs=0.5)
        # One address that can be reached is enough.
        client = Scripted()
        task = asyncio.ensure_future(
            pair.ask(cast(Any, client), [its.own], [("2001:db8::1", 51820, 0, 0), its.server])
        )
        await asyncio.sleep(5)
        its.tunnels.sendto(b"come", its.own.getsockname())
        assert (await task).server == its.server

    join(monkeypatch, test)


def test_what_goes_to_one_address_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Sockets) -> None:
        client = Scripted(answer_to=its.beside)
        task = asyncio.ensure_future(pair.ask(cast(Any, client), [its.own], [its.server]))
        await asyncio.sleep(0.5)
        assert (received(its.tunnels), received(its.other)) == (0, 1)
        its.other.sendto(b"come", its.own.getsockname())
        await task

    join(monkeypatch, test)


@pytest.mark.parametrize(("port", "others"), [(51820, [("192.0.2.1", 51821)]), (65535, [])])
def test_pairing_may_be_answered_on_the_next_port(
    monkeypatch: pytest.MonkeyPatch, port: int, others: list[Endpoint]
) -> None:
    asked: list[Any] = []

    async def resolve(_host: str, port: int) -> list[Endpoint]:
        return [("192.0.2.1", port)]

    async def ask(*what: Any) -> None:
        asked.append(what)

    monkeypatch.setattr(obtain, "resolve", resolve)
    monkeypatch.setattr(obtain, "ask", ask)
    voice = Voice(change=lambda _: None, say=lambda _: None)
    asyncio.run(cast(Any, obtain._pair(cast(Any, lambda at: at), "home.example", port, [], voice)))
    [(_, _, servers, found)] = asked
    assert (servers, found) == ([("192.0.2.1", port)], others)


def test_further_tunnels_are_as_far_from_the_first_ones_port_as_at_the_server() -> None:
    given = Admission(
        "laptop",
        IPv4Interface("10.150.0.2/24"),
        None,
        KEY,
        51820,
        1420,
        25,
        (),
        IPv4Address("10.150.0.1"),
        None,
        tuple(FurtherTunnel(SECOND_KEY, port) for port in (51821, 51830, 1)),
    )
    joined = Joined(given, PSK, SERVER, b"")
    assert [each.port for each in obtain._tunnels(joined, 51820)] == [51821, 51830, 1]
    assert [each.port for each in obtain._tunnels(joined, 443)] == [444, 453]
    assert [each.port for each in obtain._tunnels(joined, 51819)] == [51820, 51829]
    assert [each.port for each in obtain._tunnels(joined, 65530)] == [65531, 13711]


def test_a_port_that_a_failed_plane_has_had_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, bound, made = object(), list[Any](), [socket.socket()]

    def bind(*what: Any) -> list[Any]:
        bound.append(what)
        return made

    monkeypatch.setattr(runtime, "bind", bind)
    with socket.socket() as first, socket.socket() as second:
        sockets = [first, second]
        assert start._open(cast(Any, stack), sockets, 51820) is sockets
        assert bound == []
        second.close()
        assert start._open(cast(Any, stack), sockets, 51820) is made
        assert bound == [(stack, 51820)]
    made[0].close()
