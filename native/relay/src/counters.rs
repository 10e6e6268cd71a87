//! What a relay counts, over all its threads.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a relay has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections now.
    pub active: u64,
    /// Connections ever taken on.
    pub added: u64,
    /// Connections refused because there were too many.
    pub refused: u64,
    /// Connections that ended with a reset.
    pub resets: u64,
    /// Connections that ended because nothing moved for the idle time.
    pub idle: u64,
    /// Bytes from first to second.
    pub forth: u64,
    /// Bytes from second to first.
    pub back: u64,
    /// Of these, bytes that went through a buffer because there was no pipe.
    pub copied: u64,
}

/// The same, written by several threads.
#[derive(Default)]
pub struct Counters {
    pub active: AtomicU64,
    pub added: AtomicU64,
    pub refused: AtomicU64,
    pub resets: AtomicU64,
    pub idle: AtomicU64,
    pub moved: [AtomicU64; 2],
    pub copied: AtomicU64,
}

/// Add to a counter that only statistics read.
pub fn count(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl Counters {
    pub fn read(&self) -> Statistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            active: read(&self.active),
            added: read(&self.added),
            refused: read(&self.refused),
            resets: read(&self.resets),
            idle: read(&self.idle),
            forth: read(&self.moved[0]),
            back: read(&self.moved[1]),
            copied: read(&self.copied),
        }
    }
}
