//! Small safe wrappers of the system calls used here.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

/// Return the result of a system call that returns -1 for an error.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Take ownership of a descriptor that a system call has just returned.
fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just returned `fd` to this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Return whether a call that doesn't wait found nothing to do.
pub fn is_nothing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Do a call again for as long as signals interrupt it.
fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match check_size(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Move up to `most` bytes, one of the two being a pipe.
pub fn splice(from: &OwnedFd, to: &OwnedFd, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    again(|| {
        // SAFETY: without offsets the call touches no memory of ours.
        unsafe { libc::splice(from.as_raw_fd(), null_mut(), to.as_raw_fd(), null_mut(), most, flags) }
    })
}

/// Read from a socket.
pub fn receive(from: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of `into`.
    again(|| unsafe { libc::recv(from.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) })
}

/// Write to a socket.
pub fn send(to: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of `bytes`.
    again(|| unsafe { libc::send(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

/// Make the reading and the writing end of a pipe.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors into `ends`.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    Ok((own(ends[0])?, own(ends[1])?))
}

/// Ask for room for `size` bytes in a pipe. Return the room it has then. A user without privileges
/// gets no more once all their pipes have `pipe-user-pages-soft` pages (pipe(7)).
pub fn grow(pipe: &OwnedFd, size: libc::c_int) -> io::Result<usize> {
    // SAFETY: the call touches no memory of ours.
    let grown = check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, size) });
    // SAFETY: as above.
    let size = grown.or_else(|_| check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) }))?;
    Ok(size as usize)
}

/// Make a descriptor's calls return at once instead of waiting.
pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the calls touch no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Tell the peer that nothing more comes. It is no error if the connection is gone already.
pub fn end_stream(socket: &OwnedFd) {
    // SAFETY: the call touches no memory of ours.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// Make the close of a socket a reset.
pub fn reset_at_close(socket: &OwnedFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the kernel reads `linger`, whose size is given.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
}

/// Return whether an error waits at a socket, and take it.
pub fn has_error(socket: &OwnedFd) -> bool {
    let mut error: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes an int into `error`, whose size is given.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut size)
    };
    result < 0 || error != 0
}

/// Keep SIGPIPE from this thread: splice(2) has no flag against it.
pub fn block_sigpipe() {
    // SAFETY: the calls write and read `signals` only; zeros are a valid value of it.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, null_mut());
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
        // SAFETY: the kernel reads the 8 bytes of `one`.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Make it unreadable.
    pub fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: the kernel writes the 8 bytes of `count`.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits for many descriptors.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call touches no memory of ours.
        own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    /// Report changes of a descriptor as `token`.
    pub fn add(&self, fd: RawFd, events: libc::c_int, token: u64) -> io::Result<()> {
        let mut wanted = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the kernel reads `wanted`.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut wanted) }).map(drop)
    }

    /// Report nothing more of a descriptor, even if another process still has it open.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: the call touches no memory of ours.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, null_mut()) };
    }

    /// Wait for at most `timeout` milliseconds (-1: no limit). Return what happened.
    pub fn wait<'a>(
        &self,
        room: &'a mut [libc::epoll_event],
        timeout: libc::c_int,
    ) -> io::Result<&'a [libc::epoll_event]> {
        let most = room.len() as libc::c_int;
        // SAFETY: the pointer and the length are those of `room`.
        match check(unsafe { libc::epoll_wait(self.0.as_raw_fd(), room.as_mut_ptr(), most, timeout) }) {
            Ok(count) => Ok(&room[..count as usize]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
            Err(error) => Err(error),
        }
    }
}
