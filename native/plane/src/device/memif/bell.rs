//! Bells: eventfds that both sides of a memif have, by which one wakes the other.
//!
//! Both have the same open file. So a hostile other side can make it blocking at any time (O_NONBLOCK
//! belongs to the file), and fill or empty its counter. A thread of ours that writes or reads then
//! waits, perhaps for ever. Therefore:
//!
//! - hearing reads nothing: an edge-triggered epoll reports each ring once;
//! - ringing writes nothing: the kernel adds to the counter itself when it completes a request of its
//!   asynchronous I/O (IOCB_FLAG_RESFD of io_submit(2)), and that never waits. The request is one that
//!   completes at once: whether a descriptor that is readable for ever can be read.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::descriptor::{EventFd, check, own};

/// linux/aio_abi.h
const IOCB_CMD_POLL: u16 = 5;
const IOCB_FLAG_RESFD: u32 = 1;
/// Requests whose completion may wait until it is taken away.
const REQUESTS: usize = 64;

/// `struct iocb` of linux/aio_abi.h, with what is zero here left without a name.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    zero: [u32; 2],
    opcode: u16,
    priority: i16,
    fd: u32,
    events: u64,
    zeros: [u64; 3],
    flags: u32,
    result_fd: u32,
}

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Completion([u64; 4]);

/// What rings bells. Threads may share it.
pub struct Ringer {
    /// The kernel's number for our asynchronous I/O. None where it has none.
    context: Option<libc::c_ulong>,
    /// Readable for ever.
    ready: EventFd,
}

impl Ringer {
    pub fn new() -> io::Result<Self> {
        let ready = EventFd::new()?;
        ready.set();
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes `context`.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &raw mut context) };
        Ok(Self { context: (made == 0).then_some(context), ready })
    }

    /// Make a bell readable.
    pub fn ring(&self, bell: RawFd) {
        let Some(context) = self.context else { return ring_by_writing(bell) };
        if self.submit(context, bell) == Err(libc::EAGAIN) {
            self.take_completions(context);
            let _ = self.submit(context, bell);
        }
    }

    /// Have the kernel ring. The error is EAGAIN if there is no room for one more completion.
    fn submit(&self, context: libc::c_ulong, bell: RawFd) -> Result<(), i32> {
        let mut request = Request {
            opcode: IOCB_CMD_POLL,
            fd: self.ready.fd() as u32,
            events: libc::POLLIN as u64,
            flags: IOCB_FLAG_RESFD,
            result_fd: bell as u32,
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        // SAFETY: the kernel reads one pointer and the request that it points to, and both live until
        // the call returns. It remembers the address, but only to return it.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, context, 1_usize, requests.as_mut_ptr()) };
        check(result as libc::c_int).map(drop).map_err(|error| error.raw_os_error().unwrap_or(0))
    }

    fn take_completions(&self, context: libc::c_ulong) {
        let mut taken = [Completion([0; 4]); REQUESTS];
        let nothing = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: the kernel writes at most `REQUESTS` completions. It waits for none.
        unsafe { libc::syscall(libc::SYS_io_getevents, context, 0_usize, REQUESTS, taken.as_mut_ptr(), nothing) };
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        if let Some(context) = self.context {
            // SAFETY: the call takes its argument by value. No request waits.
            unsafe { libc::syscall(libc::SYS_io_destroy, context) };
        }
    }
}

/// The same where the kernel has no asynchronous I/O: a bell that can't ring more is left alone. The other
/// side would have to fill the counter between the two calls to make us wait.
fn ring_by_writing(bell: RawFd) {
    let mut polled = libc::pollfd { fd: bell, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the kernel reads and writes one pollfd.
    let found = check(unsafe { libc::poll(&raw mut polled, 1, 0) });
    // A counter that overflowed is reported as an error, and a write would wait for it too.
    if found.is_ok() && polled.revents == libc::POLLOUT {
        let one = 1_u64;
        // SAFETY: the kernel reads the 8 bytes of `one`.
        unsafe { libc::write(bell, (&raw const one).cast(), 8) };
    }
}

/// What waits for the packets of one queue: it is readable while a ring of its bell wasn't heard.
pub struct Watch(OwnedFd);

impl Watch {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call touches no memory of ours.
        own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Wait for a bell. One that has rung before is heard too.
    pub fn add(&self, bell: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
        // SAFETY: the kernel reads `event`.
        check(unsafe { libc::epoll_ctl(self.fd(), libc::EPOLL_CTL_ADD, bell, &raw mut event) }).map(drop)
    }

    pub fn remove(&self, bell: RawFd) {
        // SAFETY: there is no event to read. It can't fail: the bell was added.
        let _ = check(unsafe { libc::epoll_ctl(self.fd(), libc::EPOLL_CTL_DEL, bell, std::ptr::null_mut()) });
    }

    /// Hear all rings until now.
    pub fn hear(&self) {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: the kernel writes at most one event.
        let _ = check(unsafe { libc::epoll_wait(self.fd(), &raw mut event, 1, 0) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::descriptor::wait;

    /// An eventfd that a hostile other side has made blocking, with a counter of its choice.
    fn hostile(count: u64) -> OwnedFd {
        // SAFETY: the calls read `count`, and take the rest by value.
        unsafe {
            let made = own(libc::eventfd(0, libc::EFD_CLOEXEC)).unwrap();
            if count > 0 {
                assert_eq!(libc::write(made.as_raw_fd(), (&raw const count).cast(), 8), 8);
            }
            made
        }
    }

    /// Do something in a thread, and return whether it ends.
    fn ends(work: impl FnOnce() + Send + 'static) -> bool {
        let (done, waits) = channel();
        thread::spawn(move || {
            work();
            done.send(()).unwrap();
        });
        waits.recv_timeout(Duration::from_secs(5)).is_ok()
    }

    fn is_readable(fd: RawFd) -> bool {
        wait([(fd, libc::POLLIN)], 0).unwrap() == 1
    }

    #[test]
    fn each_ring_is_heard_once() {
        let (ringer, watch, bell) = (Ringer::new().unwrap(), Watch::new().unwrap(), hostile(0));
        assert!(ringer.context.is_some());
        watch.add(bell.as_raw_fd()).unwrap();
        assert!(!is_readable(watch.fd()));
        // More often than completions have room.
        for _ in 0..40 * REQUESTS {
            ringer.ring(bell.as_raw_fd());
            assert!(is_readable(watch.fd()));
            watch.hear();
            assert!(!is_readable(watch.fd()));
        }
        let mut count = 0_u64;
        // SAFETY: the kernel writes the 8 bytes of `count`.
        unsafe { libc::read(bell.as_raw_fd(), (&raw mut count).cast(), 8) };
        assert_eq!(count, 40 * REQUESTS as u64);
    }

    #[test]
    fn a_ring_from_before_is_heard() {
        let (watch, bell) = (Watch::new().unwrap(), hostile(1));
        watch.add(bell.as_raw_fd()).unwrap();
        assert!(is_readable(watch.fd()));
        watch.remove(bell.as_raw_fd());
        assert!(!is_readable(watch.fd()));
    }

    #[test]
    fn nobody_waits_for_a_full_bell() {
        let bell = hostile(u64::MAX - 1);
        assert!(ends(move || {
            let ringer = Ringer::new().unwrap();
            ringer.ring(bell.as_raw_fd());
            ring_by_writing(bell.as_raw_fd());
        }));
    }

    #[test]
    fn nobody_waits_for_an_empty_bell() {
        let bell = hostile(1);
        assert!(ends(move || {
            let watch = Watch::new().unwrap();
            watch.add(bell.as_raw_fd()).unwrap();
            let mut count = 0_u64;
            // SAFETY: the kernel writes the 8 bytes of `count`.
            unsafe { libc::read(bell.as_raw_fd(), (&raw mut count).cast(), 8) };
            watch.hear();
            watch.hear();
        }));
    }
}
