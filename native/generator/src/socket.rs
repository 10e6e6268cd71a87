//! An interface of the kernel in place of a channel: packets go in by a packet socket, past IP and
//! UDP of the kernel, and come out at a UDP socket.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use super::layout::MOST_SIZE;
use super::pace::MOST_AT_ONCE;
use super::port::{Inlet, Outlet};

/// How long the generator waits for room in the interface's queue, which nobody announces.
const MOMENT: Duration = Duration::from_micros(50);

/// A packet socket (packet(7)) that is bound to an interface without a link layer.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Use a socket of the kind SOCK_DGRAM.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl Inlet for PacketSocket {
    fn put(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        // SAFETY: both are plain bytes, and all zeros is one of their values.
        let (mut vectors, mut messages): ([libc::iovec; MOST_AT_ONCE], [libc::mmsghdr; MOST_AT_ONCE]) =
            unsafe { (zeroed(), zeroed()) };
        let mut count = 0;
        for ((packet, vector), message) in packets.zip(&mut vectors).zip(&mut messages) {
            *vector = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            count += 1;
        }
        // SAFETY: the first `count` messages point to vectors that point to packets, all of which
        // live longer than the call. The kernel writes only the messages' lengths.
        let sent = unsafe { libc::sendmmsg(self.0.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        match usize::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => {
                let error = io::Error::last_os_error();
                // The interface's queue is full.
                let full = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN));
                if full { Ok(0) } else { Err(error) }
            }
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        std::thread::sleep(MOMENT);
        Ok(())
    }
}

/// A bound UDP socket.
pub struct UdpSocket {
    socket: OwnedFd,
    buffers: Vec<[u8; MOST_SIZE]>,
}

impl UdpSocket {
    /// Use a socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, buffers: vec![[0; MOST_SIZE]; MOST_AT_ONCE] }
    }
}

impl Outlet for UdpSocket {
    fn take(&mut self, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<usize> {
        // SAFETY: both are plain bytes, and all zeros is one of their values.
        let (mut vectors, mut messages): ([libc::iovec; MOST_AT_ONCE], [libc::mmsghdr; MOST_AT_ONCE]) =
            unsafe { (zeroed(), zeroed()) };
        for ((buffer, vector), message) in self.buffers.iter_mut().zip(&mut vectors).zip(&mut messages) {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        let count = MOST_AT_ONCE as libc::c_uint;
        let (fd, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
        // SAFETY: the messages point to vectors that point to our buffers with their lengths.
        let got = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, std::ptr::null_mut()) };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            let nothing = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if nothing { Ok(0) } else { Err(error) };
        };
        for (buffer, message) in self.buffers.iter().zip(&messages[..got]) {
            each(Some(&buffer[..message.msg_len as usize]));
        }
        Ok(got)
    }

    fn wait(&mut self, most: Duration) -> io::Result<()> {
        let mut polled = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one entry.
        unsafe { libc::poll(&raw mut polled, 1, most.as_millis() as libc::c_int) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net;

    use super::*;

    #[test]
    fn datagrams_come_out_whole_and_in_order() {
        let (one, other) =
            (net::UdpSocket::bind("127.0.0.1:0").unwrap(), net::UdpSocket::bind("127.0.0.1:0").unwrap());
        other.connect(one.local_addr().unwrap()).unwrap();
        let (mut outlet, mut inlet) = (UdpSocket::new(one.into()), PacketSocket::new(other.into()));
        let sent: Vec<_> = (1..=100_u8).map(|size| vec![size; usize::from(size)]).collect();
        // A burst is as long as the generator's at most.
        for burst in sent.chunks(MOST_AT_ONCE) {
            assert_eq!(inlet.put(&mut burst.iter().map(|packet| &packet[..])).unwrap(), burst.len());
        }
        let mut got = Vec::new();
        outlet.wait(Duration::from_secs(1)).unwrap();
        while outlet.take(&mut |payload| got.push(payload.unwrap().to_vec())).unwrap() > 0 {}
        assert_eq!(got, sent);
    }
}
