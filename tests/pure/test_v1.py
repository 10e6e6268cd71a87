"""Enrollment version 1: what the first RustGuard sends, byte for byte, and what our two ends make of it."""

from __future__ import annotations

import os
from hashlib import blake2s
from ipaddress import IPv4Interface
from pathlib import Path

import nacl.bindings as sodium
import pytest

from rustguard_py.enroll import v1
from rustguard_py.enroll.pairing_client import Failed, Failure, Joined
from rustguard_py.enroll.v1_door import TOKEN_FILE, check_token, kept_token
from rustguard_py.enroll.window import Window
from rustguard_py.errors import StateError, UsageError
from rustguard_py.state.identity import fingerprint

TOKEN = "nq6d7k2mzt5c3xw4rv8h"  # noqa: S105 - the test's own
CLIENT_KEY, SERVER_KEY = bytes(range(32)), bytes(range(32, 64))
ADDRESS = IPv4Interface("10.77.0.9/24")
SOURCE = ("192.0.2.7", 40000)
SERVER = ("192.0.2.1", 51820)


def open_server(token: str = TOKEN) -> v1.Server:
    window = Window()
    window.open(60, 0.0)
    return v1.Server(token, window, os.urandom)


def request(token: str = TOKEN) -> bytes:
    """Made from the words of the specification, by other calls than ours."""
    key = blake2s(b"rustguard-enroll-v1" + token.encode(), digest_size=32).digest()
    nonce = os.urandom(24)
    box = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(CLIENT_KEY, b"RGE\x01", nonce, key)
    return b"RGE\x01" + nonce + box


def client(**options: object) -> v1.Client:
    return v1.Client(TOKEN, CLIENT_KEY, "old", os.urandom, 0.0, **options)  # type: ignore[arg-type]


def asked(server: v1.Server, who: v1.Client) -> None:
    transmit = who.poll_transmit()
    assert transmit is not None
    assert transmit.destination is None
    assert server.handle(transmit.datagram, SOURCE, 1.0) == CLIENT_KEY
    who.handle(server.response(SERVER_KEY, ADDRESS), SERVER, 1.0)


def test_a_request_has_76_bytes_and_a_response_81_as_the_wire_page_says() -> None:
    server = open_server()
    assert len(request()) == v1.REQUEST_SIZE == 76
    assert server.handle(request(), SOURCE, 0.0) == CLIENT_KEY
    response = server.response(SERVER_KEY, ADDRESS)
    assert len(response) == v1.RESPONSE_SIZE == 81
    key = blake2s(b"rustguard-enroll-v1" + TOKEN.encode(), digest_size=32).digest()
    opened = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(response[28:], b"RGE\x02", response[4:28], key)
    assert opened == SERVER_KEY + bytes([10, 77, 0, 9, 24])


def test_both_ends_agree_and_there_is_no_preshared_key() -> None:
    server, who = open_server(), client()
    asked(server, who)
    assert isinstance(who.outcome, Joined)
    assert who.outcome.preshared_key == bytes(32)
    assert who.outcome.admission.server_key == SERVER_KEY
    assert who.outcome.admission.address4 == ADDRESS
    assert str(who.outcome.admission.gateway4) == "10.77.0.1"
    assert who.outcome.server == SERVER
    assert who.poll_timeout() is None


def test_each_flipped_bit_and_each_other_length_is_dropped_on_both_sides() -> None:
    server, sealed = open_server(), request()
    for bit in range(len(sealed) * 8):
        forged = bytearray(sealed)
        forged[bit // 8] ^= 1 << bit % 8
        # A second apart: the source's pace must not be what refuses it.
        assert server.handle(bytes(forged), SOURCE, float(bit % 50)) is None
    for other in (b"", sealed[:-1], sealed + b"\0", request("another-token-of-length")):
        assert server.handle(other, SOURCE, 59.0) is None
    who, response = client(), server.response(SERVER_KEY, ADDRESS)
    for bit in range(len(response) * 8):
        forged = bytearray(response)
        forged[bit // 8] ^= 1 << bit % 8
        who.handle(bytes(forged), SERVER, 1.0)
    who.handle(response[:-1], SERVER, 1.0)
    assert who.outcome is None
    who.handle(response, SERVER, 1.0)
    assert isinstance(who.outcome, Joined)


def test_a_closed_window_answers_nobody() -> None:
    server = v1.Server(TOKEN, Window(), os.urandom)
    assert server.handle(request(), SOURCE, 0.0) is None


def test_a_source_that_is_too_fast_is_not_listened_to_and_others_are() -> None:
    server = open_server()
    answered = [server.handle(request(), SOURCE, 1.0) for _ in range(50)]
    # A burst of five; rounding may keep the fifth back for a moment.
    assert sum(key is not None for key in answered) in (4, 5)
    assert server.handle(request(), ("192.0.2.8", 40000), 1.0) == CLIENT_KEY


def test_the_client_asks_eleven_times_the_same_and_then_says_what_may_be_wrong() -> None:
    who, sent = client(), set()
    count = 0
    while (due := who.poll_timeout()) is not None:
        while (transmit := who.poll_transmit()) is not None:
            sent.add(transmit.datagram)
            count += 1
        who.handle_timeout(due)
    assert (count, len(sent)) == (11, 1)
    assert isinstance(who.outcome, Failed)
    assert who.outcome.failure is Failure.SILENT
    assert "the token is another one" in who.outcome.error().message


@pytest.mark.parametrize("options", [{"expected": "AAAA AAAA AAAA AAAA"}, {"known_server": bytes(32)}])
def test_a_server_with_another_key_than_expected_is_refused(options: dict[str, object]) -> None:
    who = client(**options)
    asked(open_server(), who)
    assert isinstance(who.outcome, Failed)
    assert who.outcome.failure is Failure.WRONG_SERVER


def test_the_expected_server_is_taken() -> None:
    who = client(expected=fingerprint(SERVER_KEY).lower(), known_server=SERVER_KEY)
    asked(open_server(), who)
    assert isinstance(who.outcome, Joined)


def test_a_response_with_a_prefix_that_has_no_room_for_two_is_refused() -> None:
    who = client()
    who.handle(open_server().response(SERVER_KEY, IPv4Interface("10.77.0.9/32")), SERVER, 1.0)
    assert isinstance(who.outcome, Failed)
    assert who.outcome.failure is Failure.INCOMPATIBLE


def test_the_token_is_made_once_kept_private_and_long(tmp_path: Path) -> None:
    token = kept_token(tmp_path)
    assert kept_token(tmp_path) == token
    assert len(token) == 24
    assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / TOKEN_FILE).chmod(0o644)
    with pytest.raises(StateError):
        kept_token(tmp_path)


@pytest.mark.parametrize("token", ["", "secret", "fifteen-letters", "abababababababababababab"])
def test_a_token_that_a_recorder_would_find_is_refused(token: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        check_token(token)
    (tmp_path / TOKEN_FILE).touch(0o600)
    (tmp_path / TOKEN_FILE).write_text(token + "\n")
    with pytest.raises(UsageError):
        kept_token(tmp_path)
