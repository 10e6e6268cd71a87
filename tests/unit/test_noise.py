"""The handshake against an independent Noise library, and against forgeries."""

from __future__ import annotations

import os

import pytest
from noise.connection import Keypair as NoiseKeypair
from noise.connection import NoiseConnection

from rustguard_py.model.keys import NO_PRESHARED_KEY
from rustguard_py.protocol.noise import (
    IDENTIFIER,
    Initiator,
    InvalidHandshakeError,
    Received,
    StaticKey,
    TransportKeys,
    dh,
)
from rustguard_py.protocol.wire import Initiation, parse_initiation, parse_response

PATTERN = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
TIMESTAMP = bytes(range(12))
# Points of small order on Curve25519 (RFC 7748 section 6.1 asks for the all-zero check that stops them).
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def independent(static: bytes, preshared_key: bytes, *, initiator: bool, remote: bytes | None) -> NoiseConnection:
    connection = NoiseConnection.from_name(PATTERN)
    if initiator:
        connection.set_as_initiator()
        connection.set_keypair_from_public_bytes(NoiseKeypair.REMOTE_STATIC, remote)
    else:
        connection.set_as_responder()
    connection.set_prologue(IDENTIFIER)
    connection.set_psks(psk=preshared_key)
    connection.set_keypair_from_private_bytes(NoiseKeypair.STATIC, static)
    connection.start_handshake()
    return connection


def transport_keys(connection: NoiseConnection) -> TransportKeys:
    protocol = connection.noise_protocol
    return TransportKeys(protocol.cipher_state_encrypt.k, protocol.cipher_state_decrypt.k)


@pytest.mark.parametrize("preshared_key", [NO_PRESHARED_KEY, b"q" * 32], ids=["no-psk", "psk"])
def test_our_initiator_completes_with_an_independent_responder(preshared_key: bytes) -> None:
    ours, theirs_private = StaticKey(os.urandom(32)), os.urandom(32)
    theirs = StaticKey(theirs_private)
    responder = independent(theirs_private, preshared_key, initiator=False, remote=None)

    initiator = Initiator(ours, theirs.public, ours.shared_with(theirs.public), TIMESTAMP, 7, os.urandom)
    assert responder.read_message(initiator.message[8:]) == TIMESTAMP
    noise_message = bytes(responder.write_message(b""))
    response = parse_response(
        b"\x02\0\0\0" + (9).to_bytes(4, "little") + (7).to_bytes(4, "little") + noise_message + bytes(32)
    )
    assert response is not None
    keys = initiator.consume_response(ours, response, preshared_key)
    assert TransportKeys(keys.receive, keys.send) == transport_keys(responder)


@pytest.mark.parametrize("preshared_key", [NO_PRESHARED_KEY, b"q" * 32], ids=["no-psk", "psk"])
def test_our_responder_completes_with_an_independent_initiator(preshared_key: bytes) -> None:
    ours, theirs_private = StaticKey(os.urandom(32)), os.urandom(32)
    theirs = StaticKey(theirs_private)
    initiator = independent(theirs_private, preshared_key, initiator=True, remote=ours.public)

    noise_message = bytes(initiator.write_message(TIMESTAMP))
    initiation = parse_initiation(b"\x01\0\0\0" + (9).to_bytes(4, "little") + noise_message + bytes(32))
    assert initiation is not None
    received = Received(ours, initiation)
    assert received.remote == theirs.public
    assert received.open_timestamp(ours.shared_with(received.remote)) == TIMESTAMP
    message, keys = received.respond(5, preshared_key, os.urandom)
    assert initiator.read_message(message[12:]) == b""
    assert TransportKeys(keys.receive, keys.send) == transport_keys(initiator)


def exchange(
    alice: StaticKey, bob: StaticKey, alice_psk: bytes, bob_psk: bytes
) -> tuple[TransportKeys, TransportKeys]:
    initiator = Initiator(alice, bob.public, alice.shared_with(bob.public), TIMESTAMP, 1, os.urandom)
    initiation = parse_initiation(initiator.message + bytes(32))
    assert initiation is not None
    received = Received(bob, initiation)
    received.open_timestamp(bob.shared_with(received.remote))
    message, bobs = received.respond(2, bob_psk, os.urandom)
    response = parse_response(message + bytes(32))
    assert response is not None
    return initiator.consume_response(alice, response, alice_psk), bobs


def test_alice_and_bob_get_the_same_keys_and_never_the_same_twice() -> None:
    alice, bob = StaticKey(os.urandom(32)), StaticKey(os.urandom(32))
    first = exchange(alice, bob, b"p" * 32, b"p" * 32)
    assert (first[0].send, first[0].receive) == (first[1].receive, first[1].send)
    assert exchange(alice, bob, b"p" * 32, b"p" * 32)[0] != first[0]


def test_another_preshared_key_ends_the_handshake() -> None:
    alice, bob = StaticKey(os.urandom(32)), StaticKey(os.urandom(32))
    with pytest.raises(InvalidHandshakeError):
        exchange(alice, bob, b"p" * 32, b"q" * 32)


def test_each_changed_bit_of_an_initiation_is_noticed() -> None:
    alice, bob = StaticKey(os.urandom(32)), StaticKey(os.urandom(32))
    static_static = bob.shared_with(alice.public)
    message = Initiator(alice, bob.public, static_static, TIMESTAMP, 1, os.urandom).message
    # Bits from the ephemeral key on; type and sender are MAC1's to guard. The top bit of an X25519 key is
    # masked (RFC 7748 section 5), yet hashed, so that it too is noticed.
    for bit in range(8 * 8, len(message) * 8):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        initiation = parse_initiation(bytes(changed) + bytes(32))
        assert initiation is not None
        with pytest.raises(InvalidHandshakeError):
            Received(bob, initiation).open_timestamp(static_static)


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_a_low_order_point_is_refused(point: bytes) -> None:
    key = StaticKey(os.urandom(32))
    with pytest.raises(InvalidHandshakeError):
        dh(key.private, point)
    with pytest.raises(InvalidHandshakeError):
        Received(key, Initiation(1, point, bytes(48), bytes(28)))
