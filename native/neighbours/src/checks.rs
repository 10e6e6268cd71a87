//! The length of an IP packet in a frame, and packets that may not come onto the link.

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

/// Return the size of the packet in front of a frame's padding. None if its header is malformed, or
/// the packet goes on beyond the frame.
pub fn size(bytes: &[u8]) -> Option<usize> {
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
