//! What every UDP side (sockets, io_uring, AF_XDP) has: patience when it sends, and buffers when it
//! receives.

use transport::inbound::Message;

/// Messages received at once.
pub const MESSAGES: usize = 16;
/// Bytes of the buffer for each message.
pub const MESSAGE: usize = 65536;

/// Whether to wait for room in the send buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Wait up to half a second. So the TUN device fills, and the sender notices.
    Some,
    /// Don't wait: Python's thread is the caller.
    None,
}

/// Buffers for receiving.
pub struct Receiver {
    /// Where the messages lie.
    pub buffer: Box<[u8]>,
    /// The messages received last.
    pub messages: Vec<Message>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { buffer: vec![0; MESSAGES * MESSAGE].into(), messages: Vec::with_capacity(MESSAGES) }
    }
}
