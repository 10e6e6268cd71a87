"""A UDP relay that mistreats what it carries: loses, delays, reorders, duplicates, corrupts, records. Seeded.

It stands in a host between two others (`start`), or runs by itself (`relay.py --help`). Clients send to its
listening address; each client's datagrams go on to the target from a port of the client's own, as behind a
NAT, and the answers come back. Both directions are treated alike.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import IO

from rustguard_py.lab.hosts import Host

Address = tuple[str, int]
# linux/udp.h
_SOL_UDP, _UDP_GRO = 17, 104


@dataclass(frozen=True, slots=True)
class Ills:
    """What is done to datagrams. Fractions of 0 to 1; seconds.

    Attributes:
        loss: Dropped.
        duplicate: Sent twice, the copy within `span`.
        corrupt: One bit flipped.
        reorder: Held back up to `span`, while others pass.
        span: How long the two above may take.
        delay: What every datagram waits.
        cut: Of datagrams that came as one message that the kernel was to cut, all but the first: one bit flipped.
        above: Datagrams longer than this many bytes vanish; 0 for no bound.
        seed: Of all choices: the same arrivals are treated the same.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    span: float = 0.03
    delay: float = 0.0
    cut: float = 0.0
    above: int = 0
    seed: int = 1


class Fate:
    """Decides what becomes of each datagram; knows no socket and no clock."""

    def __init__(self, ills: Ills) -> None:
        self.ills = ills
        self.counts: Counter[str] = Counter()
        self._random = random.Random(ills.seed)

    def of(self, datagram: bytes, follows: bool = False) -> list[tuple[float, bytes]]:
        """What is to be sent in a datagram's place, each after how many seconds.

        Args:
            datagram: What came.
            follows: Whether it isn't the first of a message that the kernel was to cut.
        """
        ills, chance = self.ills, self._random.random
        self.counts["received"] += 1
        if chance() < ills.loss or 0 < ills.above < len(datagram):
            self.counts["lost"] += 1
            return []
        if datagram and (chance() < ills.corrupt or (follows and ills.cut and chance() < ills.cut)):
            self.counts["corrupted"] += 1
            bit = self._random.randrange(8 * len(datagram))
            changed = bytearray(datagram)
            changed[bit // 8] ^= 1 << bit % 8
            datagram = bytes(changed)
        late = 0.0
        if chance() < ills.reorder:
            self.counts["reordered"] += 1
            late = chance() * ills.span
        sent = [(ills.delay + late, datagram)]
        if chance() < ills.duplicate:
            self.counts["duplicated"] += 1
            sent.append((ills.delay + chance() * ills.span, datagram))
        return sent


@dataclass(slots=True)
class Relay:
    """The sockets of the relay and what waits to be sent."""

    listen: Address
    target: Address
    fate: Fate
    record: IO[str] | None = None
    # What clients come from for the target, each from the next; empty for one address of the host's.
    sources: Sequence[str] = ()
    _waiting: list[tuple[float, int, socket.socket, Address | None, bytes]] = field(default_factory=list)
    _upstream: dict[Address, socket.socket] = field(default_factory=dict)
    _order: int = 0

    def run(self) -> None:
        """Relay until SIGTERM."""
        selector = selectors.DefaultSelector()
        front = _socket(self.listen[0])
        front.bind(self.listen)
        selector.register(front, selectors.EVENT_READ, None)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            wait = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            for key, _ in selector.select(wait):
                if key.data is None:
                    self._from_clients(front, selector)
                else:
                    self._from_target(key.fileobj, front, key.data)
            self._send_due()

    def _from_clients(self, front: socket.socket, selector: selectors.BaseSelector) -> None:
        for datagram, client, follows in _drain(front):
            if client not in self._upstream:
                self._upstream[client] = _socket(self.target[0])
                if self.sources:
                    self._upstream[client].bind((self.sources[len(self._upstream) % len(self.sources)], 0))
                self._upstream[client].connect(self.target)
                selector.register(self._upstream[client], selectors.EVENT_READ, client)
            self._take(datagram, "to target", client, self._upstream[client], None, follows)

    def _from_target(self, upstream: object, front: socket.socket, client: Address) -> None:
        assert isinstance(upstream, socket.socket)
        for datagram, _, follows in _drain(upstream):
            self._take(datagram, "to client", client, front, client, follows)

    def _take(
        self,
        datagram: bytes,
        way: str,
        client: Address,
        out: socket.socket,
        to: Address | None,
        follows: bool,
    ) -> None:
        if self.record is not None:
            line = {"time": time.monotonic(), "way": way, "client": client, "datagram": datagram.hex()}
            self.record.write(json.dumps(line) + "\n")
        now = time.monotonic()
        for after, piece in self.fate.of(datagram, follows):
            if after <= 0:
                _send(out, to, piece)
                continue
            self._order += 1
            heapq.heappush(self._waiting, (now + after, self._order, out, to, piece))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, out, to, datagram = heapq.heappop(self._waiting)
            _send(out, to, datagram)


def _socket(host: str) -> socket.socket:
    family = socket.AF_INET if ip_address(host).version == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    # What one end sent as one message comes as one: a link between network namespaces cuts nothing.
    made.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    return made


def _drain(source: socket.socket) -> list[tuple[bytes, Address, bool]]:
    """The datagrams of up to 64 messages, each with whether it isn't the first of its message.

    An ICMP error of an earlier send is no datagram.
    """
    got = []
    for _ in range(64):
        try:
            message, control, _, address = source.recvmsg(65_535, socket.CMSG_SPACE(4))
        except BlockingIOError:
            break
        except ConnectionError:
            continue
        size = next((int.from_bytes(data[:4], sys.byteorder) for _, _, data in control), 0) or len(message) or 1
        for at in range(0, max(len(message), 1), size):
            got.append((message[at : at + size], (address[0], address[1]), at > 0))
    return got


def _send(out: socket.socket, to: Address | None, datagram: bytes) -> None:
    try:
        out.send(datagram) if to is None else out.sendto(datagram, to)
    except OSError:
        # A full buffer or an unreachable host: to those who talk through us it's one more loss.
        return


def start(
    host: Host,
    listen: Address,
    target: Address,
    ills: Ills | None = None,
    record: Path | None = None,
    sources: IPv4Network | None = None,
) -> subprocess.Popen[str]:
    """Start a relay in a host, and come back when it listens.

    SIGTERM ends it (the lab does that too); the last line of its stdout is then a JSON object: how many it
    received, lost, corrupted, reordered and duplicated.

    Args:
        host: Where it runs.
        listen: Where clients send to.
        target: Where they mean to send to.
        ills: What it does to datagrams; nothing by default.
        record: A file for every datagram as it came in, a JSON object a line: time, way (`to target`, `to client`),
            client, datagram (hex).
        sources: Addresses that clients come from for the target, each from another; its route to them is the
            caller's to make. By default all come from the host's.
    """
    if sources is not None:
        host.ip([f"route add local {sources} dev lo"])
    ills = ills or Ills()
    options = [f"--{name}={getattr(ills, name)}" for name in Ills.__dataclass_fields__]
    recorded = [f"--record={record}"] if record else []
    recorded += [f"--sources={sources}"] if sources is not None else []
    ends = [*map(str, listen), *map(str, target)]
    program = host.popen([sys.executable, __file__, *options, *recorded, *ends], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


def main() -> None:
    """Run by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, about in Ills.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", type=type(about.default), default=about.default)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--sources", type=IPv4Network)
    for name in ("listen", "target"):
        parser.add_argument(f"{name}_host")
        parser.add_argument(f"{name}_port", type=int)
    given = parser.parse_args()
    fate = Fate(Ills(**{name: getattr(given, name) for name in Ills.__dataclass_fields__}))

    def end(*_: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    record = given.record.open("w", buffering=1) if given.record else None
    try:
        sources = [str(each) for each in given.sources.hosts()] if given.sources else []
        listen, target = (given.listen_host, given.listen_port), (given.target_host, given.target_port)
        Relay(listen, target, fate, record, sources).run()
    finally:
        sys.stdout.write(json.dumps(fate.counts) + "\n")


if __name__ == "__main__":
    main()
