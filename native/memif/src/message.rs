//! The messages of the control channel: 128 bytes each, packed, in the machine's byte order.
//!
//! The layout is that of `memif.h` in VPP and DPDK, which they declare as packed C structures.

use std::fmt;

/// Bytes of every message.
pub const SIZE: usize = 128;
/// The version of the protocol: major in the high byte, minor in the low one.
pub const VERSION: u16 = 0x0200;
/// Bytes of a name.
pub const NAME: usize = 32;
/// Bytes of a secret.
pub const SECRET: usize = 24;
/// Bytes of the reason of a disconnect.
pub const REASON: usize = 96;

/// ADD_RING's flag of a ring from the client to the server.
const FLAG_C2S: u16 = 1;

const ACK: u16 = 1;
const HELLO: u16 = 2;
const INIT: u16 = 3;
const ADD_REGION: u16 = 4;
const ADD_RING: u16 = 5;
const CONNECT: u16 = 6;
const CONNECTED: u16 = 7;
const DISCONNECT: u16 = 8;

/// What the server can do. Each limit is the greatest index that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The program's name, without zero bytes.
    pub name: Vec<u8>,
    /// The oldest version that it speaks.
    pub min_version: u16,
    /// The newest version that it speaks.
    pub max_version: u16,
    /// The greatest index of a region.
    pub max_region: u16,
    /// The greatest index of a ring from the server to the client.
    pub max_s2c_ring: u16,
    /// The greatest index of a ring from the client to the server.
    pub max_c2s_ring: u16,
    /// The greatest size of a ring, as the exponent of 2.
    pub max_log2_ring_size: u8,
}

/// Which interface of the server the client wants.
#[derive(Clone, PartialEq, Eq)]
pub struct Init {
    /// The version that the client chose.
    pub version: u16,
    /// The number of the interface.
    pub id: u32,
    /// What the packets are.
    pub mode: Mode,
    /// Up to 24 bytes without zero bytes. Empty for none.
    pub secret: Vec<u8>,
    /// The program's name, without zero bytes.
    pub name: Vec<u8>,
}

/// Leaves out the secret.
impl fmt::Debug for Init {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, id, mode, name, .. } = self;
        write!(out, "Init {{ version: {version:#x}, id: {id}, mode: {mode:?}, name: {name:?} }}")
    }
}

/// What the packets of an interface are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ethernet frames.
    Ethernet,
    /// IPv4 and IPv6 packets.
    Ip,
    /// VPP's punt and inject. We only recognize it.
    PuntInject,
}

/// Where a ring lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddRing {
    /// Whether it carries packets from the client to the server.
    pub c2s: bool,
    /// Its index among the rings of its direction.
    pub index: u16,
    /// The region it lies in.
    pub region: u16,
    /// Where it begins in the region.
    pub offset: u32,
    /// Its size, as the exponent of 2.
    pub log2_ring_size: u8,
    /// Bytes of private data before each packet.
    pub private_header: u16,
}

/// A message of the control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Both: the last message was taken.
    Ack,
    /// The server, as soon as it is connected.
    Hello(Hello),
    /// The client.
    Init(Init),
    /// The client: a region. Its descriptor comes with the message.
    AddRegion {
        /// The index of the region.
        index: u16,
        /// Bytes.
        size: u64,
    },
    /// The client: a ring. The descriptor of its interrupts comes with the message.
    AddRing(AddRing),
    /// The client: that was all. The name is that of its interface.
    Connect(Vec<u8>),
    /// The server: packets may flow. The name is that of its interface.
    Connected(Vec<u8>),
    /// Both: the end.
    Disconnect {
        /// A number for the reason.
        code: u32,
        /// The reason, for people. It may have any bytes but zero.
        reason: Vec<u8>,
    },
}

/// Why bytes aren't a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The number of bytes isn't [`SIZE`].
    Size(usize),
    /// The type doesn't exist.
    Type(u16),
    /// The mode doesn't exist.
    Mode(u8),
    /// ADD_RING has flags that don't exist.
    Flags(u16),
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(out, "a message of {size} bytes instead of {SIZE}"),
            Self::Type(kind) => write!(out, "a message of the unknown type {kind}"),
            Self::Mode(mode) => write!(out, "the unknown mode {mode}"),
            Self::Flags(flags) => write!(out, "a ring with the unknown flags {flags:#x}"),
        }
    }
}

/// Reads fields from the front of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields of a type are shorter than a message");
        self.0 = rest;
        *field
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    /// Read a text, which ends before the first zero byte or after `N` bytes.
    ///
    /// What follows the zero byte is left out: VPP and DPDK copy texts over what was there before.
    fn text<const N: usize>(&mut self) -> Vec<u8> {
        self.take::<N>().split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
    }
}

/// Writes fields one after the other.
struct Writer {
    bytes: [u8; SIZE],
    at: usize,
}

impl Writer {
    fn put(&mut self, field: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        self
    }

    /// Write a text, cut to `room` bytes with a zero byte at the end.
    fn text(&mut self, text: &[u8], room: usize) -> &mut Self {
        let text = &text[..text.len().min(room - 1)];
        self.bytes[self.at..self.at + text.len()].copy_from_slice(text);
        self.at += room;
        self
    }
}

impl Message {
    /// Parse a message.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() != SIZE {
            return Err(Malformed::Size(bytes.len()));
        }
        let mut fields = Fields(bytes);
        Ok(match fields.u16() {
            ACK => Self::Ack,
            HELLO => Self::Hello(Hello {
                name: fields.text::<NAME>(),
                min_version: fields.u16(),
                max_version: fields.u16(),
                max_region: fields.u16(),
                max_s2c_ring: fields.u16(),
                max_c2s_ring: fields.u16(),
                max_log2_ring_size: fields.byte(),
            }),
            INIT => Self::Init(Init {
                version: fields.u16(),
                id: fields.u32(),
                mode: mode(fields.byte())?,
                secret: fields.text::<SECRET>(),
                name: fields.text::<NAME>(),
            }),
            ADD_REGION => Self::AddRegion { index: fields.u16(), size: fields.u64() },
            ADD_RING => Self::AddRing(AddRing {
                c2s: match fields.u16() {
                    flags @ 0..=FLAG_C2S => flags == FLAG_C2S,
                    flags => return Err(Malformed::Flags(flags)),
                },
                index: fields.u16(),
                region: fields.u16(),
                offset: fields.u32(),
                log2_ring_size: fields.byte(),
                private_header: fields.u16(),
            }),
            CONNECT => Self::Connect(fields.text::<NAME>()),
            CONNECTED => Self::Connected(fields.text::<NAME>()),
            DISCONNECT => Self::Disconnect { code: fields.u32(), reason: fields.text::<REASON>() },
            kind => return Err(Malformed::Type(kind)),
        })
    }

    /// Return the message as bytes. Texts are cut to their room.
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut out = Writer { bytes: [0; SIZE], at: 0 };
        match self {
            Self::Ack => out.put(&ACK.to_ne_bytes()),
            Self::Hello(hello) => {
                out.put(&HELLO.to_ne_bytes()).text(&hello.name, NAME);
                for number in
                    [hello.min_version, hello.max_version, hello.max_region, hello.max_s2c_ring, hello.max_c2s_ring]
                {
                    out.put(&number.to_ne_bytes());
                }
                out.put(&[hello.max_log2_ring_size])
            }
            Self::Init(init) => out
                .put(&INIT.to_ne_bytes())
                .put(&init.version.to_ne_bytes())
                .put(&init.id.to_ne_bytes())
                .put(&[init.mode as u8])
                .text(&init.secret, SECRET)
                .text(&init.name, NAME),
            Self::AddRegion { index, size } => {
                out.put(&ADD_REGION.to_ne_bytes()).put(&index.to_ne_bytes()).put(&size.to_ne_bytes())
            }
            Self::AddRing(ring) => out
                .put(&ADD_RING.to_ne_bytes())
                .put(&u16::from(ring.c2s).to_ne_bytes())
                .put(&ring.index.to_ne_bytes())
                .put(&ring.region.to_ne_bytes())
                .put(&ring.offset.to_ne_bytes())
                .put(&[ring.log2_ring_size])
                .put(&ring.private_header.to_ne_bytes()),
            Self::Connect(name) => out.put(&CONNECT.to_ne_bytes()).text(name, NAME),
            Self::Connected(name) => out.put(&CONNECTED.to_ne_bytes()).text(name, NAME),
            Self::Disconnect { code, reason } => {
                out.put(&DISCONNECT.to_ne_bytes()).put(&code.to_ne_bytes()).text(reason, REASON)
            }
        };
        out.bytes
    }
}

fn mode(number: u8) -> Result<Mode, Malformed> {
    [Mode::Ethernet, Mode::Ip, Mode::PuntInject].get(usize::from(number)).copied().ok_or(Malformed::Mode(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Return the bytes of a message: a type, then fields.
    fn bytes(kind: u16, fields: &[&[u8]]) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let all = [&kind.to_ne_bytes()[..], &fields.concat()].concat();
        bytes[..all.len()].copy_from_slice(&all);
        bytes
    }

    fn text<const N: usize>(text: &[u8]) -> [u8; N] {
        let mut padded = [0; N];
        padded[..text.len()].copy_from_slice(text);
        padded
    }

    fn all() -> Vec<(Message, [u8; SIZE])> {
        let n16 = u16::to_ne_bytes;
        let n32 = u32::to_ne_bytes;
        let hello = Hello {
            name: b"VPP".into(),
            min_version: 0x0200,
            max_version: 0x0201,
            max_region: 255,
            max_s2c_ring: 3,
            max_c2s_ring: 4,
            max_log2_ring_size: 14,
        };
        let fields =
            [&text::<32>(b"VPP")[..], &n16(0x0200), &n16(0x0201), &n16(255), &n16(3), &n16(4), &[14]].concat();
        let init = Init { version: 0x0200, id: 7, mode: Mode::Ip, secret: b"psst".into(), name: b"RustGuard".into() };
        let ring =
            AddRing { c2s: true, index: 2, region: 1, offset: 0x1234_5678, log2_ring_size: 10, private_header: 9 };
        vec![
            (Message::Ack, bytes(1, &[])),
            (Message::Hello(hello), bytes(2, &[&fields])),
            (
                Message::Init(init),
                bytes(3, &[&n16(0x0200), &n32(7), &[1], &text::<24>(b"psst"), &text::<32>(b"RustGuard")]),
            ),
            (Message::AddRegion { index: 1, size: 1 << 33 }, bytes(4, &[&n16(1), &(1_u64 << 33).to_ne_bytes()])),
            (Message::AddRing(ring), bytes(5, &[&n16(1), &n16(2), &n16(1), &n32(0x1234_5678), &[10], &n16(9)])),
            (Message::Connect(b"wg0".into()), bytes(6, &[&text::<32>(b"wg0")])),
            (Message::Connected(b"memif0/7".into()), bytes(7, &[&text::<32>(b"memif0/7")])),
            (
                Message::Disconnect { code: 3, reason: b"ID not found".into() },
                bytes(8, &[&n32(3), &text::<96>(b"ID not found")]),
            ),
        ]
    }

    #[test]
    fn every_message_has_the_layout_of_memif_h() {
        for (message, bytes) in all() {
            assert_eq!(message.to_bytes(), bytes, "{message:?}");
            assert_eq!(Message::parse(&bytes), Ok(message));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(Message::parse(&[0; 127]), Err(Malformed::Size(127)));
        assert_eq!(Message::parse(&[0; 129]), Err(Malformed::Size(129)));
        assert_eq!(Message::parse(&bytes(0, &[])), Err(Malformed::Type(0)));
        assert_eq!(Message::parse(&bytes(9, &[])), Err(Malformed::Type(9)));
        assert_eq!(Message::parse(&bytes(5, &[&2_u16.to_ne_bytes()])), Err(Malformed::Flags(2)));
        assert_eq!(Message::parse(&bytes(3, &[&[0; 6], &[3]])), Err(Malformed::Mode(3)));
    }

    #[test]
    fn texts_are_cut_and_end_at_the_first_zero_byte() {
        let long = Message::Connect(vec![b'x'; 40]);
        assert_eq!(Message::parse(&long.to_bytes()), Ok(Message::Connect(vec![b'x'; 31])));
        assert_eq!(Message::parse(&bytes(6, &[b"wg0\0left over"])), Ok(Message::Connect(b"wg0".into())));
        assert_eq!(Message::parse(&bytes(6, &[&[b'y'; 32]])), Ok(Message::Connect(vec![b'y'; 32])));
    }

    #[test]
    fn a_secret_is_not_printed() {
        for (message, _) in all() {
            assert!(!format!("{message:?}").contains("112"), "{message:?}");
            assert!(!format!("{message:?}").contains("psst"), "{message:?}");
        }
    }
}
