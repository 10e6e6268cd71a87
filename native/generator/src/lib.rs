//! The generator and the sink of `rustguard bench generate`.
//!
//! A [`Source`] makes packets at a pace and puts them into a device; a [`Sink`] takes what comes out
//! of the other end's, and counts. Each packet says its flow, its sequence number and when it was
//! due (`layout`), so the sink knows what is lost, late or there twice. Nothing of this runs in a
//! daemon.

mod clock;
mod layout;
mod pace;
mod port;
mod sink;
mod socket;
mod source;

pub use self::clock::CpuTime;
pub use self::layout::HEADERS;
pub use self::pace::MOST_AT_ONCE;
pub use self::port::{Inlet, Outlet};
pub use self::sink::{Received, Sink};
pub use self::socket::{PacketSocket, UdpSocket};
pub use self::source::{Order, Sent, Source};

use hdrhistogram::Histogram;

/// The longest latency that is told apart: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// Return a histogram of nanoseconds with three significant digits.
fn histogram() -> Histogram<u64> {
    // The bounds are constants that the crate accepts.
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds of the histogram are valid")
}

/// Return what a histogram has counted: the highest value that counts as the same, and its count.
pub fn pairs(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram
        .iter_recorded()
        .map(|step| (histogram.highest_equivalent(step.value_iterated_to()), step.count_at_value()))
        .collect()
}
