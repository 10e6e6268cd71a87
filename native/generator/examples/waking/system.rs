//! The few system calls that are measured.

use std::io::{Error, Result};
use std::os::fd::RawFd;

/// Return the result of a system call, or its error.
pub fn check(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// Keep this thread on one core.
pub fn pin(core: usize) -> Result<()> {
    // SAFETY: a cpu_set_t is plain bytes, and all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours. The kernel reads it during the call.
    let done = unsafe {
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    check(done as isize).map(drop)
}

/// Sleep until one of the descriptors is readable. -1 stands for none.
pub fn sleep(fds: [RawFd; 2]) -> Result<()> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: the pointer and the length are those of `polled`.
    check(unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) } as isize).map(drop)
}

/// Return CLOCK_MONOTONIC in nanoseconds.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
