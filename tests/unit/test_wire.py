"""Messages, MACs, cookies and timestamps: sizes, published vectors, and what must be refused."""

from __future__ import annotations

import itertools
import os
from hashlib import blake2s

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from rustguard_py.protocol import wire
from rustguard_py.protocol.cookie import (
    COOKIE_SECRET_LIFETIME,
    CookieSecrets,
    add_macs,
    cookie_key,
    cookie_reply,
    mac1_holds,
    mac1_key,
    open_cookie,
)
from rustguard_py.protocol.noise import kdf1, kdf2, kdf3
from rustguard_py.protocol.tai64n import Tai64nClock, decode, encode

PUBLIC = bytes(range(32))
HERE, THERE = ("192.0.2.1", 51820), ("192.0.2.1", 51821)


@pytest.mark.fault(31)
def test_blake2s_reproduces_the_vectors_of_rfc_7693_and_the_keyed_one_of_its_authors() -> None:
    assert blake2s(b"abc").hexdigest() == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    # blake2-kat: key 00..1f, empty input.
    keyed = blake2s(b"", key=bytes(range(32))).hexdigest()
    assert keyed == "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49"


@pytest.mark.fault(31)
def test_xchacha20_poly1305_reproduces_the_vector_of_draft_irtf_cfrg_xchacha() -> None:
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(
        plaintext,
        bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
        bytes.fromhex("404142434445464748494a4b4c4d4e4f5051525354555657"),
        bytes.fromhex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"),
    )
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"


def test_the_three_key_derivations_are_prefixes_of_one() -> None:
    key, material = os.urandom(32), os.urandom(32)
    assert kdf3(key, material)[:2] == kdf2(key, material)
    assert kdf2(key, material)[0] == kdf1(key, material)
    assert len({*kdf3(key, material)}) == 3


def test_the_messages_have_the_papers_sizes() -> None:
    assert len(wire.Initiation(1, bytes(32), bytes(48), bytes(28)).encode()) + 32 == wire.INITIATION_SIZE == 148
    assert len(wire.Response(1, 2, bytes(32), bytes(16)).encode()) + 32 == wire.RESPONSE_SIZE == 92
    assert len(wire.CookieReply(1, bytes(24), bytes(32)).encode()) == wire.COOKIE_REPLY_SIZE == 64
    assert wire.data_header(0x04030201, 0x0807060504030201).hex() == "04000000010203040102030405060708"


@given(st.binary(max_size=200))
def test_no_bytes_break_a_parser(data: bytes) -> None:
    for parse in (wire.parse_initiation, wire.parse_response, wire.parse_cookie_reply):
        message = parse(data)
        assert message is None or data.startswith(message.encode()[:8])


@given(st.integers(0, 3), st.integers(1, 255))
def test_a_reserved_byte_that_is_not_zero_is_no_message(position: int, value: int) -> None:
    datagram = bytearray(wire.CookieReply(7, bytes(24), bytes(32)).encode())
    assert wire.parse_cookie_reply(bytes(datagram)) is not None
    datagram[position] ^= value
    assert wire.parse_cookie_reply(bytes(datagram)) is None


def test_mac1_holds_for_the_receiver_alone_and_for_no_changed_bit() -> None:
    datagram = add_macs(os.urandom(60), mac1_key(PUBLIC), None)
    assert mac1_holds(datagram, mac1_key(PUBLIC))
    assert not mac1_holds(datagram, mac1_key(bytes(32)))
    for bit in range((len(datagram) - 16) * 8):
        changed = bytearray(datagram)
        changed[bit // 8] ^= 1 << bit % 8
        assert not mac1_holds(bytes(changed), mac1_key(PUBLIC))


def test_a_cookie_is_good_for_one_address_and_port_and_two_lifetimes_of_the_secret() -> None:
    secrets = CookieSecrets(os.urandom)
    cookie = secrets.cookie_for(HERE, now=1000.0)
    datagram = add_macs(os.urandom(116), mac1_key(PUBLIC), cookie)
    assert secrets.mac2_holds(datagram, HERE, 1000.0)
    assert not secrets.mac2_holds(datagram, THERE, 1000.0)
    assert not secrets.mac2_holds(datagram[:-1] + bytes([datagram[-1] ^ 1]), HERE, 1000.0)
    assert secrets.mac2_holds(datagram, HERE, 1000.0 + COOKIE_SECRET_LIFETIME + 1)
    assert not secrets.mac2_holds(datagram, HERE, 1000.0 + 2 * COOKIE_SECRET_LIFETIME + 2)


def test_a_cookie_reply_opens_only_beside_the_mac1_it_answers() -> None:
    cookie, mac1 = os.urandom(16), os.urandom(16)
    reply = wire.parse_cookie_reply(cookie_reply(9, cookie, mac1, cookie_key(PUBLIC), os.urandom))
    assert reply is not None
    assert reply.receiver == 9
    assert open_cookie(reply, mac1, cookie_key(PUBLIC)) == cookie
    assert open_cookie(reply, os.urandom(16), cookie_key(PUBLIC)) is None
    assert open_cookie(reply, mac1, cookie_key(bytes(32))) is None


def test_tai64n_counts_ten_seconds_ahead_of_utc() -> None:
    assert encode(0).hex() == "400000000000000a00000000"
    assert decode(encode(1_767_225_600 * 10**9 + 5)) == 1_767_225_600 * 10**9 + 5


@given(st.lists(st.integers(0, 2**62), min_size=2, max_size=50))
def test_timestamps_rise_whatever_the_wall_clock_does(readings: list[int]) -> None:
    remaining = iter(readings)
    clock = Tai64nClock(lambda: next(remaining))
    stamps = [clock.next() for _ in readings]
    assert all(a < b for a, b in itertools.pairwise(stamps))


def test_timestamps_rise_over_a_restart_with_a_clock_set_back() -> None:
    greatest = Tai64nClock(lambda: 2 * 10**18).next()
    assert Tai64nClock(lambda: 10**18, greatest).next() > greatest


@pytest.mark.parametrize("size", [0, 1, 3, 31])
def test_a_short_datagram_has_no_type_that_needs_more(size: int) -> None:
    assert wire.parse_initiation(b"\x01\0\0\0"[:size]) is None
