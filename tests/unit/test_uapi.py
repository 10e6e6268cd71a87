"""The words that wg(8) exchanges with a user-space WireGuard."""

from __future__ import annotations

import errno
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.daemon.uapi.protocol import DeviceState, PeerState, UapiError, ending, format_device, parse_set

ALICE, BOB = bytes(range(32)), bytes(range(32, 64))

# The example of wireguard.com/xplatform, its keys included.
EXAMPLE = """\
private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
fwmark=0
listen_port=12912
replace_peers=true
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
replace_allowed_ips=true
allowed_ip=192.168.4.4/32
endpoint=[abcd:23::33]:51820
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
replace_allowed_ips=true
allowed_ip=192.168.4.6/32
persistent_keepalive_interval=111
endpoint=182.122.22.19:3233
public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
endpoint=5.152.198.39:51820
replace_allowed_ips=true
allowed_ip=192.168.4.10/32
allowed_ip=192.168.4.11/32
public_key=e818b58db5274087fcc1be5dc728cf53d3b5726b4cef6b9bab8f8f8c2452c25c
remove=true
"""


def test_the_example_of_the_specification_is_understood() -> None:
    change = parse_set(EXAMPLE.splitlines())
    assert change.private_key is not None
    assert change.private_key.hex().startswith("e84b5a6d")
    assert (change.listen_port, change.fwmark, change.replace_peers) == (12912, 0, True)
    first, second, third, last = change.peers
    assert first.endpoint == ("abcd:23::33", 51820)
    assert first.preshared_key is not None
    assert first.allowed_ips == [(ip_network("192.168.4.4/32"), True)]
    assert (second.persistent_keepalive, second.endpoint) == (111, ("182.122.22.19", 3233))
    assert [str(network) for network, _ in third.allowed_ips] == ["192.168.4.10/32", "192.168.4.11/32"]
    assert third.preshared_key is None
    assert last.remove
    assert not last.allowed_ips


def test_what_a_request_does_not_say_is_none() -> None:
    change = parse_set([f"public_key={ALICE.hex()}", "update_only=true"])
    (peer,) = change.peers
    assert (change.private_key, change.listen_port, change.fwmark, change.replace_peers) == (None, None, None, False)
    assert (peer.endpoint, peer.persistent_keepalive, peer.preshared_key) == (None, None, None)
    assert peer.update_only
    assert peer.remove is peer.replace_allowed_ips is False


def test_an_allowed_ip_can_be_taken_away_and_its_host_bits_do_not_matter() -> None:
    lines = [f"public_key={ALICE.hex()}", "allowed_ip=-10.0.0.9/8", "allowed_ip=fd00::1/64", "allowed_ip=10.1.1.1"]
    (peer,) = parse_set(lines).peers
    expected = [("10.0.0.0/8", False), ("fd00::/64", True), ("10.1.1.1/32", True)]
    assert [(str(network), added) for network, added in peer.allowed_ips] == expected


@pytest.mark.parametrize("number", ["0x51", "81"])
def test_a_mark_may_be_hexadecimal_and_empty_is_none(number: str) -> None:
    assert parse_set([f"fwmark={number}"]).fwmark == 0x51
    assert parse_set(["fwmark="]).fwmark == 0


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("nonsense", errno.EPROTO),
        ("colour=blue", errno.EINVAL),
        ("private_key=00", errno.EINVAL),
        (f"private_key={'zz' * 32}", errno.EINVAL),
        (f"private_key={' 0' * 32}", errno.EINVAL),
        ("listen_port=65536", errno.EINVAL),
        ("listen_port=-1", errno.EINVAL),
        ("listen_port=1_0", errno.EINVAL),
        ("fwmark=0x100000000", errno.EINVAL),
        ("replace_peers=false", errno.EINVAL),
        ("endpoint=192.0.2.1:1", errno.EINVAL),
        (f"public_key={'00' * 31}", errno.EINVAL),
    ],
)
def test_a_wrong_line_of_the_interface_has_its_errno(line: str, code: int) -> None:
    with pytest.raises(UapiError) as caught:
        parse_set([line])
    assert caught.value.code == code


@pytest.mark.parametrize(
    "line",
    [
        "endpoint=192.0.2.1",
        "endpoint=192.0.2.1:0",
        "endpoint=host.example:51820",
        "endpoint=2001:db8::1:51820",
        "endpoint=[2001:db8::1:51820",
        "endpoint=[fe80::1%no-such-interface]:51820",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=--10.0.0.0/8",
        "persistent_keepalive_interval=off",
        "persistent_keepalive_interval=65536",
        "protocol_version=2",
        "remove=yes",
        "listen_port=1",
    ],
)
def test_a_wrong_line_of_a_peer_is_einval(line: str) -> None:
    with pytest.raises(UapiError) as caught:
        parse_set([f"public_key={ALICE.hex()}", line])
    assert caught.value.code == errno.EINVAL


def test_an_error_repeats_no_key() -> None:
    with pytest.raises(UapiError) as caught:
        parse_set([f"private_key={ALICE.hex()}00"])
    assert ALICE.hex() not in str(caught.value)


def test_a_scoped_endpoint_keeps_its_scope() -> None:
    (peer,) = parse_set([f"public_key={ALICE.hex()}", "endpoint=[fe80::1%lo]:51820"]).peers
    assert peer.endpoint == ("fe80::1", 51820, 0, 1)


def test_what_is_shown_is_what_wg_reads() -> None:
    peers = [
        PeerState(
            ALICE,
            BOB,
            ("2001:db8::1", 51820),
            last_handshake=1_700_000_000_000_000_123,
            rx_bytes=7,
            tx_bytes=9,
            persistent_keepalive=25,
            allowed_ips=[ip_network("10.0.0.0/8"), ip_network("fd00::/64")],
        ),
        PeerState(BOB),
    ]
    lines = format_device(DeviceState(ALICE, 51820, 0x51, peers)).splitlines()
    assert lines[:3] == [f"private_key={ALICE.hex()}", "listen_port=51820", "fwmark=81"]
    assert lines[3:14] == [
        f"public_key={ALICE.hex()}",
        f"preshared_key={BOB.hex()}",
        "protocol_version=1",
        "endpoint=[2001:db8::1]:51820",
        "last_handshake_time_sec=1700000000",
        "last_handshake_time_nsec=123",
        "tx_bytes=9",
        "rx_bytes=7",
        "persistent_keepalive_interval=25",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=fd00::/64",
    ]
    assert "endpoint" not in "".join(lines[14:])
    assert "private_key" not in format_device(DeviceState(None, 0))
    assert (ending(0), ending(errno.EINVAL)) == ("errno=0\n\n", "errno=-22\n\n")


def code_of(lines: list[str]) -> int:
    try:
        parse_set(lines)
    except UapiError as error:
        return error.code
    return 0


@given(st.lists(st.text(max_size=80), max_size=8))
def test_no_text_does_more_than_raise_its_error(lines: list[str]) -> None:
    assert code_of(lines) in {0, errno.EINVAL, errno.EPROTO}


@given(
    st.sampled_from(
        ["private_key", "listen_port", "fwmark", "endpoint", "allowed_ip", "persistent_keepalive_interval"]
    ),
    st.text(max_size=70),
)
def test_no_value_does_more_than_raise_its_error(key: str, value: str) -> None:
    for lines in ([f"{key}={value}"], [f"public_key={ALICE.hex()}", f"{key}={value}"]):
        assert code_of(lines) in {0, errno.EINVAL, errno.EPROTO}
