//! UDP datagrams in Ethernet frames (RFC 768, 791, 894, 2464, 8200), for UDP sides that handle
//! frames themselves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;

use crate::checksum::Sum;

/// Bytes before the payload of an IPv4 datagram's frame.
pub const HEADERS_V4: usize = ETHERNET + IPV4 + UDP;
/// The same for IPv6.
pub const HEADERS_V6: usize = ETHERNET + IPV6 + UDP;
/// Bytes of an Ethernet header, which an interface's MTU does not count.
pub const ETHERNET: usize = 14;

const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const PROTOCOL_UDP: u8 = 17;
/// The hop limit that hosts set, as the kernel does.
const HOPS: u8 = 64;
/// Set if more fragments follow, or if this is not the first.
const FRAGMENT: u16 = 0x3fff;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// The addresses on the way to a host: both layers, both ends. The IP addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The MAC address of our interface.
    pub source_mac: MacAddress,
    /// The MAC address of the next hop.
    pub destination_mac: MacAddress,
    /// Our address towards the host.
    pub source: IpAddr,
    /// The host's address.
    pub destination: IpAddr,
}

impl Path {
    /// Return how many bytes of headers a frame on this path has.
    pub fn headers(&self) -> usize {
        if self.destination.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 }
    }
}

/// What the headers of datagrams on one path have in common, besides the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Our port.
    pub source_port: u16,
    /// The port that they are sent to.
    pub destination_port: u16,
    /// The TOS or traffic class.
    pub tos: u8,
}

/// A datagram found in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The sender. The scope of a link-local address is 0.
    pub source: SocketAddr,
    /// The address it was sent to.
    pub destination: IpAddr,
    /// The port it was sent to.
    pub port: u16,
    /// Its TOS or traffic class.
    pub tos: u8,
    /// Where its payload lies in the frame.
    pub payload: Range<usize>,
}

/// Write the frame of a datagram. Return its size, or None if it doesn't fit into `frame` or the
/// addresses are of two families.
///
/// `identification`: tells IPv4 datagrams apart if a router fragments them (RFC 6864).
pub fn build(frame: &mut [u8], path: &Path, fields: Fields, identification: u16, payload: &[u8]) -> Option<usize> {
    let headers = path.headers();
    let size = headers + payload.len();
    let datagram = u16::try_from(UDP + payload.len()).ok()?;
    let frame = frame.get_mut(..size)?;
    frame[..6].copy_from_slice(&path.destination_mac);
    frame[6..12].copy_from_slice(&path.source_mac);
    match (path.source, path.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame[12..14].copy_from_slice(&TYPE_IPV4);
            let total = datagram.checked_add(IPV4 as u16)?;
            let header = &mut frame[ETHERNET..ETHERNET + IPV4];
            write_ipv4(header, source, destination, fields.tos, total, identification);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame[12..14].copy_from_slice(&TYPE_IPV6);
            write_ipv6(&mut frame[ETHERNET..ETHERNET + IPV6], source, destination, fields.tos, datagram);
        }
        _ => return None,
    }
    frame[headers..].copy_from_slice(payload);
    let udp = headers - UDP;
    frame[udp..udp + 2].copy_from_slice(&fields.source_port.to_be_bytes());
    frame[udp + 2..udp + 4].copy_from_slice(&fields.destination_port.to_be_bytes());
    frame[udp + 4..udp + 6].copy_from_slice(&datagram.to_be_bytes());
    frame[udp + 6..udp + 8].fill(0);
    let sum = udp_sum(path.source, path.destination, datagram, &frame[udp..]);
    frame[udp + 6..udp + 8].copy_from_slice(&sum.field().to_be_bytes());
    Some(size)
}

fn write_ipv4(header: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, tos: u8, total: u16, identification: u16) {
    header.fill(0);
    header[..2].copy_from_slice(&[0x45, tos]);
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[8] = HOPS;
    header[9] = PROTOCOL_UDP;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let sum = Sum::default().bytes(header).field();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn write_ipv6(header: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr, tos: u8, datagram: u16) {
    header[..4].copy_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0]);
    header[4..6].copy_from_slice(&datagram.to_be_bytes());
    header[6] = PROTOCOL_UDP;
    header[7] = HOPS;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&destination.octets());
}

/// Return the sum of a UDP datagram with its pseudo-header.
fn udp_sum(source: IpAddr, destination: IpAddr, size: u16, datagram: &[u8]) -> Sum {
    let mut sum = Sum::default();
    for address in [source, destination] {
        sum = match address {
            IpAddr::V4(v4) => sum.bytes(&v4.octets()),
            IpAddr::V6(v6) => sum.bytes(&v6.octets()),
        };
    }
    sum.word(PROTOCOL_UDP.into()).word(size).bytes(datagram)
}

/// Find the UDP datagram in a frame. Return None if there is none, if the kernel would drop it, and
/// for these: IPv4 with options, fragments, IPv6 with extension headers.
///
/// The checksum over the payload isn't verified. Between two interfaces of one machine it is never
/// completed, and the payload is authenticated anyway.
pub fn parse(frame: &[u8]) -> Option<Datagram> {
    let packet = frame.get(ETHERNET..)?;
    if frame[12..14] == TYPE_IPV4 {
        let header = packet.first_chunk::<IPV4>()?;
        let (total, fragment) = (usize::from(u16_at(header, 2)), u16_at(header, 6));
        let whole = header[0] == 0x45 && header[9] == PROTOCOL_UDP && fragment & FRAGMENT == 0;
        if !whole || !Sum::default().bytes(header).holds() {
            return None;
        }
        let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
        let strange = source.is_unspecified() || source.is_loopback() || source.is_multicast();
        if strange || source.is_broadcast() {
            return None;
        }
        let (port, to, payload) = udp(packet.get(IPV4..total)?, ETHERNET + IPV4)?;
        let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]).into();
        Some(Datagram {
            source: SocketAddrV4::new(source, port).into(),
            destination,
            port: to,
            tos: header[1],
            payload,
        })
    } else if frame[12..14] == TYPE_IPV6 {
        let header = packet.first_chunk::<IPV6>()?;
        if header[0] >> 4 != 6 || header[6] != PROTOCOL_UDP {
            return None;
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            Ipv6Addr::from(octets)
        };
        let (source, destination) = (address(8), address(24).into());
        if source.is_unspecified() || source.is_loopback() || source.is_multicast() {
            return None;
        }
        let size = usize::from(u16_at(header, 4));
        let (port, to, payload) = udp(packet.get(IPV6..IPV6 + size)?, ETHERNET + IPV6)?;
        let tos = header[0] << 4 | header[1] >> 4;
        Some(Datagram { source: SocketAddrV6::new(source, port, 0, 0).into(), destination, port: to, tos, payload })
    } else {
        None
    }
}

/// Return the ports of a datagram that begins at `at`, and where its payload lies.
fn udp(datagram: &[u8], at: usize) -> Option<(u16, u16, Range<usize>)> {
    let header = datagram.first_chunk::<UDP>()?;
    let size = usize::from(u16_at(header, 4));
    let fits = (UDP..=datagram.len()).contains(&size);
    fits.then(|| (u16_at(header, 0), u16_at(header, 2), at + UDP..at + size))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(v6: bool) -> Path {
        let (source, destination) = if v6 {
            (IpAddr::V6("2001:db8::1".parse().unwrap()), IpAddr::V6("2001:db8::2".parse().unwrap()))
        } else {
            (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)))
        };
        Path { source_mac: [2, 0, 0, 0, 0, 1], destination_mac: [2, 0, 0, 0, 0, 2], source, destination }
    }

    const FIELDS: Fields = Fields { source_port: 51820, destination_port: 51821, tos: 0x89 };

    fn made(v6: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xaa; 2048];
        let size = build(&mut frame, &path(v6), FIELDS, 7, payload).unwrap();
        frame.truncate(size);
        frame
    }

    #[test]
    fn what_is_built_is_found_again_with_right_checksums() {
        for v6 in [false, true] {
            for size in [0, 1, 32, 1371, 1452] {
                let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
                let frame = made(v6, &payload);
                let found = parse(&frame).unwrap();
                assert_eq!(found.source, SocketAddr::new(path(v6).source, 51820));
                assert_eq!(found.destination, path(v6).destination);
                assert_eq!((found.port, found.tos), (51821, 0x89));
                assert_eq!(frame[found.payload], payload);
                let udp = path(v6).headers() - UDP;
                let (from, to) = (path(v6).source, path(v6).destination);
                assert!(udp_sum(from, to, (UDP + payload.len()) as u16, &frame[udp..]).holds());
                assert_ne!(frame[udp + 6..udp + 8], [0, 0]);
            }
        }
    }

    #[test]
    fn a_published_header_has_the_published_checksum() {
        // The example of Wikipedia's "Internet checksum", with its header's fields.
        let mut header = [0; IPV4];
        write_ipv4(&mut header, Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(192, 168, 0, 199), 0, 0x73, 0);
        assert_eq!(header[6..12], [0, 0, 0x40, 0x11, 0xf8, 0x61]);
    }

    #[test]
    fn ethernet_padding_is_no_payload() {
        let mut frame = made(false, b"short");
        frame.resize(60, 0);
        assert_eq!(frame[parse(&frame).unwrap().payload], *b"short");
    }

    #[test]
    fn what_is_no_whole_datagram_is_left_alone() {
        let (four, six) = (made(false, b"payload"), made(true, b"payload"));
        for frame in [&four, &six] {
            for size in 0..frame.len() {
                assert_eq!(parse(&frame[..size]), None, "{size}");
            }
        }
        let changed = |frame: &[u8], at: usize, value: u8| {
            let mut frame = frame.to_vec();
            frame[at] = value;
            if frame[12] == 8 {
                frame[24..26].fill(0);
                let sum = Sum::default().bytes(&frame[14..34]).field();
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            parse(&frame)
        };
        // Options, more fragments, a later fragment, TCP, a loopback source, a multicast source.
        for (at, value) in [(14, 0x46), (20, 0x20), (21, 1), (23, 6), (26, 127), (26, 224)] {
            assert_eq!(changed(&four, at, value), None, "{at}");
        }
        assert!(changed(&four, 20, 0x40).is_some(), "may not be fragmented");
        // An extension header, another version, a multicast source, a length beyond the packet.
        for (at, value) in [(20, 0), (20, 44), (14, 0x40), (22, 0xff), (18, 1), (58, 1)] {
            assert_eq!(changed(&six, at, value), None, "{at}");
        }
        // A wrong header checksum; a UDP length below its header's and beyond the packet.
        let mut frame = four.clone();
        frame[24] ^= 1;
        assert_eq!(parse(&frame), None);
        for length in [7, 16] {
            assert_eq!(changed(&four, 39, length), None);
        }
        assert_eq!(changed(&four, 12, 0x81), None);
    }

    #[test]
    fn what_does_not_fit_is_not_built() {
        let mut frame = [0; 100];
        assert_eq!(build(&mut frame, &path(false), FIELDS, 0, &[0; 58]), Some(100));
        assert_eq!(build(&mut frame, &path(false), FIELDS, 0, &[0; 59]), None);
        assert_eq!(build(&mut frame, &path(true), FIELDS, 0, &[0; 39]), None);
        let mixed = Path { source: path(true).source, ..path(false) };
        assert_eq!(build(&mut frame, &mixed, FIELDS, 0, b""), None);
        let mut large = vec![0; 70000];
        assert_eq!(build(&mut large, &path(false), FIELDS, 0, &vec![0; 65520]), None);
    }
}
