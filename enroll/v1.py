"""Enrollment version 1, the first RustGuard's: one datagram each way, sealed with a key made of the token.

::

    request   76 bytes   "RGE" 1, nonce 24, sealed(client's public key 32)
    response  81 bytes   "RGE" 2, nonce 24, sealed(server's public key 32, IPv4 address 4, prefix length 1)

Each is sealed by XChaCha20-Poly1305 with its first four bytes as associated data.

What it can't do is why there is a version 2: a recorder can test tokens against one datagram, so the token must be
too long to be guessed; a response isn't bound to its request; a source address isn't proven, so none is believed;
and the tunnel has no preshared key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2s
from ipaddress import IPv4Interface
from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from rustguard_py.enroll.cookies import Pace, SourcePaces, source_of
from rustguard_py.enroll.messages import Admission
from rustguard_py.enroll.pairing_client import (
    RETRANSMISSIONS,
    RETRANSMIT_SECONDS,
    Failed,
    Failure,
    Joined,
    Transmit,
    wrong_server,
)
from rustguard_py.enroll.pairing_server import (
    CHALLENGE_BURST,
    CHALLENGES_A_SECOND,
    SHARE_BURST,
    SHARES_A_SECOND,
)
from rustguard_py.enroll.window import Window
from rustguard_py.noise import NO_PRESHARED_KEY
from rustguard_py.planes.contract import Endpoint
from rustguard_py.state.identity import parse_fingerprint

REQUEST: Final = b"RGE\x01"
RESPONSE: Final = b"RGE\x02"
REQUEST_SIZE: Final = 76
RESPONSE_SIZE: Final = 81
# Its messages carry neither; both are what the first RustGuard's own client has.
MTU: Final = 1420
KEEPALIVE: Final = 25
_NONCE: Final = 24
_KEY: Final = 32

Random = Callable[[int], bytes]


def token_key(token: str) -> bytes:
    """Give the 32 bytes that both ends seal with."""
    return blake2s(b"rustguard-enroll-v1" + token.encode()).digest()


def _seal(magic: bytes, key: bytes, plaintext: bytes, random: Random) -> bytes:
    nonce = random(_NONCE)
    return magic + nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, magic, nonce, key)


def _open(magic: bytes, key: bytes, datagram: bytes) -> bytes | None:
    start = len(magic)
    nonce, sealed = datagram[start : start + _NONCE], datagram[start + _NONCE :]
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, magic, nonce, key)
    except CryptoError:
        return None


class Server:
    """The server's side, without a socket: a request in, the public key of who wants to join out.

    What isn't sealed with the token is dropped and charged to nobody: sources can be forged here, so anybody could
    use up the window's guesses, and a token of 80 bits isn't found at the pace that a source has.

    Args:
        token: At least 80 bits; the caller sees to that.
        window: While it is closed, nothing is answered.
        random: Gives so many random bytes.
    """

    def __init__(self, token: str, window: Window, random: Random) -> None:
        self._key = token_key(token)
        self._window = window
        self._random = random
        self._sources = SourcePaces(CHALLENGES_A_SECOND, CHALLENGE_BURST, random)
        self._all = Pace(SHARES_A_SECOND, SHARE_BURST)

    def handle(self, datagram: bytes, source: Endpoint, now: float) -> bytes | None:
        """Give the public key (32 bytes) in a request, or None where there is none to answer."""
        if len(datagram) != REQUEST_SIZE or not datagram.startswith(REQUEST) or not self._window.is_open(now):
            return None
        if not self._sources.take(source_of(source), now) or not self._all.take(now):
            return None
        return _open(REQUEST, self._key, datagram)

    def response(self, server_key: bytes, address: IPv4Interface) -> bytes:
        """Make the answer for who was let in.

        Args:
            server_key: Our public key, 32 bytes.
            address: The client's, with the pool's prefix length.
        """
        plaintext = server_key + address.ip.packed + bytes([address.network.prefixlen])
        return _seal(RESPONSE, self._key, plaintext, self._random)


class Client:
    """The client's side, with the calls of `pairing_client.PairingClient`.

    Args:
        token: As the person typed it.
        public_key: Ours, 32 bytes.
        name: What we call ourselves: the server isn't told.
        random: Gives so many random bytes.
        now: Monotonic seconds.
        expected: The fingerprint given with `--server`.
        known_server: The server's public key kept from an earlier join.

    Attributes:
        outcome: None until the join has ended.

    Raises:
        UsageError: The fingerprint can't be meant.
    """

    def __init__(
        self,
        token: str,
        public_key: bytes,
        name: str,
        random: Random,
        now: float,
        *,
        expected: str | None = None,
        known_server: bytes | None = None,
    ) -> None:
        self._key = token_key(token)
        self._name = name
        self._expected = None if expected is None else parse_fingerprint(expected)
        self._known_server = known_server
        self._request = Transmit(_seal(REQUEST, self._key, public_key, random), None)
        self._transmits = deque([self._request])
        self._tries = 0
        self._deadline = now + RETRANSMIT_SECONDS
        self.outcome: Joined | Failed | None = None

    def poll_transmit(self) -> Transmit | None:
        """Give the next datagram to send, or None for now."""
        return self._transmits.popleft() if self._transmits else None

    def poll_timeout(self) -> float | None:
        """When to call `handle_timeout`; None once the join has ended."""
        return None if self.outcome is not None else self._deadline

    def handle(self, datagram: bytes, source: Endpoint, now: float) -> None:  # noqa: ARG002 - the twin's signature
        """Take a datagram that came in; what isn't sealed with the token changes nothing."""
        if self.outcome is not None or len(datagram) != RESPONSE_SIZE or not datagram.startswith(RESPONSE):
            return
        plaintext = _open(RESPONSE, self._key, datagram)
        if plaintext is not None:
            self.outcome = self._read(plaintext, source)

    def handle_timeout(self, now: float) -> None:
        """Send again what stayed unanswered, or give up."""
        if self.outcome is not None or now < self._deadline:
            return
        if self._tries >= RETRANSMISSIONS:
            self.outcome = Failed(Failure.SILENT, "Or the token is another one, for which version 1 has no word.")
            return
        self._tries += 1
        self._deadline = now + RETRANSMIT_SECONDS
        self._transmits.append(self._request)

    def _read(self, plaintext: bytes, source: Endpoint) -> Joined | Failed:
        server_key, packed, prefix = plaintext[:_KEY], plaintext[_KEY:-1], plaintext[-1]
        if prefix > 30:
            return Failed(Failure.INCOMPATIBLE)
        address = IPv4Interface((packed, prefix))
        wrong = wrong_server(server_key, self._expected, self._known_server)
        return wrong or Joined(_admission(self._name, server_key, address, source[1]), NO_PRESHARED_KEY, source)


def _admission(name: str, server_key: bytes, address: IPv4Interface, port: int) -> Admission:
    return Admission(
        name=name,
        address4=address,
        address6=None,
        server_key=server_key,
        port=port,
        mtu=MTU,
        keepalive=KEEPALIVE,
        routes=(),
        # The first RustGuard's server has the first address of its pool.
        gateway4=address.network[1],
        gateway6=None,
    )
