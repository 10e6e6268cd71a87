//! Answers to packets that go nowhere. If no peer takes one, as the kernel's WireGuard gives them:
//! ICMP's host unreachable (RFC 792), or ICMPv6's address unreachable (RFC 4443). If it is too long:
//! fragmentation needed (RFC 1191), or packet too big.
//!
//! The answer's source is the address that can't be reached: from an address of the interface, which
//! is the host's own, the host would ignore it.

use std::sync::Mutex;

use crate::checksum::Sum;
use crate::contract::Seconds;
use crate::locks::lock;

const IPV4: usize = 20;
const IPV6: usize = 40;
const ICMP: usize = 8;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_ICMPV6: u8 = 58;
/// Bytes of the longest answer, as RFC 1812 and RFC 4443 have it.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;
const HOPS: u8 = 64;

// The kernel's net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst.
const RATE: f64 = 1000.0;
const BURST: f64 = 50.0;

/// Why a packet goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No peer takes it.
    NoPeer,
    /// It is longer than this.
    TooLong(usize),
}

impl Why {
    /// Return type, code and the next six bytes of an ICMP message.
    fn icmp(self) -> [u8; ICMP] {
        match self {
            // Destination unreachable, host unreachable.
            Self::NoPeer => [3, 1, 0, 0, 0, 0, 0, 0],
            Self::TooLong(mtu) => {
                let [high, low] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
                [3, 4, 0, 0, 0, 0, high, low]
            }
        }
    }

    /// The same for ICMPv6.
    fn icmpv6(self) -> [u8; ICMP] {
        match self {
            // Destination unreachable, address unreachable.
            Self::NoPeer => [1, 3, 0, 0, 0, 0, 0, 0],
            Self::TooLong(mtu) => {
                let [a, b, c, d] = u32::try_from(mtu).unwrap_or(u32::MAX).to_be_bytes();
                [2, 0, 0, 0, a, b, c, d]
            }
        }
    }
}

/// Limits the answers of one interface.
#[derive(Default)]
pub struct Answers(Mutex<Option<Bucket>>);

struct Bucket {
    left: f64,
    at: Seconds,
}

impl Answers {
    /// Return the answer to a packet, or None if it deserves none or there were too many.
    pub fn answer(&self, packet: &[u8], why: Why, now: Seconds) -> Option<Vec<u8>> {
        let made = answer(packet, why)?;
        let mut bucket = lock(&self.0);
        let bucket = bucket.get_or_insert(Bucket { left: BURST, at: now });
        bucket.left = BURST.min(bucket.left + (now - bucket.at).max(0.0) * RATE);
        bucket.at = now;
        if bucket.left < 1.0 {
            return None;
        }
        bucket.left -= 1.0;
        Some(made)
    }
}

fn answer(packet: &[u8], why: Why) -> Option<Vec<u8>> {
    match packet.first()? >> 4 {
        4 if packet.len() >= IPV4 => answer_v4(packet, why),
        6 if packet.len() >= IPV6 => answer_v6(packet, why),
        _ => None,
    }
}

/// RFC 1122, section 3.2.2: nothing is answered to an error, to a fragment but the first, and to what
/// isn't from one host to one host.
fn answer_v4(packet: &[u8], why: Why) -> Option<Vec<u8>> {
    const FRAGMENT: u16 = 0x1fff;
    /// Echo, router advertisement and solicitation, timestamp: the others are errors.
    const QUESTIONS: [u8; 6] = [0, 8, 9, 10, 13, 14];
    let header = usize::from(packet[0] & 15) * 4;
    let fragment = u16::from_be_bytes([packet[6], packet[7]]) & FRAGMENT;
    let one_host = |address: &[u8]| address[0] != 0 && address[0] != 127 && address[0] < 224;
    if fragment != 0 || !one_host(&packet[12..16]) || !one_host(&packet[16..20]) {
        return None;
    }
    if packet[9] == IPPROTO_ICMP && !QUESTIONS.contains(packet.get(header)?) {
        return None;
    }
    let quoted = &packet[..packet.len().min(LONGEST_V4 - IPV4 - ICMP)];
    let size = (IPV4 + ICMP + quoted.len()) as u16;
    let mut made = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, HOPS, IPPROTO_ICMP, 0, 0];
    made[2..4].copy_from_slice(&size.to_be_bytes());
    made.extend_from_slice(&packet[16..20]);
    made.extend_from_slice(&packet[12..16]);
    let sum = Sum::default().bytes(&made).field();
    made[10..12].copy_from_slice(&sum.to_be_bytes());
    made.extend_from_slice(&why.icmp());
    made.extend_from_slice(quoted);
    let sum = Sum::default().bytes(&made[IPV4..]).field();
    made[IPV4 + 2..IPV4 + 4].copy_from_slice(&sum.to_be_bytes());
    Some(made)
}

/// RFC 4443, section 2.4 (e).
fn answer_v6(packet: &[u8], why: Why) -> Option<Vec<u8>> {
    const MULTICAST: u8 = 0xff;
    const FIRST_QUESTION: u8 = 128;
    let (source, destination) = (&packet[8..24], &packet[24..40]);
    if source[0] == MULTICAST || source.iter().all(|byte| *byte == 0) || destination[0] == MULTICAST {
        return None;
    }
    if packet[6] == IPPROTO_ICMPV6 && *packet.get(IPV6)? < FIRST_QUESTION {
        return None;
    }
    let quoted = &packet[..packet.len().min(LONGEST_V6 - IPV6 - ICMP)];
    let size = (ICMP + quoted.len()) as u16;
    let mut made = vec![0x60, 0, 0, 0, 0, 0, IPPROTO_ICMPV6, HOPS];
    made[4..6].copy_from_slice(&size.to_be_bytes());
    made.extend_from_slice(destination);
    made.extend_from_slice(source);
    made.extend_from_slice(&why.icmpv6());
    made.extend_from_slice(quoted);
    let sum = Sum::default().bytes(&made[8..]).word(IPPROTO_ICMPV6.into()).word(size).field();
    made[IPV6 + 2..IPV6 + 4].copy_from_slice(&sum.to_be_bytes());
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_LONG: Why = Why::TooLong(1420);

    fn four(size: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
        packet.resize(size, 7);
        packet
    }

    fn six(size: usize) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        packet.extend([&[0xfd; 16][..], &[0xfc; 16]].concat());
        packet.resize(size, 7);
        packet
    }

    #[test]
    fn what_is_too_long_is_told_how_long_it_may_be() {
        let packet = four(1421);
        let made = Answers::default().answer(&packet, TOO_LONG, 0.0).unwrap();
        assert_eq!((&made[12..16], &made[16..20]), (&packet[16..20], &packet[12..16]));
        assert_eq!((made[9], &made[20..22], &made[24..28]), (1, &[3, 4][..], &[0, 0, 0x05, 0x8c][..]));
        assert_eq!(made[28..], packet[..548]);
        assert!(Sum::default().bytes(&made[..20]).holds() && Sum::default().bytes(&made[20..]).holds());

        let packet = six(1421);
        let made = Answers::default().answer(&packet, TOO_LONG, 0.0).unwrap();
        assert_eq!((&made[8..24], &made[24..40]), (&packet[24..40], &packet[8..24]));
        assert_eq!((made[6], &made[40..42], &made[44..48]), (58, &[2, 0][..], &[0, 0, 0x05, 0x8c][..]));
        assert_eq!((made.len(), &made[48..]), (1280, &packet[..1232]));
        let pseudo = Sum::default().bytes(&made[8..40]).word(58).word(1240);
        assert!(pseudo.bytes(&made[40..]).holds());
    }

    #[test]
    fn a_limit_that_has_no_room_in_the_answer_is_the_greatest_there_is() {
        assert_eq!(Why::TooLong(1 << 16).icmp()[6..], [0xff; 2]);
        assert_eq!(Why::TooLong(1 << 32).icmpv6()[4..], [0xff; 4]);
    }

    #[test]
    fn more_than_a_burst_at_once_is_not_answered() {
        let (answers, packet) = (Answers::default(), four(1421));
        let count = |now| (0..100).filter(|_| answers.answer(&packet, TOO_LONG, now).is_some()).count();
        assert_eq!((count(1.0), count(1.0), count(1.01)), (50, 0, 10));
    }
}
