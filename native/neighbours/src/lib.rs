//! IP packets on an Ethernet link: who has which address, and which frames are none for us.
//!
//! - [`link`]: what becomes of a frame, and where a packet goes.
//! - [`arp`], [`ndp`]: their messages.
//! - [`table`]: the MAC addresses of others.
//! - [`checks`]: the lengths of packets, and packets that may not come onto the link.
//! - [`answered`]: the addresses that were answered for, for whoever installs them elsewhere.

#![deny(unsafe_code)]

pub mod answered;
pub mod arp;
pub mod checks;
pub mod link;
pub mod ndp;
pub mod table;
