"""A plane on a memif, and another on a channel, over UDP on this machine: what one end says the other hears."""

from __future__ import annotations

import os
import socket
import sys
import time
from ipaddress import ip_network
from pathlib import Path

from rustguard_py.engine import Engine
from rustguard_py.model.clock import now
from rustguard_py.model.ethernet import EthernetOptions
from rustguard_py.model.memif import MemifOptions
from rustguard_py.planes.contract import EventfulPlane, Keypair
from support.channel_pair import ALICE4, ALICE6, BOB4, BOB6, PATIENCE, PEER, Side, eventually, side, to_alice

MAC = b"\x02\0\0\0\0\x07"
# Of what nobody sends back, nothing comes within this time, seconds.
QUIET = 0.5


def options(path: Path, *, server: bool, queues: int = 1) -> MemifOptions:
    """What `support.testpmd` connects to."""
    return MemifOptions(path, 5, server, b"psst", queues, EthernetOptions(MAC))


def exchanged(packet: bytes) -> bytes:
    """Return a UDP packet as 5tswap sends it back."""
    start, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    ports = start + 2 * size
    source, target = packet[start : start + size], packet[start + size : ports]
    return (
        packet[:start]
        + target
        + source
        + packet[ports + 2 : ports + 4]
        + packet[ports : ports + 2]
        + packet[ports + 4 :]
    )


class MemifPair:
    """Alice, behind whose memif the other program is, and Bob, whose channel is in our hands. They have a session.

    Args:
        memif: Alice's.

    Attributes:
        endpoint: Alice's.
    """

    def __init__(self, memif: MemifOptions) -> None:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", 0))
        self.endpoint = endpoint = bound.getsockname()
        engine = Engine("native", "", queues=memif.queues, memif=memif)
        self.alice: EventfulPlane = engine.make_plane(bytes(32), "wg0", [bound], 1420)
        self.bob: Side = side(Engine("native", ""), 4096)
        self.alice.set_peer(PEER, self.bob.endpoint, [ip_network(BOB4), ip_network(BOB6)], 0)
        self.bob.plane.set_peer(PEER, endpoint, [ip_network(ALICE4), ip_network(ALICE6)], 0)
        self.connect()

    def connect(self) -> None:
        """Make a session, as after a handshake."""
        one, other = os.urandom(32), os.urandom(32)
        ours, theirs = self.alice.reserve_index(PEER), self.bob.plane.reserve_index(PEER)
        self.alice.install_keypair(PEER, Keypair(ours, theirs, one, other, False, now()))
        self.bob.plane.install_keypair(PEER, Keypair(theirs, ours, other, one, True, now()))

    def move_bob(self) -> None:
        """Give Bob another UDP port. Alice may receive his datagrams on another queue then."""
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind(("127.0.0.1", 0))
        self.bob.plane.rebind([bound])

    def is_connected(self) -> bool:
        """Whether Alice's memif is."""
        return ": connected to " in self.alice.stats().device

    def wait_for_connection(self) -> None:
        """Return once Alice's memif has one."""
        try:
            eventually(self.is_connected, "")
        except AssertionError:
            raise AssertionError(self.alice.stats().device) from None

    def echo(self, count: int, first: int = 0, patience: float = PATIENCE) -> int:
        """Send so many packets from Bob, of both families and all sizes, and return how many came back.

        Each that comes back is compared with what was sent. No more than fit into a ring are on their way at once. It
        ends when nothing comes for `patience` seconds.
        """
        waiting: set[bytes] = set()
        came = sent = 0
        quiet = time.monotonic() + patience
        while came < count and time.monotonic() < quiet:
            if sent < count and sent - came < 512:
                batch = [self._packet(first + number) for number in range(sent, min(count, sent + 64))]
                batch = batch[: self.bob.channel.write_batch(batch)]
                waiting.update(map(exchanged, batch))
                sent += len(batch)
            for packet in map(bytes, self.bob.channel.read_batch(256)):
                waiting.remove(packet)
                came += 1
                quiet = time.monotonic() + patience
        return came

    def read_all(self) -> list[bytes]:
        """Return what comes to Bob until nothing comes any more."""
        packets: list[bytes] = []
        quiet = time.monotonic() + 4 * QUIET
        while time.monotonic() < quiet:
            if came := [bytes(packet) for packet in self.bob.channel.read_batch(256)]:
                packets += came
                quiet = time.monotonic() + QUIET
        return packets

    def drops(self) -> dict[str, int]:
        """What both planes have dropped, by reason."""
        total: dict[str, int] = {}
        for plane in (self.alice, self.bob.plane):
            for reason, count in plane.stats().drops.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def close(self) -> None:
        self.alice.close()
        self.bob.plane.close()

    @staticmethod
    def _packet(number: int) -> bytes:
        return to_alice(8 + number * 37 % 1360, 4 if number % 2 else 6)


def main() -> None:
    """Say when the memif is open, then echo packets until somebody kills this program, and say how many each time."""
    path, role = sys.argv[1:]
    pair = MemifPair(options(Path(path), server=role == "server"))
    print("open", flush=True)
    pair.wait_for_connection()
    until = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < until:
        print(pair.echo(100, patience=2 * QUIET), flush=True)


if __name__ == "__main__":
    main()
