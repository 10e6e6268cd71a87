//! Cuts a superpacket from the TUN device into its packets. Each is written directly to where it
//! will be sealed.

use crate::checksum::Sum;
use crate::vnet::{
    GSO_ECN, GSO_TCP4, GSO_TCP6, GSO_UDP, MAX_MESSAGE, NEEDS_CHECKSUM, TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, Vnet,
};
use crate::wire::OVERHEAD;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// A bit in the first byte of IPv4's fragment field.
const DONT_FRAGMENT: u8 = 0x40;
/// IPv6 with extension headers and TCP with options need far less.
const MAX_HEADER: usize = 256;

/// A superpacket whose headers are consistent.
pub struct Superpacket<'a> {
    payload: &'a [u8],
    /// The headers, with zeros for what differs between packets.
    header: [u8; MAX_HEADER],
    header_size: usize,
    transport: usize,
    mss: usize,
    tcp: bool,
    v4: bool,
    /// IPv4's identification if it has to differ. Packets that can't be fragmented need none (RFC
    /// 6864).
    identification: Option<u16>,
    sequence: u32,
    flags: u8,
    /// The sum of the IP header, as far as it is the same in all packets.
    ip: Sum,
    /// The same of the pseudo-header and the transport header.
    pseudo: Sum,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

impl<'a> Superpacket<'a> {
    /// Examine a superpacket. Return None if its headers are inconsistent.
    pub fn examine(vnet: Vnet, packet: &'a [u8]) -> Option<Self> {
        let tcp = match vnet.gso_type & !GSO_ECN {
            GSO_TCP4 | GSO_TCP6 => true,
            GSO_UDP => false,
            _ => return None,
        };
        let (transport, mss) = (usize::from(vnet.checksum_start), usize::from(vnet.gso_size));
        let v4 = packet.first()? >> 4 == 4;
        let shortest = transport + if tcp { 20 } else { 8 };
        if transport < (if v4 { 20 } else { 40 }) || packet.len() < shortest || mss == 0 {
            return None;
        }
        let header_size = transport + if tcp { usize::from(packet[transport + 12] >> 4) * 4 } else { 8 };
        let fits = transport < header_size && header_size < packet.len() && header_size <= MAX_HEADER;
        let checksum = transport + Self::checksum_offset(tcp);
        if !fits || checksum + 2 > header_size || header_size + mss + OVERHEAD + 16 > MAX_MESSAGE {
            return None;
        }
        let mut header = [0; MAX_HEADER];
        header[..header_size].copy_from_slice(&packet[..header_size]);
        // The field holds the pseudo-header's sum, which includes the superpacket's length.
        // Subtract that.
        let length = (packet.len() - transport) % 65535;
        let pseudo = Sum::default().word(word(packet, checksum)).word(65535 - length as u16);
        let mut made = Self {
            payload: &packet[header_size..],
            header,
            header_size,
            transport,
            mss,
            tcp,
            v4,
            identification: None,
            sequence: 0,
            flags: 0,
            ip: Sum::default(),
            pseudo,
        };
        made.clear_header(checksum);
        let (ip, headers) = made.header[..header_size].split_at(transport);
        (made.ip, made.pseudo) = (Sum::default().bytes(ip), pseudo.bytes(headers));
        Some(made)
    }

    fn checksum_offset(tcp: bool) -> usize {
        if tcp { TCP_CHECKSUM_OFFSET } else { UDP_CHECKSUM_OFFSET }
    }

    /// Remove from the header what differs between packets.
    fn clear_header(&mut self, checksum: usize) {
        let (header, transport) = (&mut self.header, self.transport);
        put(header, checksum, 0);
        if self.v4 {
            put(header, 2, 0);
            put(header, 10, 0);
            if header[6] & DONT_FRAGMENT == 0 {
                self.identification = Some(word(header, 4));
                put(header, 4, 0);
            }
        }
        if self.tcp {
            self.flags = header[transport + 13];
            header[transport + 13] &= !(FIN | PSH | CWR);
            self.sequence = u32::from(word(header, transport + 4)) << 16 | u32::from(word(header, transport + 6));
            header[transport + 4..transport + 8].fill(0);
        } else {
            put(header, transport + 4, 0);
        }
    }

    /// Return how many packets it stands for.
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.mss)
    }

    /// Return the length of packet `number`.
    pub fn size(&self, number: usize) -> usize {
        self.header_size + self.mss.min(self.payload.len() - number * self.mss)
    }

    /// Write packet `number` to the beginning of `target`, which has at least `self.size(number)`
    /// bytes.
    pub fn write(&self, number: usize, target: &mut [u8]) {
        let start = number * self.mss;
        let payload = &self.payload[start..self.payload.len().min(start + self.mss)];
        let size = self.header_size + payload.len();
        let (transport, last) = (self.transport, start + payload.len() == self.payload.len());
        let (header, room) = target[..size].split_at_mut(self.header_size);
        header.copy_from_slice(&self.header[..self.header_size]);
        if self.v4 {
            put(header, 2, size as u16);
            let mut sum = self.ip.word(size as u16);
            if let Some(identification) = self.identification {
                let mine = identification.wrapping_add(number as u16);
                put(header, 4, mine);
                sum = sum.word(mine);
            }
            put(header, 10, sum.field());
        } else {
            put(header, 4, (size - 40) as u16);
        }
        let length = (size - transport) as u16;
        let mut sum = self.pseudo.word(length);
        if self.tcp {
            let sequence = self.sequence.wrapping_add(start as u32);
            header[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            // CWR belongs to the first packet, FIN and PSH to the last.
            let mine = self.flags & (if number == 0 { CWR } else { 0 } | if last { FIN | PSH } else { 0 });
            header[transport + 13] |= mine;
            sum = sum.word((sequence >> 16) as u16).word(sequence as u16).word(mine.into());
        } else {
            put(header, transport + 4, length);
            sum = sum.word(length);
        }
        put(header, transport + Self::checksum_offset(self.tcp), sum.copied(payload, room).field());
    }
}

/// Complete the checksum of a single packet if the host left it to us. The field then holds the
/// pseudo-header's sum.
pub fn complete_checksum(vnet: Vnet, packet: &mut [u8]) {
    let start = usize::from(vnet.checksum_start);
    let field = start + usize::from(vnet.checksum_offset);
    if vnet.flags & NEEDS_CHECKSUM != 0 && field + 2 <= packet.len() {
        let sum = Sum::default().bytes(&packet[start..]).field();
        put(packet, field, sum);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::checksum::addresses;
    use crate::vnet::{IPPROTO_TCP, IPPROTO_UDP};

    /// Make a packet from 10.9.0.1 or fd00::1, ports 4000 to 5000, with right checksums.
    pub(crate) fn packet(v4: bool, tcp: bool, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut made = ip_header(v4, tcp, payload.len());
        let transport = made.len();
        made.extend_from_slice(&[0x0f, 0xa0, 0x13, 0x88]);
        if tcp {
            made.extend_from_slice(&sequence.to_be_bytes());
            made.extend_from_slice(&[0, 0, 0, 99, 5 << 4, flags, 2, 0, 0, 0, 0, 0]);
        } else {
            made.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
            made.extend_from_slice(&[0, 0]);
        }
        made.extend_from_slice(payload);
        let field = transport + Superpacket::checksum_offset(tcp);
        let sum = pseudo(&made, v4, tcp).bytes(&made[transport..]).field();
        put(&mut made, field, sum);
        made
    }

    fn ip_header(v4: bool, tcp: bool, payload: usize) -> Vec<u8> {
        let protocol = if tcp { IPPROTO_TCP } else { IPPROTO_UDP };
        let size = payload + if tcp { 20 } else { 8 };
        if !v4 {
            let mut made = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            put(&mut made, 4, size as u16);
            for host in [1, 2] {
                made.extend_from_slice(&(0xfd00_u128 << 112 | host).to_be_bytes());
            }
            return made;
        }
        let mut made = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
        put(&mut made, 2, (20 + size) as u16);
        let sum = Sum::default().bytes(&made).field();
        put(&mut made, 10, sum);
        made
    }

    pub(crate) fn pseudo(packet: &[u8], v4: bool, tcp: bool) -> Sum {
        let length = packet.len() - if v4 { 20 } else { 40 };
        addresses(packet, v4).word(u16::from(if tcp { IPPROTO_TCP } else { IPPROTO_UDP })).word(length as u16)
    }

    pub(crate) fn superpacket(v4: bool, tcp: bool, flags: u8, payload: &[u8], mss: u16) -> (Vnet, Vec<u8>) {
        let mut made = packet(v4, tcp, 0xffff_f000, flags, payload);
        let transport = if v4 { 20 } else { 40 };
        let offset = Superpacket::checksum_offset(tcp);
        let sum = pseudo(&made, v4, tcp).folded();
        put(&mut made, transport + offset, sum);
        let gso_type = if !tcp {
            GSO_UDP
        } else if v4 {
            GSO_TCP4
        } else {
            GSO_TCP6
        };
        let vnet = Vnet {
            flags: NEEDS_CHECKSUM,
            gso_type,
            header_size: 0,
            gso_size: mss,
            checksum_start: transport as u16,
            checksum_offset: offset as u16,
        };
        (vnet, made)
    }

    #[test]
    fn the_packets_are_those_that_a_host_without_offloads_sends() {
        let payload: Vec<u8> = (0..5001_u32).map(|n| (n * 31) as u8).collect();
        for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let (vnet, whole) = superpacket(v4, tcp, 0x18, &payload, 1000);
            let cut = Superpacket::examine(vnet, &whole).unwrap();
            assert_eq!(cut.count(), 6);
            for number in 0..6 {
                let piece = &payload[number * 1000..payload.len().min(number * 1000 + 1000)];
                let flags = if number == 5 { 0x18 } else { 0x10 };
                let expected = packet(v4, tcp, 0xffff_f000_u32.wrapping_add(1000 * number as u32), flags, piece);
                let mut target = vec![0; cut.size(number)];
                cut.write(number, &mut target);
                assert_eq!(target, expected, "v4 {v4} tcp {tcp} number {number}");
            }
        }
    }

    #[test]
    fn cwr_stays_with_the_first_and_fin_with_the_last() {
        let (vnet, whole) = superpacket(true, true, 0x10 | FIN | CWR, &[1; 300], 100);
        let cut = Superpacket::examine(vnet, &whole).unwrap();
        let flags: Vec<u8> = (0..3)
            .map(|number| {
                let mut target = [0; 140];
                cut.write(number, &mut target);
                target[33]
            })
            .collect();
        assert_eq!(flags, [0x10 | CWR, 0x10, 0x10 | FIN]);
    }

    #[test]
    fn identifications_count_where_routers_may_fragment() {
        let (vnet, mut whole) = superpacket(true, false, 0, &[1; 300], 100);
        whole[6] = 0;
        put(&mut whole, 4, 0xffff);
        let cut = Superpacket::examine(vnet, &whole).unwrap();
        let mut target = [0; 128];
        cut.write(1, &mut target);
        assert_eq!(word(&target, 4), 0);
        assert!(Sum::default().bytes(&target[..20]).holds());
    }

    #[test]
    fn headers_that_do_not_add_up_are_refused() {
        let (vnet, whole) = superpacket(true, true, 0x10, &[1; 300], 100);
        let refused = |change: &dyn Fn(&mut Vnet, &mut Vec<u8>)| {
            let (mut vnet, mut whole) = (vnet, whole.clone());
            change(&mut vnet, &mut whole);
            assert!(Superpacket::examine(vnet, &whole).is_none());
        };
        refused(&|vnet, _| vnet.gso_type = 9);
        refused(&|vnet, _| vnet.gso_size = 0);
        refused(&|vnet, _| vnet.checksum_start = 19);
        refused(&|vnet, _| vnet.checksum_start = 65_000);
        refused(&|_, whole| whole[0] = 0x60);
        refused(&|_, whole| whole.clear());
        refused(&|_, whole| whole.truncate(39));
        refused(&|_, whole| whole[32] = 0);
        refused(&|_, whole| whole.truncate(40));
    }
}
