"""The program at the other end of a product's memif: it has the inner addresses, and answers pings.

It is made of planes of ours: packets of the memif come through a tunnel of its own into a channel, which is in its
hands.
"""

from __future__ import annotations

import struct
import threading
import time
from ipaddress import IPv4Address, ip_network

from rustguard_py.model.memif import MemifOptions
from support.channel_pair import PEER, eventually
from support.memif_pair import MemifPair

_ECHO, _ANSWER = 8, 0
_ANYTHING = [ip_network("0.0.0.0/0")]


class MemifProgram:
    """A program that runs until `close`.

    Args:
        memif: Its end of the memif.
        address: The address that it pings from.
    """

    def __init__(self, memif: MemifOptions, address: str) -> None:
        self.pair = MemifPair(memif)
        self._address = IPv4Address(address)
        bob = self.pair.bob
        self.pair.alice.set_peer(PEER, bob.endpoint, _ANYTHING, 0)
        bob.plane.set_peer(PEER, self.pair.endpoint, _ANYTHING, 0)
        self._answers: list[bytes] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def is_connected(self) -> bool:
        """Whether the product is at its memif."""
        return self.pair.is_connected()

    def wait_for_connection(self) -> None:
        """Return once it has a connection."""
        self.pair.wait_for_connection()

    def pings(self, address: str) -> None:
        """Send echo requests to an inner address until one is answered with the bytes that were sent."""
        text = time.monotonic_ns().to_bytes(8, "big") * 8
        request = _packet(self._address, IPv4Address(address), _ECHO, text)

        def attempt() -> bool:
            self.pair.bob.channel.write_batch([request])
            time.sleep(0.05)
            return any(each.endswith(text) for each in self._answers)

        eventually(attempt, f"an answer from {address}; {self.pair.alice.stats()}")

    def close(self) -> None:
        """End."""
        self._ends.set()
        self._thread.join()
        self.pair.close()

    def _run(self) -> None:
        while not self._ends.wait(0.002):
            for packet in map(bytes, self.pair.bob.channel.read_batch(256)):
                if packet[0] != 0x45 or packet[9] != 1:
                    continue
                if packet[20] == _ANSWER:
                    self._answers.append(packet)
                elif packet[20] == _ECHO:
                    source, target = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
                    self.pair.bob.channel.write_batch([_packet(target, source, _ANSWER, packet[28:], packet[24:28])])


def _packet(source: IPv4Address, target: IPv4Address, kind: int, text: bytes, number: bytes = b"\0\7\0\1") -> bytes:
    """Return an ICMP packet."""
    message = struct.pack("!BBH", kind, 0, 0) + number + text
    message = message[:2] + _checksum(message) + message[4:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0) + source.packed + target.packed
    return head[:10] + _checksum(head) + head[12:] + message


def _checksum(text: bytes) -> bytes:
    words = sum(struct.unpack(f"!{len(text) // 2}H", text[: len(text) // 2 * 2]))
    words += text[-1] << 8 if len(text) % 2 else 0
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return struct.pack("!H", ~words & 0xFFFF)
