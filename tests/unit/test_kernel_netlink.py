"""What is sent to the kernel's WireGuard, byte for byte, and how its answers are read.

The socket is left out: without WireGuard in the kernel nothing would answer. `tests/kernel` has the real one.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from rustguard_py.kernel.counters import Counters, decode
from rustguard_py.kernel.messages import (
    MESSAGE_ROOM,
    KernelPeerChange,
    KernelPeerState,
    batches,
    device_request,
    parse_dump,
)
from rustguard_py.system.netlink_library import wgmsg

KEY, PSK = bytes(range(32)), bytes(range(32, 64))
# include/uapi/linux/wireguard.h
A_PEERS = 8
P_PUBLIC_KEY, P_PSK, P_FLAGS, P_ENDPOINT, P_KEEPALIVE, P_ALLOWED = 1, 2, 3, 4, 5, 9
REMOVE_ME, REPLACE_ALLOWEDIPS, UPDATE_ONLY = 1, 2, 4


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Take netlink attributes apart, by include/uapi/linux/netlink.h."""
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def sent(changes: list[KernelPeerChange]) -> list[list[dict[int, bytes]]]:
    """The messages that changes make: of each its peers, of each its attributes."""
    messages = []
    for batch in batches(changes):
        message = device_request(1, 7, [["WGDEVICE_A_PEERS", batch]])
        message.encode()
        assert len(message.data) < MESSAGE_ROOM + 64
        top = dict(attributes(bytes(message.data[20:])))
        assert struct.unpack("=I", top[1]) == (7,)
        messages.append([dict(attributes(peer)) for _, peer in attributes(top[A_PEERS])])
    return messages


def networks(peer: dict[int, bytes]) -> list[str]:
    found = []
    for _, one in attributes(peer.get(P_ALLOWED, b"")):
        fields = dict(attributes(one))
        found.append(f"{ip_network(fields[2]).network_address}/{fields[3][0]}")
        assert struct.unpack("=H", fields[1])[0] == (2 if len(fields[2]) == 4 else 10)
    return found


def flags(peer: dict[int, bytes]) -> int:
    value: int = struct.unpack("=I", peer[P_FLAGS])[0]
    return value


def test_a_peer_is_told_whole() -> None:
    networks_told = [ip_network("10.1.0.0/16"), ip_network("fd00::/64")]
    [[peer]] = sent([KernelPeerChange(KEY, PSK, ("192.0.2.1", 51820), 25, networks_told)])
    assert (peer[P_PUBLIC_KEY], peer[P_PSK]) == (KEY, PSK)
    assert flags(peer) == REPLACE_ALLOWEDIPS
    assert peer[P_ENDPOINT] == struct.pack("=H", 2) + struct.pack(">H", 51820) + bytes([192, 0, 2, 1]) + bytes(8)
    assert peer[P_KEEPALIVE] == struct.pack("=H", 25)
    assert networks(peer) == ["10.1.0.0/16", "fd00::/64"]


def test_the_scope_of_a_link_local_endpoint_is_in_the_machines_order() -> None:
    [[peer]] = sent([KernelPeerChange(KEY, endpoint=("fe80::9", 1, 0, 3))])
    address = bytes([0xFE, 0x80, *[0] * 13, 9])
    assert peer[P_ENDPOINT] == struct.pack("=H", 10) + struct.pack(">HI", 1, 0) + address + struct.pack("=I", 3)


def test_what_is_not_named_is_not_sent() -> None:
    [[nudged, gone, emptied]] = sent(
        [
            KernelPeerChange(KEY, keepalive=0, update_only=True),
            KernelPeerChange(KEY, PSK, remove=True),
            KernelPeerChange(KEY, allowed_ips=()),
        ]
    )
    assert (set(nudged), flags(nudged)) == ({P_PUBLIC_KEY, P_FLAGS, P_KEEPALIVE}, UPDATE_ONLY)
    assert (set(gone), flags(gone)) == ({P_PUBLIC_KEY, P_FLAGS}, REMOVE_ME)
    assert (set(emptied), flags(emptied)) == ({P_PUBLIC_KEY, P_FLAGS}, REPLACE_ALLOWEDIPS)


def test_more_than_fits_goes_on_in_the_next_message_and_nothing_is_lost() -> None:
    many = [ip_network((0xFD00 << 112 | number << 64, 64)) for number in range(1000)]
    messages = sent(
        [KernelPeerChange(KEY, PSK, allowed_ips=many), KernelPeerChange(PSK, allowed_ips=[ip_network("10.0.0.0/8")])]
    )
    assert len(messages) > 1
    parts = [peer for message in messages for peer in message]
    mine = [peer for peer in parts if peer[P_PUBLIC_KEY] == KEY]
    assert [each for peer in mine for each in networks(peer)] == [str(each) for each in many]
    # Only the first replaces what was there, and the others never make a peer again.
    assert [flags(peer) for peer in mine] == [REPLACE_ALLOWEDIPS] + [UPDATE_ONLY] * (len(mine) - 1)
    assert all(P_PSK not in peer for peer in mine[1:])
    assert networks(parts[-1]) == ["10.0.0.0/8"]


def answer(peers: list[dict[str, Any]], *more: list[Any]) -> wgmsg:
    """A message of a dump, once around through its bytes."""
    message = wgmsg()
    message["attrs"] = [*more, ["WGDEVICE_A_PEERS", peers]]
    message.encode()
    read = wgmsg(bytes(message.data))
    read.decode()
    return read


def test_a_peer_that_goes_on_in_the_next_message_is_one() -> None:
    def part(networks: list[str], *more: list[Any]) -> dict[str, Any]:
        change = KernelPeerChange(KEY, allowed_ips=[ip_network(each) for each in networks])
        [[encoded]] = batches([change])
        return {"attrs": [each for each in encoded["attrs"] if each[0] != "WGPEER_A_FLAGS"] + list(more)}

    state = parse_dump(
        [
            answer(
                [
                    part(
                        ["10.0.0.0/8"],
                        ["WGPEER_A_RX_BYTES", 5],
                        ["WGPEER_A_TX_BYTES", 6],
                        ["WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": 3, "tv_nsec": 500_000_000}],
                        ["WGPEER_A_ENDPOINT", {"addr": "fe80::1", "port": 9, "scope_id": 0x02000000}],
                    )
                ],
                ["WGDEVICE_A_LISTEN_PORT", 51820],
                ["WGDEVICE_A_FWMARK", 4],
            ),
            answer([part(["fd00::/8"])]),
        ],
        allowed_ips=True,
    )
    assert (state.port, state.fwmark) == (51820, 4)
    wanted = KernelPeerState(KEY, bytes(32), ("fe80::1", 9, 0, 2), 3.5, 0, 5, 6, [])
    wanted.allowed_ips = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert list(state.peers.values()) == [wanted]


def test_counters_alone_are_those_that_are_understood_of_the_whole() -> None:
    def one(number: int, endpoint: dict[str, Any], handshake: int) -> dict[str, Any]:
        networks = [ip_network((0x0A000000 | number << 12 | each, 32)) for each in range(9)]
        [[encoded]] = batches([KernelPeerChange(bytes([number]) * 32, PSK, keepalive=25, allowed_ips=networks)])
        counted = [
            ["WGPEER_A_RX_BYTES", number * 2**33 + 1],
            ["WGPEER_A_TX_BYTES", number],
            ["WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": handshake, "tv_nsec": 250_000_000}],
            ["WGPEER_A_ENDPOINT", endpoint],
        ]
        return {"attrs": [each for each in encoded["attrs"] if each[0] != "WGPEER_A_FLAGS"] + counted}

    places = [{"addr": "192.0.2.7", "port": 51820}, {"addr": "fe80::1", "port": 9, "scope_id": 0x02000000}]
    peers = [one(number, places[number % 2], 1_700_000_000 * (number % 3)) for number in range(1, 40)]
    more = {"attrs": [["WGPEER_A_PUBLIC_KEY", b64encode(bytes([39]) * 32)]]}
    messages = [answer(peers[:20], ["WGDEVICE_A_LISTEN_PORT", 51820]), answer(peers[20:]), answer([more])]
    whole = parse_dump(messages, allowed_ips=False)
    read = decode(bytes(message.data) for message in messages)
    assert read == {
        key: Counters(peer.endpoint, peer.last_handshake, peer.rx_bytes, peer.tx_bytes)
        for key, peer in whole.peers.items()
    }
    assert len(read) == 39
