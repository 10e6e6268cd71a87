//! Neighbour discovery (RFC 4861, section 4.3 and 4.4): solicitations and advertisements.

use transport::checksum::Sum;
use transport::ethernet::MacAddress;

const IPV6: usize = 40;
/// Bytes of a message without options.
const FIXED: usize = 24;
/// Bytes of the option with a MAC address.
const OPTION: usize = 8;
/// Bytes of a packet that we make.
pub const SIZE: usize = IPV6 + FIXED + OPTION;
const ICMPV6: u8 = 58;
/// A router passes no packet on without making this less, so the sender is on the link.
const HOPS: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// All nodes on the link.
pub const ALL_NODES: u128 = 0xff02 << 112 | 1;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who has the target?
    Solicitation,
    /// The target is here.
    Advertisement {
        /// Whether somebody asked.
        solicited: bool,
        /// Whether it counts more than what is known.
        overrides: bool,
    },
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub kind: Kind,
    /// Who sent it. 0 if it asks whether it may have the target.
    pub source: u128,
    /// Whom it is for.
    pub destination: u128,
    /// The address that it is about.
    pub target: u128,
    /// The sender's MAC address in a solicitation, the target's in an advertisement.
    pub mac: Option<MacAddress>,
}

/// What an IPv6 packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No solicitation or advertisement.
    Other,
    /// One that must be ignored (RFC 4861, section 7.1).
    Invalid,
    /// A valid one.
    Message(Message),
}

/// Return the multicast address of all that may have an address.
pub fn solicited_node(target: u128) -> u128 {
    0xff02_u128 << 112 | 0x1_ff00_0000 | target & 0xff_ffff
}

/// Look for a message in an IPv6 packet whose length was checked.
pub fn parse(packet: &[u8]) -> Found {
    let Some((header, body)) = packet.split_first_chunk::<IPV6>() else { return Found::Other };
    let kind = match body.first() {
        Some(kind) if header[6] == ICMPV6 && (*kind == SOLICITATION || *kind == ADVERTISEMENT) => *kind,
        _ => return Found::Other,
    };
    valid(header, body, kind == SOLICITATION).map_or(Found::Invalid, Found::Message)
}

fn valid(header: &[u8; IPV6], body: &[u8], asks: bool) -> Option<Message> {
    let (fixed, options) = body.split_first_chunk::<FIXED>()?;
    if header[7] != HOPS || fixed[1] != 0 || !sum(header, body).holds() {
        return None;
    }
    let (source, destination) = (address(&header[8..24])?, address(&header[24..40])?);
    let target = address(&fixed[8..24])?;
    if is_multicast(target) || is_multicast(source) {
        return None;
    }
    let mac = mac_option(options, if asks { SOURCE_MAC } else { TARGET_MAC })?;
    let flags = fixed[4];
    let solicited = flags & SOLICITED != 0;
    let strange = if asks {
        source == 0 && (mac.is_some() || destination != solicited_node(target))
    } else {
        source == 0 || solicited && is_multicast(destination)
    };
    if strange {
        return None;
    }
    let kind =
        if asks { Kind::Solicitation } else { Kind::Advertisement { solicited, overrides: flags & OVERRIDE != 0 } };
    Some(Message { kind, source, destination, target, mac })
}

/// Return the MAC address in the options, if they are well-formed.
fn mac_option(mut options: &[u8], wanted: u8) -> Option<Option<MacAddress>> {
    let mut found = None;
    while let [kind, eighths, ..] = *options {
        let (option, rest) = options.split_at_checked(usize::from(eighths) * OPTION)?;
        // No option is empty, or this would never end.
        let mac = option.get(2..8)?;
        if kind == wanted {
            found = mac.try_into().ok();
        }
        options = rest;
    }
    options.is_empty().then_some(found)
}

impl Message {
    /// Return the packet of a message. `mac` must be known.
    pub fn packet(&self) -> [u8; SIZE] {
        let mut packet = [0; SIZE];
        packet[0] = 0x60;
        packet[5] = (FIXED + OPTION) as u8;
        packet[6] = ICMPV6;
        packet[7] = HOPS;
        packet[8..24].copy_from_slice(&self.source.to_be_bytes());
        packet[24..40].copy_from_slice(&self.destination.to_be_bytes());
        let option = match self.kind {
            Kind::Solicitation => {
                packet[40] = SOLICITATION;
                SOURCE_MAC
            }
            Kind::Advertisement { solicited, overrides } => {
                packet[40] = ADVERTISEMENT;
                packet[44] = if solicited { SOLICITED } else { 0 } | if overrides { OVERRIDE } else { 0 };
                TARGET_MAC
            }
        };
        packet[48..64].copy_from_slice(&self.target.to_be_bytes());
        packet[64..66].copy_from_slice(&[option, 1]);
        packet[66..].copy_from_slice(&self.mac.unwrap_or_default());
        if let Some((header, body)) = packet.split_first_chunk::<IPV6>() {
            let field = sum(header, body).field().to_be_bytes();
            packet[42..44].copy_from_slice(&field);
        }
        packet
    }
}

/// Return the sum of a message with its pseudo-header.
fn sum(header: &[u8; IPV6], body: &[u8]) -> Sum {
    Sum::default().bytes(&header[8..]).word(body.len() as u16).word(ICMPV6.into()).bytes(body)
}

fn address(bytes: &[u8]) -> Option<u128> {
    bytes.try_into().ok().map(u128::from_be_bytes)
}

/// Return whether an address is of many receivers.
pub fn is_multicast(address: u128) -> bool {
    address >> 120 == 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Message = Message {
        kind: Kind::Solicitation,
        source: 0xfe80 << 112 | 9,
        destination: 0xff02 << 112 | 0x1_ff00_0002,
        target: 0xfd09 << 112 | 2,
        mac: Some([2, 0, 0, 0, 0, 9]),
    };
    const TOLD: Message = Message {
        kind: Kind::Advertisement { solicited: true, overrides: true },
        source: ASKED.target,
        destination: ASKED.source,
        ..ASKED
    };

    /// Return a packet with a changed byte and the right checksum.
    fn changed(packet: &[u8], at: usize, value: u8) -> Vec<u8> {
        let mut packet = packet.to_vec();
        packet[at] = value;
        resum(packet)
    }

    fn resum(mut packet: Vec<u8>) -> Vec<u8> {
        packet[42..44].fill(0);
        let (header, body) = packet.split_first_chunk().unwrap();
        let field = sum(header, body).field().to_be_bytes();
        packet[42..44].copy_from_slice(&field);
        packet
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        assert_eq!(solicited_node(ASKED.target), ASKED.destination);
        for message in [ASKED, TOLD] {
            assert_eq!(parse(&message.packet()), Found::Message(message));
        }
        let mut bare = ASKED.packet()[..64].to_vec();
        bare[5] = 24;
        assert_eq!(parse(&resum(bare)), Found::Message(Message { mac: None, ..ASKED }));
    }

    #[test]
    fn what_came_from_elsewhere_or_is_damaged_is_ignored() {
        let packet = ASKED.packet();
        // A hop limit of 254, a code, a multicast target, a multicast source, an empty option, one that is too long.
        for (at, value) in [(7, 254), (41, 1), (48, 0xff), (8, 0xff), (65, 0), (65, 2)] {
            assert_eq!(parse(&changed(&packet, at, value)), Found::Invalid, "{at}");
        }
        for at in 42..72 {
            let mut packet = packet;
            packet[at] ^= 0x10;
            assert_eq!(parse(&packet), Found::Invalid, "the checksum at {at}");
        }
        for size in 41..72 {
            assert_eq!(parse(&packet[..size]), Found::Invalid, "{size}");
        }
        for size in 0..41 {
            assert_eq!(parse(&packet[..size]), Found::Other, "{size}");
        }
        assert_eq!(parse(&changed(&packet, 40, 133)), Found::Other);
        assert_eq!(parse(&changed(&packet, 6, 17)), Found::Other);
    }

    #[test]
    fn who_has_no_address_yet_asks_all_that_may_have_it_and_names_no_mac() {
        let mut bare = Message { source: 0, ..ASKED }.packet();
        assert_eq!(parse(&bare), Found::Invalid, "a MAC address");
        bare[5] = 24;
        let bare = resum(bare[..64].to_vec());
        assert_eq!(parse(&bare), Found::Message(Message { source: 0, mac: None, ..ASKED }));
        assert_eq!(parse(&changed(&bare, 39, 3)), Found::Invalid, "another group");
        assert_eq!(parse(&Message { destination: ALL_NODES, ..TOLD }.packet()), Found::Invalid, "solicited to all");
    }
}
