//! The TUN device: packets and superpackets of the host (Linux, Documentation/networking/tuntap.rst).

use std::ffi::c_short;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use transport::vnet::VNET_SIZE;

use super::{Device, Queues};
use crate::descriptor::{check, check_size, own, wait};
use crate::offloads::{Offloads, refuses};

/// What this device is, see [`Device::kind`].
pub const KIND: &str = "interface";

const OFFLOAD_CHECKSUM: libc::c_ulong = 0x01;
const OFFLOAD_TSO: libc::c_ulong = 0x02 | 0x04;
const OFFLOAD_USO: libc::c_ulong = 0x20 | 0x40;
/// What is noted without superpackets of UDP. They exist from Linux 6.2 on.
const NO_USO: &str = "The kernel gives no UDP superpackets (Linux 6.2 does): UDP goes packet by packet.";
/// What is noted without any offload.
const NOTHING: &str = "The kernel gives no superpackets: all goes packet by packet.";
/// What is noted without the header of superpackets.
const NO_VNET: &str = "The kernel's TUN device has no header for superpackets: all goes packet by packet.";
/// After this many refused reads the reason isn't superpackets that still waited in the device.
const REFUSED_READS: u32 = 4096;

/// Why there is no interface.
#[derive(Debug)]
pub struct TunError {
    /// What failed: `/dev/net/tun`, a descriptor, or the name of the interface.
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
pub struct Tun {
    fd: OwnedFd,
    /// Whether each packet has a virtio_net_hdr in front.
    vnet: bool,
    /// Reads that were refused.
    refused: AtomicU32,
}

/// Create an interface.
///
/// `name`: 1 to 15 bytes. The kernel replaces a `%d` in it by a free number.
pub fn make(name: &str, queues: usize, offloads: Offloads) -> Result<Queues, TunError> {
    let mut vnet = offloads.needs_vnet();
    let mut made = Queues { name: name.to_owned(), queues: Vec::with_capacity(queues), lacks: Vec::new() };
    for _ in 0..queues {
        let mut tun = Tun::open(vnet).map_err(|error| TunError { what: "/dev/net/tun".into(), error })?;
        let mut attached = tun.attach(&made.name, queues > 1);
        if vnet && made.queues.is_empty() && attached.as_ref().is_err_and(refuses) {
            tun.vnet = false;
            attached = tun.attach(&made.name, queues > 1);
            if attached.is_ok() {
                vnet = false;
                made.lacks.push(NO_VNET);
            }
        }
        let asked = attached.and_then(|name| Ok((name, tun.ask_offloads(offloads)?)));
        let (name, lack) = asked.map_err(|error| TunError { what: made.name.clone(), error })?;
        add(&mut made, tun, name, lack);
    }
    Ok(made)
}

/// Copy another program's queues of one interface, one descriptor each. When the copies are closed,
/// the interface stays as long as its owner has it.
pub fn adopt(queues: &[RawFd], offloads: Offloads) -> Result<Queues, TunError> {
    let mut made = Queues { name: String::new(), queues: Vec::with_capacity(queues.len()), lacks: Vec::new() };
    for fd in queues {
        let tun = Tun::copy(*fd).and_then(|tun| Ok((tun.examine()?, tun.ask_offloads(offloads)?, tun)));
        let (name, lack, tun) = tun.map_err(|error| TunError { what: format!("descriptor {fd}"), error })?;
        add(&mut made, tun, name, lack);
    }
    Ok(made)
}

fn add(made: &mut Queues, tun: Tun, name: String, lack: &'static str) {
    made.name = name;
    if !lack.is_empty() && !made.lacks.contains(&lack) {
        made.lacks.push(lack);
    }
    made.queues.push(Arc::new(tun));
}

impl Tun {
    fn copy(fd: RawFd) -> io::Result<Self> {
        // SAFETY: the call touches no memory of ours; a descriptor that isn't open gives an error.
        own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }).map(|fd| Self::of(fd, true))
    }

    /// Return the interface's name. Fails if the frames of the interface have another format than
    /// ours.
    fn examine(&self) -> io::Result<String> {
        // SAFETY: an ifreq is plain bytes, and all zeros is one of its values.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.number(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF has written this member of the union.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(io::Error::from_raw_os_error(libc::EMEDIUMTYPE));
        }
        // SAFETY: the calls take their arguments by value.
        check(unsafe {
            let flags = libc::fcntl(self.number(), libc::F_GETFL);
            libc::fcntl(self.number(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        })?;
        Ok(name_in(&request))
    }

    fn of(fd: OwnedFd, vnet: bool) -> Self {
        Self { fd, vnet, refused: AtomicU32::new(0) }
    }

    fn open(vnet: bool) -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        // SAFETY: the path ends in a zero byte.
        own(unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) }).map(|fd| Self::of(fd, vnet))
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
        let vnet = if self.vnet { libc::IFF_VNET_HDR } else { 0 };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | vnet | multi_queue;
        request.ifr_ifru.ifru_flags = flags as c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(self.number(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(name_in(&request))
    }

    /// Ask for superpackets. Return what is lacking of what is wanted, or an empty string.
    fn ask_offloads(&self, wanted: Offloads) -> io::Result<&'static str> {
        let Offloads { tun_checksum, tso, uso, .. } = wanted;
        // The kernel refuses superpackets without the checksum.
        let checksum = self.vnet && tun_checksum;
        let bits = |bits: libc::c_ulong, on: bool| if checksum && on { bits } else { 0 };
        let most = bits(OFFLOAD_CHECKSUM, true) | bits(OFFLOAD_TSO, tso);
        let best_first = [(most | bits(OFFLOAD_USO, uso), ""), (most, NO_USO), (0, NOTHING)];
        let mut result = Ok("");
        for (offloads, lack) in best_first {
            result = self.set_offloads(offloads).map(|()| lack);
            if !result.as_ref().is_err_and(refuses) {
                break;
            }
        }
        result
    }

    fn set_offloads(&self, offloads: libc::c_ulong) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.number(), libc::TUNSETOFFLOAD, offloads) }).map(drop)
    }

    fn number(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Device for Tun {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn fd(&self) -> RawFd {
        self.number()
    }

    /// Without the virtio_net_hdr, a plain one is added.
    fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        let lead = if self.vnet { 0 } else { VNET_SIZE };
        let (header, rest) = frame.split_at_mut(lead);
        header.fill(0);
        // SAFETY: the pointer and the length are those of `rest`.
        check_size(unsafe { libc::read(self.number(), rest.as_mut_ptr().cast(), rest.len()) }).map(|size| size + lead)
    }

    /// One writev(2) of the pieces where they lie.
    fn write(&self, frame: &mut [IoSlice<'_>]) -> io::Result<()> {
        if let (false, Some(first)) = (self.vnet, frame.first_mut()) {
            first.advance(VNET_SIZE);
        }
        // SAFETY: an IoSlice is an iovec (as the standard library promises), and its bytes are
        // borrowed for the call. The kernel only reads them.
        let written = unsafe { libc::writev(self.number(), frame.as_ptr().cast(), frame.len() as libc::c_int) };
        check_size(written).map(drop)
    }

    /// The kernel takes nothing from us while the interface is down, in whatever network it is. If it
    /// can't be asked, it counts as up.
    fn is_up(&self) -> bool {
        wait([(self.number(), libc::POLLOUT)], 0).map_or(true, |ready| ready != 0)
    }

    fn up_fd(&self) -> (RawFd, libc::c_short) {
        (self.number(), libc::POLLOUT)
    }

    fn has_vnet(&self) -> bool {
        self.vnet
    }

    fn answers_at_once(&self) -> bool {
        true
    }

    fn end_offloads(&self) -> bool {
        self.refused.fetch_add(1, Ordering::Relaxed) < REFUSED_READS && self.set_offloads(0).is_ok()
    }

    fn uring_fd(&self) -> Option<RawFd> {
        Some(self.number())
    }
}

fn name_in(request: &libc::ifreq) -> String {
    let named = request.ifr_name.iter().take_while(|byte| **byte != 0);
    named.map(|byte| *byte as u8 as char).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::Duration;

    use super::*;
    use crate::device::contract::{FarEnd, HERE, PORT, THERE, check};

    /// The kernel, at an address of the interface.
    struct Kernel(UdpSocket);

    impl FarEnd for Kernel {
        fn send(&self, payloads: &[&[u8]]) {
            for payload in payloads {
                self.0.send_to(payload, (Ipv4Addr::from(THERE), PORT)).unwrap();
            }
        }

        fn receive(&self, count: usize) -> Vec<Vec<u8>> {
            let one = |_| {
                let mut buffer = vec![0; 2000];
                let size = self.0.recv(&mut buffer).unwrap();
                buffer.truncate(size);
                buffer
            };
            (0..count).map(one).collect()
        }

        /// An interface that is gone is a fault.
        fn close(&self) -> bool {
            false
        }
    }

    /// Give the interface of a device an address of HERE, and set it up.
    fn set_up(name: &str) -> UdpSocket {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let call = |what, value: [u8; 16]| {
            // SAFETY: an ifreq is plain bytes, and all zeros is one of its values.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *place = byte as libc::c_char;
            }
            // SAFETY: all members of the union are plain bytes, and 16 fit into it.
            let union = unsafe { &mut *(&raw mut request.ifr_ifru).cast::<[u8; 16]>() };
            *union = value;
            // SAFETY: the kernel reads one ifreq.
            check_call(unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) });
        };
        let address = |bytes: [u8; 4]| {
            let mut value = [0; 16];
            value[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            value[4..8].copy_from_slice(&bytes);
            value
        };
        let mut up = [0; 16];
        up[..2].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
        call(libc::SIOCSIFADDR, address(HERE));
        call(libc::SIOCSIFNETMASK, address([255, 255, 255, 0]));
        call(libc::SIOCSIFFLAGS, up);
        let socket = UdpSocket::bind((Ipv4Addr::from(HERE), PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    fn check_call(result: libc::c_int) {
        super::check(result).unwrap();
    }

    fn keeps_the_contract(offloads: Offloads) {
        // SAFETY: the call touches no memory of ours. Only this thread moves.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("nothing tested: no network namespace ({})", io::Error::last_os_error());
            return;
        }
        if let Err(refused) = make("tun0", 1, offloads) {
            eprintln!("nothing tested: {refused}");
            return;
        }
        check(|| {
            let mut made = make("tun%d", 1, offloads).unwrap();
            let device = made.queues.remove(0);
            assert!(!device.is_up());
            assert_eq!(wait([(device.up_fd().0, device.up_fd().1)], 0).unwrap(), 0);
            (device, Kernel(set_up(&made.name)))
        });
    }

    #[test]
    fn it_keeps_the_contract_of_devices_with_superpackets() {
        keeps_the_contract(Offloads::ALL);
    }

    #[test]
    fn it_keeps_the_contract_of_devices_with_plain_packets() {
        let mut plain = Offloads::ALL;
        plain.tun_checksum = false;
        plain.merge = transport::coalesce::Merge::NONE;
        keeps_the_contract(plain);
    }
}
