"""Write what peers send, decrypted, to a file for Wireshark: python capture.py wg0.conf traffic.pcapng"""

import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import rustguard_py

# pcapng, draft-ietf-opsawg-pcapng. LINKTYPE_RAW: packets begin with their IP header.
SECTION_HEADER, INTERFACE_DESCRIPTION, ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER, VERSION, LENGTH_UNKNOWN, LINKTYPE_RAW, NO_LIMIT = 0x1A2B3C4D, (1, 0), -1, 101, 0


def write_block(file: BinaryIO, kind: int, body: bytes) -> None:
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    file.write(struct.pack("<I", kind) + size + body + size)


def write_header(file: BinaryIO) -> None:
    write_block(file, SECTION_HEADER, struct.pack("<IHHq", BYTE_ORDER, *VERSION, LENGTH_UNKNOWN))
    write_block(file, INTERFACE_DESCRIPTION, struct.pack("<HHI", LINKTYPE_RAW, 0, NO_LIMIT))


def write_packet(file: BinaryIO, packet: memoryview) -> None:
    high, low = divmod(time.time_ns() // 1000, 1 << 32)
    head = struct.pack("<IIIII", 0, high, low, len(packet), len(packet))
    write_block(file, ENHANCED_PACKET, head + packet)


def capture(config: Path, target: Path) -> None:
    with rustguard_py.connect(config) as tunnel, target.open("wb") as file:
        write_header(file)
        print(f"capturing to {target}", flush=True)
        while True:
            for packet in tunnel.read_batch():
                write_packet(file, packet)
            file.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        capture(Path(sys.argv[1]), Path(sys.argv[2]))
