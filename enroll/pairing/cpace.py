"""CPace over ristretto255 with SHA-512: two sides that share a password agree on a key.

CPACE-RISTR255-SHA512 of draft-irtf-cfrg-cpace (revision 21), initiator and responder roles. A recorder
learns nothing. A side that doesn't hold the password can test one guess per run, and only online: a share
commits to the generator it was made with, and so to one password.

Timing: everything that depends on the password is SHA-512 or an operation of `ristretto`, and both take the
same time for every value.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha512

from rustguard_py.enroll.pairing.ristretto import ELEMENT_SIZE, GROUP, SCALAR_SIZE, UNIFORM_SIZE

SHARE_SIZE = ELEMENT_SIZE
ISK_SIZE = 64

_DSI = b"CPaceRistretto255"
_DSI_ISK = b"CPaceRistretto255_ISK"
# The block size of SHA-512: the password fills the first block with zeros, so that CI and sid start the second.
_HASH_BLOCK = 128


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


def generator(prs: bytes, ci: bytes, sid: bytes) -> bytes:
    """Return the run's generator, made from the password: an element, 32 bytes.

    Args:
        prs: The password-related string, any length.
        ci: The channel identifier: the two parties and the purpose.
        sid: The session id, fresh for each run.
    """
    padding = bytes(max(0, _HASH_BLOCK - len(lv(prs)) - len(lv(_DSI)) - 1))
    uniform = sha512(lv_cat(_DSI, prs, padding, ci, sid)).digest()
    return GROUP.from_hash(uniform[:UNIFORM_SIZE])


class Share:
    """One side's secret scalar and the public share made with it. For one run only.

    Args:
        run_generator: From `generator`.
        random: Returns so many random bytes.

    Attributes:
        public: The share to send, 32 bytes (Ya or Yb).
    """

    __slots__ = ("_scalar", "public")

    def __init__(self, run_generator: bytes, random: Callable[[int], bytes]) -> None:
        # Below 2^252, and so below the group's order, as the draft samples scalars (section 8.3).
        scalar = bytearray(random(SCALAR_SIZE))
        scalar[-1] &= 0x0F
        self._scalar = bytes(scalar)
        public = GROUP.multiply(self._scalar, run_generator)
        if public is None:
            raise ValueError("a scalar of 0, or a generator that encodes no element")
        self.public = public

    def exchange(self, other: bytes) -> bytes | None:
        """Return the Diffie-Hellman value K, 32 bytes. None for an invalid share: the run must end."""
        return GROUP.multiply(self._scalar, other)


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
