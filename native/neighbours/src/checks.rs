//! The headers of an IP packet in a frame, and packets that may not come onto the link.

/// Why a frame or a packet is left out: the name of its counter.
pub type Reason = &'static str;

const IPV4: usize = 20;
const IPV6: usize = 40;
const ICMPV6: u8 = 58;
/// The extension headers that lead to another header: hop-by-hop, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// The longest chain of extension headers that is followed.
const MOST_HEADERS: usize = 8;
/// Router and neighbour discovery.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
/// The hop limit without which discovery is ignored.
const HOPS: u8 = 255;
/// The longest packet, whole or put together, without IPv6's first header.
const LONGEST: usize = 0xffff;

/// Return the size of the packet in front of a frame's padding, or why it is none: a header is
/// malformed, the packet goes on beyond the frame, or it is a fragment of no possible packet.
pub fn check(bytes: &[u8]) -> Result<usize, Reason> {
    let size = size(bytes).ok_or("bad_length")?;
    let fragment = if bytes[0] >> 4 == 4 { fragment_v4(&bytes[..size]) } else { fragment_v6(&bytes[..size]) };
    match fragment? {
        Some(fragment) if !fragment.is_possible() => Err("bad_fragment"),
        _ => Ok(size),
    }
}

/// A part of a longer packet.
struct Fragment {
    /// Bytes of the longer packet in front of this, headers included that count for its length.
    start: usize,
    /// Bytes of this part.
    size: usize,
    /// Whether others follow.
    more: bool,
}

impl Fragment {
    /// RFC 791, section 3.2, and RFC 8200, section 4.5: all parts but the last are multiples of 8.
    fn is_possible(&self) -> bool {
        self.size > 0 && (!self.more || self.size % 8 == 0) && self.start + self.size <= LONGEST
    }
}

/// Return which fragment a packet is. None if it is whole.
fn fragment_v4(packet: &[u8]) -> Result<Option<Fragment>, Reason> {
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;
    let field = u16::from_be_bytes([packet[6], packet[7]]) & (MORE | OFFSET);
    if field == 0 {
        return Ok(None);
    }
    let header = usize::from(packet[0] & 15) * 4;
    let start = header + usize::from(field & OFFSET) * 8;
    Ok(Some(Fragment { start, size: packet.len() - header, more: field & MORE != 0 }))
}

fn fragment_v6(packet: &[u8]) -> Result<Option<Fragment>, Reason> {
    const MORE: u16 = 1;
    const OFFSET: u16 = 0xfff8;
    let (mut next, mut at) = (packet[6], IPV6);
    while EXTENSIONS.contains(&next) {
        let Some([kind, length]) = packet.get(at..at + 2) else { return Err("bad_length") };
        (next, at) = (*kind, at + 8 + usize::from(*length) * 8);
        if at > packet.len() {
            return Err("bad_length");
        }
    }
    if next != FRAGMENT {
        return Ok(None);
    }
    let Some([_, _, high, low, ..]) = packet.get(at..at + 8) else { return Err("bad_fragment") };
    let field = u16::from_be_bytes([*high, *low]) & (MORE | OFFSET);
    // A fragment header on a whole packet is allowed (RFC 6946).
    if field == 0 {
        return Ok(None);
    }
    let start = at - IPV6 + usize::from(field & OFFSET);
    Ok(Some(Fragment { start, size: packet.len() - at - 8, more: field & MORE != 0 }))
}

/// Return the size of the packet in front of a frame's padding, if its lengths agree.
fn size(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let (header, size) = match bytes.first()? >> 4 {
        4 => (usize::from(bytes[0] & 15) * 4, word(2)?),
        6 => (IPV6, IPV6 + word(4)?),
        _ => return None,
    };
    (header >= IPV4 && header <= size && size <= bytes.len()).then_some(size)
}

/// Return whether a packet is router or neighbour discovery, which counts for its own link only. From
/// a peer it could redirect what others on the link send. `start`: its first bytes.
pub fn is_discovery(start: &[u8]) -> bool {
    if start.len() < IPV6 || start[0] >> 4 != 6 || start[7] != HOPS {
        return false;
    }
    let (mut next, mut at) = (start[6], IPV6);
    for _ in 0..MOST_HEADERS {
        if next == ICMPV6 {
            return start.get(at).is_none_or(|kind| DISCOVERY.contains(kind));
        }
        let scale = match next {
            FRAGMENT => 0,
            AUTHENTICATION => 4,
            other if EXTENSIONS.contains(&other) => 8,
            _ => return false,
        };
        // What can't be seen may be discovery. No ordinary packet has so many headers and this hop limit.
        let Some([kind, length]) = start.get(at..at + 2) else { return true };
        at += if scale == 0 { 8 } else { 8 + usize::from(*length) * scale };
        next = *kind;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn six(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6];
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, payload.len() as u8, next, 255]);
        packet.extend(payload);
        packet
    }

    #[test]
    fn padding_is_cut_and_what_is_cut_off_is_no_packet() {
        let mut four = vec![0; 60];
        four[..4].copy_from_slice(&[0x45, 0, 0, 28]);
        assert_eq!(size(&four), Some(28));
        assert_eq!(size(&four[..28]), Some(28));
        assert_eq!(size(&four[..27]), None);
        for (first, total) in [(0x44, 28), (0x46, 23), (0x45, 19), (0x55, 28), (0x45, 61)] {
            (four[0], four[3]) = (first, total);
            assert_eq!(size(&four), None, "{first:x} {total}");
        }
        let mut packet = six(17, &[0; 8]);
        packet.resize(60, 0);
        assert_eq!(size(&packet), Some(48));
        assert_eq!(size(&packet[..48]), Some(48));
        assert_eq!(size(&packet[..47]), None);
        for end in 0..6 {
            assert_eq!(size(&packet[..end]), None);
        }
    }

    fn four_fragment(field: u16, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; IPV4 + payload];
        let [a, b] = (packet.len() as u16).to_be_bytes();
        let [c, d] = field.to_be_bytes();
        packet[..8].copy_from_slice(&[0x45, 0, a, b, 0, 1, c, d]);
        packet
    }

    fn six_fragment(field: u16, payload: usize) -> Vec<u8> {
        let [c, d] = field.to_be_bytes();
        six(FRAGMENT, &[&[17, 0, c, d, 0, 0, 0, 1][..], &vec![0; payload]].concat())
    }

    #[test]
    fn a_fragment_is_part_of_a_possible_packet() {
        // More follow, one in the middle, the last of any size, and one that ends at the longest length.
        for (field, payload) in [(0x2000, 8), (0x2001, 160), (0x0001, 3), (0x1ffc, 11), (0x4000, 0), (0, 0)] {
            let packet = four_fragment(field, payload);
            assert_eq!(check(&packet), Ok(packet.len()), "{field:x} {payload}");
        }
        for (field, payload) in [(0x2000, 9), (0x2000, 0), (0x0001, 0), (0x1ffd, 4), (0x1fff, 8)] {
            assert_eq!(check(&four_fragment(field, payload)), Err("bad_fragment"), "{field:x} {payload}");
        }
        for (field, payload) in [(1, 8), (9, 160), (8, 3), (0xfff8, 7), (0, 0), (0, 5)] {
            let packet = six_fragment(field, payload);
            assert_eq!(check(&packet), Ok(packet.len()), "{field:x} {payload}");
        }
        for (field, payload) in [(1, 9), (1, 0), (8, 0), (0xfff8, 8)] {
            assert_eq!(check(&six_fragment(field, payload)), Err("bad_fragment"), "{field:x} {payload}");
        }
        assert_eq!(check(&six(FRAGMENT, &[17, 0, 0, 0, 0, 0, 0])), Err("bad_fragment"), "cut off");
    }

    #[test]
    fn a_fragment_is_found_behind_other_headers_which_lie_in_the_packet() {
        let behind = |next, field: u8, size| {
            let fragment = [17, 0, 0, field, 0, 0, 0, 1];
            check(&six(next, &[&[FRAGMENT, 0, 0, 0, 0, 0, 0, 0][..], &fragment, &vec![0; size]].concat()))
        };
        for next in EXTENSIONS {
            assert_eq!(behind(next, 1, 8), Ok(64), "{next}");
            assert_eq!(behind(next, 1, 7), Err("bad_fragment"), "{next}");
        }
        assert_eq!(check(&six(60, &[17, 0, 0, 0, 0, 0, 0, 0])), Ok(48));
        assert_eq!(check(&six(60, &[17, 1, 0, 0, 0, 0, 0, 0])), Err("bad_length"));
        assert_eq!(check(&six(60, &[17])), Err("bad_length"));
        assert_eq!(check(&six(60, &[])), Err("bad_length"));
    }

    #[test]
    fn discovery_is_found_behind_other_headers() {
        for kind in 133..=137 {
            assert!(is_discovery(&six(58, &[kind, 0])));
        }
        assert!(!is_discovery(&six(58, &[128, 0])));
        assert!(!is_discovery(&six(17, &[135, 0])));
        let mut far = six(58, &[135, 0]);
        far[7] = 64;
        assert!(!is_discovery(&far));
        let behind = |next, header: &[u8]| six(next, &[header, &[135, 0]].concat());
        for next in [0, 43, 60, 44] {
            assert!(is_discovery(&behind(next, &[58, 0, 0, 0, 0, 0, 0, 0])), "{next}");
        }
        assert!(is_discovery(&behind(51, &[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
        assert!(is_discovery(&behind(60, &[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
        assert!(is_discovery(&six(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9))), "too many to look at");
        assert!(is_discovery(&six(60, &[58])), "cut off");
        assert!(!is_discovery(&six(60, &[6, 0, 0, 0, 0, 0, 0, 0, 135])));
    }
}
