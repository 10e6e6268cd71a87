//! What the threads of a plane share: rules, events, queues and sockets.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use transport::Transport;
use transport::coalesce::Merge;
use transport::contract::Event;

use crate::alarm::Alarm;
use crate::counters::PlaneCounters;
use crate::descriptor::EventFd;
use crate::device::Device;
use crate::events::Events;
use crate::notes::Notes;
use crate::offloads::Merging;
use crate::pump::Pump;
use crate::roll_call::RollCall;
use crate::sources::Sources;
use crate::udp::Udp;
use crate::watch::Watch;
use crate::xdp::Xdp;

/// A queue of the device, and the sockets that belong to it: at most one per address family.
pub struct Queue {
    pub device: Arc<dyn Device>,
    pub sockets: Vec<Udp>,
}

/// What the threads share. They own it: when the last thread ends, the descriptors are closed and
/// the device is closed.
pub struct Io {
    pub transport: Arc<Transport>,
    pub events: Arc<Events>,
    pub notes: Arc<Notes>,
    pub queues: Vec<Queue>,
    /// The way out of each queue, where two threads share it.
    pub pumps: Vec<Mutex<Option<Pump>>>,
    /// Which thread of each queue waits for the device.
    pub watches: Vec<Watch>,
    /// Sockets on the same ports for everything but data messages. Empty where the kernel can't
    /// tell them apart.
    pub gate: Vec<Udp>,
    /// Sockets on the same ports that only send, each to one peer.
    senders: Mutex<Vec<Weak<Udp>>>,
    /// The UDP side over AF_XDP, besides the sockets.
    pub xdp: Option<Xdp>,
    /// Which local addresses may be used. None if the kernel can't be asked.
    pub sources: Option<Sources>,
    /// The counters of the workers.
    pub counters: Arc<PlaneCounters>,
    /// Whether the queues use io_uring.
    pub uring: bool,
    /// What is merged for the device.
    pub merging: Merging,
    /// Queues of the device that still deliver.
    delivering: AtomicUsize,
    stopping: AtomicBool,
    /// Readable once the threads have to stop. Never cleared.
    pub stop: EventFd,
    /// Wakes the thread that waits for timers.
    pub alarm: Alarm,
    /// The signs of life of the threads.
    pub roll: RollCall,
}

impl Io {
    /// Put together what the threads share.
    pub fn new(
        transport: Arc<Transport>,
        events: Arc<Events>,
        notes: Arc<Notes>,
        counters: Arc<PlaneCounters>,
        queues: Vec<Queue>,
        merge: Merge,
        uring: bool,
    ) -> io::Result<Self> {
        let (roll, delivering) = (RollCall::new(queues.len())?, AtomicUsize::new(queues.len()));
        Ok(Self {
            transport,
            events,
            notes,
            pumps: queues.iter().map(|_| Mutex::default()).collect(),
            watches: queues.iter().map(|_| Watch::new()).collect::<io::Result<_>>()?,
            queues,
            gate: Vec::new(),
            senders: Mutex::default(),
            xdp: None,
            sources: None,
            counters,
            uring,
            merging: Merging::new(merge),
            delivering,
            stopping: AtomicBool::new(false),
            stop: EventFd::new()?,
            alarm: Alarm::new()?,
            roll,
        })
    }

    /// Return all sockets.
    pub fn sockets(&self) -> impl Iterator<Item = &Udp> {
        self.queues.iter().flat_map(|queue| &queue.sockets).chain(&self.gate)
    }

    /// Open a socket on the port of another, for what is sent to one peer.
    pub fn open_sender(&self, like: &Udp) -> io::Result<Arc<Udp>> {
        if self.gate.is_empty() {
            // Nobody would sort what the kernel delivers to it.
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Locked before the mark is read, so that no later mark is missed.
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.retain(|sender| sender.strong_count() > 0);
        let made = Arc::new(like.sender()?);
        senders.push(Arc::downgrade(&made));
        Ok(made)
    }

    /// Mark everything that is sent from now on. See [`Udp::set_mark`].
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.sockets().try_for_each(|socket| socket.set_mark(mark))?;
        let senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.iter().filter_map(Weak::upgrade).try_for_each(|socket| socket.set_mark(mark))
    }

    /// Make all threads end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.stop.set();
    }

    /// Note that a queue of the device has delivered its last frame. Return whether all have.
    pub fn is_last_to_end(&self) -> bool {
        self.delivering.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// Report what the plane does without. The same note is reported once.
    pub fn note(&self, note: &str) {
        if self.notes.add(note) {
            self.put(Event::Fault { message: note.to_owned(), fatal: false });
        }
    }

    /// Queue an event for Python. Count it as dropped if too many wait.
    pub fn put(&self, event: Event) {
        if let Err(reason) = self.events.put(event) {
            self.transport.drops.count(reason, 1);
        }
    }

    pub fn goes_on(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }
}
