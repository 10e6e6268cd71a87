"""How often a tunnel of the kernel's reads the counters and looks for its interface, and what its end leaves.

Not sooner and not more often than the constants say: every reading costs the kernel time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from itertools import pairwise
from typing import Any, cast

import pytest

from rustguard_py.kernel.counters import Counters
from rustguard_py.kernel.kernel_tunnel import KernelTunnel
from rustguard_py.kernel.netlink import KernelInterface
from rustguard_py.model.peer import PeerConfig
from support import virtual_loop
from support.virtual_loop import BEGAN

KEY, PEER = bytes([1]) * 32, bytes([2]) * 32
ENDPOINT = ("192.0.2.7", 51820)


class Device:
    """An interface of the kernel's that notes what is done with it, and when.

    Attributes:
        cost: How long a reading takes, seconds.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.read_at: list[float] = []
        self.looked_at: list[float] = []
        self.removed = 0
        self.there = True
        self.cost = 0.0
        self.counters = Counters(ENDPOINT)

    def configure(self, **settings: Any) -> None:
        self.settings |= settings

    def exists(self) -> bool:
        self.looked_at.append(_now())
        return self.there

    def set_peers(self, changes: object) -> None:
        list(cast("list[object]", changes))

    def read_counters(self) -> dict[bytes, Counters]:
        self.read_at.append(_now())
        cast(Any, asyncio.get_running_loop())._jumping.now += self.cost
        return {PEER: self.counters}

    def remove(self) -> None:
        self.removed += 1


def _now() -> float:
    return asyncio.get_running_loop().time() - BEGAN


def _udp() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    return made


def _tunnel(device: Device, *, several: bool = False, pairing: tuple[socket.socket, ...] = ()) -> KernelTunnel:
    return KernelTunnel(KEY, cast(KernelInterface, device), [_udp()], pairing, several=several)


Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda main: virtual_loop.run(monkeypatch, main)


def _gaps(times: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in pairwise(times)]


@pytest.mark.parametrize(
    ("several", "minds", "pace"), [(False, False, 30.0), (False, True, 5.0), (True, False, 1.0), (True, True, 1.0)]
)
def test_counters_are_read_only_as_often_as_somebody_needs(
    run: Run, *, several: bool, minds: bool, pace: float
) -> None:
    async def main() -> None:
        device = Device()
        tunnel = _tunnel(device, several=several)
        tunnel.node.set_peer(PeerConfig(PEER, (ip_network("10.0.0.2/32"),), endpoint=ENDPOINT))
        if minds:
            tunnel.listeners.unanswered = lambda _peer, _attempts: None
        tunnel.start()
        await asyncio.sleep(125.0)
        assert set(_gaps(device.read_at)) == {pace}
        # Every 5 s it looks whether the interface is still there, also where nothing is read.
        assert max(_gaps(device.looked_at)) <= 5.0
        tunnel.close()

    run(main)


def test_a_handshake_that_was_asked_for_is_waited_for_closely_and_twenty_seconds(run: Run) -> None:
    async def main() -> None:
        device = Device()
        tunnel = _tunnel(device)
        peer = tunnel.node.set_peer(PeerConfig(PEER, (ip_network("10.0.0.2/32"),), endpoint=ENDPOINT))
        tunnel.start()
        await asyncio.sleep(31.0)
        device.read_at.clear()
        tunnel.node.begin_handshake(peer, BEGAN + _now())
        # The next reading comes at once, not when the last pause ends.
        tunnel.wake()
        await asyncio.sleep(90.0)
        assert device.read_at[0] == pytest.approx(31.0, abs=0.3)
        close = [at for at in device.read_at if at < 51.0]
        assert set(_gaps(close)) == {0.25}
        assert _gaps([at for at in device.read_at if at > 51.5]) == [30.0]
        tunnel.close()

    run(main)


def test_a_peer_that_does_not_answer_is_read_each_second(run: Run) -> None:
    async def main() -> None:
        device = Device()
        tunnel = _tunnel(device)
        tunnel.node.set_peer(PeerConfig(PEER, (ip_network("10.0.0.2/32"),), endpoint=ENDPOINT))
        tunnel.listeners.unanswered = lambda _peer, _attempts: None
        tunnel.start()
        await asyncio.sleep(6.0)
        device.counters = Counters(ENDPOINT, tx_bytes=148)
        await asyncio.sleep(6.0)
        device.read_at.clear()
        await asyncio.sleep(10.0)
        assert set(_gaps(device.read_at)) == {1.0}
        tunnel.close()

    run(main)


def test_readings_take_a_twentieth_of_a_processor_at_most(run: Run) -> None:
    async def main() -> None:
        device = Device()
        device.cost = 0.5
        tunnel = _tunnel(device, several=True)
        tunnel.start()
        await asyncio.sleep(60.0)
        # The pause begins when a reading ends.
        assert set(_gaps(device.read_at)) == {10.5}
        tunnel.close()

    run(main)


def test_what_is_closed_reads_no_more_and_leaves_no_socket(run: Run) -> None:
    async def main() -> None:
        device, pairing = Device(), _udp()
        number = pairing.fileno()
        tunnel = _tunnel(device, several=True, pairing=(pairing,))
        tunnel.start()
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3.5)
        seen = len(device.read_at)
        tunnel.close()
        # Nothing watches that number: it may be another's soon.
        assert not loop.remove_reader(number)
        assert pairing.fileno() == -1
        tunnel.close()
        tunnel.wake()
        await asyncio.sleep(60.0)
        assert (len(device.read_at), device.removed) == (seen, 1)

    run(main)


def test_one_that_never_began_is_closed_all_the_same(run: Run) -> None:
    async def main() -> None:
        device, pairing = Device(), _udp()
        tunnel = _tunnel(device, pairing=(pairing,))
        # Changes before the start wake nobody.
        tunnel.wake()
        tunnel.close()
        assert (pairing.fileno(), device.removed) == (-1, 1)

    run(main)


def test_after_a_fault_nothing_is_looked_for(run: Run) -> None:
    async def main() -> None:
        device = Device()
        tunnel = _tunnel(device)
        tunnel.start()
        await asyncio.sleep(12.0)
        device.there = False
        await asyncio.wait_for(tunnel.stopped.wait(), 5.1)
        assert "interface is gone" in str(tunnel.fault)
        looked = len(device.looked_at)
        await asyncio.sleep(60.0)
        assert len(device.looked_at) == looked
        tunnel.close()

    run(main)


def test_the_kernel_listens_where_the_sockets_did() -> None:
    device, own = Device(), _udp()
    port = own.getsockname()[1]
    KernelTunnel(KEY, cast(KernelInterface, device), [own])
    assert device.settings == {"private_key": KEY, "port": port}
    assert own.fileno() == -1


def test_another_port_is_set_once_it_is_free_and_kept_for_the_next_interface() -> None:
    first, second = Device(), Device()
    tunnel = KernelTunnel(KEY, cast(KernelInterface, first), [_udp()], make=lambda: cast(KernelInterface, second))
    port = tunnel.set_port(0)
    assert first.settings["port"] == port > 0
    tunnel.set_fwmark(7)
    tunnel.configure(private_key=PEER)
    cast(Any, first).close = lambda: None
    tunnel.reattach()
    assert second.settings == {"private_key": PEER, "port": port, "fwmark": 7}
