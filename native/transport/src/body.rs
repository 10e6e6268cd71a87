//! The place of a datagram's sealed part in a buffer.

/// The place of a packet in a buffer, sealed or to be sealed.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Where it begins.
    pub at: usize,
    /// Bytes, of which the last 16 are the tag. At least 16.
    pub size: usize,
    /// Its nonce.
    pub counter: u64,
}
