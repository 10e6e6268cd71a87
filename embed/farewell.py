"""Leaving a network that was joined in memory only, so that its server has the address again.

It sends what `rustguard leave` sends (docs/internals/reports.md), as packets of its own.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import struct
from contextlib import suppress
from ipaddress import IPv4Address

from rustguard_py.enroll.tunnels import farewell
from rustguard_py.model.clock import now
from rustguard_py.model.timers import REJECT_AFTER_TIME
from rustguard_py.planes.checksum import sum_bytes
from rustguard_py.planes.contract import PacketChannel
from rustguard_py.protocol import report
from rustguard_py.protocol.report import REPORT_PORT, Leave, Left
from rustguard_py.state.client_records import NetworkRecord
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)

# How often Leave is sent, and the seconds between.
_TIMES, _AGAIN = 6, 0.5
_BATCH = 256
_HEADERS = struct.Struct(">BBHHHBBH4s4sHHHH")
_NO_OPTIONS, _UDP = 0x45, 17


class Farewell:
    """Tells the server that this client leaves for good.

    Args:
        private_key: Ours, 32 bytes.
        network: The network to leave.
    """

    def __init__(self, private_key: bytes, network: NetworkRecord) -> None:
        self._network = network
        self._proofs = farewell.of_client(private_key, network.server_key, network.preshared_key)

    async def say(self, tunnel: Tunnel, channel: PacketChannel) -> None:
        """Tell it for three seconds, until it answers. Without a session it isn't told.

        Args:
            tunnel: Ours.
            channel: Its packets. Nobody else reads them any more.
        """
        network, server = self._network, tunnel.node.get(self._network.server_key)
        if network.gateway4 is None or network.address4 is None or server is None:
            return
        if server.session_began is None or now() - server.session_began > REJECT_AFTER_TIME:
            return
        leave = udp_packet(network.address4.ip, network.gateway4, report.encode([Leave(self._proofs.leave)]))
        answered = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(channel.fileno(), self._read, channel, answered)
        try:
            for _ in range(_TIMES):
                channel.write_batch([leave])
                with suppress(TimeoutError):
                    await asyncio.wait_for(answered.wait(), _AGAIN)
                    return
        finally:
            loop.remove_reader(channel.fileno())
        log.info(
            "%s didn't answer when told that %s leaves; to remove it there: sudo rustguard peers revoke %s",
            network.host,
            network.name,
            network.name,
        )

    def _read(self, channel: PacketChannel, answered: asyncio.Event) -> None:
        source = self._network.gateway4.packed if self._network.gateway4 is not None else b""
        for packet in channel.read_batch(_BATCH):
            # No options, UDP, from the server: the tunnel has checked the source.
            if packet[0] == _NO_OPTIONS and packet[9] == _UDP and bytes(packet[12:16]) == source:
                with suppress(ValueError):
                    for item in report.decode(bytes(packet[_HEADERS.size :])):
                        if isinstance(item, Left) and hmac.compare_digest(item.proof, self._proofs.left):
                            answered.set()


def udp_packet(source: IPv4Address, target: IPv4Address, payload: bytes) -> bytes:
    """Return a packet from and to the port of the reports. Nobody forwards it."""
    size = _HEADERS.size + len(payload)
    ports = (REPORT_PORT, REPORT_PORT, size - 20, 0)
    head = _HEADERS.pack(_NO_OPTIONS, 0, size, 0, 0, 1, _UDP, 0, source.packed, target.packed, *ports)
    checksum = 0xFFFF - sum_bytes(head[:20]) % 0xFFFF
    # UDP over IPv4 needs no checksum, and WireGuard has authenticated it.
    return head[:10] + checksum.to_bytes(2, "big") + head[12:] + payload
