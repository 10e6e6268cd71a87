"""Ping an address in a tunnel, without an interface and without root: python ping.py wg0.conf 10.192.122.1"""

import asyncio
import os
import struct
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

import rustguard_py

ICMP, ECHO_REPLY, ECHO_REQUEST = 1, 0, 8


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def echo_request(source: IPv4Address, target: IPv4Address, identifier: int, sequence: int) -> bytes:
    icmp = struct.pack(">BBHHH16s", ECHO_REQUEST, 0, 0, identifier, sequence, b"rustguard_py 123")
    icmp = icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, ICMP, 0) + source.packed + target.packed
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + icmp


def is_reply(packet: memoryview, source: IPv4Address, identifier: int, sequence: int) -> bool:
    header = 4 * (packet[0] & 15)
    if packet[0] >> 4 != 4 or packet[9] != ICMP or packet[12:16] != source.packed or len(packet) < header + 8:
        return False
    kind, _, _, *numbers = struct.unpack_from(">BBHHH", packet, header)
    return bool(kind == ECHO_REPLY and numbers == [identifier, sequence])


async def ping(config: Path, target: IPv4Address, count: int = 3) -> int:
    """Return how many of the pings were answered."""
    answered, identifier = 0, os.getpid() & 0xFFFF
    async with rustguard_py.connect(config) as tunnel:
        source = next(each.ip for each in tunnel.addresses if isinstance(each.ip, IPv4Address))
        for sequence in range(count):
            began = time.monotonic()
            await tunnel.write_batch([echo_request(source, target, identifier, sequence)])
            while (left := began + 1 - time.monotonic()) > 0:
                batch = await tunnel.read_batch(timeout=left)
                if any(is_reply(packet, target, identifier, sequence) for packet in batch):
                    print(f"answer {sequence} from {target} after {(time.monotonic() - began) * 1000:.2f} ms")
                    answered += 1
                    break
    return answered


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(ping(Path(sys.argv[1]), IPv4Address(sys.argv[2]))) else 1)
