"""How pairing datagrams begin, and what a plane has to know to guard a server's pairing."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

# Every pairing datagram begins with this, and then with the revision of the wire.
PAIRING_PREFIX = b"RGE"
PAIRING_REVISION = b"3"
COOKIE_SIZE = 16


@dataclass(frozen=True, slots=True)
class PairingEpoch:
    """The secrets of 120 seconds.

    Attributes:
        number: 32 bits.
        secret: Makes and checks cookies, 32 bytes.
        ephemeral: The server's X25519 public key of this epoch, 32 bytes.
    """

    number: int
    secret: bytes = field(repr=False)
    ephemeral: bytes


@dataclass(frozen=True, slots=True)
class PairingGate:
    """An open pairing window, as a plane sees it.

    Attributes:
        server_id: 32 bytes.
        current: The epoch that cookies are made in.
        previous: The epoch before, whose cookies are still valid, or None.
        linger: After the window was closed, CONFIRM and FORGET of known sessions pass for so many seconds.
    """

    server_id: bytes
    current: PairingEpoch
    previous: PairingEpoch | None = None
    linger: float = 120.0


def pairing_cookie(secret: bytes, address: bytes, port: int, covered: bytes) -> bytes:
    """Return the cookie, 16 bytes, that proves a client's address and port.

    Args:
        secret: The epoch's, 32 bytes.
        address: 4 or 16 bytes, see `endpoint.address_of`.
        port: UDP.
        covered: nonce_c, nonce_s and the token's number, as the datagram holds them.
    """
    return hmac.digest(secret, address + port.to_bytes(2, "little") + covered, "sha256")[:COOKIE_SIZE]
