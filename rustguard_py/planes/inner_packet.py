"""What a plane reads from an inner IP packet, and the padding of one."""

from __future__ import annotations

from rustguard_py.planes.offload import IPPROTO_UDP

PADDING_MULTIPLE = 16


def padded(size: int, mtu: int) -> int:
    """Return the padded length of an inner packet of `size` bytes: a multiple of 16, not over the MTU."""
    if size > mtu:
        last = size % mtu
        return size - last + min(mtu, last + -last % PADDING_MULTIPLE)
    return min(mtu, size + -size % PADDING_MULTIPLE)


def is_looped(packet: bytes | bytearray | memoryview, header: bytes) -> bool:
    """Return whether a packet is itself a datagram of the session with this header.

    The peer is then only reachable through its own tunnel, and sealing the packet would never end.
    """
    if packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4 + 8
        return packet[9] == IPPROTO_UDP and packet[start : start + 8] == header
    return packet[6] == IPPROTO_UDP and packet[48:56] == header


def destination(packet: bytes | bytearray | memoryview) -> bytes:
    """Return the packed destination of an IP packet, or b"" if it isn't one."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return bytes(packet[16:20])
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return bytes(packet[24:40])
    return b""


def source_of(packet: bytes | bytearray | memoryview) -> bytes:
    """Return the packed source of an IP packet, or b"" if it isn't one."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return bytes(packet[12:16])
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return bytes(packet[8:24])
    return b""


def ip_length(packet: bytes | bytearray | memoryview) -> int:
    """Return the length in an IP packet's header."""
    if packet[0] >> 4 == 4:
        return packet[2] << 8 | packet[3]
    return 40 + (packet[4] << 8 | packet[5])
