//! The packets: IPv4 and UDP, with a record that says what was sent and when.
//! `rustguard_py/cli/generate/layout.py` describes it, and has the same in Python.

use std::collections::HashMap;

use transport::checksum::Sum;

use super::pace::MOST_AT_ONCE;

/// Bytes of the headers of IPv4 and UDP.
pub const HEADERS: usize = 28;
const RECORD: usize = 32;
const MAGIC: &[u8; 4] = b"RGEN";
const FIRST_PORT: u16 = 10_000;
/// The port that packets go to.
pub const TARGET_PORT: u16 = 7007;
/// The least bytes of a packet.
pub const LEAST_SIZE: usize = 64;
/// The most bytes of a packet.
pub const MOST_SIZE: usize = 1500;
/// The most flows: each has a source port of its own.
pub const MOST_FLOWS: usize = 10_000;

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// So that what is late from one trial isn't counted in the next.
    pub trial: u32,
    /// From 0.
    pub flow: u32,
    /// Of the flow, from 0.
    pub sequence: u64,
    /// When the packet was to be sent, in nanoseconds of CLOCK_MONOTONIC.
    pub due: u64,
}

/// Return the record in a UDP payload. None if it isn't one of ours, or not whole.
pub fn parse(payload: &[u8]) -> Option<Record> {
    let (record, _) = payload.split_at_checked(RECORD)?;
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let whole = &record[..4] == MAGIC && word(12) as usize == payload.len() + HEADERS;
    whole.then(|| Record { trial: word(4), flow: word(8), sequence: long(16), due: long(24) })
}

/// All of a packet that doesn't change, and the sum of its UDP checksum so far.
struct Template {
    packet: Vec<u8>,
    sum: Sum,
}

impl Template {
    fn new(size: usize, source: [u8; 4], target: [u8; 4]) -> Self {
        let mut packet = vec![0; size];
        let length = (size as u16).to_be_bytes();
        packet[..10].copy_from_slice(&[0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, libc::IPPROTO_UDP as u8]);
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&target);
        let header = Sum::default().bytes(&packet[..20]).field();
        packet[10..12].copy_from_slice(&header.to_be_bytes());
        packet[22..24].copy_from_slice(&TARGET_PORT.to_be_bytes());
        packet[24..26].copy_from_slice(&(size as u16 - 20).to_be_bytes());
        packet[HEADERS..HEADERS + 4].copy_from_slice(MAGIC);
        packet[HEADERS + 12..HEADERS + 16].copy_from_slice(&(size as u32).to_le_bytes());
        let sum = Sum::default().bytes(&packet[12..]).word(libc::IPPROTO_UDP as u16).word(size as u16 - 20);
        Self { packet, sum }
    }
}

/// Room for one packet.
struct Slot {
    bytes: [u8; MOST_SIZE],
    size: usize,
}

/// The packets of a burst, and what comes next in each flow.
pub struct Packets {
    templates: HashMap<usize, Template>,
    pattern: Vec<usize>,
    trial: u32,
    /// The next sequence number of each flow.
    next: Vec<u64>,
    slots: Vec<Slot>,
    made: u64,
}

impl Packets {
    /// Prepare packets of the sizes in `pattern`, again and again.
    pub fn new(trial: u32, flows: usize, pattern: &[usize], source: [u8; 4], target: [u8; 4]) -> Self {
        let templates = pattern.iter().map(|size| (*size, Template::new(*size, source, target))).collect();
        let slots = (0..MOST_AT_ONCE).map(|_| Slot { bytes: [0; MOST_SIZE], size: 0 }).collect();
        Self { templates, pattern: pattern.to_vec(), trial, next: vec![0; flows], slots, made: 0 }
    }

    /// Make the next packets. Those that aren't [`Packets::keep`]t are made again.
    pub fn fill(&mut self, count: usize, due: u64) {
        let (flows, mut next) = (self.next.len() as u64, std::mem::take(&mut self.next));
        for (number, slot) in (self.made..).zip(&mut self.slots[..count]) {
            let flow = number % flows;
            let size = self.pattern[((number / flows + flow) % self.pattern.len() as u64) as usize];
            let Template { packet, sum } = &self.templates[&size];
            slot.size = size;
            let bytes = &mut slot.bytes[..size];
            bytes.copy_from_slice(packet);
            let port = FIRST_PORT + flow as u16;
            bytes[20..22].copy_from_slice(&port.to_be_bytes());
            let body = &mut bytes[HEADERS..HEADERS + RECORD];
            body[4..8].copy_from_slice(&self.trial.to_le_bytes());
            body[8..12].copy_from_slice(&(flow as u32).to_le_bytes());
            body[16..24].copy_from_slice(&next[flow as usize].to_le_bytes());
            body[24..32].copy_from_slice(&due.to_le_bytes());
            let checksum = sum.word(port).bytes(&body[4..12]).bytes(&body[16..]).field();
            bytes[26..28].copy_from_slice(&checksum.to_be_bytes());
            next[flow as usize] += 1;
        }
        self.next = next;
    }

    /// Return the packets that were made last.
    pub fn made(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.slots[..count].iter().map(|slot| &slot.bytes[..slot.size])
    }

    /// Count the first `taken` of the `count` packets made last as sent. Return their bytes.
    pub fn keep(&mut self, taken: usize, count: usize) -> u64 {
        let flows = self.next.len() as u64;
        for number in self.made + taken as u64..self.made + count as u64 {
            self.next[(number % flows) as usize] -= 1;
        }
        self.made += taken as u64;
        self.slots[..taken].iter().map(|slot| slot.size as u64).sum()
    }

    /// Return how many packets were kept.
    pub fn kept(&self) -> u64 {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: ([u8; 4], [u8; 4]) = ([10, 99, 0, 1], [10, 99, 0, 2]);

    #[test]
    fn both_checksums_hold_at_every_size_and_the_record_is_read_back() {
        let mut packets = Packets::new(7, 3, &[64, 65, 594, 1420], ENDS.0, ENDS.1);
        packets.fill(24, 0x1234_5678_9abc_def0);
        for (number, packet) in packets.made(24).enumerate() {
            let length = packet.len() as u16;
            assert!(Sum::default().bytes(&packet[..20]).holds());
            assert!(Sum::default().bytes(&packet[12..]).word(17).word(length - 20).holds());
            assert_eq!(packet[2..4], length.to_be_bytes());
            let (flow, sequence) = ((number % 3) as u32, (number / 3) as u64);
            let record = Record { trial: 7, flow, sequence, due: 0x1234_5678_9abc_def0 };
            assert_eq!(parse(&packet[HEADERS..]), Some(record));
            assert_eq!(parse(&packet[HEADERS..packet.len() - 1]), None);
        }
        let lengths: Vec<_> = packets.made(24).map(<[u8]>::len).collect();
        for size in [64, 65, 594, 1420] {
            for flow in 0..3 {
                assert!((flow..24).step_by(3).any(|at| lengths[at] == size), "each flow has every size");
            }
        }
    }

    #[test]
    fn what_was_not_taken_is_made_again() {
        let mut packets = Packets::new(1, 2, &[64], ENDS.0, ENDS.1);
        packets.fill(5, 1);
        assert_eq!(packets.keep(3, 5), 3 * 64);
        packets.fill(4, 2);
        let seen: Vec<_> = packets.made(4).map(|packet| parse(&packet[HEADERS..]).unwrap()).collect();
        let named: Vec<_> = seen.iter().map(|record| (record.flow, record.sequence)).collect();
        assert_eq!(named, [(1, 1), (0, 2), (1, 2), (0, 3)]);
        assert_eq!(packets.kept(), 3);
    }
}
