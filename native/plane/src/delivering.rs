//! Writing to the device: which packets are merged, and what happens when the kernel refuses them.

use std::io;
use std::sync::atomic::Ordering;

use transport::coalesce::{Inner, Run, next_run};

use crate::descriptor::error_word;
use crate::io::Io;

impl Io {
    /// Return what to write next from `packets`: several as one superpacket, unless the kernel has
    /// refused one before.
    pub fn next_run(&self, buffer: &[u8], packets: &[Inner]) -> Run {
        let merging = self.merging.load(Ordering::Relaxed);
        next_run(buffer, if merging { packets } else { &packets[..1] }, self.merge_udp)
    }

    /// Handle a write of `count` packets that the device refused. Return whether to write them one
    /// by one.
    pub fn refused_write(&self, count: usize, error: &io::Error) -> bool {
        if count > 1 && error.raw_os_error() == Some(libc::EINVAL) {
            self.merging.store(false, Ordering::Relaxed);
            self.note("The kernel refused a superpacket: packets go to the interface one by one.");
            return true;
        }
        // The interface is down, or doesn't want such a packet. The plane goes on.
        self.transport.drops.count_other(format!("interface_{}", error_word(error)));
        false
    }
}
