"""Many clients that join a server at once, each from an address of its own: a program for a host of the lab.

They are the program's own clients, each with a socket, all in one process; the token is stretched once for all.
"""

from __future__ import annotations

import heapq
import json
import os
import resource
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from ipaddress import IPv4Network
from pathlib import Path

from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.key_schedule import stretch
from rustguard_py.enroll.pairing.outcome import Failed, Joined
from rustguard_py.lab.hosts import Host

# Of each client, and of the server.
PORT = 40_000
SERVER_PORT = 51_820


@dataclass(frozen=True, slots=True)
class Crowd:
    """How those fared who joined.

    Attributes:
        addresses: What each was given who joined, IPv4.
        failed: How many of the others failed for each reason.
        seconds: From the first datagram to the last outcome.
    """

    addresses: list[str]
    failed: dict[str, int]
    seconds: float


def join_at_once(host: Host, network: str, count: int, server: str, token: str, patience: float) -> Crowd:
    """Have so many join, from the first addresses of a network that the server routes to the host."""
    host.ip([f"route add local {network} dev lo"])
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "TOKEN": token}
    argv = [sys.executable, __file__, network, str(count), server]
    return Crowd(**json.loads(host.run(argv, env=environment, timeout=patience).stdout))


# -- the program ----------------------------------------------------------------------------------------------------

_stretched = cache(stretch)


class _Joining:
    """One of them."""

    def __init__(self, source: str, server: tuple[str, int], token: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((source, PORT))
        self.client = PairingClient(
            token, os.urandom(32), "twin", os.urandom, time.monotonic(), stretching=_stretched
        )
        self._server = server

    def send(self) -> None:
        """Send what is to be sent."""
        while (transmit := self.client.poll_transmit()) is not None:
            self.socket.sendto(transmit.datagram, transmit.destination or self._server)

    def receive(self) -> None:
        """Take what came."""
        try:
            while True:
                self.client.handle(*self.socket.recvfrom(4096), time.monotonic())
        except BlockingIOError:
            self.send()


def _run(joinings: list[_Joining]) -> None:
    """See all of them to their end."""
    poll = select.epoll()
    by_descriptor = {each.socket.fileno(): each for each in joinings}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    for each in joinings:
        each.send()
    timers = [(each.client.poll_timeout() or 0.0, number) for number, each in enumerate(joinings)]
    heapq.heapify(timers)
    while timers:
        for descriptor, _ in poll.poll(max(0.0, timers[0][0] - time.monotonic()), 64):
            by_descriptor[descriptor].receive()
        now = time.monotonic()
        while timers and timers[0][0] <= now:
            _, number = heapq.heappop(timers)
            each = joinings[number]
            each.client.handle_timeout(now)
            each.send()
            # None once it has ended.
            if (due := each.client.poll_timeout()) is not None:
                heapq.heappush(timers, (due, number))


def main() -> None:
    """Run by itself."""
    network, count, server = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
    sources = (str(address) for address in IPv4Network(network).hosts())
    began = time.monotonic()
    joinings = [_Joining(next(sources), (server, SERVER_PORT), os.environ["TOKEN"]) for _ in range(count)]
    _run(joinings)
    outcomes = [each.client.outcome for each in joinings]
    addresses = [str(each.admission.address4.ip) for each in outcomes if isinstance(each, Joined)]
    failed = dict(Counter(each.failure.value for each in outcomes if isinstance(each, Failed)))
    sys.stdout.write(json.dumps(asdict(Crowd(addresses, failed, time.monotonic() - began))))


if __name__ == "__main__":
    main()
