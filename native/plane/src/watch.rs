//! Which of a queue's two threads waits for the device.
//!
//! Waking a thread that sleeps on another core costs more than all the work on a packet. So while
//! little flows, one thread does everything: that of the way in waits for the sockets and for the
//! device. It returns the device as soon as more flows than a packet or two at a time.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use transport::contract::Seconds;

use crate::descriptor::EventFd;

/// More packets than this at once count as much.
pub const FEW: usize = 2;
/// How long little must have flowed before the device is lent.
const CALM: Seconds = 0.05;

/// Who waits for the device of a queue.
pub struct Watch {
    /// Whether the thread of the way in does. Only that of the way out makes it true.
    lent: AtomicBool,
    /// When much flowed last, as the bits of an `f64`.
    much_at: AtomicU64,
    /// Wakes the thread of the way out, to which the device was returned.
    pub returned: EventFd,
    /// Wakes the thread of the way in, to which the device was lent.
    pub borrowed: EventFd,
}

impl Watch {
    pub fn new() -> io::Result<Self> {
        let (returned, borrowed) = (EventFd::new()?, EventFd::new()?);
        Ok(Self { lent: AtomicBool::new(false), much_at: AtomicU64::new(0), returned, borrowed })
    }

    /// Return whether the thread of the way in waits for the device.
    pub fn is_lent(&self) -> bool {
        self.lent.load(Ordering::Acquire)
    }

    /// Return whether little has flowed lately.
    pub fn is_calm(&self, now: Seconds) -> bool {
        now - f64::from_bits(self.much_at.load(Ordering::Relaxed)) > CALM
    }

    /// Lend the device to the thread of the way in.
    pub fn lend(&self) {
        self.lent.store(true, Ordering::Release);
        self.borrowed.set();
    }

    /// Note that much flows. A device that was lent is returned.
    pub fn note_much(&self, now: Seconds) {
        self.much_at.store(now.to_bits(), Ordering::Relaxed);
        if self.is_lent() {
            self.lent.store(false, Ordering::Release);
            self.returned.set();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_lent_while_little_flows_and_returned_when_much_does() {
        let watch = Watch::new().unwrap();
        assert!(watch.is_calm(5.0) && !watch.is_lent());
        watch.lend();
        assert!(watch.is_lent() && watch.borrowed.clear());
        watch.note_much(5.0);
        assert!(!watch.is_lent() && watch.returned.clear());
        assert!(!watch.is_calm(5.0) && !watch.is_calm(5.04) && watch.is_calm(5.06));
        watch.note_much(6.0);
        assert!(!watch.returned.clear() && !watch.is_calm(6.04));
    }
}
