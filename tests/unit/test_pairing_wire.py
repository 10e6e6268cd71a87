"""The wire as docs/internals/enrollment.md describes it, spoken by a client written from that page alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from hashlib import sha256
from random import Random

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from rbcl import crypto_core_ristretto255_from_hash as from_hash
from rbcl import crypto_scalarmult_ristretto255 as multiply

from rustguard_py.enroll.pairing.cookies import Cookies
from rustguard_py.enroll.pairing.key_schedule import stretch
from rustguard_py.enroll.pairing.outputs import Admit, Forgotten, Reply
from rustguard_py.enroll.pairing.server import PairingServer
from rustguard_py.enroll.pairing.window import Window
from rustguard_py.model.endpoint import Endpoint

SOURCE: Endpoint = ("192.0.2.7", 40000)


def lv_cat(*parts: bytes) -> bytes:
    assert all(len(part) < 128 for part in parts)
    return b"".join(bytes([len(part)]) + part for part in parts)


def header(kind: int) -> bytes:
    return b"RGE3" + bytes([kind, 0, 0, 0])


def public_of(private_key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def x25519(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))


def reply_to(server: PairingServer, datagram: bytes) -> bytes:
    (reply,) = server.handle(datagram, SOURCE, 1.0)
    assert isinstance(reply, Reply)
    return reply.datagram


def test_the_server_understands_a_client_written_from_the_page() -> None:
    random = Random(1)
    server_id = random.randbytes(32)
    window = Window()
    window.open(60, 0.0)
    server_private = random.randbytes(32)
    server = PairingServer(server_id, server_private, {7: stretch("café", server_id)}, window, random.randbytes, 0.0)

    nonce_c = random.randbytes(16)
    hello = header(1) + nonce_c + struct.pack("<I", 7) + bytes(100)
    challenge = reply_to(server, hello)
    assert len(challenge) == 124
    assert challenge[:24] == header(2) + nonce_c
    nonce_s, epoch_and_cookie = challenge[24:40], challenge[40:60]
    assert challenge[60:92] == server_id
    server_ephemeral = challenge[92:]

    prs = hashlib.scrypt("café".encode(), salt=server_id, n=2**15, r=8, p=1, dklen=32, maxmem=2**26)
    sid = nonce_c + nonce_s
    ci = lv_cat(b"rge3", b"client", b"server", server_id, struct.pack("<I", 7))
    padding = bytes(128 - len(lv_cat(prs)) - len(lv_cat(b"CPaceRistretto255")) - 1)
    point = from_hash(hashlib.sha512(lv_cat(b"CPaceRistretto255", prs, padding, ci, sid)).digest())
    scalar = random.randbytes(31) + b"\x0f"
    ya = bytes(multiply(scalar, point))
    ephemeral = X25519PrivateKey.from_private_bytes(random.randbytes(32))
    knows_server = struct.pack("<I", 1)
    share_c = header(3) + nonce_c + nonce_s + epoch_and_cookie + struct.pack("<I", 7) + knows_server + ya
    share_c += ephemeral.public_key().public_bytes_raw()
    assert len(share_c) == 132
    share_s = reply_to(server, share_c)
    assert len(share_s) == 1232
    assert share_s[:8] == header(4)
    session, yb, ek = share_s[8:16], share_s[16:48], share_s[48:]
    assert session == sha256(b"rge3 session" + nonce_c + nonce_s + yb + ek).digest()[:8]

    ad = sha256(hello + challenge).digest()
    k = bytes(multiply(scalar, yb))
    isk = hashlib.sha512(lv_cat(b"CPaceRistretto255_ISK", sid, k) + lv_cat(ya, ad) + lv_cat(yb, ad)).digest()
    ss, ct = MLKEM768PublicKey.from_public_bytes(ek).encapsulate()
    th = sha256(hello + challenge + share_c + share_s + ct).digest()
    server_secret = x25519(ephemeral, public_of(server_private))
    opening = hmac.digest(th, isk + ss + server_secret, "sha256")
    static = X25519PrivateKey.from_private_bytes(random.randbytes(32))
    prk = hmac.digest(opening, x25519(static, server_ephemeral), "sha256")

    def expand(label: bytes, key: bytes = prk) -> bytes:
        return hmac.digest(key, label + b"\x01", "sha256")

    def nonce(label: bytes) -> bytes:
        return sha256(label + th).digest()[:24]

    public_key = static.public_key().public_bytes_raw()
    details = public_key + struct.pack("<HB", 0, 6) + b"laptop".ljust(45, b"\0")
    seal_key = expand(b"seal-client", opening)
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(details, th, nonce(b"seal-client"), seal_key)
    confirm = header(5) + session + ct + sealed + hmac.digest(expand(b"confirm-client"), th + sealed, "sha256")
    assert len(confirm) == 1232
    (admit,) = server.handle(confirm, SOURCE, 1.0)
    assert admit == Admit(session, 7, public_key, "laptop", expand(b"psk"), SOURCE)

    (reply,) = server.answer(session, {"status": "full"}, 1.0)
    assert isinstance(reply, Reply)
    result = reply.datagram
    assert result[:16] == header(6) + session
    sealed = result[16:-32]
    assert result[-32:] == hmac.digest(expand(b"confirm-server"), th + confirm + sealed, "sha256")
    text = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, th, nonce(b"seal-server"), expand(b"seal-server"))
    assert len(text) == 64
    assert json.loads(text.rstrip(b"\0")) == {"status": "full"}

    forget = header(7) + session + hmac.digest(expand(b"forget"), th + session, "sha256")
    assert len(forget) == 48
    assert server.handle(forget, SOURCE, 1.0) == [Forgotten(public_key, expand(b"psk"), False, SOURCE, 1)]


def test_a_cookie_is_the_pages_hmac() -> None:
    secret = bytes(range(32))
    cookies = Cookies(lambda size: secret[:size], 0.0)
    place = bytes([192, 0, 2, 7]) + struct.pack("<H", 40000)
    expected = hmac.digest(secret, place + b"c" * 16 + b"s" * 16 + struct.pack("<I", 5), "sha256")[:16]
    assert cookies.make(SOURCE, b"c" * 16, b"s" * 16, 5) == expected
    assert cookies.make(("::ffff:192.0.2.7", 40000, 0, 0), b"c" * 16, b"s" * 16, 5) == expected
