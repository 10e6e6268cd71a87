"""Answers to packets that no peer takes, as the kernel's WireGuard gives them.

They are ICMP's host unreachable (RFC 792), or ICMPv6's address unreachable (RFC 4443). The answer's source is the
address that can't be reached: from an address of the interface, which is the host's own, the host would ignore it.
"""

from __future__ import annotations

from rustguard_py.planes.checksum import sum_bytes

_IPV4, _IPV6, _ICMP = 20, 40, 8
_IPPROTO_ICMP, _IPPROTO_ICMPV6 = 1, 58
# Bytes of the longest answer, as RFC 1812 and RFC 4443 have it.
_LONGEST_V4, _LONGEST_V6 = 576, 1280
_HOPS = 64
_FRAGMENT = 0x1FFF
_MULTICAST_V4, _MULTICAST_V6 = 224, 0xFF
# Echo, router advertisement and solicitation, timestamp: the other kinds of ICMP are errors.
_QUESTIONS = frozenset((0, 8, 9, 10, 13, 14))
_FIRST_QUESTION_V6 = 128
# The kernel's net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst.
RATE, BURST = 1000.0, 50.0


class Answers:
    """Makes the answers of one interface, and limits them."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = BURST
        self._at = float("-inf")

    def answer(self, packet: bytes, now: float) -> bytes | None:
        """Return the answer to a packet, or None if it deserves none or there were too many."""
        made = None
        if len(packet) >= _IPV4 and packet[0] >> 4 == 4:
            made = _answer_v4(packet)
        elif len(packet) >= _IPV6 and packet[0] >> 4 == 6:
            made = _answer_v6(packet)
        if made is None:
            return None
        self._left = min(BURST, self._left + max(0.0, now - self._at) * RATE)
        self._at = now
        if self._left < 1:
            return None
        self._left -= 1
        return made


def _answer_v4(packet: bytes) -> bytes | None:
    """RFC 1122, section 3.2.2: an error, a later fragment, and what isn't between two hosts are not answered."""
    if int.from_bytes(packet[6:8], "big") & _FRAGMENT:
        return None
    if any(first in (0, 127) or first >= _MULTICAST_V4 for first in (packet[12], packet[16])):
        return None
    header = (packet[0] & 15) * 4
    if packet[9] == _IPPROTO_ICMP and (len(packet) <= header or packet[header] not in _QUESTIONS):
        return None
    # Destination unreachable, host unreachable.
    body = bytearray(b"\3\1" + bytes(6)) + packet[: _LONGEST_V4 - _IPV4 - _ICMP]
    body[2:4] = _field(sum_bytes(body))
    head = bytearray((0x45, 0xC0, 0, 0, 0, 0, 0, 0, _HOPS, _IPPROTO_ICMP, 0, 0)) + packet[16:20] + packet[12:16]
    head[2:4] = (_IPV4 + len(body)).to_bytes(2, "big")
    head[10:12] = _field(sum_bytes(head))
    return bytes(head + body)


def _answer_v6(packet: bytes) -> bytes | None:
    """RFC 4443, section 2.4 (e)."""
    source, destination = packet[8:24], packet[24:40]
    if not any(source) or _MULTICAST_V6 in (source[0], destination[0]):
        return None
    if packet[6] == _IPPROTO_ICMPV6 and (len(packet) <= _IPV6 or packet[_IPV6] < _FIRST_QUESTION_V6):
        return None
    # Destination unreachable, address unreachable.
    body = bytearray(b"\1\3" + bytes(6)) + packet[: _LONGEST_V6 - _IPV6 - _ICMP]
    body[2:4] = _field(sum_bytes(source + destination + body) + _IPPROTO_ICMPV6 + len(body))
    return (
        b"\x60\0\0\0" + len(body).to_bytes(2, "big") + bytes((_IPPROTO_ICMPV6, _HOPS)) + destination + source + body
    )


def _field(total: int) -> bytes:
    return (65535 - total % 65535).to_bytes(2, "big")
