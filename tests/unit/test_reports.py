"""Who is heard inside the tunnel, how a server finds who it is, and what two ends tell each other."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from rustguard_py.daemon.reports import Partner, Reports
from rustguard_py.enroll.server.partners import Partners
from rustguard_py.protocol.report import REPORT_PORT, Arrived, Hello, encode
from rustguard_py.state.records import PeerRecord, ServerState
from support.report_exchange import Exchange, exchange


@pytest.mark.parametrize(("interface", "inside"), [("lo", True), ("rg0", False)])
def test_only_what_came_in_by_the_tunnels_interface_counts(interface: str, inside: bool) -> None:
    reports = Reports([], [interface], IPv4Address("10.9.0.1"), lambda _: None)
    info = struct.pack("=i4s4s", socket.if_nametoindex("lo"), bytes(4), bytes(4))
    assert reports._is_inside([(socket.IPPROTO_IP, 8, info)]) is inside
    assert not reports._is_inside([])
    assert not reports._is_inside([(socket.IPPROTO_IP, 8, struct.pack("=i4s4s", 2**30, bytes(4), bytes(4)))])


def test_strangers_and_what_cannot_be_read_change_nothing() -> None:
    known = Partner("laptop", (b"k" * 32,))
    reports = Reports([], ["rg0"], IPv4Address("10.9.0.1"), {"10.9.0.2": known}.get)
    reports._take(encode([Hello(asks=False)]), "10.9.0.3")
    reports._take(b"RGR\x02", "10.9.0.2")
    assert not reports._speakers
    reports._take(encode([Hello(asks=False)]), "10.9.0.2")
    assert list(reports._speakers) == ["10.9.0.2"]
    assert reports.notes == []


def test_a_peer_is_found_by_its_address_though_its_record_changes() -> None:
    key = os.urandom(32)
    record = PeerRecord("laptop", key, os.urandom(32), IPv4Address("10.9.0.2"), None, 0.0, None)
    state = ServerState(os.urandom(32), os.urandom(32), IPv4Network("10.9.0.0/24"), None, 51820, 1420, {key: record})
    at = 0.0
    partners = Partners(state, lambda: at)
    assert partners.find("10.9.0.2") == Partner("laptop", (key,))
    state.peers[key] = replace(record, endpoint="192.0.2.1:5", name="anna")
    assert partners.find("10.9.0.2") == Partner("anna", (key,))
    state.peers[key] = replace(record, address4=IPv4Address("10.9.0.7"))
    assert partners.find("10.9.0.2") is None
    at = 5.0
    assert partners.find("10.9.0.7") == Partner("laptop", (key,))
    assert partners.find("10.9.0.8") is None


# -- the exchange, over the loopback interface and under the virtual loop --------------------------------------


def test_a_client_says_hello_five_times_and_again_with_the_next_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        await asyncio.sleep(3600)
        heard = its.take()
        assert [item for _, item in heard] == [Hello(asks=True)] * 5
        assert [round(at) for at, _ in heard] == [0, 2, 4, 6, 8]
        its.reports.session()
        await asyncio.sleep(3600)
        heard = its.take()
        assert [item for _, item in heard] == [Hello(asks=True)] * 5
        assert round(heard[0][0]) == 3600
        its.reports.session()
        await asyncio.sleep(1)
        # Once it is answered, it stops.
        its.say(Hello(asks=False))
        await asyncio.sleep(3600)
        assert len(its.take()) == 1

    exchange(monkeypatch, test, asks=True)


def test_a_server_answers_a_hello_and_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        await asyncio.sleep(600)
        assert its.take() == []
        its.say(Hello(asks=True))
        await asyncio.sleep(600)
        assert [item for _, item in its.take()] == [Hello(asks=False)]
        its.say(Hello(asks=False))
        await asyncio.sleep(600)
        assert its.take() == []

    exchange(monkeypatch, test)


def test_what_is_missing_is_reported_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        its.say(Hello(asks=False))
        await asyncio.sleep(10)
        its.session.flow = replace(its.session.flow, next=100, received=60)
        await asyncio.sleep(1.1)
        assert [item for _, item in its.take()] == [Arrived(tunnel=0, index=7, first=0, stop=100, received=60)]

    exchange(monkeypatch, test)


def test_while_nothing_moves_it_looks_once_a_second_and_else_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        await asyncio.sleep(60)
        assert its.session.looks == []
        its.say(Hello(asks=False))
        await asyncio.sleep(60)
        assert 58 <= len(its.session.looks) <= 62
        its.session.looks.clear()
        for _ in range(240):
            flow = its.session.flow
            its.session.flow = replace(flow, sent=flow.sent + 1, next=flow.next + 1, received=flow.received + 1)
            await asyncio.sleep(0.25)
        assert 230 <= len(its.session.looks) <= 245

    exchange(monkeypatch, test)


@pytest.mark.parametrize("segments", [True, False])
def test_a_path_that_loses_what_is_cut_gets_it_switched_off_and_a_note(
    monkeypatch: pytest.MonkeyPatch, segments: bool
) -> None:
    async def test(its: Exchange) -> None:
        its.say(Hello(asks=False))
        await asyncio.sleep(2)
        on = True
        for _ in range(80):
            flow = its.session.flow
            its.session.flow = replace(flow, sent=flow.sent + 50)
            its.say(Arrived(0, 8, flow.sent, flow.sent + 50, 2 if on else 50))
            # Of a tunnel that there isn't.
            its.say(Arrived(3, 8, flow.sent, flow.sent + 50, 0))
            await asyncio.sleep(0.25)
            on = its.session.segmenting[-1] if its.session.segmenting else True
        if segments:
            assert its.session.segmenting == [False, True, False]
            [note] = its.reports.notes
            assert note.startswith("Off towards laptop: udp-segmentation, because ")
            await asyncio.sleep(3700)
        assert its.session.segmenting == ([False, True, False, True] if segments else [])
        assert its.reports.notes == [] or not segments

    exchange(monkeypatch, test, segments=segments)


def test_a_partner_that_is_no_longer_a_peer_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(its: Exchange) -> None:
        its.say(Hello(asks=False))
        await asyncio.sleep(2)
        known: dict[str, Partner] = {}
        its.reports._find = known.get
        await asyncio.sleep(2)
        its.session.looks.clear()
        await asyncio.sleep(60)
        assert its.session.looks == []

    exchange(monkeypatch, test)


def test_without_the_port_there_are_no_reports_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(its: Exchange) -> None:
        other = Reports([], ["lo"], IPv4Address(its.here), lambda _: None)
        await asyncio.wait_for(other.run(), 1)

    exchange(monkeypatch, test)
    assert [f"UDP port {REPORT_PORT} can't be bound" in record.message for record in caplog.records] == [True]
