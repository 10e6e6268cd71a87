//! The header in front of each packet on the TUN device (linux/virtio_net.h), and the limits of UDP
//! messages.
//!
//! With the header the kernel exchanges many packets as one.

use crate::wire::OVERHEAD;

/// Bytes of a virtio_net_hdr.
pub const VNET_SIZE: usize = 10;
/// In `flags`: the reader has to complete the checksum.
pub const NEEDS_CHECKSUM: u8 = 1;
/// `gso_type`: one packet.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCP4: u8 = 1;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCP6: u8 = 4;
/// `gso_type`: UDP over either.
pub const GSO_UDP: u8 = 5;
/// Added to `gso_type`: the first segment has CWR.
pub const GSO_ECN: u8 = 0x80;

/// The offset of the checksum in TCP's header.
pub const TCP_CHECKSUM_OFFSET: usize = 16;
/// The offset of the checksum in UDP's header.
pub const UDP_CHECKSUM_OFFSET: usize = 6;
/// TCP's number in an IP header.
pub const IPPROTO_TCP: u8 = 6;
/// UDP's number in an IP header.
pub const IPPROTO_UDP: u8 = 17;

/// Segments in one message (UDP_MAX_SEGMENTS of older kernels).
pub const MAX_SEGMENTS: usize = 64;
/// Bytes in one message.
pub const MAX_MESSAGE: usize = 65507;
/// Bytes of the longest packet or superpacket.
pub const MAX_PACKET: usize = 65535;

/// A virtio_net_hdr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    /// NEEDS_CHECKSUM or 0.
    pub flags: u8,
    /// One of GSO_*, perhaps with GSO_ECN.
    pub gso_type: u8,
    /// Bytes of all headers. A hint that not every sender sets.
    pub header_size: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// The offset of the transport header.
    pub checksum_start: u16,
    /// The offset of the checksum field in the transport header. The field holds the sum of the
    /// pseudo-header.
    pub checksum_offset: u16,
}

impl Vnet {
    /// Parse the 10 bytes, which are in the host's byte order.
    pub fn decode(bytes: &[u8; VNET_SIZE]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_size: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// Return the 10 bytes.
    pub fn encode(self) -> [u8; VNET_SIZE] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.header_size, self.gso_size, self.checksum_start, self.checksum_offset];
        for (at, word) in words.into_iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Return the length that a packet of `size` bytes is sealed at: a multiple of 16, but not over the
/// MTU.
pub fn padded(size: usize, mtu: usize) -> usize {
    let last = if size > mtu { size % mtu } else { size };
    size - last + last.next_multiple_of(16).min(mtu)
}

/// Return how many datagrams with `packet` bytes inside fit into one message.
pub fn segments_in_message(packet: usize) -> usize {
    (MAX_MESSAGE / (packet + OVERHEAD)).clamp(1, MAX_SEGMENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_coding() {
        let bytes = [1, 0x81, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(Vnet::decode(&bytes).encode(), bytes);
    }

    #[test]
    fn padding_ends_at_16_or_at_the_mtu() {
        let sizes = [0, 1, 16, 17, 1408, 1409, 1420, 1421, 2840].map(|size| padded(size, 1420));
        assert_eq!(sizes, [0, 16, 16, 32, 1408, 1420, 1420, 1436, 2840]);
    }

    #[test]
    fn a_message_holds_45_datagrams_at_an_mtu_of_1420() {
        assert_eq!([1420, 64, 65535].map(segments_in_message), [45, 64, 1]);
    }
}
