"""The wire as docs/internals/enrollment.md describes it, spoken by a client written from that page alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from hashlib import sha256
from random import Random

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
)

from rustguard_py.enroll.pairing.cookies import Cookies
from rustguard_py.enroll.pairing.cpace import elligator2
from rustguard_py.enroll.pairing.key_schedule import stretch
from rustguard_py.enroll.pairing.server import Admit, PairingServer, Reply
from rustguard_py.enroll.pairing.window import Window
from rustguard_py.model.endpoint import Endpoint

SOURCE: Endpoint = ("192.0.2.7", 40000)


def lv_cat(*parts: bytes) -> bytes:
    assert all(len(part) < 128 for part in parts)
    return b"".join(bytes([len(part)]) + part for part in parts)


def header(kind: int) -> bytes:
    return b"RGE2" + bytes([kind, 0, 0, 0])


def reply_to(server: PairingServer, datagram: bytes) -> bytes:
    (reply,) = server.handle(datagram, SOURCE, 1.0)
    assert isinstance(reply, Reply)
    return reply.datagram


def test_the_server_understands_a_client_written_from_the_page() -> None:
    random = Random(1)
    server_id = random.randbytes(32)
    window = Window()
    window.open(60, 0.0)
    server = PairingServer(server_id, {7: stretch("café", server_id)}, window, random.randbytes, 0.0)

    nonce_c = random.randbytes(16)
    hello = header(1) + nonce_c + struct.pack("<I", 7) + bytes(100)
    challenge = reply_to(server, hello)
    assert len(challenge) == 96
    assert challenge[:24] == header(2) + nonce_c
    nonce_s, epoch_and_cookie = challenge[24:40], challenge[40:60]
    assert challenge[60:] == server_id + bytes(4)

    prs = hashlib.scrypt("café".encode(), salt=server_id, n=2**15, r=8, p=1, dklen=32, maxmem=2**26)
    sid = nonce_c + nonce_s
    ci = lv_cat(b"rge2", b"client", b"server", server_id, struct.pack("<I", 7))
    padding = bytes(128 - len(lv_cat(prs)) - len(lv_cat(b"CPace255")) - 1)
    point = elligator2(hashlib.sha512(lv_cat(b"CPace255", prs, padding, ci, sid)).digest()[:32])
    scalar = random.randbytes(32)
    ya = crypto_scalarmult(scalar, point)
    share_c = header(3) + nonce_c + nonce_s + epoch_and_cookie + struct.pack("<I", 7) + ya
    assert len(share_c) == 96
    share_s = reply_to(server, share_c)
    assert len(share_s) == 1232
    assert share_s[:8] == header(4)
    session, yb, ek = share_s[8:16], share_s[16:48], share_s[48:]
    assert session == sha256(b"rge2 session" + nonce_c + nonce_s + yb + ek).digest()[:8]

    ad = sha256(hello + challenge).digest()
    k = crypto_scalarmult(scalar, yb)
    isk = hashlib.sha512(lv_cat(b"CPace255_ISK", sid, k) + lv_cat(ya, ad) + lv_cat(yb, ad)).digest()
    ss, ct = MLKEM768PublicKey.from_public_bytes(ek).encapsulate()
    th = sha256(hello + challenge + share_c + share_s + ct).digest()
    prk = hmac.digest(th, isk + ss, "sha256")

    def expand(label: bytes) -> bytes:
        return hmac.digest(prk, label + b"\x01", "sha256")

    def nonce(label: bytes) -> bytes:
        return sha256(label + th).digest()[:24]

    public_key = random.randbytes(32)
    details = public_key + struct.pack("<HB", 0, 6) + b"laptop".ljust(45, b"\0")
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(details, th, nonce(b"seal-client"), expand(b"seal-client"))
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


def test_a_cookie_is_the_pages_hmac() -> None:
    secret = bytes(range(32))
    cookies = Cookies(lambda size: secret[:size], 0.0)
    place = bytes([192, 0, 2, 7]) + struct.pack("<H", 40000)
    expected = hmac.digest(secret, place + b"c" * 16 + b"s" * 16 + struct.pack("<I", 5), "sha256")[:16]
    assert cookies.make(SOURCE, b"c" * 16, b"s" * 16, 5) == expected
    assert cookies.make(("::ffff:192.0.2.7", 40000, 0, 0), b"c" * 16, b"s" * 16, 5) == expected
