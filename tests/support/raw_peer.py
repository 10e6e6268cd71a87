"""A peer made by hand, which does what no honest one would: a program for a host of the lab.

    python raw_peer.py move SERVER PORT PRIVATE_KEY SERVER_KEY RATE SECONDS
    python raw_peer.py shake SERVER PORT PRIVATE_KEY SERVER_KEY PAUSE SECONDS

`move` shakes hands and then sends datagrams of its session from two ports by turns. It prints `moving` when it
begins and how many it sent at the end. `shake` shakes hands again and again, and prints the seconds that each
answer took. It answers challenges. Keys are hex. The variables PRESHARED_KEY (hex) and CLOCK (seconds that its clock
is ahead) are for a peer that has the one, or whose clock is wrong.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from itertools import count

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from rustguard_py.model.keys import NO_PRESHARED_KEY
from rustguard_py.protocol import cookie, wire
from rustguard_py.protocol.noise import Initiator, StaticKey, TransportKeys
from rustguard_py.protocol.tai64n import Tai64nClock

# How long to wait for an answer before asking again, seconds.
PATIENCE = 1.0
_BATCH = 50


class RawPeer:
    """A peer.

    Args:
        server: Where the other end is.
        private_key: Ours, 32 bytes.
        public_key: Theirs, 32 bytes.
        preshared_key: 32 bytes.
        ahead: How many seconds our clock is ahead.
    """

    def __init__(
        self,
        server: tuple[str, int],
        private_key: bytes,
        public_key: bytes,
        preshared_key: bytes = NO_PRESHARED_KEY,
        ahead: int = 0,
    ) -> None:
        self.server = server
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._static = StaticKey(private_key)
        self._remote = public_key
        self._shared = self._static.shared_with(public_key)
        self._preshared_key = preshared_key
        self._clock = Tai64nClock(lambda: time.time_ns() + ahead * 10**9)
        self._cookie: bytes | None = None

    def shake(self, patience: float = PATIENCE) -> tuple[TransportKeys, int] | None:
        """Shake hands. Return the keys and the other's index, or None if no answer came in time."""
        index = int.from_bytes(os.urandom(4), "little")
        half = Initiator(self._static, self._remote, self._shared, self._clock.next(), index, os.urandom)
        sent = cookie.add_macs(half.message, cookie.mac1_key(self._remote), self._cookie)
        self.socket.sendto(sent, self.server)
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                datagram = self.socket.recv(2048)
            except TimeoutError:
                return None
            if (reply := wire.parse_cookie_reply(datagram)) is not None and reply.receiver == index:
                self._cookie = cookie.open_cookie(reply, sent[-32:-16], cookie.cookie_key(self._remote))
                return self.shake(left)
            response = wire.parse_response(datagram)
            if response is not None and response.receiver == index:
                return half.consume_response(self._static, response, self._preshared_key), response.sender
        return None

    def move(self, rate: float, seconds: float) -> int:
        """Send keepalives of a session from two ports by turns. Return how many went out."""
        while (made := self.shake()) is None:
            pass
        keys, receiver = made
        seal = ChaCha20Poly1305(keys.send).encrypt
        ports = [self.socket, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        for each in ports:
            each.settimeout(0.1)
        print("moving", flush=True)
        began = time.monotonic()
        for number in count():
            counter = number.to_bytes(8, "little")
            header = wire.data_header(receiver, number)
            ports[number % 2].sendto(header + seal(bytes(4) + counter, b"", None), self.server)
            if number % _BATCH == 0:
                passed = time.monotonic() - began
                if passed >= seconds:
                    return number
                time.sleep(max(0.0, number / rate - passed))
        raise AssertionError


def main() -> None:
    """Run by itself."""
    what, server, port, private_key, public_key, number, seconds = sys.argv[1:]
    preshared_key = bytes.fromhex(os.environ.get("PRESHARED_KEY", bytes(32).hex()))
    ahead = int(os.environ.get("CLOCK", "0"))
    peer = RawPeer((server, int(port)), bytes.fromhex(private_key), bytes.fromhex(public_key), preshared_key, ahead)
    if what == "move":
        print(peer.move(float(number), float(seconds)))
        return
    took: list[float | None] = []
    ends = time.monotonic() + float(seconds)
    while time.monotonic() < ends:
        began = time.monotonic()
        took.append(time.monotonic() - began if peer.shake() else None)
        time.sleep(float(number))
    print(json.dumps(took))


if __name__ == "__main__":
    main()
