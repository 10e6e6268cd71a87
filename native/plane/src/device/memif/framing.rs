//! Between a frame of the other side and a packet of ours.
//!
//! With Ethernet, the address of the other side is the sender of the last frame with a packet in it,
//! and at first everybody's.

use std::sync::atomic::{AtomicU64, Ordering};

use transport::ethernet::{ETHERNET, MacAddress};

const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const TYPES_VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const EVERYBODY: MacAddress = [0xff; 6];
/// Set in the first byte of an address of many receivers.
const GROUP: u8 = 1;

/// What is in front of each packet.
pub enum Framing {
    /// Nothing.
    Ip,
    /// An Ethernet header.
    Ethernet(Neighbours),
}

/// The two addresses on the link.
pub struct Neighbours {
    own: MacAddress,
    /// The other side's, in the low 48 bits.
    other: AtomicU64,
}

/// Why a frame is left out: the name of its counter.
pub type Reason = &'static str;
/// The reasons there are.
pub const REASONS: [Reason; 4] = ["vlan", "other_mac", "other_type", "not_ip"];

/// A header to write or to read: its bytes, and how many of them are used.
pub type Header = ([u8; ETHERNET], usize);

impl Framing {
    /// Return the framing of an interface with this address.
    pub fn ethernet(own: MacAddress) -> Self {
        Self::Ethernet(Neighbours { own, other: AtomicU64::new(number(EVERYBODY)) })
    }

    /// Return the bytes in front of a packet.
    pub fn size(&self) -> usize {
        match self {
            Self::Ip => 0,
            Self::Ethernet(_) => ETHERNET,
        }
    }

    /// Return the header of a packet that begins with `first`.
    pub fn wrap(&self, first: u8) -> Header {
        let mut header = [0; ETHERNET];
        if let Self::Ethernet(neighbours) = self {
            let [_, _, other @ ..] = neighbours.other.load(Ordering::Relaxed).to_be_bytes();
            header[..6].copy_from_slice(&other);
            header[6..12].copy_from_slice(&neighbours.own);
            header[12..].copy_from_slice(if first >> 4 == 6 { &TYPE_IPV6 } else { &TYPE_IPV4 });
        }
        (header, self.size())
    }

    /// Check the header of a frame, and that an IP packet follows. `first`: the packet's first byte.
    pub fn unwrap(&self, header: &[u8; ETHERNET], first: u8) -> Result<(), Reason> {
        let version = first >> 4;
        let Self::Ethernet(neighbours) = self else {
            return if version == 4 || version == 6 { Ok(()) } else { Err("not_ip") };
        };
        let (destination, source, kind) = (&header[..6], &header[6..12], &header[12..]);
        if TYPES_VLAN.iter().any(|vlan| vlan == kind) {
            return Err("vlan");
        }
        if destination[0] & GROUP == 0 && destination != neighbours.own {
            return Err("other_mac");
        }
        if kind != TYPE_IPV4 && kind != TYPE_IPV6 {
            return Err("other_type");
        }
        if version != if kind == TYPE_IPV4 { 4 } else { 6 } {
            return Err("not_ip");
        }
        if let (0, Ok(source)) = (source[0] & GROUP, MacAddress::try_from(source)) {
            let source = number(source);
            if neighbours.other.load(Ordering::Relaxed) != source {
                neighbours.other.store(source, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn number([a, b, c, d, e, f]: MacAddress) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = [2, 0, 0, 0, 0, 1];
    const OTHER: MacAddress = [2, 0, 0, 0, 0, 9];

    fn header(destination: MacAddress, source: MacAddress, kind: [u8; 2]) -> [u8; ETHERNET] {
        let mut header = [0; ETHERNET];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&source);
        header[12..].copy_from_slice(&kind);
        header
    }

    #[test]
    fn frames_go_to_whoever_sent_the_last_packet() {
        let framing = Framing::ethernet(OWN);
        assert_eq!(framing.wrap(0x45), (header(EVERYBODY, OWN, TYPE_IPV4), ETHERNET));
        assert_eq!(framing.unwrap(&header(OWN, OTHER, TYPE_IPV4), 0x45), Ok(()));
        assert_eq!(framing.wrap(0x60), (header(OTHER, OWN, TYPE_IPV6), ETHERNET));
    }

    #[test]
    fn what_is_no_packet_for_us_is_left_out_and_named() {
        let framing = Framing::ethernet(OWN);
        let unwrap = |destination, kind, first| framing.unwrap(&header(destination, OTHER, kind), first);
        assert_eq!(unwrap(OWN, [0x81, 0x00], 0x45), Err("vlan"));
        assert_eq!(unwrap(OWN, [0x88, 0xa8], 0x45), Err("vlan"));
        assert_eq!(unwrap(OTHER, TYPE_IPV4, 0x45), Err("other_mac"));
        assert_eq!(unwrap(OWN, [0x08, 0x06], 0), Err("other_type"));
        assert_eq!(unwrap(OWN, TYPE_IPV6, 0x45), Err("not_ip"));
        assert_eq!(framing.wrap(0x45).0[..6], EVERYBODY, "nobody is learnt from these");
        assert_eq!(unwrap(EVERYBODY, TYPE_IPV6, 0x60), Ok(()));
        assert_eq!(Framing::Ip.unwrap(&[0; ETHERNET], 0x60), Ok(()));
        assert_eq!(Framing::Ip.unwrap(&[0; ETHERNET], 0x50), Err("not_ip"));
    }
}
