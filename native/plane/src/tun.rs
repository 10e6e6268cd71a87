//! The TUN device: packets and superpackets of the host (Linux, Documentation/networking/tuntap.rst).

use std::ffi::c_short;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use transport::vnet::VNET_SIZE;

use crate::descriptor::{check, check_size, own, wait};

const OFFLOAD_CHECKSUM: libc::c_ulong = 0x01;
const OFFLOAD_TSO: libc::c_ulong = 0x02 | 0x04;
const OFFLOAD_USO: libc::c_ulong = 0x20 | 0x40;
/// What to ask for, best first, and what is lacking then. USO exists from Linux 6.2 on.
const OFFLOADS: [(libc::c_ulong, &str); 3] = [
    (OFFLOAD_CHECKSUM | OFFLOAD_TSO | OFFLOAD_USO, ""),
    (
        OFFLOAD_CHECKSUM | OFFLOAD_TSO,
        "The kernel gives no UDP superpackets (Linux 6.2 does): UDP goes packet by packet.",
    ),
    (0, "The kernel gives no superpackets: all goes packet by packet."),
];

/// Why there is no interface.
#[derive(Debug)]
pub struct TunError {
    /// What failed: `/dev/net/tun`, or the name of the interface.
    pub what: String,
    /// The kernel's error.
    pub error: io::Error,
}

impl fmt::Display for TunError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.what, self.error)
    }
}

/// One queue of our interface. The interface disappears with its last queue.
pub struct Tun(OwnedFd);

/// An interface after its creation.
pub struct Interface {
    /// The name that the kernel gave it.
    pub name: String,
    /// As many queues as were asked for.
    pub queues: Vec<Tun>,
    /// What it does without, one sentence each.
    pub lacks: Vec<&'static str>,
}

/// Create an interface.
///
/// `name`: 1 to 15 bytes. The kernel replaces a `%d` in it by a free number.
pub fn make(name: &str, queues: usize) -> Result<Interface, TunError> {
    let mut made = Interface { name: name.to_owned(), queues: Vec::with_capacity(queues), lacks: Vec::new() };
    for _ in 0..queues {
        let tun = Tun::open().map_err(|error| TunError { what: "/dev/net/tun".into(), error })?;
        let attached = tun.attach(&made.name, queues > 1);
        let asked = attached.and_then(|name| Ok((name, tun.ask_offloads()?)));
        let (name, lack) = asked.map_err(|error| TunError { what: made.name.clone(), error })?;
        made.name = name;
        if !lack.is_empty() && !made.lacks.contains(&lack) {
            made.lacks.push(lack);
        }
        made.queues.push(tun);
    }
    Ok(made)
}

/// Copy another program's queues of one interface, one descriptor each. When the copies are closed,
/// the interface stays as long as its owner has it.
pub fn adopt(queues: &[RawFd]) -> Result<Interface, TunError> {
    let mut made = Interface { name: String::new(), queues: Vec::with_capacity(queues.len()), lacks: Vec::new() };
    for fd in queues {
        let tun = Tun::copy(*fd).and_then(|tun| Ok((tun.examine()?, tun.ask_offloads()?, tun)));
        let (name, lack, tun) = tun.map_err(|error| TunError { what: format!("descriptor {fd}"), error })?;
        made.name = name;
        if !lack.is_empty() && !made.lacks.contains(&lack) {
            made.lacks.push(lack);
        }
        made.queues.push(tun);
    }
    Ok(made)
}

impl Tun {
    /// Return another descriptor of the same queue.
    pub fn twin(&self) -> io::Result<Self> {
        Self::copy(self.fd())
    }

    fn copy(fd: RawFd) -> io::Result<Self> {
        // SAFETY: the call touches no memory of ours; a descriptor that isn't open gives an error.
        own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }).map(Self)
    }

    /// Return the interface's name. Fails if the frames of the interface have another format than
    /// ours.
    fn examine(&self) -> io::Result<String> {
        // SAFETY: an ifreq is plain bytes, and all zeros is one of its values.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF has written this member of the union.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(io::Error::from_raw_os_error(libc::EMEDIUMTYPE));
        }
        // SAFETY: the calls take their arguments by value.
        check(unsafe {
            let flags = libc::fcntl(self.fd(), libc::F_GETFL);
            libc::fcntl(self.fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        })?;
        Ok(name_in(&request))
    }

    fn open() -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        // SAFETY: the path ends in a zero byte.
        own(unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) }).map(Self)
    }

    fn attach(&self, name: &str, several: bool) -> io::Result<String> {
        // SAFETY: an ifreq is plain bytes, and all zeros is one of its values.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.is_empty() || name.len() >= request.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        let multi_queue = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue;
        request.ifr_ifru.ifru_flags = flags as c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(self.fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(name_in(&request))
    }

    /// Ask for superpackets. Return what is lacking, or an empty string.
    fn ask_offloads(&self) -> io::Result<&'static str> {
        let mut result = Ok("");
        for (offloads, lack) in OFFLOADS {
            // SAFETY: TUNSETOFFLOAD takes its argument by value.
            result = check(unsafe { libc::ioctl(self.fd(), libc::TUNSETOFFLOAD, offloads) }).map(|_| lack);
            if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
                break;
            }
        }
        result
    }

    /// Return whether the interface is up, in whatever network it is: the kernel takes nothing from
    /// us while it is down. If it can't be asked, it counts as up.
    pub fn is_up(&self) -> bool {
        wait([(self.fd(), libc::POLLOUT)], 0).map_or(true, |ready| ready != 0)
    }

    /// Read a virtio_net_hdr and a packet or superpacket.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and the length are those of `frame`.
        check_size(unsafe { libc::read(self.fd(), frame.as_mut_ptr().cast(), frame.len()) })
    }

    /// Write a packet or superpacket in pieces. `head` begins with its virtio_net_hdr.
    pub fn write<'a>(&self, head: &'a [u8], pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        debug_assert!(head.len() >= VNET_SIZE);
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vectors = [empty; transport::vnet::MAX_SEGMENTS + 1];
        let mut count = 0;
        for piece in std::iter::once(head).chain(pieces) {
            vectors[count] = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
            count += 1;
        }
        // SAFETY: the first `count` vectors are slices that live as long as 'a. The kernel only
        // reads them.
        check_size(unsafe { libc::writev(self.fd(), vectors.as_ptr(), count as libc::c_int) }).map(drop)
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn name_in(request: &libc::ifreq) -> String {
    let named = request.ifr_name.iter().take_while(|byte| **byte != 0);
    named.map(|byte| *byte as u8 as char).collect()
}
