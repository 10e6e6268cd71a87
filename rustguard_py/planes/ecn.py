"""Explicit congestion notification through the tunnel, as the kernel's WireGuard does it: RFC 6040 but for two cells.

- Out: the outer header has the inner header's mark. An inner CE leaves as ECT(0), so that marks made on the way can
  be told from marks made before.
- In: CE on the outer header goes to the inner one, and ECT(1) over ECT(0) as well. RFC 6040 drops what is marked CE
  but says that it isn't ECN-capable. Here it is delivered.

The outer header's DSCP is 0, so the tunnel shows nobody what it carries. Handshakes have AF41.
"""

from __future__ import annotations

from rustguard_py.protocol.wire import INITIATION, RESPONSE, message_type

# The codepoints, in the last two bits of the TOS or traffic class.
NOT_ECT, ECT_1, ECT_0, CE = 0, 1, 2, 3
_MASK = 3
# DSCP AF41, as the kernel marks handshakes.
HANDSHAKE_TOS = 0x88


def outer_tos(packet: bytes | bytearray | memoryview) -> int:
    """Return the TOS or traffic class of the datagram that carries `packet`, which may be empty."""
    mark = _inner(packet)
    return ECT_0 if mark == CE else mark


def datagram_tos(datagram: bytes) -> int:
    """Return the TOS or traffic class of a datagram that carries no packet."""
    return HANDSHAKE_TOS if message_type(datagram) in (INITIATION, RESPONSE) else 0


def changes(tos: int) -> bool:
    """Return whether a datagram's TOS or traffic class can change the packet that it carried."""
    return tos & _MASK in (CE, ECT_1)


def mark(packet: bytearray | memoryview, tos: int) -> None:
    """Mark, in place, a packet that came in a datagram with this TOS or traffic class."""
    outer, inner = tos & _MASK, _inner(packet)
    if outer == CE and inner in (ECT_0, ECT_1):
        new = CE
    elif outer == ECT_1 and inner == ECT_0:
        new = ECT_1
    else:
        return
    if packet[0] >> 4 == 6:
        packet[1] = packet[1] & ~(_MASK << 4) | new << 4
    elif len(packet) >= 12:
        # RFC 1624. A wrong checksum stays wrong.
        total = 0xFFFF - (packet[10] << 8 | packet[11]) + 0xFFFF - packet[1]
        packet[1] = packet[1] & ~_MASK | new
        total += packet[1]
        total = (total & 0xFFFF) + (total >> 16)
        packet[10:12] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2, "big")


def _inner(packet: bytes | bytearray | memoryview) -> int:
    """Return the mark in a packet's header."""
    if len(packet) < 2:
        return NOT_ECT
    version = packet[0] >> 4
    if version == 4:
        return packet[1] & _MASK
    return packet[1] >> 4 & _MASK if version == 6 else NOT_ECT
