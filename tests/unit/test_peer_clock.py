"""A peer whose clock was once far ahead: it is shut out, the cause is named, and `peers reset` lets it in again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.cli import render
from rustguard_py.daemon.clocks import FAR_SECONDS, clock_ahead, time_of, why_refused
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.enroll.server.saver import Saver
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.enroll.tunnels.derive import FurtherTimestamps, timestamp_names
from rustguard_py.model.errors import RefusedError, StateError
from rustguard_py.model.keys import encode_key
from rustguard_py.model.tunnel import Listeners
from rustguard_py.node import SessionStarted
from rustguard_py.planes.contract import EventfulPlane
from rustguard_py.protocol import tai64n
from rustguard_py.state.journal import TimestampJournal
from rustguard_py.state.records import MOST_TUNNELS, PeerRecord, ServerState
from rustguard_py.tunnel import Tunnel
from support.disk import BreakableFiles
from support.link import WALL_START, Network

IN_2150 = 5_680_281_600
PSK = bytes(32)


class Server:
    """A server whose tunnel is a host of a virtual network, and a stock peer of it."""

    def __init__(self, directory: Path, *, in_kernel: bool = False) -> None:
        self.directory = directory
        self.network = Network()
        self.peer = self.network.host("peer", "192.0.2.2")
        self.host = self.network.host("server", "192.0.2.1")
        self.peer.add(self.host, "10.150.0.1/32")
        key = self.host.private_key
        record = PeerRecord("phone", self.peer.public_key, PSK, IPv4Address("10.150.0.2"), None, 1.7e9, None)
        self.state = ServerState(key, os.urandom(32), IPv4Network("10.150.0.0/24"), None, 51820, 1420)
        self.state.peers[record.public_key] = record
        self.in_kernel = in_kernel
        self.start()

    def start(self) -> None:
        self.timestamps = KeptTimestamps(self.directory)
        self.host.timestamps = cast(Any, self.timestamps)
        self.host.start()
        tunnel = Tunnel(self.host.node, cast(EventfulPlane, self.host.plane), Listeners())
        saver = Saver(self.state, lambda _: None)
        self.server = RunningServer(tunnel, Registry(self.state), saver, self.timestamps, None)
        program = SimpleNamespace(engine=SimpleNamespace(in_kernel=self.in_kernel))
        self.ask = ServerControl(self.server, cast(Any, program), None).handlers()
        self.server.admissions.begin()

    def restart(self) -> None:
        self.timestamps.close()
        self.start()

    def shake_hands(self) -> bool:
        """Let the peer try for ten seconds with a fresh session; return whether the server answered."""
        self.peer.timestamps.known.clear()
        self.peer.start()
        peer = self.peer.add(self.host, "10.150.0.1/32")
        self.peer.node.begin_handshake(peer, self.network.now)
        self.peer.events.clear()
        self.network.run(10)
        return any(isinstance(event, SessionStarted) and event.initiator for event in self.peer.events)

    def reset(self, who: str) -> dict[str, Any]:
        async def main() -> dict[str, Any]:
            answer = self.ask["reset"]({"who": who})
            assert not isinstance(answer, dict)
            return await answer

        return asyncio.run(main())

    def shown(self) -> dict[str, Any]:
        document = self.ask["peers"]({})
        assert isinstance(document, dict)
        return cast(dict[str, Any], document["peers"][0])


@contextmanager
def running(directory: Path, **options: Any) -> Iterator[Server]:
    directory.chmod(0o700)
    server = Server(directory, **options)
    try:
        yield server
    finally:
        server.timestamps.close()


def shut_out(server: Server) -> None:
    """Let the peer shake hands once with a clock in 2150, then put its clock right."""
    server.peer.wall_offset = IN_2150 * 10**9 - WALL_START
    assert server.shake_hands()
    server.peer.wall_offset = 0


def timestamp_of(seconds: int) -> bytes:
    return tai64n.encode(seconds * 10**9)


def by_name(_: Server) -> str:
    return "phone"


def by_key(server: Server) -> str:
    return encode_key(server.peer.public_key)


@pytest.mark.parametrize("who", [by_name, by_key])
def test_a_peer_whose_clock_was_ahead_is_refused_until_it_is_reset(who: Any, tmp_path: Path) -> None:
    with running(tmp_path) as server:
        shut_out(server)
        assert not server.shake_hands()
        server.restart()
        assert not server.shake_hands()
        answer = server.reset(who(server))
        assert answer["was"].startswith("2150-01-01T")
        assert not answer["added_again"]
        assert server.shake_hands()
        server.restart()
        assert server.shake_hands()


def test_a_reset_lasts_over_a_restart_without_a_handshake(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        shut_out(server)
        server.reset("phone")
        server.restart()
        assert server.shake_hands()


@pytest.mark.parametrize("restart", [False, True])
def test_a_recording_from_when_the_clock_was_ahead_is_refused_after_the_reset(restart: bool, tmp_path: Path) -> None:
    with running(tmp_path) as server:
        # Two handshakes with the wrong clock: an attacker has more than the one with the greatest timestamp.
        shut_out(server)
        shut_out(server)
        there = server.host.endpoint
        recorded = [each for _, _, to, each in server.network.recorded if to == there and each[0] == 1]
        assert len(recorded) == 2
        server.reset("phone")
        if restart:
            server.restart()
        for each in recorded:
            server.host.receive(each, ("203.0.113.9", 1000))
            server.network.run(1)
        assert server.shown()["clock_ahead"] is None
        assert server.shake_hands()
        assert not server.timestamps.is_new(server.peer.public_key, timestamp_of(IN_2150 + 1))
        assert server.timestamps.is_new(server.peer.public_key, timestamp_of(IN_2150 + 10**6))


def test_a_peer_that_was_reset_is_heard_also_when_our_clock_is_behind(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    timestamps, key = KeptTimestamps(tmp_path, lambda: 0.0), bytes(32)
    timestamps.record(key, timestamp_of(IN_2150))
    asyncio.run(timestamps.forget([key]))
    assert not timestamps.is_new(key, timestamp_of(FAR_SECONDS + 1))
    assert timestamps.is_new(key, timestamp_of(FAR_SECONDS))
    timestamps.record(key, timestamp_of(1_700_000_000))
    assert timestamps.is_new(key, timestamp_of(1_700_000_000 + FAR_SECONDS))
    assert not timestamps.is_new(key, timestamp_of(1_700_000_000 + FAR_SECONDS + 1))
    timestamps.close()


def test_the_cause_is_named_until_the_reset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path) as server:
        assert server.shake_hands()
        assert server.shown()["clock_ahead"] is None
        shut_out(server)
        shown = server.shown()
        assert shown["clock_ahead"].startswith("2150-01-01T")
        render.show_peers({"peers": [shown]}, verbose=False)
        expected = "its clock was once at 2150-01-01, so handshakes with an earlier time are refused."
        out = capsys.readouterr().out
        assert expected in out
        assert "rustguard peers reset phone" in out
        server.reset("phone")
        assert server.shown()["clock_ahead"] is None


def test_the_timestamps_of_further_tunnels_are_named_and_forgotten_too(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        key = server.peer.public_key
        ahead = tai64n.encode(IN_2150 * 10**9)
        further = [FurtherTimestamps(server.timestamps, number) for number in range(1, MOST_TUNNELS)]
        for each in further:
            each.record(key, ahead)
        server.server.tunnels *= 2
        assert server.shown()["clock_ahead"] == "2150-01-01T00:00:00Z"
        server.server.tunnels = server.server.tunnels[:1]
        assert server.reset("phone")["was"] == "2150-01-01T00:00:00Z"
        assert [each.greatest(key) for each in further] == [None] * len(further)
        assert len(set(timestamp_names(key, MOST_TUNNELS))) == MOST_TUNNELS


def test_with_the_kernels_engine_the_peer_is_removed_and_added_again(tmp_path: Path) -> None:
    with running(tmp_path, in_kernel=True) as server:
        before = server.host.node.get(server.peer.public_key)
        assert server.reset("phone") | {"peer": None} == {"peer": None, "was": None, "added_again": True}
        after = server.host.node.get(server.peer.public_key)
        assert after is not None
        assert after is not before


def test_an_unknown_peer_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as server, pytest.raises(RefusedError):
        server.reset("nobody")


def test_forgetting_fails_as_a_whole_when_the_disk_is_full(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    files = BreakableFiles()
    journal = TimestampJournal.open(tmp_path, files)
    journal.record(bytes(32), b"\2" * 12)
    files.break_all(28, "write")
    with pytest.raises(StateError):
        journal.forget(bytes(32))
    assert journal.greatest(bytes(32)) == b"\2" * 12
    files.repair()
    assert journal.forget(bytes(32)) == b"\2" * 12
    assert journal.forget(bytes(32)) is None
    journal.record(bytes(32), b"\1" * 12)
    journal.close()
    again = TimestampJournal.open(tmp_path)
    assert again.greatest(bytes(32)) == b"\1" * 12
    again.close()


def test_what_is_forgotten_while_the_file_is_rewritten_stays_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    journal = TimestampJournal.open(tmp_path)
    journal.record(bytes(32), b"\2" * 12)
    write_fresh = __import__("rustguard_py.state.journal", fromlist=["write_fresh"]).write_fresh

    def forget_meanwhile(*arguments: Any) -> Any:
        written = write_fresh(*arguments)
        journal.forget(bytes(32))
        return written

    monkeypatch.setattr("rustguard_py.state.journal.write_fresh", forget_meanwhile)
    journal._compact()
    journal.close()
    again = TimestampJournal.open(tmp_path)
    assert again.greatest(bytes(32)) is None
    again.close()


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [(0, False), (FAR_SECONDS, False), (FAR_SECONDS + 1, True), (2**61, True), (-(2**61), False)],
)
def test_a_clock_is_far_ahead_by_more_than_a_day(ahead: int, expected: bool) -> None:
    wall = 1_800_000_000
    timestamp = tai64n.encode((wall + ahead) * 10**9)
    assert (clock_ahead(timestamp, wall) is not None) == expected
    assert clock_ahead(None, wall) is None
    assert time_of(timestamp).endswith("Z")


@pytest.mark.parametrize(
    ("timestamp", "time"),
    [
        (tai64n.encode(0), "1970-01-01T00:00:00Z"),
        (tai64n.encode(IN_2150 * 10**9 + 999_999_999), "2150-01-01T00:00:00Z"),
        (tai64n.encode(-1), "1969-12-31T23:59:59Z"),
        # Those that no calendar has.
        (bytes(12), "0001-01-01T00:00:00Z"),
        (b"\xff" * 12, "9999-12-31T00:00:00Z"),
        (tai64n.encode(2**40 * 10**9), "9999-12-31T00:00:00Z"),
    ],
)
def test_any_timestamp_has_a_time(timestamp: bytes, time: str) -> None:
    assert time_of(timestamp) == time


def test_a_name_is_quoted_for_the_shell() -> None:
    assert why_refused("my phone", "2150-01-01T00:00:00Z").endswith("rustguard peers reset 'my phone'")
