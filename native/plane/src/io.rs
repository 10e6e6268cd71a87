//! What the threads of a plane share: rules, events, queues and sockets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use transport::Transport;
use transport::contract::Event;

use crate::alarm::Alarm;
use crate::counters::PlaneCounters;
use crate::descriptor::EventFd;
use crate::events::Events;
use crate::notes::Notes;
use crate::tun::Tun;
use crate::udp::Udp;
use crate::xdp::Xdp;

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
    pub counters: Arc<PlaneCounters>,
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
    pub alarm: Alarm,
}

impl Io {
    /// Put together what the threads share.
    pub fn new(
        transport: Arc<Transport>,
        events: Arc<Events>,
        notes: Arc<Notes>,
        counters: Arc<PlaneCounters>,
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
            alarm: Alarm::new()?,
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

    /// Queue an event for Python. Count it as dropped where too many wait.
    pub fn put(&self, event: Event) {
        if let Err(reason) = self.events.put(event) {
            self.transport.drops.count(reason, 1);
        }
    }

    pub fn goes_on(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }
}
