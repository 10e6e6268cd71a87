//! One plane: its device, sockets, threads and commands.

use std::io;
use std::os::fd::RawFd;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use transport::Transport;
use transport::coalesce::Merge;
use transport::contract::{Endpoint, Event, Keypair, Network, Outbox, PeerId};

use crate::counters::{PlaneCounters, QueueCounters, Reading};
use crate::descriptor::{now, random};
use crate::device::tun::{self, TunError};
use crate::device::{Device, Queues};
use crate::events::Events;
use crate::io::{Io, Queue};
use crate::notes::Notes;
use crate::offloads::Offloads;
use crate::sources::Sources;
use crate::steering::{GATE_LANES, steer};
use crate::udp::Udp;
use crate::udp_side::Patience;
use crate::uring;
use crate::worker::start;
use crate::xdp::{Refused, Xdp};

/// Bytes that may wait in a socket of the gate, with what the kernel needs per datagram (some 800
/// bytes). A flood fills this much while other threads have the processor for some tens of
/// milliseconds.
const LANE_BUFFER: libc::c_int = 2 << 20;

/// How long to wait for the kernel to release an earlier AF_XDP socket, and how often to try.
const XDP_PATIENCE: Duration = Duration::from_secs(1);
const XDP_LOOK: Duration = Duration::from_millis(10);

/// The settings of a plane.
pub struct Settings<'a> {
    /// Our public key.
    pub public_key: [u8; 32],
    /// Bound UDP sockets, at most one per address family. The plane uses copies of them.
    pub sockets: &'a [RawFd],
    /// The MTU inside the tunnel.
    pub mtu: usize,
    /// Whether to use io_uring if the kernel permits it.
    pub uring: bool,
    /// The interface to use AF_XDP on, if any.
    pub xdp: Option<&'a str>,
    /// The offloads to use where the kernel has them.
    pub offloads: Offloads,
}

/// The plane. A command is done at once, in the caller's thread. It never waits for the network,
/// and for another thread only as long as that thread needs for the bookkeeping of one batch.
pub struct Plane {
    /// The name of the device.
    pub name: String,
    lasting: Lasting,
    /// The threads own the target: when they have ended there is nothing to send over. Locked for
    /// writing while the sockets are changed.
    io: RwLock<Weak<Io>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The process that has the threads. A forked child has none of them.
    process: u32,
}

/// What stays when the sockets and threads are replaced.
struct Lasting {
    transport: Arc<Transport>,
    events: Arc<Events>,
    notes: Arc<Notes>,
    counters: Arc<PlaneCounters>,
    offloads: Offloads,
    uring: bool,
    xdp: Option<String>,
    /// What the device is: see [`crate::device::Device::kind`].
    kind: &'static str,
}

impl Lasting {
    /// Start the threads. `lacks`: notes on what the sockets do without.
    fn start(&self, queues: Vec<Queue>, lacks: &[String]) -> io::Result<(Weak<Io>, Vec<JoinHandle<()>>)> {
        let Self { transport, events, notes, counters, .. } = self;
        let shared = (Arc::clone(transport), Arc::clone(events), Arc::clone(notes), Arc::clone(counters));
        let mut io = Io::new(shared.0, shared.1, shared.2, shared.3, queues, self.offloads.merge, self.uring)?;
        if let Some(name) = &self.xdp {
            use_xdp(&mut io, name);
        }
        let sources = io.sockets().next().map_or(Ok(0), Udp::mark).and_then(Sources::open);
        match sources {
            Ok(sources) => io.sources = Some(sources),
            Err(error) => {
                io.note(&format!("A better route is noticed late: the kernel refuses to report it ({error})."))
            }
        }
        lacks.iter().for_each(|lack| io.note(lack));
        match open_gate(&io.queues) {
            Ok(gate) => io.gate = gate,
            Err(error) => {
                io.note(&format!("Handshakes and data share one buffer: the kernel refuses to sort them ({error})."))
            }
        }
        let io = Arc::new(io);
        Ok((Arc::downgrade(&io), start(&io)?))
    }
}

/// Return the sockets of each queue: copies of the given ones, and their twins.
fn adopt(
    sockets: &[RawFd],
    offloads: Offloads,
    queues: usize,
    mark: u32,
    lacks: &mut Vec<String>,
) -> io::Result<Vec<Vec<Udp>>> {
    let mut first = Vec::new();
    for socket in sockets {
        let (socket, lack) = Udp::adopt(*socket, offloads)?;
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        first.push(socket);
        lacks.extend(lack.into_iter().map(str::to_owned));
    }
    let mut adopted = vec![first];
    for _ in 1..queues {
        adopted.push(adopted[0].iter().map(Udp::twin).collect::<io::Result<_>>()?);
    }
    Ok(adopted)
}

/// Return queues of these devices and sockets.
fn join(devices: impl IntoIterator<Item = Arc<dyn Device>>, sockets: Vec<Vec<Udp>>) -> Vec<Queue> {
    devices.into_iter().zip(sockets).map(|(device, sockets)| Queue { device, sockets }).collect()
}

impl Plane {
    /// Start the threads on a device: an interface of [`tun`], or queues of any other kind.
    pub fn new(settings: &Settings<'_>, made: Queues) -> io::Result<Self> {
        let mut lacks = made.lacks.iter().map(|lack| (*lack).to_owned()).collect();
        let mut offloads = settings.offloads;
        if !made.queues.iter().all(|device| device.has_vnet()) {
            offloads.merge = Merge::NONE;
        }
        let first = Arc::clone(made.queues.first().ok_or(io::ErrorKind::InvalidInput)?);
        made.queues.iter().for_each(|device| device.set_mtu(settings.mtu));
        let sockets = adopt(settings.sockets, offloads, made.queues.len(), 0, &mut lacks)?;
        let counters = Arc::new(PlaneCounters::new(made.queues.len()));
        let queues = join(made.queues, sockets);

        let handshakes = Arc::new(AtomicUsize::new(0));
        let events = Arc::new(Events::new(Arc::clone(&handshakes))?);
        let backlog = Box::new(move || handshakes.load(Ordering::Relaxed));
        let transport = Transport::new(&settings.public_key, settings.mtu, Box::new(random), backlog);
        let refusal = if settings.uring { uring::refusal() } else { None };
        let lasting = Lasting {
            transport: Arc::new(transport),
            events,
            notes: Arc::default(),
            counters,
            offloads,
            uring: settings.uring && refusal.is_none(),
            xdp: settings.xdp.map(str::to_owned),
            kind: first.kind(),
        };
        lasting.transport.set_up(first.is_up(), now(), &mut Outbox::default());
        lacks.extend(refusal.map(|refusal| uring::note(&refusal)));
        let (io, threads) = lasting.start(queues, &lacks)?;
        let (io, threads) = (RwLock::new(io), Mutex::new(threads));
        Ok(Self { name: made.name, lasting, io, threads, process: process::id() })
    }

    /// Call `act` with what the threads own, if they run.
    fn with_io<R>(&self, act: impl FnOnce(&Io) -> R) -> Option<R> {
        let io = self.io.read().unwrap_or_else(PoisonError::into_inner);
        let io = io.upgrade()?;
        Some(act(&io))
    }

    /// Replace the sockets by copies of others. Sessions, and what waits in the interface, are
    /// kept.
    ///
    /// The threads end and new ones start. When this returns, the old sockets are closed.
    pub fn rebind(&self, sockets: &[RawFd]) -> io::Result<()> {
        let mut known = self.io.write().unwrap_or_else(PoisonError::into_inner);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = known.upgrade().filter(|io| io.goes_on()) else { return Ok(()) };
        let mark = before.sockets().next().map_or(Ok(0), Udp::mark)?;
        let mut lacks = Vec::new();
        let adopted = adopt(sockets, self.lasting.offloads, before.queues.len(), mark, &mut lacks)?;
        let queues = join(before.queues.iter().map(|queue| Arc::clone(&queue.device)), adopted);
        before.stop();
        for thread in threads.drain(..) {
            // The thread has reported how it ended.
            let _ = thread.join();
        }
        // This closes its sockets and its AF_XDP. An interface can have only one program.
        drop(before);
        match self.lasting.start(queues, &lacks) {
            Ok((io, started)) => (*known, *threads) = (io, started),
            Err(error) => {
                let _ = self.lasting.events.put(Event::Fault { message: error.to_string(), fatal: true });
            }
        }
        Ok(())
    }

    /// Whether the threads run.
    pub fn is_running(&self) -> bool {
        self.with_io(Io::goes_on).unwrap_or(false)
    }

    /// Create the interface again after another program removed it and [`Plane::close`] has ended the
    /// threads. Start them with copies of these sockets. Sessions are kept.
    ///
    /// `mark`: of everything that is sent.
    pub fn reattach(&self, sockets: &[RawFd], mark: u32) -> Result<(), TunError> {
        let mut known = self.io.write().unwrap_or_else(PoisonError::into_inner);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lasting.kind != tun::KIND {
            let error = io::ErrorKind::Unsupported.into();
            return Err(TunError { what: self.name.clone(), error });
        }
        let made = tun::make(&self.name, self.lasting.counters.queues.len(), self.lasting.offloads)?;
        let mut lacks = Vec::new();
        let started = adopt(sockets, self.lasting.offloads, made.queues.len(), mark, &mut lacks)
            .and_then(|sockets| self.lasting.start(join(made.queues, sockets), &lacks));
        (*known, *threads) = started.map_err(|error| TunError { what: self.name.clone(), error })?;
        if let Some(io) = known.upgrade() {
            io.xdp.iter().for_each(|xdp| xdp.set_mark(mark));
        }
        Ok(())
    }

    /// Do a command. Send its datagrams and report its events.
    fn command(&self, act: impl FnOnce(&Transport, &mut Outbox)) {
        self.with_io(|io| {
            let mut out = Outbox::default();
            if self.transport().is_down() {
                // The caller may have set it up a moment ago.
                self.transport().set_up(io.queues[0].device.is_up(), now(), &mut out);
            }
            act(self.transport(), &mut out);
            io.dispatch(&mut out, 0, Patience::None);
        });
    }

    /// Have packets padded to this at most, and longer ones left out where nobody else does that.
    pub fn set_mtu(&self, mtu: usize) {
        self.transport().set_mtu(mtu);
        self.with_io(|io| io.queues.iter().for_each(|queue| queue.device.set_mtu(mtu)));
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
        self.command(|transport, out| transport.send(endpoint, datagram, now(), out));
    }

    /// Mark everything that is sent from now on. 0 means no mark.
    pub fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        let set = self.with_io(|io| {
            if let Some(xdp) = &io.xdp {
                xdp.set_mark(mark);
            }
            io.set_mark(mark)?;
            io.sources.iter().for_each(|sources| sources.set_mark(mark));
            Ok(())
        });
        set.unwrap_or(Ok(()))
    }

    /// Return the rules, for the commands that send nothing.
    pub fn transport(&self) -> &Transport {
        &self.lasting.transport
    }

    /// Return what the plane does without, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        self.lasting.notes.read()
    }

    /// Return how many packets were dropped for each reason.
    pub fn drops(&self) -> Vec<(String, u64)> {
        let mut drops = self.transport().drops.read();
        let full = self.lasting.counters.full.load(Ordering::Relaxed);
        if full > 0 {
            drops.push((format!("{}_full", self.lasting.kind), full));
        }
        drops.extend(self.with_io(|io| io.queues[0].device.drops()).unwrap_or_default());
        drops
    }

    /// Return what each worker did, with its name.
    pub fn workers(&self) -> Vec<(String, Reading)> {
        let read = |(queue, of): (usize, &QueueCounters)| {
            [(format!("out-{queue}"), of.out.read()), (format!("in-{queue}"), of.inward.read())]
        };
        let counters = &self.lasting.counters;
        let gate = [("gate".to_owned(), counters.gate.read())];
        counters.queues.iter().enumerate().flat_map(read).chain(gate).collect()
    }

    /// Return the descriptor that is readable while events wait.
    pub fn fileno(&self) -> RawFd {
        self.lasting.events.fd()
    }

    /// Take the next events.
    pub fn poll_events(&self) -> Vec<Event> {
        self.lasting.events.take()
    }

    /// Ask every thread for a sign of life. Return the names of those that haven't answered the call
    /// before.
    pub fn roll_call(&self) -> Vec<String> {
        self.with_io(|io| io.roll.take(!io.gate.is_empty())).unwrap_or_default()
    }

    /// Stop the threads, and close every descriptor and the device. Done when this returns.
    /// May be called twice. Does nothing in a forked child: the threads and what wakes them are the
    /// parent's, and a lock may be held by a thread that the child doesn't have.
    pub fn close(&self) {
        if process::id() != self.process {
            return;
        }
        self.with_io(Io::stop);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // The thread has reported how it ended.
            let _ = thread.join();
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.close();
    }
}

/// Open the gate's sockets on the ports of the queues, and have the kernel sort the datagrams.
fn open_gate(queues: &[Queue]) -> io::Result<Vec<Udp>> {
    let mut gate = Vec::new();
    for first in &queues[0].sockets {
        for _ in 0..GATE_LANES {
            let lane = first.twin()?;
            lane.set_receive_buffer(LANE_BUFFER)?;
            gate.push(lane);
        }
        steer(first, queues.len())?;
    }
    Ok(gate)
}

/// Use AF_XDP on an interface, or note why that is impossible.
fn use_xdp(io: &mut Io, name: &str) {
    let deadline = Instant::now() + XDP_PATIENCE;
    let start = || Xdp::start(name, &io.queues[0].sockets, io.queues.len());
    let mut started = start();
    while started.as_ref().is_err_and(Refused::may_pass) && Instant::now() < deadline {
        thread::sleep(XDP_LOOK);
        started = start();
    }
    match started {
        Ok(xdp) => {
            io.note(&xdp.describe());
            io.xdp = Some(xdp);
        }
        Err(refused) => {
            io.note(&format!("AF_XDP is not used on {name} ({refused}): UDP goes through the ordinary sockets."));
        }
    }
}
