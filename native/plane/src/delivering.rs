//! Writing to the device: which packets go together, and what to do where the kernel refuses them.

use std::io;
use std::sync::atomic::Ordering;

use transport::coalesce::{Inner, Run, next_run};

use crate::descriptor::error_word;
use crate::io::Io;

impl Io {
    /// Return what to write next of `packets`: several as one superpacket, unless the kernel refused one before.
    pub fn next_run(&self, buffer: &[u8], packets: &[Inner]) -> Run {
        let merging = self.merging.load(Ordering::Relaxed);
        next_run(buffer, if merging { packets } else { &packets[..1] }, self.merge_udp)
    }

    /// Look at why the device didn't take `count` packets at once. Whether they are to be written one by one.
    pub fn refused_write(&self, count: usize, error: &io::Error) -> bool {
        if count > 1 && error.raw_os_error() == Some(libc::EINVAL) {
            self.merging.store(false, Ordering::Relaxed);
            self.note("The kernel refused a superpacket: packets go to the interface one by one.");
            return true;
        }
        // The interface is down, or wants no such packet: nothing to stop for.
        self.transport.drops.count_other(format!("interface_{}", error_word(error)));
        false
    }
}
