"""The kernel's headers for many packets in one read or write.

On the TUN device, each packet has a `virtio_net_hdr` in front (linux/virtio_net.h). On UDP sockets, a control message
has the segment size (linux/udp.h).
"""

from __future__ import annotations

import errno
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
# Segments per message (UDP_MAX_SEGMENTS of older kernels), and bytes per message.
MAX_SEGMENTS = 64
MAX_MESSAGE = 65507
# Errors that may mean that the kernel can't do an offload here.
REFUSALS = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP))
# Views over a buffer are kept for this many shapes of superpacket.
SHAPES_KEPT = 48


class Vnet(NamedTuple):
    """A virtio_net_hdr.

    Attributes:
        flags: NEEDS_CHECKSUM or 0.
        gso_type: One of GSO_*, perhaps with GSO_ECN.
        header_size: Bytes of all headers; only a hint, not always set.
        gso_size: Payload bytes per segment.
        checksum_start: Where the transport header begins.
        checksum_offset: Where its checksum field is. The field holds the sum of the pseudo-header.
    """

    flags: int
    gso_type: int
    header_size: int
    gso_size: int
    checksum_start: int
    checksum_offset: int

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Vnet:
        """Return the header in the first 10 bytes."""
        return cls(*_VNET.unpack_from(data))

    def encode(self) -> bytes:
        """Return the 10 bytes."""
        return _VNET.pack(*self)


def segments_in_message(datagram_size: int) -> int:
    """Return how many datagrams of this size fit into one message."""
    return max(1, min(MAX_SEGMENTS, MAX_MESSAGE // datagram_size))


def wanted_gso_segments(mtu: int) -> int:
    """Return the `gso_max_segs` for the interface, with which a superpacket exactly fills one message.

    At an MTU of 1420, TCP cuts 64 KiB into 47 segments, but only 45 datagrams fit into a message.
    """
    return segments_in_message(mtu + DATA_OVERHEAD)
