"""The tunnels of a network beside its first: their keys, ports, interfaces and timestamps (docs/enrollment.md).

The server's tunnels have a key each, made from its own; all of them know a client by the one key that it joined with.
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
    """Give the private key (32 bytes) of a server's tunnel: the first has the server's own.

    Args:
        identity: The server's private key, 32 bytes.
        number: Of the tunnel, from 0.
    """
    if number == 0:
        return identity
    return generate_private_key(lambda _: _expand(hmac.digest(_SALT, identity, "sha256"), number))


def port(first: int, number: int) -> int:
    """Give a tunnel's UDP port at the server.

    The one after the first's is left out whatever the engine: pairing is answered there where the kernel has the
    first's, and `auto` may choose the kernel's at one start and not at the next, while clients know the ports.

    Args:
        first: The first tunnel's.
        number: Of the tunnel, from 0.
    """
    return first + number + (number > 0)


def preshared_key(joined: bytes, number: int) -> bytes:
    """Give the preshared key (32 bytes) of a tunnel; none is used by two.

    Args:
        joined: What the join gave, 32 bytes: that of the first.
        number: Of the tunnel, from 0.
    """
    if number == 0 or joined == NO_PRESHARED_KEY:
        return joined
    return _expand(joined, number)


def interface(first: str, number: int) -> str:
    """Name a tunnel's interface after the first one's.

    Raises:
        UsageError: There is no room for it in a name.
    """
    if number == 0:
        return first
    name = f"{first}-{number}"
    if len(name.encode()) > INTERFACE_NAME_LIMIT:
        raise UsageError(
            f"{name} is too long to name an interface, and each tunnel needs one.",
            f"Give an --interface of {INTERFACE_NAME_LIMIT - 2} bytes at most.",
        )
    return name


class FurtherTimestamps:
    """What `node.Timestamps` asks for: a tunnel's own in the journal of all.

    The tunnels stamp one after the other but are not heard in that order: each has its own greatest.

    Args:
        kept: The journal.
        number: Of the tunnel, from 1.
    """

    __slots__ = ("_kept", "_prefix")

    def __init__(self, kept: KeptTimestamps, number: int) -> None:
        self._kept = kept
        self._prefix = _SALT + bytes([number])

    def greatest(self, key: bytes) -> bytes | None:
        """See `KeptTimestamps.greatest`."""
        return self._kept.greatest(self._name(key))

    def record(self, key: bytes, timestamp: bytes) -> None:
        """See `KeptTimestamps.record`."""
        self._kept.record(self._name(key), timestamp)

    def _name(self, key: bytes) -> bytes:
        return sha256(self._prefix + key).digest()


def _expand(secret: bytes, number: int) -> bytes:
    """HKDF-Expand (RFC 5869) with SHA-256, one block."""
    return hmac.digest(secret, _LABEL + bytes([number]) + b"\1", "sha256")
