//! What every UDP side (sockets, io_uring, AF_XDP) has: patience when it sends, and buffers when it receives.

use transport::inbound::Message;

/// Messages taken at once.
pub const MESSAGES: usize = 16;
/// Bytes of each.
pub const MESSAGE: usize = 65536;

/// Whether to wait for room in the send buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Up to half a second: so the TUN device fills, and whoever sends notices.
    Some,
    /// Not at all: Python's thread is waiting.
    None,
}

/// Buffers for receiving.
pub struct Receiver {
    /// Where messages lie.
    pub buffer: Box<[u8]>,
    /// What came last.
    pub messages: Vec<Message>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { buffer: vec![0; MESSAGES * MESSAGE].into(), messages: Vec::with_capacity(MESSAGES) }
    }
}
