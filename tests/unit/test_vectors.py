"""Published vectors of the primitives that we take from libraries: a wrong build must not go unnoticed.

BLAKE2s and XChaCha20-Poly1305 are in test_wire.py, CPace's in test_cpace.py, the replay window's in
test_plane_window.py.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from rustguard_py.protocol.noise import dh

SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would "
    b"be it."
)


@pytest.mark.fault(31)
def test_chacha20_poly1305_reproduces_the_vector_of_rfc_8439_in_place_as_well() -> None:
    # Section 2.8.2.
    key = bytes(range(0x80, 0xA0))
    nonce = bytes.fromhex("070000004041424344454647")
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    cipher = ChaCha20Poly1305(key)
    sealed = cipher.encrypt(nonce, SUNSCREEN, aad)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    # As the plane calls it: out of one buffer, into another.
    target = bytearray(len(SUNSCREEN) + 16)
    assert cipher.encrypt_into(nonce, SUNSCREEN, aad, target) == len(target)
    assert target == sealed
    opened = bytearray(len(SUNSCREEN))
    assert cipher.decrypt_into(nonce, target, aad, opened) == len(opened)
    assert opened == SUNSCREEN


@pytest.mark.fault(31)
def test_chacha20_poly1305_opens_the_vector_of_rfc_8439_appendix_a_5() -> None:
    key = bytes.fromhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
    sealed = bytes.fromhex(
        "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb24c6cfc18755d43eea09ee94e382d26b0"
        "bdb7b73c321b0100d4f03b7f355894cf332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c855"
        "9797a06ef4f0ef61c186324e2b3506383606907b6a7c02b0f9f6157b53c867e4b9166c767b804d46a59b5216cde7a4e9"
        "9040c5a40433225ee282a1b0a06c523eaf4534d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a"
        "0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a1049e617d91d361094fa68f0ff77987130"
        "305beaba2eda04df997b714d6c6f2c29a6ad5cb4022b02709b"
    )
    tag = bytes.fromhex("eead9d67890cbb22392336fea1851f38")
    aad, nonce = bytes.fromhex("f33388860000000000004e91"), bytes.fromhex("000000000102030405060708")
    opened = ChaCha20Poly1305(key).decrypt(nonce, sealed + tag, aad)
    assert opened.startswith(b"Internet-Drafts are draft documents valid for a maximum of six months")


@pytest.mark.fault(31)
def test_x25519_reproduces_the_vectors_of_rfc_7748() -> None:
    # Section 6.1: Alice and Bob.
    alice = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert dh(alice, bob.public_key().public_bytes_raw()) == shared
    assert dh(bob, alice.public_key().public_bytes_raw()) == shared
    # Section 5.2: after a thousand times.
    k = u = (9).to_bytes(32, "little")
    for _ in range(1000):
        k, u = dh(X25519PrivateKey.from_private_bytes(k), u), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"
