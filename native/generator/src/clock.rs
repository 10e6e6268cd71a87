//! The clock that both ends share, and what a thread has cost.

use std::ops::Sub;

/// Return CLOCK_MONOTONIC in nanoseconds. All processes of a machine read the same clock.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing, and Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleep until a time of [`now`]'s clock.
pub fn sleep_until(when: u64) {
    let then = libc::timespec {
        tv_sec: (when / 1_000_000_000) as libc::time_t,
        tv_nsec: libc::c_long::from((when % 1_000_000_000) as i32),
    };
    let sleep = || {
        // SAFETY: the kernel reads `then`. An absolute sleep has no rest to write.
        unsafe {
            libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const then, std::ptr::null_mut())
        }
    };
    while sleep() == libc::EINTR {}
}

/// Have the kernel wake this thread on time: by default it may be 50 µs late.
pub fn be_punctual() {
    // SAFETY: the call takes its arguments by value.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0, 0, 0) };
}

/// CPU time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In the program.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

impl CpuTime {
    /// Return what this thread has used so far.
    pub fn of_thread() -> Self {
        // SAFETY: a rusage is plain bytes, and all zeros is one of its values.
        let mut used: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one rusage.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut used) };
        let nanoseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
        Self { user: nanoseconds(used.ru_utime), system: nanoseconds(used.ru_stime) }
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }
}
