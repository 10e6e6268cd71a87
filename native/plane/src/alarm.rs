//! Wakes the thread that waits for timers when a deadline moves to before the end of its sleep.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use transport::contract::Seconds;

use crate::descriptor::EventFd;

/// The alarm of the thread that waits for timers.
pub struct Alarm {
    wake: EventFd,
    /// The time until which the thread means to sleep, as bits. 0 while it is awake.
    asleep_until: AtomicU64,
}

impl Alarm {
    /// Make an alarm for a thread that is awake.
    pub fn new() -> io::Result<Self> {
        Ok(Self { wake: EventFd::new()?, asleep_until: AtomicU64::new(0) })
    }

    /// Wake the thread if it would sleep past `deadline`.
    pub fn set(&self, deadline: Option<Seconds>) {
        let deadline = deadline.map_or(u64::MAX, f64::to_bits);
        if deadline < self.asleep_until.load(Ordering::SeqCst) {
            self.wake.set();
        }
    }

    /// Note that the thread is about to sleep until `deadline`.
    pub fn fall_asleep(&self, deadline: Seconds) {
        self.asleep_until.store(deadline.to_bits(), Ordering::SeqCst);
    }

    /// Note that the thread is awake.
    pub fn wake_up(&self) {
        self.asleep_until.store(0, Ordering::SeqCst);
        self.wake.clear();
    }

    /// Return the descriptor that is readable when the thread has to wake.
    pub fn fd(&self) -> RawFd {
        self.wake.fd()
    }
}
