"""Two embedded tunnels that know each other, and packets for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ParamSpec

from rustguard_py import conf
from rustguard_py.conf_writer import write
from rustguard_py.model.ip import interface
from rustguard_py.model.keys import generate_private_key, public_key
from support.packets import udp_packet

P = ParamSpec("P")

ONE4, OTHER4, ONE6, OTHER6 = "10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def free_port() -> int:
    """A UDP port that nobody has in either family, for now."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Ends:
    """The configurations of a tunnel's two ends. The one waits at a port, and the other knows where.

    Attributes:
        host: Where the other reaches the one.
        port: The one's.
        mtu: Of both; None to leave it out.
        preshared: What each end has for the other's preshared key.
        keepalive: The other's.
    """

    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    mtu: int | None = None
    preshared: tuple[bytes, bytes] = (bytes(32), bytes(32))
    keepalive: int = 0
    one_key: bytes = field(default_factory=generate_private_key)
    other_key: bytes = field(default_factory=generate_private_key)

    def one(self) -> str:
        """The text of the one's."""
        peer = conf.PeerSection(
            public_key(self.other_key),
            (ip_network(f"{OTHER4}/32"), ip_network(f"{OTHER6}/128")),
            self.preshared[0],
            name="other",
        )
        addresses = (interface(f"{ONE4}/24"), interface(f"{ONE6}/64"))
        return write(conf.Config(self.one_key, self.port, addresses=addresses, mtu=self.mtu, peers=(peer,)))

    def other(self) -> str:
        """The text of the other's."""
        peer = conf.PeerSection(
            public_key(self.one_key),
            (ip_network("10.9.0.0/24"), ip_network("fd09::/64")),
            self.preshared[1],
            conf.HostPort(self.host, self.port),
            self.keepalive,
            name="one",
        )
        addresses = (interface(f"{OTHER4}/24"), interface(f"{OTHER6}/64"))
        return write(conf.Config(self.other_key, addresses=addresses, mtu=self.mtu, peers=(peer,)))


def to_one(payload: bytes = b"", *, source: str = OTHER4) -> bytes:
    """A packet from the other to the one."""
    return udp_packet(source, ONE6 if ":" in source else ONE4, payload)


def to_other(payload: bytes = b"", *, source: str = ONE4) -> bytes:
    """A packet from the one to the other."""
    return udp_packet(source, OTHER6 if ":" in source else OTHER4, payload)


@dataclass(frozen=True, slots=True)
class Belongings:
    """What this process has: its threads, and what its descriptors are."""

    threads: frozenset[str]
    descriptors: frozenset[str]

    def more_than(self, before: Belongings) -> set[str]:
        """What it has that it hadn't before. What earlier tests left may go meanwhile."""
        return {*self.threads - before.threads, *self.descriptors - before.descriptors}

    @classmethod
    def look(cls) -> Belongings:
        """What it has now."""
        names = []
        for each in Path("/proc/self/fd").iterdir():
            # That of the look itself is gone.
            with suppress(OSError):
                names.append(f"{each.name} {each.readlink()}")
        # Also threads that Python doesn't know.
        threads = frozenset(each.name for each in Path("/proc/self/task").iterdir())
        return cls(threads, frozenset(each for each in names if "/proc/" not in each))
