"""The headers by which the kernel takes and gives many packets as one.

On the TUN device each packet has a `virtio_net_hdr` in front (linux/virtio_net.h); on UDP sockets the segment
size travels in a control message (linux/udp.h).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rustguard_py.protocol.wire import DATA_OVERHEAD

VNET_SIZE = 10
# Flags, GSO type, header length, segment size, checksum start, checksum offset; the host's byte order.
_VNET = struct.Struct("=BBHHHH")
PLAIN_VNET = bytes(VNET_SIZE)

NEEDS_CHECKSUM = 1
GSO_NONE = 0
GSO_TCP4 = 1
GSO_TCP6 = 4
GSO_UDP = 5
GSO_ECN = 0x80

TCP_CHECKSUM_OFFSET = 16
UDP_CHECKSUM_OFFSET = 6
IPPROTO_TCP = 6
IPPROTO_UDP = 17

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
# Segments in one message (UDP_MAX_SEGMENTS of older kernels), and bytes in one.
MAX_SEGMENTS = 64
MAX_MESSAGE = 65507
# Views over a buffer are kept for this many shapes of superpacket.
SHAPES_KEPT = 48


class Vnet(NamedTuple):
    """A virtio_net_hdr.

    Attributes:
        flags: NEEDS_CHECKSUM or 0.
        gso_type: One of GSO_*, perhaps with GSO_ECN.
        header_size: Of all headers; a hint that not every sender sets.
        gso_size: Payload bytes a segment.
        checksum_start: Where the transport header begins.
        checksum_offset: Of the checksum field in it, which holds the sum of the pseudo-header.
    """

    flags: int
    gso_type: int
    header_size: int
    gso_size: int
    checksum_start: int
    checksum_offset: int

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Vnet:
        """Parse the first 10 bytes."""
        return cls(*_VNET.unpack_from(data))

    def encode(self) -> bytes:
        """Give the 10 bytes."""
        return _VNET.pack(*self)


def segments_in_message(datagram_size: int) -> int:
    """Say how many datagrams of that size fit one message."""
    return max(1, min(MAX_SEGMENTS, MAX_MESSAGE // datagram_size))


def wanted_gso_segments(mtu: int) -> int:
    """Give the `gso_max_segs` to set on the interface: a superpacket then fills one message, with no runt after it.

    At an MTU of 1420 TCP makes 47 segments of 64 KiB while 45 datagrams fit a message.
    """
    return segments_in_message(mtu + DATA_OVERHEAD)
