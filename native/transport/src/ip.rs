//! What the headers of an inner IP packet contain: addresses, length, and whether it is a datagram
//! of ours.

use crate::contract::Address;
use crate::drops::DropReason;
use crate::wire::{u32_at, u64_at};

/// Return the destination of an IP packet, or None if it is no IP packet.
pub(crate) fn destination(packet: &[u8]) -> Option<Address> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => Some(v4_at(packet, 16)),
        6 if packet.len() >= 40 => Some(v6_at(packet, 24)),
        _ => None,
    }
}

/// Return the source of a packet from a peer, and its length without padding.
pub(crate) fn inner_source(plaintext: &[u8]) -> Result<(Address, usize), DropReason> {
    let size = plaintext.len();
    let word = |at: usize| usize::from(plaintext[at]) << 8 | usize::from(plaintext[at + 1]);
    let (shortest, length, source) = match plaintext.first().map(|first| first >> 4) {
        Some(4) if size >= 20 => (20, word(2), v4_at(plaintext, 12)),
        Some(6) if size >= 40 => (40, 40 + word(4), v6_at(plaintext, 8)),
        _ => return Err(DropReason::InnerNotIp),
    };
    if (shortest..=size).contains(&length) { Ok((source, length)) } else { Err(DropReason::InnerLength) }
}

/// Return whether a packet is itself a datagram of the session with this header. Then the route to
/// the peer leads through the peer, and sealing the packet would never end.
pub(crate) fn is_looped(packet: &[u8], header: [u8; 8]) -> bool {
    const UDP: u8 = 17;
    let payload = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.get(9) == Some(&UDP) => usize::from(packet[0] & 15) * 4 + 8,
        Some(6) if packet.get(6) == Some(&UDP) => 48,
        _ => return false,
    };
    packet.get(payload..payload + 8) == Some(&header)
}

fn v4_at(packet: &[u8], at: usize) -> Address {
    Address::V4(u32_at(packet, at).swap_bytes())
}

fn v6_at(packet: &[u8], at: usize) -> Address {
    Address::V6(u128::from(u64_at(packet, at).swap_bytes()) << 64 | u128::from(u64_at(packet, at + 8).swap_bytes()))
}
