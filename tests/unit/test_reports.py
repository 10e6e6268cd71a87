"""Who is heard inside the tunnel, and how a server finds who it is."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from rustguard_py.daemon.reports import Partner, Reports
from rustguard_py.enroll.server.partners import Partners
from rustguard_py.protocol.report import Hello, encode
from rustguard_py.state.records import PeerRecord, ServerState


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
