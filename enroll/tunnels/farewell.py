"""What proves that a client leaves its network, and that its server has answered (docs/internals/reports.md)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import public_key
from rustguard_py.protocol.noise import InvalidHandshakeError, dh

_LABEL = b"rustguard farewell 1"


@dataclass(frozen=True, slots=True)
class Proofs:
    """What only a client and its server can make, as long as the client's join is valid.

    Attributes:
        leave: 32 bytes, from the client.
        left: 32 bytes, from the server.
    """

    leave: bytes = field(repr=False)
    left: bytes = field(repr=False)


def of_client(private_key: bytes, server_key: bytes, preshared_key: bytes) -> Proofs:
    """Return a client's proofs.

    Args:
        private_key: Its own, 32 bytes.
        server_key: The server's public key in the first tunnel, 32 bytes.
        preshared_key: From its last join, 32 bytes.

    Raises:
        UsageError: `server_key` is none that a server can have.
    """
    secret = _secret(private_key, server_key, preshared_key)
    return _proofs(secret, public_key(private_key), server_key)


def of_server(private_key: bytes, client_key: bytes, preshared_key: bytes) -> Proofs:
    """Return a server's proofs of a peer; see `of_client`."""
    secret = _secret(private_key, client_key, preshared_key)
    return _proofs(secret, client_key, public_key(private_key))


def _secret(private_key: bytes, other_key: bytes, preshared_key: bytes) -> bytes:
    # A join gives another preshared key, so what proved an earlier leaving proves nothing afterwards.
    try:
        shared = dh(X25519PrivateKey.from_private_bytes(private_key), other_key)
    except InvalidHandshakeError as error:
        raise UsageError("That public key is invalid: no private key belongs to it.") from error
    return hmac.digest(preshared_key, _LABEL + shared, "sha256")


def _proofs(secret: bytes, client_key: bytes, server_key: bytes) -> Proofs:
    leave, left = (hmac.digest(secret, word + client_key + server_key, "sha256") for word in (b"leave", b"left"))
    return Proofs(leave, left)
