//! Where things lie: in a ring, and in the region that a client makes.

/// Bytes of a ring before its descriptors: two cache lines, of which the first has the cookie, the
/// flags and the head, and the second the tail.
pub const RING_HEADER: usize = 128;
/// Where a ring has its cookie, 4 bytes.
pub const COOKIE_AT: usize = 0;
/// Where a ring has its flags, 2 bytes.
pub const FLAGS_AT: usize = 4;
/// Where a ring has its head, 2 bytes.
pub const HEAD_AT: usize = 6;
/// Where a ring has its tail, 2 bytes.
pub const TAIL_AT: usize = 64;
/// Bytes of a descriptor: flags (2), region (2), length (4), offset (4), metadata (4).
pub const DESCRIPTOR: usize = 16;
/// What a ring begins with.
pub const COOKIE: u32 = 0x03e3_1f20;
/// The greatest exponent of a ring's size. The indices have 16 bits, so a size of 65,536 couldn't be
/// told from 0.
pub const MAX_LOG2_RING_SIZE: u8 = 15;
/// Rings and buffers begin at multiples of this in a region of ours.
const LINE: usize = 64;

/// Return the bytes of a ring.
pub fn ring_size(log2: u8) -> usize {
    RING_HEADER + (DESCRIPTOR << log2)
}

/// The region of a client: first its c2s rings, then its s2c rings, then the buffers of each ring in
/// the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rings from the client to the server.
    pub c2s: u16,
    /// Rings from the server to the client.
    pub s2c: u16,
    /// The size of each ring, as the exponent of 2.
    pub log2: u8,
    /// Bytes of each buffer, a multiple of 64.
    pub buffer: u32,
}

impl Layout {
    /// Return the number of a ring among all of the region.
    fn number(&self, c2s: bool, index: u16) -> usize {
        usize::from(index) + if c2s { 0 } else { usize::from(self.c2s) }
    }

    fn rings(&self) -> usize {
        usize::from(self.c2s) + usize::from(self.s2c)
    }

    fn ring_room(&self) -> usize {
        ring_size(self.log2).next_multiple_of(LINE)
    }

    /// Return where a ring begins.
    pub fn ring(&self, c2s: bool, index: u16) -> usize {
        self.number(c2s, index) * self.ring_room()
    }

    /// Return where the first buffer of a ring begins. The others follow in the order of the slots.
    pub fn buffers(&self, c2s: bool, index: u16) -> usize {
        self.rings() * self.ring_room() + ((self.number(c2s, index) * self.buffer as usize) << self.log2)
    }

    /// Return the bytes of the region.
    pub fn size(&self) -> usize {
        self.rings() * (self.ring_room() + ((self.buffer as usize) << self.log2))
    }
}
