//! The threads: two a queue, each running to completion on a batch, one at the gate, and one that waits for timers.
//!
//! - Out: drain the device into a message a peer, seal, send.
//! - In: take the messages that wait, open, merge, write to the device.
//! - Gate: the same for what is no data message, on sockets of its own (`crate::steering`) and after all who move data.
//! - Timers: sleep until the next deadline of any peer.
//!
//! Before a thread sleeps it looks again for a while, where that pays ([`crate::spin`]).

use std::any::Any;
use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, yield_now};

use transport::Transport;
use transport::coalesce::next_run;
use transport::contract::{Endpoint, Event, Outbox, Transmit};
use transport::drops::DropReason;
use transport::inbound::Inbound;
use transport::outbound::Outbound;
use transport::sink::Sink;
use transport::vnet::{MAX_PACKET, VNET_SIZE};

use crate::counters::{Counters, WorkerCounters, count_call};
use crate::descriptor::{EventFd, TimerFd, error_word, now, wait, wait_for};
use crate::events::Events;
use crate::spin::Spin;
use crate::tun::Tun;
use crate::udp::{Patience, Receiver, Sent, Udp};
use crate::uring;
use crate::xdp::{Channel, Xdp};

/// After this many batches from one socket the others are looked at, however much still comes.
const TURNS: u32 = 64;
/// How much later than others the thread at the gate is served, where not all can be (nice(2)).
const GATE_NICE: libc::c_int = 5;

/// A queue of the device, and the sockets that belong to it: at most one a family.
pub struct Queue {
    pub tun: Tun,
    pub sockets: Vec<Udp>,
}

/// What the threads share. They own it: the descriptors are closed and the interface is gone when the last has ended.
pub struct Io {
    pub transport: Arc<Transport>,
    pub events: Arc<Events>,
    pub notes: Arc<Notes>,
    pub queues: Vec<Queue>,
    /// Sockets on the same ports for what is no data message; none where the kernel can't tell it apart.
    pub gate: Vec<Udp>,
    /// The network side over AF_XDP, beside the sockets.
    pub xdp: Option<Xdp>,
    /// Of the workers.
    pub counters: Arc<WorkerCounters>,
    /// Whether UDP packets may be merged.
    pub merge_udp: bool,
    /// Whether the queues are moved over io_uring.
    pub uring: bool,
    /// Whether the kernel takes superpackets.
    pub merging: AtomicBool,
    stopping: AtomicBool,
    /// Readable once it is time to stop; never cleared.
    pub stop: EventFd,
    /// Wakes the thread that waits for timers.
    sooner: EventFd,
    /// Until when that thread means to sleep, as bits; 0 while it is awake.
    asleep_until: AtomicU64,
}

/// What the plane does without, each said once.
#[derive(Default)]
pub struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Note a sentence; false if it was noted before.
    fn add(&self, note: &str) -> bool {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = !notes.iter().any(|one| one == note);
        if fresh {
            notes.push(note.to_owned());
        }
        fresh
    }

    /// Those so far.
    pub fn read(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Io {
    /// Put together what the threads share.
    pub fn new(
        transport: Arc<Transport>,
        events: Arc<Events>,
        notes: Arc<Notes>,
        counters: Arc<WorkerCounters>,
        queues: Vec<Queue>,
        merge_udp: bool,
        uring: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            transport,
            events,
            notes,
            queues,
            gate: Vec::new(),
            xdp: None,
            counters,
            merge_udp,
            uring,
            merging: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            stop: EventFd::new()?,
            sooner: EventFd::new()?,
            asleep_until: AtomicU64::new(0),
        })
    }

    /// All sockets.
    pub fn sockets(&self) -> impl Iterator<Item = &Udp> {
        self.queues.iter().flat_map(|queue| &queue.sockets).chain(&self.gate)
    }

    /// Have all threads end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.stop.set();
    }

    /// Say once what the plane does without.
    pub fn note(&self, note: &str) {
        if self.notes.add(note) {
            self.put(Event::Fault { message: note.to_owned(), fatal: false });
        }
    }

    /// Take out what came of a call, over the sockets of queue `queue`, or of the gate ([`Self::at_gate`]).
    pub fn dispatch(&self, out: &mut Outbox, queue: usize, patience: Patience) {
        for event in out.events.drain(..) {
            self.put(event);
        }
        self.send_all(&out.transmits, queue, patience);
        out.transmits.clear();
        let next = self.transport.poll_timeout().map_or(u64::MAX, f64::to_bits);
        if next < self.asleep_until.load(Ordering::SeqCst) {
            self.sooner.set();
        }
    }

    /// Send datagrams, in one system call where nothing is against that.
    fn send_all(&self, mut transmits: &[Transmit], queue: usize, patience: Patience) {
        while let Some(Transmit { endpoint, datagram }) = transmits.first() {
            let together = if transmits.len() > 1 && self.xdp.is_none() {
                self.socket(queue, *endpoint).map_or(0, |socket| socket.send_together(transmits))
            } else {
                0
            };
            if together == 0 {
                self.send(datagram, datagram.len(), *endpoint, queue, patience);
            }
            transmits = &transmits[together.max(1)..];
        }
    }

    fn put(&self, event: Event) {
        if let Err(reason) = self.events.put(event) {
            self.transport.drops.count(reason, 1);
        }
    }

    /// Send datagrams; what the network has against it is counted, nothing more. False: not from the endpoint's
    /// address of ours, which the kernel refuses.
    pub fn send(&self, message: &[u8], segment: usize, endpoint: Endpoint, queue: usize, patience: Patience) -> bool {
        let done = self.send_by_xdp(message, segment, endpoint, queue, patience);
        if done > 0 && done == message.len() {
            return true;
        }
        let message = &message[done..];
        let Some(socket) = self.socket(queue, endpoint) else {
            self.transport.drops.count(DropReason::NoSocket, 1);
            return true;
        };
        let (sent, from_there) = socket.send_from(message, segment, endpoint, patience);
        match sent {
            Ok(Sent::Whole) => {}
            Ok(Sent::Singly(error)) => {
                self.note(&format!("The kernel refuses to cut UDP messages ({error}): they go one by one."));
            }
            Err(error) => self.transport.drops.count_other(format!("send_{}", error_word(&error))),
        }
        from_there
    }

    /// Send what can go over AF_XDP; give how many bytes of the message that is.
    fn send_by_xdp(
        &self,
        message: &[u8],
        segment: usize,
        endpoint: Endpoint,
        queue: usize,
        patience: Patience,
    ) -> usize {
        let Some(xdp) = &self.xdp else { return 0 };
        xdp.send(message, segment, endpoint, queue, patience).unwrap_or_else(|error| {
            self.transport.drops.count_other(format!("xdp_{}", error_word(&error)));
            message.len()
        })
    }

    /// What stands for the gate where the number of a queue does for its sockets.
    pub fn at_gate(&self) -> usize {
        self.queues.len()
    }

    /// The socket of a queue, or of the gate, for an endpoint's family.
    pub fn socket(&self, queue: usize, endpoint: Endpoint) -> Option<&Udp> {
        let sockets = self.queues.get(queue).map_or(&self.gate, |queue| &queue.sockets);
        sockets.iter().find(|socket| socket.v6 == endpoint.remote.is_ipv6())
    }

    /// Look at why the device didn't take `count` packets at once. Whether they are to be written one by one.
    pub fn refused_write(&self, count: usize, error: &io::Error) -> bool {
        if count > 1 && error.raw_os_error() == Some(libc::EINVAL) {
            self.merging.store(false, Ordering::Relaxed);
            self.note("The kernel refused a superpacket: packets go to the interface one by one.");
            return true;
        }
        // The interface is down, or wants no such packet: nothing to stop for.
        self.transport.drops.count_other(format!("interface_{}", error_word(error)));
        false
    }

    pub fn goes_on(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }
}

/// Start the threads. Where one can't be started, those before it end again.
pub fn start(io: &Arc<Io>) -> io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let mut spawn = |name: String, body: Body| {
        let shared = Arc::clone(io);
        let thread = Builder::new().name(name).spawn(move || run(&shared, &body));
        threads.push(thread.inspect_err(|_| io.stop())?);
        Ok::<(), io::Error>(())
    };
    for queue in 0..io.queues.len() {
        let (outward, inward): (Way, Way) = if io.uring { (uring::out, uring::inward) } else { (out, inward) };
        spawn(format!("rg-out-{queue}"), Box::new(move |io| outward(io, queue)))?;
        spawn(format!("rg-in-{queue}"), Box::new(move |io| inward(io, queue)))?;
    }
    if !io.gate.is_empty() {
        spawn("rg-gate".into(), Box::new(gate))?;
    }
    spawn("rg-timers".into(), Box::new(timers))?;
    if io.xdp.is_some() {
        spawn("rg-routes".into(), Box::new(routes))?;
    }
    Ok(threads)
}

/// One direction of a queue.
type Way = fn(&Io, usize) -> io::Result<()>;
type Body = Box<dyn Fn(&Io) -> io::Result<()> + Send>;

/// Run a thread's body. Whatever ends it early, a panic too, is told to Python and ends the others.
fn run(io: &Io, body: &Body) {
    block_signals();
    let why = match catch_unwind(AssertUnwindSafe(|| body(io))) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(format!("a thread panicked: {}", panic_text(&*panic))),
    };
    if let Some(why) = why {
        io.put(Event::Fault { message: why, fatal: true });
    }
    io.stop();
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Signals are for Python's main thread.
fn block_signals() {
    // SAFETY: a sigset_t is plain bytes; sigfillset gives it a value before it is read, and no old one is written.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

/// Be served after the others, and interrupt none of them to begin. Who may not change that stays as it is.
fn step_back() {
    // SAFETY: a sched_param is plain bytes, and all zeros is one of its values; the kernel reads it during the call.
    // Zero means the thread that calls.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters);
        libc::setpriority(libc::PRIO_PROCESS, 0, GATE_NICE);
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Sends over the sockets of a queue, and keeps count.
struct Sender<'a> {
    io: &'a Io,
    queue: usize,
    packets: usize,
    bytes: usize,
}

impl Sink for Sender<'_> {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint) -> bool {
        self.packets += message.len().div_ceil(segment);
        self.bytes += message.len();
        self.io.send(message, segment, endpoint, self.queue, Patience::Some)
    }
}

/// The way out of a queue.
pub fn out(io: &Io, queue: usize) -> io::Result<()> {
    let (tun, counters) = (&io.queues[queue].tun, &io.counters.queues[queue].out);
    let mut frame = vec![0; VNET_SIZE + MAX_PACKET].into_boxed_slice();
    let mut outbound = Outbound::default();
    let mut outbox = Outbox::default();
    let mut spin = Spin::default();
    let mut pump = || {
        let now = now();
        let (transport, mut sender) = (&*io.transport, Sender { io, queue, packets: 0, bytes: 0 });
        let mut any = false;
        while !outbound.is_due() {
            match tun.read(&mut frame) {
                Ok(size) => outbound.frame(transport, &mut frame[..size], now, &mut outbox, &mut sender),
                Err(error) if is_nothing(&error) => break,
                Err(error) => return Err(error),
            }
            any = true;
        }
        if any {
            outbound.flush(transport, now, &mut outbox, &mut sender);
            io.dispatch(&mut outbox, queue, Patience::Some);
            counters.count(sender.packets, sender.bytes);
        }
        Ok(any)
    };
    while io.goes_on() {
        if !pump()? && !spin.look(&mut pump)? {
            counters.count_calls();
            wait([(tun.fd(), libc::POLLIN), (io.stop.fd(), libc::POLLIN)], -1)?;
        }
    }
    Ok(())
}

/// Where datagrams come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Socket(&'a Udp),
    Channel(&'a Xdp, &'a Channel),
}

impl Source<'_> {
    /// What to poll; -1 for what is gone.
    fn fd(&self) -> RawFd {
        match self {
            Self::Socket(socket) => socket.fd(),
            Self::Channel(xdp, _) if xdp.is_gone() => -1,
            Self::Channel(_, channel) => channel.fd(),
        }
    }
}

/// The way in of a queue.
pub fn inward(io: &Io, queue: usize) -> io::Result<()> {
    let mut sources: Vec<_> = io.queues[queue].sockets.iter().map(Source::Socket).collect();
    if let Some(xdp) = &io.xdp {
        sources.extend(xdp.channels(queue).map(|channel| Source::Channel(xdp, channel)));
    }
    let way = Inward::new(io, queue, &io.queues[queue].tun, &io.counters.queues[queue].inward);
    take(way, &sources, Some(Spin::default()))
}

/// The way in at the gate. Kernels merge datagrams of one source, so data may come here too, if little.
fn gate(io: &Io) -> io::Result<()> {
    step_back();
    let sources: Vec<_> = io.gate.iter().map(Source::Socket).collect();
    take(Inward::new(io, io.at_gate(), &io.queues[0].tun, &io.counters.gate), &sources, None)
}

/// Take in what comes from these sources, until it is time to stop. Who doesn't spin lets others go first.
fn take(mut way: Inward<'_>, sources: &[Source<'_>], mut spin: Option<Spin>) -> io::Result<()> {
    let io = way.io;
    let everyone = (1_u64 << sources.len()) - 1;
    let mut ready = everyone;
    let mut last = 0;
    let mut turn = 0;
    while io.goes_on() {
        for (n, source) in sources.iter().enumerate() {
            if ready >> n & 1 != 0 && way.pump(*source)? {
                last = n;
            } else {
                ready &= !(1 << n);
            }
        }
        turn += 1;
        if turn % TURNS == 0 {
            ready = everyone;
        }
        if spin.is_none() && ready != 0 {
            // Whoever moves data gets the core after a batch of ours, not after a slice of the scheduler's.
            count_call();
            yield_now();
        }
        let mut look = || sources.get(last).map_or(Ok(false), |source| way.pump(*source));
        if ready == 0 && spin.as_mut().map_or(Ok(false), |spin| spin.look(&mut look))? {
            ready = 1 << last;
        }
        if ready == 0 {
            let mut polled: Vec<_> = sources.iter().map(|source| (source.fd(), libc::POLLIN)).collect();
            polled.push((io.stop.fd(), libc::POLLIN));
            way.counters.count_calls();
            ready = wait_for(&polled, -1)? & everyone;
        }
    }
    Ok(())
}

struct Inward<'a> {
    io: &'a Io,
    /// Or the gate's place.
    queue: usize,
    tun: &'a Tun,
    counters: &'a Counters,
    receiver: Receiver,
    inbound: Inbound,
    outbox: Outbox,
}

impl<'a> Inward<'a> {
    fn new(io: &'a Io, queue: usize, tun: &'a Tun, counters: &'a Counters) -> Self {
        let (receiver, inbound, outbox) = (Receiver::default(), Inbound::default(), Outbox::default());
        Self { io, queue, tun, counters, receiver, inbound, outbox }
    }

    /// Take the messages that wait at a source to the device; false if there were none.
    fn pump(&mut self, source: Source<'_>) -> io::Result<bool> {
        match source {
            Source::Socket(socket) => match socket.receive(&mut self.receiver) {
                Ok(()) => {}
                Err(error) if is_nothing(&error) => return Ok(false),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK)) => {
                    return Err(error);
                }
                Err(error) => {
                    // What the network says of something sent earlier.
                    self.io.transport.drops.count_other(format!("receive_{}", error_word(&error)));
                    return Ok(true);
                }
            },
            Source::Channel(xdp, channel) => {
                if !xdp.receive(channel, &mut self.receiver) {
                    return Ok(false);
                }
            }
        }
        let now = now();
        self.inbound.clear();
        let (mut packets, mut bytes) = (0, 0);
        for message in &self.receiver.messages {
            packets += message.datagrams();
            bytes += message.size;
            let buffer = &mut self.receiver.buffer;
            self.inbound.message(&self.io.transport, buffer, *message, now, &mut self.outbox);
        }
        self.deliver();
        // Who is challenged asks again: nobody waits for room for that.
        let patience = if self.queue == self.io.at_gate() { Patience::None } else { Patience::Some };
        self.io.dispatch(&mut self.outbox, self.queue, patience);
        self.counters.count(packets, bytes);
        Ok(true)
    }

    /// Write the packets to the device, merged where they can be.
    fn deliver(&self) {
        let (buffer, mut rest) = (&*self.receiver.buffer, self.inbound.packets());
        while !rest.is_empty() {
            let merging = self.io.merging.load(Ordering::Relaxed);
            let among = if merging { rest } else { &rest[..1] };
            let run = next_run(buffer, among, self.io.merge_udp);
            let (mine, others) = rest.split_at(run.count);
            let pieces = mine.iter().map(|one| &buffer[one.at + run.skip..one.at + one.size]);
            if let Err(error) = self.tun.write(run.head(), pieces) {
                if self.io.refused_write(run.count, &error) {
                    continue;
                }
            }
            rest = others;
        }
    }
}

/// Follow the kernel's routes and neighbours, as long as the interface of AF_XDP is there.
fn routes(io: &Io) -> io::Result<()> {
    let Some(xdp) = &io.xdp else { return Ok(()) };
    if !xdp.follow(io.stop.fd())? {
        io.note(&xdp.describe_end());
        wait([(io.stop.fd(), libc::POLLIN)], -1)?;
    }
    Ok(())
}

/// Do what is due, when it is.
fn timers(io: &Io) -> io::Result<()> {
    let timer = TimerFd::new()?;
    let mut outbox = Outbox::default();
    while io.goes_on() {
        let next = io.transport.poll_timeout().unwrap_or(f64::INFINITY);
        io.asleep_until.store(next.to_bits(), Ordering::SeqCst);
        // Who set an earlier deadline before it could see the line above is seen here.
        if io.transport.poll_timeout().unwrap_or(f64::INFINITY) == next {
            timer.set(next)?;
            wait([timer.fd(), io.sooner.fd(), io.stop.fd()].map(|fd| (fd, libc::POLLIN)), -1)?;
        }
        io.asleep_until.store(0, Ordering::SeqCst);
        io.sooner.clear();
        io.transport.handle_timeout(now(), &mut outbox);
        io.dispatch(&mut outbox, 0, Patience::Some);
    }
    Ok(())
}
