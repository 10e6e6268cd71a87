"""CPace over X25519 with SHA-512: two sides that share a password agree on a key. A recording reveals nothing.

This is CPACE-X25519-SHA512 of draft-irtf-cfrg-cpace, with initiator and responder roles. An attacker without the
password can test one guess per run, online, because a share commits to the generator and so to one password.

Timing: the map to the curve uses Python integers and isn't constant-time. Its input is made from the password, which
is a stretched secret of 32 bytes, and a session id that is fresh for each run. So measurements can't be averaged over
runs, and one run's timing doesn't help to test a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha512

from nacl.bindings import crypto_scalarmult
from nacl.exceptions import RuntimeError as SodiumError

SHARE_SIZE = 32
ISK_SIZE = 64

_DSI = b"CPace255"
_DSI_ISK = b"CPace255_ISK"
# The block size of SHA-512: the password fills the first block with zeros, so that CI and sid start the second.
_HASH_BLOCK = 128

# Curve25519: v^2 = u^3 + A u^2 + u over the field of P elements; 2 is the non-square that Elligator 2 takes.
_P = 2**255 - 19
_A = 486662
_NON_SQUARE = 2


def lv(data: bytes) -> bytes:
    """Return data prefixed with its length as LEB128 (the draft's prepend_len)."""
    length = len(data)
    prefix = bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + data


def lv_cat(*parts: bytes) -> bytes:
    """Return the parts concatenated, each prefixed with its length."""
    return b"".join(map(lv, parts))


def elligator2(field_element: bytes) -> bytes:
    """Map 32 bytes onto Curve25519 (RFC 9380, section 6.7.1, the u coordinate alone).

    Args:
        field_element: Little-endian; the highest bit is ignored, as in RFC 7748.

    Returns:
        The u coordinate, 32 bytes little-endian.
    """
    r = int.from_bytes(field_element, "little") & (1 << 255) - 1
    # 1 + 2 r^2 is never 0: -1/2 is not a square modulo P.
    v = -_A * pow(1 + _NON_SQUARE * r * r, -1, _P) % _P
    gx = v * (v * v + _A * v + 1) % _P
    is_square = pow(gx, (_P - 1) // 2, _P) != _P - 1
    u = v if is_square else -v - _A
    return (u % _P).to_bytes(32, "little")


def generator(prs: bytes, ci: bytes, sid: bytes) -> bytes:
    """Return the run's generator, made from the password.

    Args:
        prs: The password-related string, any length.
        ci: The channel identifier: who talks to whom, and about what.
        sid: The session id, fresh for each run.

    Returns:
        A u coordinate, 32 bytes.
    """
    padding = bytes(max(0, _HASH_BLOCK - len(lv(prs)) - len(lv(_DSI)) - 1))
    return elligator2(sha512(lv_cat(_DSI, prs, padding, ci, sid)).digest()[:32])


class Share:
    """One side's secret scalar and the public share made with it. For one run only.

    Attributes:
        public: The share to send, 32 bytes (Ya or Yb).
    """

    __slots__ = ("_scalar", "public")

    def __init__(self, run_generator: bytes, random: Callable[[int], bytes]) -> None:
        self._scalar = random(32)
        self.public = crypto_scalarmult(self._scalar, run_generator)

    def exchange(self, other: bytes) -> bytes | None:
        """Return the Diffie-Hellman value K, 32 bytes, or None for a share of low order, which must end the run."""
        try:
            return crypto_scalarmult(self._scalar, other)
        except SodiumError:
            return None


def intermediate_session_key(
    sid: bytes, k: bytes, initiator_share: bytes, ad_a: bytes, responder_share: bytes, ad_b: bytes
) -> bytes:
    """Return the ISK, 64 bytes (the draft's transcript_ir: the initiator's share first).

    Args:
        sid: The session id.
        k: What `Share.exchange` returned.
        initiator_share: Ya, 32 bytes.
        ad_a: The initiator's associated data, ADa.
        responder_share: Yb, 32 bytes.
        ad_b: The responder's associated data, ADb.
    """
    head = lv_cat(_DSI_ISK, sid, k)
    return sha512(head + lv_cat(initiator_share, ad_a) + lv_cat(responder_share, ad_b)).digest()
