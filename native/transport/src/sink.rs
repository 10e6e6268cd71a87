//! The destination of sealed messages.

use crate::contract::Endpoint;

/// Takes messages for the network.
pub trait Sink {
    /// Send a message as datagrams of `segment` bytes; the last one may be shorter. `tos` is the
    /// TOS or traffic class of all of them.
    ///
    /// The sink counts what the network refuses. It returns false if the datagrams did not leave
    /// from the endpoint's local address.
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool;
}
