//! Merges packets of one batch into superpackets for the TUN device, as GRO does in the kernel.
//!
//! Only neighbours of one flow are merged. They have the same header except for lengths, sequence,
//! identification and checksums. TCP has no flag but ACK (the last packet may have PSH). There are
//! no fragments, IP options or extension headers. All but the last have the same size.
//!
//! The kernel trusts a superpacket, so each packet's checksums are verified before it joins one.
//! Other packets are written unchanged, and the kernel verifies them. No packet is held for the
//! next batch.

use crate::checksum::{Sum, addresses};
use crate::vnet::{
    GSO_TCP4, GSO_TCP6, GSO_UDP, IPPROTO_TCP, IPPROTO_UDP, MAX_PACKET, MAX_SEGMENTS, NEEDS_CHECKSUM,
    TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, VNET_SIZE, Vnet,
};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// IPv6 and the longest TCP header.
const MAX_HEADER: usize = 40 + 60;

/// The place of an inner packet in a buffer, without its padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its first byte.
    pub at: usize,
    /// Bytes.
    pub size: usize,
}

impl Inner {
    /// Return its bytes.
    pub fn of(self, buffer: &[u8]) -> &[u8] {
        &buffer[self.at..self.at + self.size]
    }
}

/// Which packets may be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Those of TCP.
    pub tcp: bool,
    /// Those of UDP. Kernels before 6.8.5 break VXLAN and Geneve in such superpackets.
    pub udp: bool,
    /// Whether the last packet may be shorter than the others. Linux 6.6.44 refuses that.
    pub short_tail: bool,
}

impl Merge {
    /// All of them.
    pub const ALL: Self = Self { tcp: true, udp: true, short_tail: true };
    /// None of them.
    pub const NONE: Self = Self { tcp: false, udp: false, short_tail: false };
}

/// What to write to the device at once: `head`, then the payloads of some packets.
pub struct Run {
    /// A virtio_net_hdr, and the headers of a superpacket.
    head: [u8; VNET_SIZE + MAX_HEADER],
    head_size: usize,
    /// How many packets.
    pub count: usize,
    /// Bytes of each packet that the head replaces.
    pub skip: usize,
    /// Whether the last of several packets is shorter than the others.
    pub short_tail: bool,
}

impl Run {
    /// Return what comes first.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_size]
    }

    /// Make a run of one packet, unchanged.
    fn single() -> Self {
        Self { head: [0; VNET_SIZE + MAX_HEADER], head_size: VNET_SIZE, count: 1, skip: 0, short_tail: false }
    }
}

/// The layout of a packet that may be merged.
#[derive(Clone, Copy)]
struct Kind {
    /// The offset of the transport header: 20 for IPv4, 40 for IPv6.
    transport: usize,
    /// Bytes of all headers.
    header: usize,
    tcp: bool,
}

impl Kind {
    /// Examine a packet. Return None if it can't begin a superpacket.
    fn examine(packet: &[u8], merge: Merge) -> Option<Self> {
        let (transport, protocol) = match packet {
            [0x45, ..] if packet.len() >= 28 && packet[6] & 0x3f == 0 && packet[7] == 0 => (20, packet[9]),
            [first, ..] if first >> 4 == 6 && packet.len() >= 48 => (40, packet[6]),
            _ => return None,
        };
        let (header, tcp) = match protocol {
            IPPROTO_TCP if merge.tcp && packet.len() >= transport + 20 && packet[transport + 13] == ACK => {
                (transport + usize::from(packet[transport + 12] >> 4) * 4, true)
            }
            IPPROTO_UDP if merge.udp && udp_length(packet, transport) == packet.len() - transport => {
                (transport + 8, false)
            }
            _ => return None,
        };
        let whole = header >= transport + if tcp { 20 } else { 8 } && header < packet.len();
        whole.then_some(Self { transport, header, tcp })
    }

    fn v4(self) -> bool {
        self.transport == 20
    }

    /// Return whether `packet` has the header of `first`, except for what differs between packets,
    /// and PSH.
    fn same_header(self, first: &[u8], packet: &[u8]) -> bool {
        if packet.len() <= self.header {
            return false;
        }
        let at = self.transport;
        let same = |from: usize, to: usize| first[from..to] == packet[from..to];
        let ip = if self.v4() { same(12, 20) && same(0, 2) && same(6, 10) } else { same(6, 40) && same(0, 4) };
        ip && same(at, at + 4)
            && if self.tcp {
                let flags = first[at + 13] == packet[at + 13] & !PSH;
                flags && same(at + 8, at + 13) && same(at + 14, at + 16) && same(at + 18, self.header)
            } else {
                udp_length(packet, at) == packet.len() - at
            }
    }

    /// Return whether both checksums of a packet are right.
    fn verified(self, packet: &[u8]) -> bool {
        let transport = &packet[self.transport..];
        let sum = self.pseudo(packet, transport.len()).bytes(transport);
        sum.holds() && (!self.v4() || Sum::default().bytes(&packet[..20]).holds())
    }

    fn pseudo(self, packet: &[u8], length: usize) -> Sum {
        let protocol = if self.tcp { IPPROTO_TCP } else { IPPROTO_UDP };
        addresses(packet, self.v4()).word(u16::from(protocol)).word(length as u16)
    }

    fn sequence(self, packet: &[u8]) -> u32 {
        let at = self.transport + 4;
        u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
    }

    /// Make the head of a superpacket of `count` packets and `total` bytes.
    fn merge(self, first: &[u8], last: &[u8], count: usize, total: usize) -> Run {
        let gso_type = match (self.tcp, self.v4()) {
            (false, _) => GSO_UDP,
            (true, true) => GSO_TCP4,
            (true, false) => GSO_TCP6,
        };
        let offset = if self.tcp { TCP_CHECKSUM_OFFSET } else { UDP_CHECKSUM_OFFSET };
        let vnet = Vnet {
            flags: NEEDS_CHECKSUM,
            gso_type,
            header_size: self.header as u16,
            gso_size: (first.len() - self.header) as u16,
            checksum_start: self.transport as u16,
            checksum_offset: offset as u16,
        };
        let short_tail = last.len() < first.len();
        let head_size = VNET_SIZE + self.header;
        let mut run = Run { count, skip: self.header, head_size, short_tail, ..Run::single() };
        run.head[..VNET_SIZE].copy_from_slice(&vnet.encode());
        let head = &mut run.head[VNET_SIZE..VNET_SIZE + self.header];
        head.copy_from_slice(&first[..self.header]);
        let mut put = |at: usize, number: u16| head[at..at + 2].copy_from_slice(&number.to_be_bytes());
        let length = total - self.transport;
        if self.v4() {
            put(2, total as u16);
            put(10, 0);
        } else {
            put(4, length as u16);
        }
        if !self.tcp {
            put(self.transport + 4, length as u16);
        }
        put(self.transport + offset, self.pseudo(first, length).folded());
        if self.tcp {
            head[self.transport + 13] = last[self.transport + 13];
        }
        if self.v4() {
            let field = Sum::default().bytes(&head[..20]).field();
            head[10..12].copy_from_slice(&field.to_be_bytes());
        }
        run
    }
}

fn udp_length(packet: &[u8], transport: usize) -> usize {
    usize::from(packet[transport + 4]) << 8 | usize::from(packet[transport + 5])
}

/// Return what is written together from the first of `packets` on. There must be at least one.
pub fn next_run(buffer: &[u8], packets: &[Inner], merge: Merge) -> Run {
    let first = packets[0].of(buffer);
    let Some(second) = packets.get(1) else { return Run::single() };
    let Some(kind) = Kind::examine(first, merge) else { return Run::single() };
    // This is cheap, and saves the costly checksums for mixed flows.
    if !kind.same_header(first, second.of(buffer)) || !kind.verified(first) {
        return Run::single();
    }
    let full = first.len() - kind.header;
    let (mut count, mut total) = (1, first.len());
    while count < packets.len().min(MAX_SEGMENTS) {
        let packet = packets[count].of(buffer);
        // The order matters: a packet with another header may be too short to have a sequence
        // number.
        let follows = kind.same_header(first, packet)
            && packet.len() <= first.len()
            && (!kind.tcp
                || kind.sequence(packet) == kind.sequence(first).wrapping_add((total - kind.header) as u32));
        let payload = packet.len().saturating_sub(kind.header);
        let fits = total + payload <= MAX_PACKET && (merge.short_tail || payload == full);
        if !follows || !fits || !kind.verified(packet) {
            break;
        }
        count += 1;
        total += payload;
        if payload < full || kind.tcp && packet[kind.transport + 13] & PSH != 0 {
            break;
        }
    }
    if count == 1 {
        return Run::single();
    }
    kind.merge(first, packets[count - 1].of(buffer), count, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Superpacket;
    use crate::segment::tests::packet;

    fn lay(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Inner>) {
        let mut buffer = Vec::new();
        let mut inner = Vec::new();
        for packet in packets {
            inner.push(Inner { at: buffer.len(), size: packet.len() });
            buffer.extend_from_slice(packet);
            buffer.extend_from_slice(b"padding");
        }
        (buffer, inner)
    }

    fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
        let (buffer, inner) = lay(packets);
        let mut rest = &inner[..];
        let mut counts = Vec::new();
        while !rest.is_empty() {
            let run = next_run(&buffer, rest, Merge::ALL);
            counts.push(run.count);
            rest = &rest[run.count..];
        }
        counts
    }

    fn stream(v4: bool, tcp: bool, sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut sequence = 0xffff_ff00_u32;
        let mut made = Vec::new();
        for size in sizes {
            let payload: Vec<u8> = (0..*size).map(|n| (n * 7 + made.len()) as u8).collect();
            made.push(packet(v4, tcp, sequence, ACK, &payload));
            sequence = sequence.wrapping_add(*size as u32);
        }
        made
    }

    #[test]
    fn what_was_merged_is_cut_into_the_same_packets() {
        for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let packets = stream(v4, tcp, &[1000, 1000, 1000, 333]);
            let (buffer, inner) = lay(&packets);
            let run = next_run(&buffer, &inner, Merge::ALL);
            assert_eq!(run.count, 4, "v4 {v4} tcp {tcp}");
            let mut whole = run.head()[VNET_SIZE..].to_vec();
            for one in &inner {
                whole.extend_from_slice(&one.of(&buffer)[run.skip..]);
            }
            let vnet = Vnet::decode(run.head()[..VNET_SIZE].try_into().unwrap());
            let cut = Superpacket::examine(vnet, &whole).unwrap();
            for (number, expected) in packets.iter().enumerate() {
                let mut target = vec![0; cut.size(number)];
                cut.write(number, &mut target);
                assert_eq!(&target, expected);
            }
        }
    }

    #[test]
    fn what_must_not_be_merged_is_left_alone() {
        let mixed = |tcp| stream(true, tcp, &[500, 500, 500, 20]);
        let count = |packets: &[Vec<u8>], merge| {
            let (buffer, inner) = lay(packets);
            let run = next_run(&buffer, &inner, merge);
            (run.count, run.short_tail)
        };
        for tcp in [true, false] {
            assert_eq!(count(&mixed(tcp), Merge::ALL), (4, true));
            assert_eq!(count(&mixed(tcp)[..3], Merge::ALL), (3, false));
            assert_eq!(count(&mixed(tcp), Merge { short_tail: false, ..Merge::ALL }), (3, false));
            assert_eq!(count(&mixed(tcp)[2..], Merge { short_tail: false, ..Merge::ALL }), (1, false));
            assert_eq!(count(&mixed(tcp), Merge { tcp: !tcp, udp: tcp, short_tail: true }), (1, false));
        }
    }

    #[test]
    fn a_superpacket_ends_with_a_shorter_packet_psh_a_gap_or_a_bad_checksum() {
        assert_eq!(counts(&stream(true, true, &[500, 500, 20, 500, 500])), [3, 2]);
        assert_eq!(counts(&stream(true, true, &[500, 501, 501])), [1, 2]);
        let mut gap = stream(true, true, &[500, 500, 500, 500]);
        gap.remove(1);
        assert_eq!(counts(&gap), [1, 2]);
        let mut bad = stream(true, true, &[500, 500, 500, 500]);
        bad[1][60] ^= 1;
        assert_eq!(counts(&bad), [1, 1, 2]);
        let pushed: Vec<_> = [ACK, ACK | PSH, ACK]
            .iter()
            .zip(0..)
            .map(|(flags, n)| packet(true, true, n * 9, *flags, &[n as u8; 9]))
            .collect();
        assert_eq!(counts(&pushed), [2, 1]);
    }

    #[test]
    fn no_flag_but_ack_no_fragment_and_no_option_is_merged() {
        for flags in [0, 0x01, 0x02, 0x04, 0x11, 0x12, 0x14, 0x18, 0x30, 0x50, 0x90] {
            let packets: Vec<_> = (0..2).map(|n| packet(true, true, n * 9, flags, &[1; 9])).collect();
            assert_eq!(counts(&packets), [1, 1], "flags {flags:#x}");
        }
        let mut fragments = stream(true, false, &[64, 64]);
        for fragment in &mut fragments {
            fragment[6] = 0x20;
        }
        assert_eq!(counts(&fragments), [1, 1]);
        let mut zero = stream(true, false, &[64, 64]);
        for each in &mut zero {
            each[26..28].fill(0);
        }
        assert_eq!(counts(&zero), [1, 1]);
    }

    #[test]
    fn a_superpacket_stays_below_64_kib_and_64_packets() {
        assert_eq!(counts(&stream(true, true, &[1400; 50])), [46, 4]);
        assert_eq!(counts(&stream(false, false, &[10; 70])), [64, 6]);
    }

    #[test]
    fn a_packet_of_any_length_may_follow_a_run() {
        for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let run = stream(v4, tcp, &[100, 100]);
            for size in 20..run[1].len() {
                let cut = run[1][..size].to_vec();
                assert_eq!(counts(&[run[0].clone(), run[1].clone(), cut]), [2, 1], "v4 {v4} tcp {tcp} size {size}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn row_30_damaged_packets_are_survived_here_and_in_superpackets() {
        let mut dice = 1_u64;
        let mut roll = |below: usize| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as usize % below
        };
        let mut merged = 0;
        for _ in 0..20_000 {
            let mut packets = stream(roll(2) == 0, roll(2) == 0, &[60, 60, 60, 60, 30]);
            for _ in 0..roll(4) {
                let packet = &mut packets[roll(5)];
                match roll(3) {
                    0 => packet.truncate(1 + roll(packet.len())),
                    1 => {
                        let at = roll(packet.len());
                        packet[at] = roll(256) as u8;
                    }
                    _ => packet.insert(roll(20), roll(256) as u8),
                }
                // What is shorter than an IP header never gets this far.
                packet.resize(packet.len().max(if packet[0] >> 4 == 6 { 40 } else { 20 }), 0);
            }
            let (buffer, inner) = lay(&packets);
            let run = next_run(&buffer, &inner, Merge::ALL);
            merged += usize::from(run.count > 1);
            let mut whole = run.head()[VNET_SIZE..].to_vec();
            for one in &inner[..run.count] {
                whole.extend_from_slice(&one.of(&buffer)[run.skip..]);
            }
            let mut vnet: [u8; VNET_SIZE] = run.head()[..VNET_SIZE].try_into().unwrap();
            vnet[1 + roll(VNET_SIZE - 1)] ^= roll(4) as u8;
            if let Some(cut) = Superpacket::examine(Vnet::decode(&vnet), &whole) {
                for number in 0..cut.count() {
                    cut.write(number, &mut vec![0; cut.size(number)]);
                }
            }
        }
        assert!(merged > 5_000, "{merged} of 20,000 were merged at all");
    }

    #[test]
    fn rubbish_of_any_length_is_left_alone() {
        for first in [0_u8, 0x45, 0x46, 0x60, 0xff] {
            for protocol in [6, 17] {
                for size in 1..64 {
                    let mut rubbish = vec![0; size];
                    rubbish[0] = first;
                    for at in [6, 9] {
                        if size > at {
                            rubbish[at] = protocol;
                        }
                    }
                    assert_eq!(counts(&[rubbish.clone(), rubbish]), [1, 1]);
                }
            }
        }
    }
}
