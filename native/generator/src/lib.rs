//! The generator and the sink of `rustguard bench generate`.
//!
//! A [`Source`] makes packets at a pace and puts them into a device; a [`Sink`] takes what comes out
//! of the other end's, and counts. Each packet says its flow, its sequence number and when it was
//! due (`layout`), so the sink knows what is lost, late or there twice. Nothing of this runs in a
//! daemon.

mod clock;
mod histogram;
mod layout;
mod pace;
mod port;
mod sink;
mod socket;
mod source;

pub use self::clock::CpuTime;
pub use self::histogram::pairs;
pub use self::layout::{HEADERS, LEAST_SIZE, MOST_FLOWS, MOST_SIZE};
pub use self::pace::MOST_AT_ONCE;
pub use self::port::{Inlet, Outlet};
pub use self::sink::{Received, Sink};
pub use self::socket::{PacketSocket, UdpSocket};
pub use self::source::{Order, Sent, Source};
