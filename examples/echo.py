"""A UDP echo service on a tunnel's addresses, without an interface: python echo.py wg0.conf 7"""

import sys
from contextlib import suppress
from pathlib import Path

import rustguard_py

UDP = 17


def answer(packet: memoryview, port: int) -> bytes | None:
    """Return the packet with source and destination swapped, if it is UDP to that port; else None.

    Swapping changes no checksum, because those are sums.
    """
    if packet[0] == 0x45 and packet[9] == UDP:
        head, addresses, size, udp = packet[:12], packet[12:20], 4, packet[20:]
    elif packet[0] >> 4 == 6 and packet[6] == UDP:
        head, addresses, size, udp = packet[:8], packet[8:40], 16, packet[40:]
    else:
        return None
    if len(udp) < 8 or int.from_bytes(udp[2:4], "big") != port:
        return None
    return b"".join([head, addresses[size:], addresses[:size], udp[2:4], udp[:2], udp[4:]])


def serve(config: Path, port: int) -> None:
    with rustguard_py.connect(config) as tunnel:
        print(f"UDP port {port} of {', '.join(str(each.ip) for each in tunnel.addresses)}", flush=True)
        while True:
            batch = tunnel.read_batch()
            tunnel.write_batch([reply for packet in batch if (reply := answer(packet, port)) is not None])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        serve(Path(sys.argv[1]), int(sys.argv[2]))
