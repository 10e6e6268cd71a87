"""The further tunnels of a network: their keys, ports, interfaces and timestamps (docs/enrollment.md).

Each of the server's tunnels has its own key, derived from the server's. A client has one key in all of them, the one
that it joined with.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import NO_PRESHARED_KEY, generate_private_key
from rustguard_py.system.interface import INTERFACE_NAME_LIMIT

_SALT = b"rge2 tunnels"
_LABEL = b"tunnel"


def private_key(identity: bytes, number: int) -> bytes:
    """Return the private key (32 bytes) of a server's tunnel. The first tunnel has the server's own.

    Args:
        identity: The server's private key, 32 bytes.
        number: The tunnel's, from 0.
    """
    if number == 0:
        return identity
    return generate_private_key(lambda _: _expand(hmac.digest(_SALT, identity, "sha256"), number))


def port(first: int, number: int) -> int:
    """Return a tunnel's UDP port at the server.

    The port after the first tunnel's is left out. With the kernel's engine, pairing is answered there. It is left out
    with the other engines too: `auto` may choose another engine at the next start, and clients know the ports.

    Args:
        first: The first tunnel's port.
        number: The tunnel's, from 0.
    """
    return first + number + (number > 0)


def preshared_key(joined: bytes, number: int) -> bytes:
    """Return the preshared key (32 bytes) of a tunnel. No two tunnels use the same.

    Args:
        joined: The preshared key from the join, 32 bytes; the first tunnel uses it.
        number: The tunnel's, from 0.
    """
    if number == 0 or joined == NO_PRESHARED_KEY:
        return joined
    return _expand(joined, number)


def interface(first: str, number: int) -> str:
    """Return the name of a tunnel's interface, made from the first one's.

    Raises:
        UsageError: The name would be too long.
    """
    if number == 0:
        return first
    name = f"{first}-{number}"
    if len(name.encode()) > INTERFACE_NAME_LIMIT:
        raise UsageError(
            f"{name} is too long for an interface's name, and each tunnel needs an interface.",
            f"Choose an --interface of {INTERFACE_NAME_LIMIT - 2} bytes at most.",
        )
    return name


class FurtherTimestamps:
    """The `node.Timestamps` of one further tunnel, in the journal that all tunnels share.

    The tunnels' handshakes get increasing timestamps but may arrive in another order, so each tunnel has its own
    greatest timestamp.

    Args:
        kept: The journal.
        number: The tunnel's, from 1.
    """

    __slots__ = ("_kept", "_number")

    def __init__(self, kept: KeptTimestamps, number: int) -> None:
        self._kept = kept
        self._number = number

    def greatest(self, key: bytes) -> bytes | None:
        """See `KeptTimestamps.greatest`."""
        return self._kept.greatest(self._name(key))

    def record(self, key: bytes, timestamp: bytes) -> None:
        """See `KeptTimestamps.record`."""
        self._kept.record(self._name(key), timestamp)

    def is_new(self, key: bytes, timestamp: bytes) -> bool:
        """See `KeptTimestamps.is_new`."""
        return self._kept.is_new(self._name(key), timestamp)

    def _name(self, key: bytes) -> bytes:
        return timestamp_names(key, self._number + 1)[-1]


def timestamp_names(key: bytes, tunnels: int) -> list[bytes]:
    """Return the names (32 bytes each) under which the journal has a key's timestamps in that many tunnels."""
    return [key, *(sha256(_SALT + bytes([number]) + key).digest() for number in range(1, tunnels))]


def _expand(secret: bytes, number: int) -> bytes:
    """HKDF-Expand (RFC 5869) with SHA-256, one block."""
    return hmac.digest(secret, _LABEL + bytes([number]) + b"\1", "sha256")
