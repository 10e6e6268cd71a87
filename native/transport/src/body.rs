//! Where the sealed part of a datagram lies in a buffer.

/// Where a packet lies in a buffer, sealed or to be sealed.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Where it begins.
    pub at: usize,
    /// Bytes, of which the last 16 are the tag. At least 16.
    pub size: usize,
    /// Its nonce.
    pub counter: u64,
}
