"""The kernel engine's pairing sockets are guarded by the same filter as the planes."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from rustguard_py.kernel.kernel_tunnel import KernelTunnel
from rustguard_py.kernel.netlink import KernelInterface
from rustguard_py.model.pairing import PairingEpoch, PairingGate
from rustguard_py.model.statistics import PlaneStats

GATE = PairingGate(b"i" * 32, PairingEpoch(7, b"s" * 32, b"e" * 32))


class _Kernel:
    """An interface without peers."""

    def configure(self, **what: Any) -> None:
        pass

    def exists(self) -> bool:
        return True

    def read_counters(self) -> dict[bytes, Any]:
        return {}

    def remove(self) -> None:
        pass


def _udp() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    return made


def test_a_hello_is_answered_a_share_with_its_cookie_passes_and_the_rest_is_dropped() -> None:
    async def run() -> tuple[bytes, list[bytes], PlaneStats]:
        pairing, client = _udp(), _udp()
        client.setblocking(False)
        server = pairing.getsockname()
        tunnel = KernelTunnel(bytes(32), cast(KernelInterface, _Kernel()), [_udp()], [pairing])
        passed: list[bytes] = []
        tunnel.listeners.foreign = lambda datagram, _source, _at: passed.append(datagram)
        tunnel.start()
        loop = asyncio.get_running_loop()
        # A client's tunnel takes whatever comes.
        client.sendto(b"RGE3\2 an answer", server)
        while not passed:
            await asyncio.sleep(0.01)
        tunnel.set_pairing(GATE)
        for datagram in (b"RGE3\1", b"RGE3\3\0\0\0" + bytes(124), b"RGE3\5\0\0\0" + bytes(1224)):
            client.sendto(datagram, server)
        client.sendto(b"RGE3\1\0\0\0" + b"c" * 16 + bytes(104), server)
        challenge = await loop.sock_recv(client, 2048)
        client.sendto(b"RGE3\3\0\0\0" + challenge[8:60] + bytes(72), server)
        while len(passed) < 2:
            await asyncio.sleep(0.01)
        tunnel.send(client.getsockname(), b"RGE3\4\0\0\0" + b"session1" + bytes(1216))
        client.sendto(b"RGE3\5\0\0\0" + b"session1" + bytes(1216), server)
        while len(passed) < 3:
            await asyncio.sleep(0.01)
        stats = tunnel.stats()
        tunnel.close()
        client.close()
        return challenge, passed, stats

    challenge, passed, stats = asyncio.run(asyncio.wait_for(run(), 30))
    assert (len(challenge), challenge[:24]) == (124, b"RGE3\2\0\0\0" + b"c" * 16)
    assert [datagram[4] for datagram in passed] == [2, 3, 5]
    assert stats.drops == {"pairing_malformed": 1, "pairing_cookie": 1, "pairing_session": 1}
