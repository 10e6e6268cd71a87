//! Explicit congestion notification through the tunnel, as the kernel's WireGuard does it: RFC 6040
//! but for two cells.
//!
//! - Out: the outer header has the inner header's mark. An inner CE leaves as ECT(0), so that
//!   marks made on the way can be told from marks made before.
//! - In: CE on the outer header goes to the inner one, and ECT(1) over ECT(0) as well.
//!   RFC 6040 drops what is marked CE but says that it isn't ECN-capable. Here it is delivered.
//!
//! The outer header's DSCP is 0, so the tunnel shows nobody what it carries. Handshakes have AF41.

use crate::wire::{INITIATION, RESPONSE, message_type};

/// The sender takes part in ECN. It is the codepoint for "L4S", too.
pub const ECT_1: u8 = 1;
/// The sender takes part in ECN.
pub const ECT_0: u8 = 2;
/// Congestion was experienced.
pub const CE: u8 = 3;
const MASK: u8 = 3;
/// DSCP AF41, as the kernel marks handshakes.
const HANDSHAKE: u8 = 0x88;

/// Return the TOS or traffic class of the datagram that carries `packet`, which may be empty.
pub fn outer(packet: &[u8]) -> u8 {
    match inner(packet) {
        CE => ECT_0,
        mark => mark,
    }
}

/// Return the TOS or traffic class of a datagram that carries no packet.
pub fn of_datagram(datagram: &[u8]) -> u8 {
    if matches!(message_type(datagram), INITIATION | RESPONSE) { HANDSHAKE } else { 0 }
}

/// Return whether a datagram's TOS or traffic class can change the packet that it carried.
pub fn changes(tos: u8) -> bool {
    matches!(tos & MASK, CE | ECT_1)
}

/// Mark a packet that came in a datagram with this TOS or traffic class.
pub fn mark(packet: &mut [u8], tos: u8) {
    let mark = match (tos & MASK, inner(packet)) {
        (CE, ECT_0 | ECT_1) => CE,
        (ECT_1, ECT_0) => ECT_1,
        _ => return,
    };
    if packet[0] >> 4 == 6 {
        packet[1] = packet[1] & !(MASK << 4) | mark << 4;
    } else if let Some([_, tos, .., high, low]) = packet.first_chunk_mut::<12>() {
        // RFC 1624. A wrong checksum stays wrong.
        let sum = u32::from(!u16::from_be_bytes([*high, *low])) + u32::from(!u16::from(*tos));
        *tos = *tos & !MASK | mark;
        let sum = sum + u32::from(*tos);
        let folded = (sum & 0xffff) + (sum >> 16);
        [*high, *low] = (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes();
    }
}

/// Mark a packet that met congestion here. Return false if its sender doesn't take part in ECN.
pub fn congest(packet: &mut [u8]) -> bool {
    mark(packet, CE);
    inner(packet) == CE
}

/// Return the mark in a packet's header.
fn inner(packet: &[u8]) -> u8 {
    match packet {
        [first, tos, ..] if first >> 4 == 4 => tos & MASK,
        [first, class, ..] if first >> 4 == 6 => class >> 4 & MASK,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Sum;
    use crate::segment::tests::packet;

    fn marked(v4: bool, mark: u8) -> Vec<u8> {
        let mut made = packet(v4, false, 0, 0, b"payload");
        if v4 {
            made[1] = 0xb8 | mark;
            made[10..12].fill(0);
            let field = Sum::default().bytes(&made[..20]).field();
            made[10..12].copy_from_slice(&field.to_be_bytes());
        } else {
            made[..2].copy_from_slice(&[0x6b, 0x8f | mark << 4]);
        }
        made
    }

    #[test]
    fn each_cell_of_the_table_is_the_kernels() {
        // By the inner mark, then the outer one: not ECN-capable, ECT(1), ECT(0), CE.
        let table = [[0, 0, 0, 0], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];
        for v4 in [true, false] {
            for (inner, row) in (0..).zip(table) {
                assert_eq!(outer(&marked(v4, inner)), [0, 1, 2, 2][usize::from(inner)]);
                let mut here = marked(v4, inner);
                assert_eq!(congest(&mut here), inner != 0);
                assert_eq!(here, marked(v4, row[3]));
                for (tos, expected) in (0..).zip(row) {
                    let mut packet = marked(v4, inner);
                    mark(&mut packet, 0x88 | tos);
                    assert_eq!(packet, marked(v4, expected), "v4 {v4}: {inner} in {tos}");
                    assert!(changes(tos) || inner == expected);
                }
            }
        }
    }

    #[test]
    fn a_wrong_header_checksum_stays_wrong() {
        let mut packet = marked(true, ECT_0);
        packet[10] ^= 1;
        mark(&mut packet, CE);
        assert_eq!(packet[1] & MASK, CE);
        assert!(!Sum::default().bytes(&packet[..20]).holds());
    }

    #[test]
    fn only_first_and_second_messages_have_the_class_of_handshakes() {
        let found = [&[1, 0, 0, 0][..], &[2, 0, 0, 0], &[3, 0, 0, 0], &[4, 0, 0, 0], b"RGE2", &[1]].map(of_datagram);
        assert_eq!(found, [0x88, 0x88, 0, 0, 0, 0]);
        assert_eq!([&[][..], &[0x45], b"\xff\xff"].map(outer), [0; 3]);
    }
}
