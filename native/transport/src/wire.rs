//! What the data path has to know of the four messages (whitepaper section 5.4). Integers are
//! little-endian.

/// Type of message 1.
pub const INITIATION: u8 = 1;
/// Type of message 2.
pub const RESPONSE: u8 = 2;
/// Type of message 3.
pub const COOKIE_REPLY: u8 = 3;

/// Bytes of message 1.
pub const INITIATION_SIZE: usize = 148;
/// Bytes of message 2.
pub const RESPONSE_SIZE: usize = 92;
/// Bytes of message 3.
pub const COOKIE_REPLY_SIZE: usize = 64;
/// Bytes of a MAC.
pub const MAC_SIZE: usize = 16;
/// Bytes before a data message's sealed packet: type, receiver's index, counter.
pub const DATA_HEADER_SIZE: usize = 16;
/// Bytes after the sealed packet.
pub const TAG_SIZE: usize = 16;
/// Bytes of a data message besides the packet. A keepalive has only these.
pub const OVERHEAD: usize = DATA_HEADER_SIZE + TAG_SIZE;
/// The first bytes of a data message.
pub const DATA_MAGIC: [u8; 4] = [4, 0, 0, 0];
/// The first bytes of an enrollment datagram.
pub const FOREIGN_MAGIC: &[u8; 3] = b"RGE";

/// Return the type, 1 to 4, or 0 for anything else. The three reserved bytes must be zero.
pub fn message_type(datagram: &[u8]) -> u8 {
    match datagram {
        [kind @ 1..=4, 0, 0, 0, ..] => *kind,
        _ => 0,
    }
}

/// Return the little-endian 32 bits at `at`. The caller has checked the length.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Return the little-endian 64 bits at `at`. The caller has checked the length.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
