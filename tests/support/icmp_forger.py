"""Answers every UDP datagram to the given ports with forged ICMP errors. A program: `python icmp_forger.py PORT …`.

It runs on a host that the datagrams come to, as root, and says `ready` once it listens.
"""

from __future__ import annotations

import socket
import struct
import sys

# Destination unreachable: network, host, port, and administratively prohibited.
CODES = (0, 1, 3, 13)


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def unreachable(packet: bytes, code: int) -> bytes:
    """Return an ICMP "unreachable" about an IPv4 packet."""
    body = struct.pack(">I", 0) + packet[: (packet[0] & 15) * 4 + 8]
    return struct.pack(">BBH", 3, code, checksum(struct.pack(">BBH", 3, code, 0) + body)) + body


def main(ports: set[int]) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as hearing,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as saying,
    ):
        print("ready", flush=True)
        while True:
            packet, source = hearing.recvfrom(65536)
            header = (packet[0] & 15) * 4
            if int.from_bytes(packet[header + 2 : header + 4], "big") in ports:
                for code in CODES:
                    for _ in range(3):
                        saying.sendto(unreachable(packet, code), source)


if __name__ == "__main__":
    main(set(map(int, sys.argv[1:])))
