//! IP packets on an Ethernet link: who has which address, and which frames are none for us.
//!
//! - [`answered`]: the addresses that were answered for, for whoever installs them elsewhere.

#![deny(unsafe_code)]

pub mod answered;

use transport::contract::Network;
use transport::ethernet::MacAddress;

/// Our side of a link.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our MAC address.
    pub mac: MacAddress,
    /// Whom packets go to unless their destination is in a learnt range. None for the sender of the
    /// last packet.
    pub gateway: Option<MacAddress>,
    /// Ranges that we answer for.
    pub answered: Vec<Network>,
    /// Ranges whose MAC addresses we ask for. Of two ranges with an address, the longer prefix counts.
    pub learnt: Vec<Network>,
}
