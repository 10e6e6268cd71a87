//! The tunnel's UDP sockets with the kernel's batching, both ways: one message stands for many
//! datagrams.

mod address;
mod letter;

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use transport::contract::{Endpoint, Transmit};
use transport::inbound::Message;

pub use self::address::address_of;
use self::address::name_of;
pub use self::letter::{Control, Details, Letter};
use crate::descriptor::{check, check_size, own, wait};
use crate::offloads::{Offloads, refuses};
use crate::udp_side::{MESSAGE, MESSAGES, Patience, Receiver};

/// What is noted when the kernel doesn't merge received datagrams.
pub const NO_GRO: &str = "The kernel gives UDP datagrams one by one (no UDP_GRO).";
/// What is noted when it doesn't know UDP_SEGMENT. Linux before 4.18 ignores it and sends one large datagram.
const NO_SEGMENT: &str = "The kernel can't cut UDP messages (no UDP_SEGMENT): datagrams go one by one.";

/// linux/asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;
const BUFFER_SIZE: libc::c_int = 7 << 20;
/// Milliseconds to wait for room in the send buffer before a message is dropped.
const SEND_PATIENCE: libc::c_int = 500;

/// One bound socket.
pub struct Udp {
    fd: OwnedFd,
    /// Whether it is a socket of IPv6. Otherwise it is one of IPv4.
    pub v6: bool,
    /// Whether the kernel cuts messages into datagrams for us.
    segmenting: AtomicBool,
    /// Whether the kernel merges received datagrams.
    merging: AtomicBool,
}

/// How a message was sent.
pub enum Sent {
    /// As one message.
    Whole,
    /// Datagram by datagram. The kernel refused to cut the message, with this error.
    Singly(io::Error),
}

impl Udp {
    /// Adopt a copy of another program's bound datagram socket. Also return what it does without,
    /// if anything.
    pub fn adopt(fd: RawFd, offloads: Offloads) -> io::Result<(Self, Vec<&'static str>)> {
        // SAFETY: the call touches no memory of ours; a descriptor that isn't open gives an error.
        let copy = own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?;
        let (address, _) = name_of(&copy)?;
        let v6 = libc::c_int::from(address.ss_family) == libc::AF_INET6;
        Self::set_up(copy, v6, offloads.udp_segmentation, offloads.udp_gro)
    }

    /// Make another socket on the same address and port. The kernel spreads sources over them.
    pub fn twin(&self) -> io::Result<Self> {
        self.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        let (family, kind) = (if self.v6 { libc::AF_INET6 } else { libc::AF_INET }, libc::SOCK_DGRAM);
        // SAFETY: the call touches no memory of ours.
        let made = own(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
        let (twin, _) = Self::set_up(made, self.v6, self.segments(), self.merging.load(Ordering::Relaxed))?;
        if self.mark()? != 0 {
            twin.set_mark(self.mark()?)?;
        }
        twin.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        if self.v6 {
            twin.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        let (address, size) = name_of(&self.fd)?;
        // SAFETY: `address` holds `size` bytes that the kernel wrote.
        check(unsafe { libc::bind(twin.fd(), (&raw const address).cast(), size) })?;
        Ok(twin)
    }

    /// Make another socket on the same address and port that only sends. The kernel must have been
    /// told which of the others receive.
    pub fn sender(&self) -> io::Result<Self> {
        let made = self.twin()?;
        // Broadcasts go to every socket of a port.
        made.set_receive_buffer(0)?;
        if self.namespace() != made.namespace() {
            return Err(io::Error::other("the socket is of another network namespace"));
        }
        Ok(made)
    }

    /// Return the number of its network namespace, 0 on Linux before 5.14.
    fn namespace(&self) -> u64 {
        let (mut cookie, mut size) = (0_u64, size_of::<u64>() as libc::socklen_t);
        let into = (&raw mut cookie).cast();
        // SAFETY: the kernel writes `size` bytes at most, and `cookie` has as many.
        unsafe { libc::getsockopt(self.fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, into, &raw mut size) };
        cookie
    }

    /// Mark everything that is sent from now on, for the system's routing rules. 0 means no mark.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_MARK, libc::c_int::from_ne_bytes(mark.to_ne_bytes()))
    }

    /// Return the mark of what is sent. 0 means no mark.
    pub fn mark(&self) -> io::Result<u32> {
        self.get(libc::SOL_SOCKET, libc::SO_MARK)
    }

    fn get(&self, level: libc::c_int, option: libc::c_int) -> io::Result<u32> {
        let (mut value, mut size) = (0_u32, size_of::<u32>() as libc::socklen_t);
        let into = (&raw mut value).cast();
        // SAFETY: the kernel writes `size` bytes at most, and `value` has as many.
        check(unsafe { libc::getsockopt(self.fd(), level, option, into, &raw mut size) })?;
        Ok(value)
    }

    fn set_up(fd: OwnedFd, v6: bool, segmenting: bool, gro: bool) -> io::Result<(Self, Vec<&'static str>)> {
        let made = Self { fd, v6, segmenting: AtomicBool::new(segmenting), merging: AtomicBool::new(gro) };
        // SAFETY: the calls take their arguments by value.
        check(unsafe {
            let flags = libc::fcntl(made.fd(), libc::F_GETFL);
            libc::fcntl(made.fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        })?;
        made.set_receive_buffer(BUFFER_SIZE)?;
        made.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER_SIZE)
            .or_else(|_| made.set(libc::SOL_SOCKET, libc::SO_SNDBUF, BUFFER_SIZE))?;
        // As in the kernel's WireGuard: routers may fragment what is too large for them. Kernels
        // without the option allow that anyway.
        let _ = if v6 {
            made.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
        } else {
            made.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
        };
        // A kernel that can't report the address that a datagram was sent to chooses the source of
        // the answer itself.
        let _ = if v6 {
            made.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
        } else {
            made.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
        };
        // Without it, congestion on the way isn't reported inside the tunnel.
        let _ = if v6 {
            made.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)
        } else {
            made.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)
        };
        let mut lacks = Vec::new();
        if made.set(libc::SOL_UDP, libc::UDP_GRO, libc::c_int::from(gro)).is_err() && gro {
            made.merging.store(false, Ordering::Relaxed);
            lacks.push(NO_GRO);
        }
        if segmenting && made.get(libc::SOL_UDP, libc::UDP_SEGMENT).is_err() {
            made.segmenting.store(false, Ordering::Relaxed);
            lacks.push(NO_SEGMENT);
        }
        Ok((made, lacks))
    }

    /// Have the kernel deliver each datagram by itself from now on. Return false if it does so
    /// already.
    pub fn end_merging(&self) -> bool {
        self.merging.swap(false, Ordering::Relaxed) && self.set(libc::SOL_UDP, libc::UDP_GRO, 0).is_ok()
    }

    /// Limit the bytes of datagrams that may wait. The system's limit applies if we have no right
    /// to exceed it.
    pub fn set_receive_buffer(&self, bytes: libc::c_int) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
            .or_else(|_| self.set(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel reads one int.
        check(unsafe { libc::setsockopt(self.fd(), level, option, (&raw const value).cast(), size) }).map(drop)
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Return the address that the socket is bound to.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        address_of(&name_of(&self.fd)?.0).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
    }

    /// Return about how many bytes of what was sent the kernel still holds, its own data included. 0 if
    /// it can't tell.
    pub fn unsent(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int.
        let asked = check(unsafe { libc::ioctl(self.fd(), libc::TIOCOUTQ, &raw mut bytes) });
        asked.map_or(0, |_| usize::try_from(bytes).unwrap_or_default())
    }

    /// Receive the messages that wait, at most [`MESSAGES`].
    pub fn receive(&self, into: &mut Receiver) -> io::Result<()> {
        into.messages.clear();
        // SAFETY: headers, vectors, names and control buffers are plain bytes, and all zeros is one
        // of their values. A control buffer that isn't zeroed would report an old segment size
        // again.
        let mut headers: [libc::mmsghdr; MESSAGES] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut names: [libc::sockaddr_storage; MESSAGES] = unsafe { zeroed() };
        let mut controls: [Control; MESSAGES] = [Control::default(); MESSAGES];
        let mut vectors: [libc::iovec; MESSAGES] = std::array::from_fn(|n| libc::iovec {
            iov_base: into.buffer[n * MESSAGE..].as_mut_ptr().cast(),
            iov_len: MESSAGE,
        });
        for (n, header) in headers.iter_mut().enumerate() {
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut vectors[n];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[n]).cast();
            header.msg_controllen = size_of::<Control>();
        }
        let (first, flags) = (headers.as_mut_ptr(), libc::MSG_DONTWAIT);
        // SAFETY: each header points to its own name, vector and control buffer, which outlive the
        // call. Each vector points to its own MESSAGE bytes of the buffer.
        let count = check(unsafe {
            libc::recvmmsg(self.fd(), first, MESSAGES as libc::c_uint, flags, std::ptr::null_mut())
        })?;
        for n in 0..count as usize {
            let size = headers[n].msg_len as usize;
            let Details { segment, local, interface, tos } = Details::of(&headers[n].msg_hdr);
            if let Some(remote) = address_of(&names[n]) {
                let (segment, source) = (segment.unwrap_or(size), Endpoint { remote, local, interface });
                into.messages.push(Message { at: n * MESSAGE, size, segment, source, tos });
            }
        }
        Ok(())
    }

    /// Return whether the kernel is still trusted to cut messages.
    pub fn segments(&self) -> bool {
        self.segmenting.load(Ordering::Relaxed)
    }

    /// Do the same as [`Self::send`]. But if the kernel refuses the endpoint's local address, let
    /// it choose another. Also return whether the endpoint's own was used.
    pub fn send_from(
        &self,
        message: &[u8],
        segment: usize,
        endpoint: Endpoint,
        tos: u8,
        patience: Patience,
    ) -> (io::Result<Sent>, bool) {
        let sent = self.send(message, segment, endpoint, tos, patience);
        // The refusal to cut may be due to the address, too. But if the datagrams then went out one
        // by one, they went out from it.
        match &sent {
            Err(error) if endpoint.local.is_some() && refuses_local(error) => {}
            _ => return (sent, true),
        }
        match self.send(message, segment, endpoint.plain(), tos, patience) {
            Ok(done) => (Ok(done), false),
            Err(_) => (sent, true),
        }
    }

    /// Send `message` as at most 64 datagrams of `segment` bytes; the last one may be shorter. `tos`
    /// is their TOS or traffic class.
    ///
    /// If the kernel refuses to cut the message, it is sent datagram by datagram, and none is lost.
    pub fn send(
        &self,
        message: &[u8],
        segment: usize,
        endpoint: Endpoint,
        tos: u8,
        patience: Patience,
    ) -> io::Result<Sent> {
        if message.len() <= segment {
            return self.send_message(message, None, endpoint, tos, patience).map(|()| Sent::Whole);
        }
        let mut refused = None;
        if self.segments() {
            match self.send_message(message, Some(segment as u16), endpoint, tos, patience) {
                Ok(()) => return Ok(Sent::Whole),
                Err(error) if refuses(&error) => {
                    // EINVAL, EMSGSIZE: not for this size on this path. The others, such as EIO: the
                    // device can't do it at all.
                    if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) {
                        self.segmenting.store(false, Ordering::Relaxed);
                    }
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        let mut failed = None;
        for (number, datagram) in message.chunks(segment).enumerate() {
            match self.send_message(datagram, None, endpoint, tos, patience) {
                Ok(()) => {}
                // The others would fail for the same reason.
                Err(error) if number == 0 || error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or_else(|| Ok(refused.map_or(Sent::Whole, Sent::Singly)), Err)
    }

    /// Send as many of the first datagrams as possible in one system call. Return how many were
    /// sent. If that is none, [`Self::send_from`] reports why the first one fails.
    pub fn send_together(&self, transmits: &[Transmit]) -> usize {
        let mine = transmits.iter().take_while(|one| one.endpoint.remote.is_ipv6() == self.v6).take(MESSAGES);
        // SAFETY: headers are plain bytes, and all zeros is one of their values.
        let mut headers: [libc::mmsghdr; MESSAGES] = unsafe { zeroed() };
        let mut letters: [Letter; MESSAGES] = std::array::from_fn(|_| Letter::default());
        let mut count = 0;
        for (one, (header, letter)) in mine.zip(headers.iter_mut().zip(&mut letters)) {
            letter.address(&one.datagram, None, one.endpoint, one.tos);
            header.msg_hdr = letter.header;
            count += 1;
        }
        // SAFETY: each header points into its own letter and to its own datagram. All of them
        // outlive the call and aren't moved.
        let sent = check(unsafe { libc::sendmmsg(self.fd(), headers.as_mut_ptr(), count, 0) });
        sent.map_or(0, |sent| sent as usize)
    }

    fn send_message(
        &self,
        message: &[u8],
        segment: Option<u16>,
        endpoint: Endpoint,
        tos: u8,
        patience: Patience,
    ) -> io::Result<()> {
        let mut letter = Letter::default();
        let header = letter.address(message, segment, endpoint, tos);
        loop {
            // SAFETY: the letter and the message outlive the call, which only reads them.
            let error = match check_size(unsafe { libc::sendmsg(self.fd(), header, 0) }) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock if patience == Patience::Some => {
                    if wait([(self.fd(), libc::POLLOUT)], SEND_PATIENCE)? == 0 {
                        return Err(error);
                    }
                }
                _ => return Err(error),
            }
        }
    }
}

/// Return whether the kernel may have refused a datagram because of its local address.
fn refuses_local(error: &io::Error) -> bool {
    let word = error.raw_os_error().unwrap_or_default();
    [libc::EINVAL, libc::EADDRNOTAVAIL, libc::ENODEV, libc::ENETUNREACH, libc::EHOSTUNREACH].contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, UdpSocket};

    fn pair(host: &str) -> (Udp, Udp, SocketAddr, SocketAddr) {
        let (one, other) = (UdpSocket::bind((host, 0)).unwrap(), UdpSocket::bind((host, 0)).unwrap());
        let adopt = |socket: &UdpSocket| Udp::adopt(socket.as_raw_fd(), Offloads::ALL).unwrap().0;
        (adopt(&one), adopt(&other), one.local_addr().unwrap(), other.local_addr().unwrap())
    }

    #[test]
    fn a_message_arrives_as_the_datagrams_it_stands_for() {
        for host in ["127.0.0.1", "::1"] {
            let (one, other, here, there) = pair(host);
            let sent: Vec<u8> = (0..2500_u32).map(|n| n as u8).collect();
            assert!(matches!(one.send(&sent, 1000, there.into(), 0, Patience::Some), Ok(Sent::Whole)));
            let mut receiver = Receiver::default();
            let mut datagrams = Vec::new();
            while datagrams.len() < 3 {
                wait([(other.fd(), libc::POLLIN)], 1000).unwrap();
                other.receive(&mut receiver).unwrap();
                for message in &receiver.messages {
                    assert_eq!(message.source, Endpoint { remote: here, local: Some(there.ip()), interface: 1 });
                    let bytes = &receiver.buffer[message.at..message.at + message.size];
                    datagrams.extend(bytes.chunks(message.segment).map(<[u8]>::to_vec));
                }
            }
            assert_eq!(datagrams, sent.chunks(1000).collect::<Vec<_>>());
            assert_eq!(other.receive(&mut receiver).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_burst_arrives_with_its_mark() {
        for host in ["127.0.0.1", "::1"] {
            let (one, other, here, there) = pair(host);
            for tos in [0, 1, 2, 3, 0x88] {
                one.send(&[7; 20_000], 1000, there.into(), tos, Patience::Some).unwrap();
                one.send_together(&[Transmit { endpoint: there.into(), datagram: vec![7; 30], tos }]);
                let (mut receiver, mut got, mut merged) = (Receiver::default(), 0, false);
                while got < 20_030 {
                    wait([(other.fd(), libc::POLLIN)], 1000).unwrap();
                    other.receive(&mut receiver).unwrap();
                    for message in &receiver.messages {
                        // Nothing else that the kernel reports is cut off for it.
                        assert_eq!(message.source, Endpoint { remote: here, local: Some(there.ip()), interface: 1 });
                        assert_eq!(message.tos, tos);
                        got += message.size;
                        merged |= message.size > message.segment;
                    }
                }
                assert!(merged);
            }
        }
    }

    #[test]
    fn a_kernel_that_cuts_nothing_gets_datagrams() {
        let (one, other, _, there) = pair("127.0.0.1");
        one.segmenting.store(false, Ordering::Relaxed);
        one.send(&[7; 250], 100, there.into(), 0, Patience::None).unwrap();
        let mut receiver = Receiver::default();
        other.receive(&mut receiver).unwrap();
        let sizes: usize = receiver.messages.iter().map(|message| message.size).sum();
        assert_eq!(sizes, 250);
    }

    #[test]
    fn what_was_heard_at_an_address_is_answered_from_it() {
        for (any, at, gone) in [("0.0.0.0", "127.0.0.2", "192.0.2.9"), ("::", "::1", "2001:db8::9")] {
            let (one, other, _, there) = pair(any);
            let to = |ip: &str| SocketAddr::new(ip.parse().unwrap(), there.port()).into();
            one.send(&[1; 30], 10, to(at), 0, Patience::None).unwrap();
            let mut receiver = Receiver::default();
            other.receive(&mut receiver).unwrap();
            let source = receiver.messages[0].source;
            assert_eq!(source.local, Some(at.parse().unwrap()));
            for (local, from_there) in [(at, true), (gone, false)] {
                let answer = Endpoint { local: Some(local.parse().unwrap()), ..source };
                for segment in [30, 10] {
                    let (sent, known) = other.send_from(&[2; 30], segment, answer, 0, Patience::None);
                    assert!(matches!(sent, Ok(Sent::Whole)));
                    assert_eq!(known, from_there);
                    one.receive(&mut receiver).unwrap();
                    let back = receiver.messages[0].source.remote.ip();
                    assert!(back == at.parse::<IpAddr>().unwrap() || !from_there);
                }
            }
        }
    }

    #[test]
    fn an_empty_datagram_is_one() {
        let (one, other, _, there) = pair("127.0.0.1");
        one.send(&[], 0, there.into(), 0, Patience::None).unwrap();
        let mut receiver = Receiver::default();
        other.receive(&mut receiver).unwrap();
        assert_eq!(receiver.messages.iter().map(|message| message.size).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_twin_shares_the_port() {
        let (one, _, here, _) = pair("127.0.0.1");
        let twin = one.twin().unwrap();
        let (name, _) = name_of(&twin.fd).unwrap();
        assert_eq!(address_of(&name), Some(here));
    }
}
