//! Sends and receives one message of the control channel, with the descriptor that goes with it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::message::{Malformed, Message, SIZE};

/// Descriptors that are taken out of one message. More than one is an error, but none may leak.
const MOST: usize = 4;

/// What was received.
#[derive(Debug)]
pub enum Received {
    /// A message, and its descriptor if one came with it.
    Message(Message, Option<OwnedFd>),
    /// Something that isn't a message.
    Malformed(Malformed),
    /// A message with several descriptors, or with more than fits.
    Descriptors,
    /// The other side has closed the channel.
    Closed,
}

/// Room for control data, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Send a message. A full channel is an error: the protocol never has more than one message on its
/// way.
pub fn send(socket: BorrowedFd<'_>, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut bytes = message.to_bytes();
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: SIZE };
    let mut control = Control([0; 64]);
    // SAFETY: a msghdr is plain data, and all zeros is one of its values.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if let Some(descriptor) = descriptor {
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: the macros compute with the sizes only; CMSG_FIRSTHDR returns the beginning of
        // `control`, which has room for one descriptor.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as _;
            libc::CMSG_DATA(first).cast::<libc::c_int>().write_unaligned(descriptor.as_raw_fd());
        }
    }
    // SAFETY: the header points to `part` and `control`, which live until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(SIZE) => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receive what comes next. The error is `WouldBlock` if there is nothing.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    // One byte more than a message has, so that a longer one is noticed.
    let mut bytes = [0; SIZE + 1];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 64]);
    // SAFETY: a msghdr is plain data, and all zeros is one of its values.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: the macro computes with the size only.
    header.msg_controllen = unsafe { libc::CMSG_SPACE((MOST * size_of::<libc::c_int>()) as u32) } as _;
    // SAFETY: the header points to `part` and `control`, which live until the call returns.
    let size =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
    let Ok(size) = usize::try_from(size) else { return Err(io::Error::last_os_error()) };
    let mut descriptors = owned(&header);
    if size == 0 {
        return Ok(Received::Closed);
    }
    if descriptors.len() > 1 || header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Ok(Received::Descriptors);
    }
    Ok(match Message::parse(&bytes[..size]) {
        Ok(message) => Received::Message(message, descriptors.pop()),
        Err(malformed) => Received::Malformed(malformed),
    })
}

/// Take ownership of the descriptors that the kernel has put into the control data.
fn owned(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the kernel has written whole control headers of `msg_controllen` bytes into memory that
    // is still alive. Each descriptor in them is new and ours alone.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while !next.is_null() {
            if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(next).cast::<libc::c_int>();
                for n in 0..bytes / size_of::<libc::c_int>() {
                    found.push(OwnedFd::from_raw_fd(data.add(n).read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    found
}
