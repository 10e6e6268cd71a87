"""Which congestion mark a packet has on its way through a tunnel, measured: in the outer header, and at the end.

left (tunnel) -- router, which may set outer marks -- right (tunnel)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as Folder

from rustguard_py.lab.hosts import Host, Lab
from rustguard_py.model.endpoint import Endpoint
from support.forked_tunnel import ForkedTunnel

MARKS = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}
INSIDE = (["10.9.0.1/24", "fd09::1/64"], ["10.9.0.2/24", "fd09::2/64"])
ALLOWED = (["10.9.0.1/32", "fd09::1/128"], ["10.9.0.2/32", "fd09::2/128"])
PORTS = (51820, 51821)
# Of a burst: datagrams and their bytes. The host gives it to the tunnel as one superpacket.
BURST, SIZE = 20, 400
_UDP_SEGMENT, _ETH_P_ALL = 103, 3
_RECVTOS = {socket.AF_INET: (socket.IPPROTO_IP, 13), socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS)}
_TOS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}
_PORT = 4000
_PATIENCE = 20.0


def socket_in(host: Host, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Make a socket of a host's network. The thread that makes it is in that network, and nobody else."""
    made: list[socket.socket] = []

    def work() -> None:
        with Folder(f"/proc/{host.pid}/ns/net").open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        made.append(socket.socket(family, kind, protocol))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


@dataclass(slots=True)
class Seen:
    """What became of one burst: the marks at the end, and the outer TOS or traffic classes."""

    inner: set[int] = field(default_factory=set)
    outer: set[int] = field(default_factory=set)
    count: int = 0


class Path:
    """Two hosts with a router in between, in both families."""

    def __init__(self, lab: Lab) -> None:
        self.left, self.right, self.router = lab.host("left"), lab.host("right"), lab.host("router")
        left, by_left = lab.link(self.left, self.router, ipv4="192.0.2.0/24", ipv6="2001:db8:1::/64")
        right, by_right = lab.link(self.right, self.router, ipv4="198.51.100.0/24", ipv6="2001:db8:2::/64")
        self.ends, self.last = (left, right), by_right
        self.router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        for end, gateway in ((left, by_left), (right, by_right)):
            end.host.ip([f"route add default via {gateway.ipv4}", f"route add ::/0 via {gateway.ipv6}"])

    def endpoint(self, number: int, family: int) -> Endpoint:
        """Where the left (0) or right (1) tunnel is reached, over IPv4 or IPv6."""
        end = self.ends[number]
        return (str(end.ipv4), PORTS[number]) if family == 4 else (str(end.ipv6), PORTS[number], 0, 0)

    def mark(self, name: str | None) -> None:
        """Have the router set this mark on all that it forwards, or none."""
        self.router.run(["nft", "flush", "ruleset"])
        if name is not None:
            rules = "".join(
                f"add rule inet m f meta nfproto {nfproto} meta l4proto udp {word} ecn set {name}\n"
                for nfproto, word in (("ipv4", "ip"), ("ipv6", "ip6"))
            )
            table = "add table inet m\nadd chain inet m f { type filter hook forward priority 0; }\n"
            self.router.run(["nft", "-f", "-"], stdin=table + rules)


def tunnels(
    path: Path, engine: str, folder: Folder, family: int, *, uring: bool = False, xdp: bool = False
) -> tuple[ForkedTunnel, ForkedTunnel]:
    """Start an engine at both ends. They talk over IPv4 or IPv6."""
    left, right = (
        ForkedTunnel(end.host, engine, inside, folder, port, uring=uring, xdp=end.interface if xdp else None)
        for end, inside, port in zip(path.ends, INSIDE, PORTS, strict=True)
    )
    right.set_peer(left.public_key, ALLOWED[0])
    left.set_peer(right.public_key, ALLOWED[1], endpoint=path.endpoint(1, family))
    return left, right


class Probe:
    """Sends bursts from the left end of a tunnel to the right one, and looks at what comes."""

    def __init__(self, path: Path) -> None:
        self._from: dict[int, socket.socket] = {}
        self._to: dict[int, socket.socket] = {}
        pairs = {socket.AF_INET: ("10.9.0.1", "10.9.0.2"), socket.AF_INET6: ("fd09::1", "fd09::2")}
        for family, addresses in pairs.items():
            self._from[family] = socket_in(path.left, family, socket.SOCK_DGRAM)
            self._from[family].bind((addresses[0], _PORT))
            self._to[family] = to = socket_in(path.right, family, socket.SOCK_DGRAM)
            to.bind((addresses[1], _PORT))
            to.setsockopt(*_RECVTOS[family], 1)
            to.settimeout(_PATIENCE)
        # At the router: AF_XDP hides from the right end's sniffers what it takes.
        self._sniffer = socket_in(path.router, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._sniffer.bind((path.last.interface, 0))
        self._sniffer.setblocking(False)

    def close(self) -> None:
        for each in (*self._from.values(), *self._to.values(), self._sniffer):
            each.close()

    def outer(self) -> list[tuple[int, int]]:
        """What came from the left since the last call: the first byte of each datagram, and its TOS or class."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (_, _, kind, *_) = self._sniffer.recvfrom(1 << 17)
                if kind != socket.PACKET_OUTGOING:
                    continue
                if packet[0] >> 4 == 4 and packet[9] == 17:
                    found.append((packet[28], packet[1]))
                elif packet[0] >> 4 == 6 and packet[6] == 17:
                    found.append((packet[48], (packet[0] & 15) << 4 | packet[1] >> 4))
        return found

    def burst(self, family: socket.AddressFamily, mark: int) -> Seen:
        """Send a datagram and a burst with a mark."""
        self.outer()
        seen = Seen()
        sender, receiver = self._from[family], self._to[family]
        sender.setsockopt(*_TOS[family], mark)
        target = receiver.getsockname()
        sender.sendto(bytes(SIZE), target)
        sender.sendmsg([bytes(SIZE * BURST)], [(socket.SOL_UDP, _UDP_SEGMENT, SIZE.to_bytes(2, "little"))], 0, target)
        for _ in range(1 + BURST):
            _, control, _, _ = receiver.recvmsg(1 << 16, 64)
            seen.inner |= {data[0] & 3 for _, _, data in control}
            seen.count += 1
        seen.outer = {tos for first, tos in self.outer() if first == 4}
        return seen


@contextlib.contextmanager
def probing(path: Path) -> Iterator[Probe]:
    """A probe, once the tunnel carries packets in both families."""
    probe = Probe(path)
    try:
        deadline = time.monotonic() + _PATIENCE
        for target in ("10.9.0.2", "fd09::2"):
            while path.left.run(["ping", "-n", "-c1", "-W1", target], check=False).returncode:
                assert time.monotonic() < deadline, f"no way to {target}"
        yield probe
    finally:
        probe.close()


def table(
    path: Path, probe: Probe, rules: Sequence[str | None] = (None, *MARKS)
) -> dict[tuple[str, str | None, str], Seen]:
    """Return what became of each mark: by inner family, the mark that the router sets, and the sender's mark."""
    found = {}
    for rule in rules:
        path.mark(rule)
        for name, family in (("IPv4", socket.AF_INET), ("IPv6", socket.AF_INET6)):
            for mark, number in MARKS.items():
                found[name, rule, mark] = probe.burst(family, number)
    return found
