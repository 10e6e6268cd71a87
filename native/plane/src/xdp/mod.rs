//! The UDP side over AF_XDP: our datagrams bypass the kernel's network stack at one interface.
//!
//! - `program` is what the interface runs, made by `assembler` and loaded by `bpf`.
//! - `channel` is a socket of one queue of the interface, over `ring` and `memory`.
//! - `routes` finds where to send, by [`crate::netlink`].
//! - [`transport::ethernet`] builds and reads the frames.
//!
//! The ordinary sockets stay open for everything else: other interfaces, hosts whose neighbour
//! isn't known, datagrams longer than the path's MTU, and datagrams that the program leaves to the
//! kernel.

mod assembler;
mod bound;
mod bpf;
mod channel;
mod memory;
mod program;
mod ring;
mod routes;

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

use transport::contract::Endpoint;
use transport::ethernet::Fields;

use crate::descriptor::{check, own};
use crate::netlink::Netlink;
use crate::udp::Udp;
use crate::udp_side::{Patience, Receiver};
use crate::xdp::bound::Bound;
pub use crate::xdp::channel::Channel;
use crate::xdp::channel::{FRAMES, Shape};
use crate::xdp::memory::{FRAME, HEADROOM, Umem};
use crate::xdp::program::{Attached, Program, Wanted};
use crate::xdp::routes::{Follower, Routes};

/// Queues served. What comes on others goes to the ordinary sockets.
const MOST_QUEUES: u32 = 32;
const SOCKET: &str = "an AF_XDP socket";
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Why an interface isn't used: the step that failed, and the error.
#[derive(Debug)]
pub struct Refused {
    step: &'static str,
    error: io::Error,
}

impl Refused {
    /// Return whether the only reason may be that the kernel is still releasing a closed socket,
    /// which takes its time.
    pub fn may_pass(&self) -> bool {
        self.step == SOCKET && self.error.raw_os_error() == Some(libc::EBUSY)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self.error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "; this needs root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
            Some(libc::EBUSY | libc::EEXIST) => "; another XDP program or socket uses it",
            Some(libc::ENOBUFS | libc::ENOMEM) => "; this needs locked memory (LimitMEMLOCK=infinity, ulimit -l)",
            Some(libc::ENODEV) => "; it is gone",
            Some(libc::EAFNOSUPPORT | libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => "; this needs Linux 5.11",
            _ => "",
        };
        write!(out, "{}: {}{hint}", self.step, self.error)
    }
}

fn at(step: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| Refused { step, error }
}

/// AF_XDP on one interface.
///
/// The fields are dropped in this order: the program is detached first, so nothing more comes to
/// the sockets.
pub struct Xdp {
    attached: Attached,
    channels: Vec<Channel>,
    umem: Umem,
    program: Program,
    routes: Routes,
    follower: Mutex<Follower>,
    interface: u32,
    name: String,
    bound: Bound,
    workers: usize,
}

impl Xdp {
    /// Start to use an interface, for `workers` queues of the plane.
    pub fn start(name: &str, sockets: &[Udp], workers: usize) -> Result<Self, Refused> {
        let interface = index(name).map_err(at("the interface"))?;
        let queues = queues(name).min(MOST_QUEUES);
        let bound = Bound::of(sockets).map_err(at("the sockets"))?;
        let link = Netlink::open(&[]).and_then(|netlink| netlink.link(interface));
        let link = link.and_then(|link| link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)));
        let mtu = link.map_err(at("the interface"))?.mtu;
        let longest = (transport::ethernet::ETHERNET + mtu).min(FRAME - HEADROOM) as u16;
        let port = |v4| bound.family(v4).map(|bound| bound.port());
        let wanted = Wanted { port_v4: port(true), port_v6: port(false), longest };
        let program = Program::load(&wanted, queues).map_err(at("loading the program"))?;
        let follower = Follower::start(interface, bound, &program).map_err(at("netlink"))?;
        let attached = program.attach(interface).map_err(at("attaching the program"))?;
        let shape = Shape { interface, native: attached.native };
        let (umem, channels) = open_channels(&shape, queues).map_err(at(SOCKET))?;
        for (queue, channel) in (0..).zip(&channels) {
            program.set_socket(queue, channel.fd()).map_err(at("the map of sockets"))?;
        }
        let mark = sockets.first().map_or(Ok(0), Udp::mark).map_err(at("the sockets"))?;
        let routes = Routes::new(mark).map_err(at("an eventfd"))?;
        let (follower, name) = (Mutex::new(follower), name.to_owned());
        Ok(Self { attached, channels, umem, program, routes, follower, interface, name, bound, workers })
    }

    /// Return a note about how the interface is used.
    pub fn describe(&self) -> String {
        let mode = if self.attached.native { "native" } else { "generic" };
        let copy = if self.channels.iter().all(|one| one.zero_copy) { "zero-copy" } else { "copying" };
        let queues = self.channels.len();
        let plural = if queues == 1 { "" } else { "s" };
        format!("UDP goes over AF_XDP on {}: {mode} mode, {copy}, {queues} queue{plural}.", self.name)
    }

    /// Return a note about the end of the interface.
    pub fn describe_end(&self) -> String {
        format!("{} is gone: UDP goes through the ordinary sockets until the next start.", self.name)
    }

    /// Return the channels of a worker.
    pub fn channels(&self, worker: usize) -> impl Iterator<Item = &Channel> {
        self.channels.iter().skip(worker).step_by(self.workers)
    }

    /// Take what waits in a channel. Return false if nothing does.
    pub fn receive(&self, channel: &Channel, into: &mut Receiver) -> bool {
        channel.receive(&self.umem, into, self.interface, !self.attached.native);
        !into.messages.is_empty()
    }

    /// Send the part of a message that can go over this interface, as datagrams of `segment` bytes.
    /// Return how many bytes that was.
    pub fn send(
        &self,
        message: &[u8],
        segment: usize,
        endpoint: Endpoint,
        tos: u8,
        worker: usize,
        patience: Patience,
    ) -> io::Result<usize> {
        let Endpoint { remote, local, .. } = endpoint;
        let Some(route) = self.routes.find(remote) else { return Ok(0) };
        let Some(bound) = self.bound.family(remote.is_ipv4()) else { return Ok(0) };
        // The route is from the address that the kernel would choose.
        if local.is_some_and(|local| local != route.path.source) {
            return Ok(0);
        }
        if route.path.headers() + segment.min(message.len()) > route.longest.min(FRAME) || message.is_empty() {
            return Ok(0);
        }
        let channel = &self.channels[worker % self.channels.len()];
        let fields = Fields { source_port: bound.port(), destination_port: remote.port(), tos };
        channel.send(&self.umem, &route.path, fields, message, segment, patience)
    }

    /// Follow the kernel's routes and neighbours until `stop` is readable. Return false if the
    /// interface is gone.
    pub fn follow(&self, stop: RawFd) -> io::Result<bool> {
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        follower.follow(&self.routes, &self.program, stop)?;
        Ok(!self.routes.is_gone())
    }

    /// Look routes up with this mark from now on.
    pub fn set_mark(&self, mark: u32) {
        self.routes.set_mark(mark);
    }

    /// Return whether the interface is gone.
    pub fn is_gone(&self) -> bool {
        self.routes.is_gone()
    }
}

fn open_channels(shape: &Shape, queues: u32) -> io::Result<(Umem, Vec<Channel>)> {
    let (umem, mut frames) = Umem::new(queues as usize * FRAMES)?;
    let mut channels: Vec<Channel> = Vec::new();
    for queue in 0..queues {
        let mine = frames.split_off(frames.len() - FRAMES);
        let made = Channel::open(shape, queue, &umem, mine, channels.first())?;
        channels.push(made);
    }
    Ok((umem, channels))
}

fn index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: the name ends in a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Return how many queues an interface receives on. A driver that doesn't report it has one.
fn queues(name: &str) -> u32 {
    /// struct ethtool_channels of linux/ethtool.h
    #[repr(C)]
    #[derive(Default)]
    struct EthtoolChannels {
        command: u32,
        most: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    let mut found = EthtoolChannels { command: ETHTOOL_GCHANNELS, ..EthtoolChannels::default() };
    // SAFETY: the call touches no memory of ours.
    let Ok(socket) = own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }) else {
        return 1;
    };
    // SAFETY: an ifreq is plain bytes, and all zeros is one of its values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut found).cast();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the request points to what this command of SIOCETHTOOL writes, which outlives the call.
    let asked = check(unsafe { libc::ioctl(fd, SIOCETHTOOL, &raw mut request) });
    if asked.is_ok() { (found.rx + found.combined).max(1) } else { 1 }
}
