"""Inner packets and superpackets, made the slow and plain way."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from rustguard_py.planes.offload import GSO_TCP4, GSO_TCP6, GSO_UDP, NEEDS_CHECKSUM, Vnet


def naive_sum(data: bytes) -> int:
    """One's complement sum of 16-bit big-endian words, word by word (RFC 1071)."""
    if len(data) & 1:
        data += b"\0"
    total = 0
    for (word,) in struct.iter_unpack(">H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip_header(source: str, target: str, protocol: int, size: int, *, ident: int = 7, fragment: int = 0x4000) -> bytes:
    """An IPv4 or IPv6 header for `size` bytes behind it, with its checksum."""
    src, dst = ip_address(source).packed, ip_address(target).packed
    if len(src) == 16:
        return struct.pack(">IHBB", 0x60000000, size, protocol, 64) + src + dst
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, ident, fragment, 64, protocol, 0) + src + dst
    return head[:10] + struct.pack(">H", 0xFFFF - naive_sum(head)) + head[12:]


def pseudo_sum(source: str, target: str, protocol: int, size: int) -> int:
    """The sum of the pseudo-header."""
    return naive_sum(ip_address(source).packed + ip_address(target).packed + struct.pack(">HH", protocol, size))


def tcp_header(seq: int, flags: int, checksum: int, options: bytes = b"") -> bytes:
    """A TCP header from port 4000 to 5000; `options` in whole words."""
    words = 5 + len(options) // 4
    return struct.pack(">HHIIBBHHH", 4000, 5000, seq, 99, words << 4, flags, 512, checksum, 0) + options


def tcp_packet(
    source: str,
    target: str,
    payload: bytes,
    *,
    seq: int = 1,
    flags: int = 0x10,
    options: bytes = b"",
    ident: int = 7,
    fragment: int = 0x4000,
) -> bytes:
    """A TCP packet with its checksums."""
    bare = tcp_header(seq, flags, 0, options) + payload
    total = naive_sum(struct.pack(">H", pseudo_sum(source, target, 6, len(bare))) + bare)
    whole = tcp_header(seq, flags, 0xFFFF - total, options) + payload
    return ip_header(source, target, 6, len(whole), ident=ident, fragment=fragment) + whole


def udp_packet(
    source: str, target: str, payload: bytes, *, port: int = 5000, ident: int = 7, fragment: int = 0x4000
) -> bytes:
    """A UDP packet with its checksums."""
    size = 8 + len(payload)
    bare = struct.pack(">HHHH", 4000, port, size, 0) + payload
    total = naive_sum(struct.pack(">H", pseudo_sum(source, target, 17, size)) + bare)
    whole = bare[:6] + struct.pack(">H", 0xFFFF - total or 0xFFFF) + payload
    return ip_header(source, target, 17, size, ident=ident, fragment=fragment) + whole


def superpacket(
    source: str,
    target: str,
    payload: bytes,
    mss: int,
    *,
    tcp: bool,
    seq: int = 1,
    flags: int = 0x18,
    options: bytes = b"",
    ident: int = 7,
    fragment: int = 0x4000,
) -> tuple[Vnet, bytes]:
    """What the host gives to a TUN device with offloads: the checksum field has the pseudo-header's sum."""
    v4 = ":" not in source
    protocol = 6 if tcp else 17
    header = 20 + len(options) if tcp else 8
    size = header + len(payload)
    pseudo = pseudo_sum(source, target, protocol, size)
    transport = struct.pack(">HHHH", 4000, 5000, size, pseudo)
    if tcp:
        transport = tcp_header(seq, flags, pseudo, options)
    ip = ip_header(source, target, protocol, size, ident=ident, fragment=fragment)
    kind = (GSO_TCP4 if v4 else GSO_TCP6) if tcp else GSO_UDP
    vnet = Vnet(NEEDS_CHECKSUM, kind, len(ip) + header, mss, len(ip), 16 if tcp else 6)
    return vnet, ip + transport + payload


def with_mark(packet: bytes, mark: int) -> bytes:
    """The packet with an ECN mark (0 to 3) and DSCP EF, and the right header checksum."""
    tos = 46 << 2 | mark
    if packet[0] >> 4 == 6:
        return bytes((0x60 | tos >> 4, (tos & 15) << 4 | packet[1] & 15)) + packet[2:]
    head = packet[:1] + bytes((tos,)) + packet[2:10] + b"\0\0" + packet[12:20]
    return head[:10] + struct.pack(">H", 0xFFFF - naive_sum(head)) + packet[12:]


def mark_of(packet: bytes) -> int:
    """The ECN mark of a packet."""
    return packet[1] >> 4 & 3 if packet[0] >> 4 == 6 else packet[1] & 3


def checksums_hold(packet: bytes) -> bool:
    """Verify the checksums of a TCP or UDP packet without IP options, the slow way."""
    v4 = packet[0] >> 4 == 4
    at = 20 if v4 else 40
    protocol = packet[9] if v4 else packet[6]
    addresses = packet[12:20] if v4 else packet[8:40]
    transport = packet[at:]
    total = naive_sum(addresses + struct.pack(">HH", protocol, len(transport)) + transport)
    return total == 0xFFFF and (not v4 or naive_sum(packet[:20]) == 0xFFFF)
