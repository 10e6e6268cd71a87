//! The descriptors that wake us, the clock, and small safe wrappers of system calls.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::counters::count_call;

/// Return the result of a system call that returns -1 for an error. The call is counted.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    count_call();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a size.
pub fn check_size(result: isize) -> io::Result<usize> {
    count_call();
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Take ownership of a descriptor that a system call has just returned.
pub fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just returned `fd` to this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Return CLOCK_BOOTTIME in seconds, like the kernel's WireGuard: a session ages while the machine
/// sleeps.
pub fn now() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing. The call can't fail: Linux has had this clock since
    // 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Fill `bytes` with random bytes from the kernel.
pub fn random(mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of `bytes`.
        match check_size(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) }) {
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("getrandom(2) failed: {error}"),
        }
    }
}

/// A descriptor that is readable once it is `set`.
pub struct EventFd(OwnedFd);

impl EventFd {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call touches no memory of ours.
        own(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) }).map(Self)
    }

    /// Make it readable. It is no error if it already is.
    pub fn set(&self) {
        let one = 1_u64;
        count_call();
        // SAFETY: the kernel reads the 8 bytes of `one`.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }

    /// Make it unreadable. Return whether it was readable.
    pub fn clear(&self) -> bool {
        let mut count = 0_u64;
        count_call();
        // SAFETY: the kernel writes the 8 bytes of `count`.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) == 8 }
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that becomes readable at a set time, even if the machine sleeps then.
pub struct TimerFd(OwnedFd);

impl TimerFd {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call touches no memory of ours.
        own(unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) }).map(Self)
    }

    /// Set it to a time of [`now`]'s clock. Infinity switches it off.
    pub fn set(&self, at: f64) -> io::Result<()> {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut wanted = libc::itimerspec { it_interval: zero, it_value: zero };
        if at < f64::INFINITY {
            // Zero would switch it off.
            let at = Duration::from_secs_f64(at.max(1e-9));
            wanted.it_value.tv_sec = at.as_secs() as libc::time_t;
            wanted.it_value.tv_nsec = libc::c_long::from(at.subsec_nanos() as i32).max(1);
        }
        // SAFETY: the kernel reads `wanted`. There is no old value to write.
        check(unsafe {
            libc::timerfd_settime(self.fd(), libc::TFD_TIMER_ABSTIME, &raw const wanted, std::ptr::null_mut())
        })
        .map(drop)
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Wait until one of the descriptors is ready, for at most `timeout` milliseconds (-1: no limit).
/// Return a bit for each descriptor, set if it is ready.
pub fn wait<const N: usize>(descriptors: [(RawFd, libc::c_short); N], timeout: libc::c_int) -> io::Result<u32> {
    poll(descriptors.map(entry), timeout).map(|ready| ready as u32)
}

/// The same for any number of descriptors up to 64.
pub fn wait_for(descriptors: &[(RawFd, libc::c_short)], timeout: libc::c_int) -> io::Result<u64> {
    poll(descriptors.iter().copied().map(entry).collect::<Vec<_>>(), timeout)
}

fn entry((fd, events): (RawFd, libc::c_short)) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

fn poll(mut polled: impl AsMut<[libc::pollfd]>, timeout: libc::c_int) -> io::Result<u64> {
    let polled = polled.as_mut();
    // SAFETY: the pointer and the length are those of `polled`.
    match check(unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) }) {
        Ok(_) => Ok(polled.iter().enumerate().fold(0, |bits, (n, one)| bits | u64::from(one.revents != 0) << n)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        Err(error) => Err(error),
    }
}

/// Block all signals in this thread: they are for Python's main thread.
pub fn block_signals() {
    // SAFETY: a sigset_t is plain bytes. sigfillset sets it before it is read, and no old set is
    // written.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

/// Return whether a call that doesn't wait found nothing to do.
pub fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Return the word for an error in a drop's reason, such as `enetunreach`.
pub fn error_word(error: &io::Error) -> String {
    let known = [
        (libc::EACCES, "eacces"),
        (libc::EAFNOSUPPORT, "eafnosupport"),
        (libc::EAGAIN, "eagain"),
        (libc::ECONNREFUSED, "econnrefused"),
        (libc::EHOSTUNREACH, "ehostunreach"),
        (libc::EINVAL, "einval"),
        (libc::EIO, "eio"),
        (libc::EMSGSIZE, "emsgsize"),
        (libc::ENETDOWN, "enetdown"),
        (libc::ENETUNREACH, "enetunreach"),
        (libc::ENOBUFS, "enobufs"),
        (libc::ENOMEM, "enomem"),
        (libc::EPERM, "eperm"),
    ];
    let number = error.raw_os_error().unwrap_or(0);
    let word = known.into_iter().find(|(known, _)| *known == number).map(|(_, word)| word.to_owned());
    word.unwrap_or_else(|| format!("error_{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_seen_once_and_a_timer_in_time() {
        let (event, timer) = (EventFd::new().unwrap(), TimerFd::new().unwrap());
        let ready = |timeout| wait([(event.fd(), libc::POLLIN), (timer.fd(), libc::POLLIN)], timeout).unwrap();
        timer.set(f64::INFINITY).unwrap();
        assert_eq!(ready(0), 0);
        event.set();
        event.set();
        assert_eq!(ready(-1), 1);
        assert!(event.clear() && !event.clear());
        timer.set(now() + 0.005).unwrap();
        assert_eq!(ready(-1), 2);
        timer.set(0.0).unwrap();
        assert_eq!(ready(-1), 2);
    }
}
