"""The group of CPace, ristretto255 (RFC 9496), from a library that computes in constant time.

Either curve25519-dalek, in the native extension, or libsodium (package rbcl) where that isn't built. Both
give the same bytes. No arithmetic on secrets is done in Python, whose integers take longer for some values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ELEMENT_SIZE = 32
SCALAR_SIZE = 32
# What `from_hash` takes: twice an element, so that the result is uniform.
UNIFORM_SIZE = 64


@dataclass(frozen=True, slots=True)
class Group:
    """The two operations that CPace needs.

    Attributes:
        name: Of the library.
        from_hash: Map 64 uniform bytes to an element, 32 bytes.
        multiply: Multiply an element by a scalar, 32 bytes each. None if the bytes encode no element, or if
            the product is the neutral element: the run must end.
    """

    name: str
    from_hash: Callable[[bytes], bytes]
    multiply: Callable[[bytes, bytes], bytes | None]


def native() -> Group | None:
    """Return the group of the native extension, or None where it isn't built."""
    try:
        from rustguard_py import _native
    except ImportError:
        return None
    return Group("curve25519-dalek", _native.ristretto_from_hash, _native.ristretto_multiply)


def libsodium() -> Group:
    """Return libsodium's group."""
    import rbcl

    def multiply(scalar: bytes, element: bytes) -> bytes | None:
        # libsodium 1.0.18 ignores the highest bit, which RFC 9496 wants to be 0, and the binding multiplies what
        # encodes no element. Shares are public, so these checks may take any time.
        if element[-1] >> 7 or not rbcl.crypto_core_ristretto255_is_valid_point(element):
            return None
        try:
            return bytes(rbcl.crypto_scalarmult_ristretto255(scalar, element))
        except (RuntimeError, ValueError):
            return None

    return Group("libsodium", lambda uniform: bytes(rbcl.crypto_core_ristretto255_from_hash(uniform)), multiply)


GROUP = native() or libsodium()
