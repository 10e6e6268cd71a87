//! What the way out of a queue keeps between its batches.

use transport::contract::Outbox;
use transport::outbound::Outbound;

/// What turns the device's frames into messages. One thread at a time: the packets of a flow keep
/// their order.
#[derive(Default)]
pub struct Pump {
    pub frame: Vec<u8>,
    pub outbound: Outbound,
    pub outbox: Outbox,
    /// Whether the thread for it holds back what it has read, or soon may.
    pub holds_back: bool,
}
