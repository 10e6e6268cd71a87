//! One plane: its interface, its sockets, its threads, and the commands.

use std::ffi::c_char;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use transport::Transport;
use transport::contract::{Endpoint, Event, Keypair, Network, Outbox, PeerId, Transmit};

use crate::counters::{QueueCounters, Reading};
use crate::descriptor::{now, random};
use crate::events::Events;
use crate::tun::{self, TunError};
use crate::udp::{Patience, Udp};
use crate::uring;
use crate::worker::{Io, Notes, Queue, start};
use crate::xdp::Xdp;

/// The kernel's UDP superpackets broke VXLAN and Geneve inside them before this release.
const MERGES_UDP_FROM: [u32; 3] = [6, 8, 5];

/// How a plane is to be.
pub struct Settings<'a> {
    /// Ours.
    pub public_key: [u8; 32],
    /// The name of the interface to make, where `tun` is empty.
    pub interface: &'a str,
    /// Queues of an interface that is there already; the plane uses copies of them.
    pub tun: &'a [RawFd],
    /// Bound UDP sockets, at most one a family; the plane uses copies of them.
    pub sockets: &'a [RawFd],
    /// Of the interface.
    pub mtu: usize,
    /// Queues of the interface, 1 at least.
    pub queues: usize,
    /// Whether to use io_uring where the kernel lets us.
    pub uring: bool,
    /// The interface to use AF_XDP on, if any.
    pub xdp: Option<&'a str>,
    /// Whether to merge UDP packets for the interface; None decides by the kernel's release.
    pub merge_udp: Option<bool>,
}

/// The plane. Commands are done at once, in the caller's thread; none waits for the network or for another thread
/// longer than that one needs for one batch's bookkeeping.
pub struct Plane {
    /// What the kernel named it.
    pub interface: String,
    transport: Arc<Transport>,
    events: Arc<Events>,
    notes: Arc<Notes>,
    counters: Arc<[QueueCounters]>,
    /// The threads own it: when they have ended there is nothing to send over.
    io: Weak<Io>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Plane {
    /// Make the interface and start. The interface has no address and is down until somebody sets it up.
    pub fn new(settings: &Settings<'_>) -> Result<Self, TunError> {
        let made = match settings.tun {
            [] => tun::make(settings.interface, settings.queues)?,
            queues => tun::adopt(queues)?,
        };
        let interface = made.name.clone();
        Self::with_interface(settings, made).map_err(|error| TunError { what: interface, error })
    }

    fn with_interface(settings: &Settings<'_>, made: tun::Interface) -> io::Result<Self> {
        let mut lacks = made.lacks;
        let mut first = Vec::new();
        for socket in settings.sockets {
            let (socket, lack) = Udp::adopt(*socket)?;
            first.push(socket);
            lacks.extend(lack);
        }
        let mut sockets = vec![first];
        for _ in 1..made.queues.len() {
            sockets.push(sockets[0].iter().map(Udp::twin).collect::<io::Result<_>>()?);
        }
        let queues = made.queues.into_iter().zip(sockets).map(|(tun, sockets)| Queue { tun, sockets }).collect();

        let handshakes = Arc::new(AtomicUsize::new(0));
        let events = Arc::new(Events::new(Arc::clone(&handshakes))?);
        let backlog = Box::new(move || handshakes.load(Ordering::Relaxed));
        let transport = Transport::new(&settings.public_key, settings.mtu, Box::new(random), backlog);
        let (transport, notes) = (Arc::new(transport), Arc::new(Notes::default()));
        let merge_udp = settings.merge_udp.unwrap_or_else(kernel_merges_udp);
        let shared = (Arc::clone(&transport), Arc::clone(&events), Arc::clone(&notes));
        let refusal = if settings.uring { uring::refusal() } else { None };
        let over_ring = settings.uring && refusal.is_none();
        let mut io = Io::new(shared.0, shared.1, shared.2, queues, merge_udp, over_ring)?;
        if let Some(name) = settings.xdp {
            use_xdp(&mut io, name);
        }
        let io = Arc::new(io);
        if let Some(refusal) = refusal {
            io.note(&uring::note(&refusal));
        }
        for lack in lacks {
            io.note(lack);
        }
        let (threads, counters) = (Mutex::new(start(&io)?), Arc::clone(&io.counters));
        Ok(Self { interface: made.name, transport, events, notes, counters, io: Arc::downgrade(&io), threads })
    }

    /// Do a command, and send and tell what comes of it.
    fn command(&self, act: impl FnOnce(&Transport, &mut Outbox)) {
        let Some(io) = self.io.upgrade() else { return };
        let mut out = Outbox::default();
        act(&self.transport, &mut out);
        io.dispatch(&mut out, 0, Patience::None);
    }

    /// See [`Transport::set_peer`].
    pub fn set_peer(&self, peer: PeerId, endpoint: Option<Endpoint>, networks: &[Network], interval: u32) {
        self.command(|transport, out| transport.set_peer(peer, endpoint, networks, interval, now(), out));
    }

    /// See [`Transport::install_keypair`].
    pub fn install_keypair(&self, peer: PeerId, keypair: &Keypair) {
        self.command(|transport, out| transport.install_keypair(peer, keypair, now(), out));
    }

    /// Send one datagram as it is.
    pub fn send(&self, endpoint: Endpoint, datagram: Vec<u8>) {
        self.command(|_, out| out.transmits.push(Transmit { endpoint, datagram }));
    }

    /// Mark what is sent from now on; 0 for no mark.
    pub fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        let Some(io) = self.io.upgrade() else { return Ok(()) };
        if let Some(xdp) = &io.xdp {
            xdp.set_mark(mark);
        }
        io.sockets().try_for_each(|socket| socket.set_mark(mark))
    }

    /// The rules, for the commands that send nothing.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// What it does without, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        self.notes.read()
    }

    /// What each worker did, by name.
    pub fn workers(&self) -> Vec<(String, Reading)> {
        let read = |(queue, of): (usize, &QueueCounters)| {
            [(format!("out-{queue}"), of.out.read()), (format!("in-{queue}"), of.inward.read())]
        };
        self.counters.iter().enumerate().flat_map(read).collect()
    }

    /// Readable while events wait.
    pub fn fileno(&self) -> RawFd {
        self.events.fd()
    }

    /// Take the next events.
    pub fn poll_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Stop, close every descriptor, drop the interface; back when that is done. May be called twice.
    pub fn close(&self) {
        if let Some(io) = self.io.upgrade() {
            io.stop();
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // It has told how it ended.
            let _ = thread.join();
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.close();
    }
}

/// Use AF_XDP on an interface, or say why not.
fn use_xdp(io: &mut Io, name: &str) {
    match Xdp::start(name, &io.queues[0].sockets, io.queues.len()) {
        Ok(xdp) => {
            io.note(&xdp.describe());
            io.xdp = Some(xdp);
        }
        Err(refused) => {
            io.note(&format!("No AF_XDP on {name} ({refused}): UDP goes through the ordinary sockets."));
        }
    }
}

fn kernel_merges_udp() -> bool {
    // SAFETY: a utsname is plain bytes, and the kernel writes one.
    let name = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        if libc::uname(&raw mut name) != 0 {
            return false;
        }
        name
    };
    let release: String = name.release.iter().take_while(|byte| **byte != 0).map(as_char).collect();
    release_merges_udp(&release)
}

fn as_char(byte: &c_char) -> char {
    char::from(*byte as u8)
}

/// Whether a kernel's release, such as `6.8.12-amd64`, is new enough.
fn release_merges_udp(release: &str) -> bool {
    let numbers = release.split('-').next().unwrap_or_default().split('.').take(3).map(str::parse);
    numbers.collect::<Result<Vec<u32>, _>>().is_ok_and(|numbers| numbers[..] >= MERGES_UDP_FROM[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_is_merged_where_the_kernel_does_it_right() {
        let releases = ["6.8.4", "6.8.5", "6.8", "6.9", "7.0.1-arch", "5.15.0-91-generic", "", "six"];
        let merged = releases.map(release_merges_udp);
        assert_eq!(merged, [false, true, false, true, true, false, false, false]);
    }
}
