//! What the threads of a plane share: queues, sockets, rules, events; and sending over any UDP side.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use transport::Transport;
use transport::contract::{Endpoint, Event, Outbox, Transmit};
use transport::drops::DropReason;

use crate::alarm::Alarm;
use crate::counters::PlaneCounters;
use crate::descriptor::{EventFd, error_word};
use crate::events::Events;
use crate::notes::Notes;
use crate::tun::Tun;
use crate::udp::{Sent, Udp};
use crate::udp_side::Patience;
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

    /// Take out what came of a call, over the sockets of queue `queue`, or of the gate ([`Self::at_gate`]).
    pub fn dispatch(&self, out: &mut Outbox, queue: usize, patience: Patience) {
        for event in out.events.drain(..) {
            self.put(event);
        }
        self.send_all(&out.transmits, queue, patience);
        out.transmits.clear();
        self.alarm.set(self.transport.poll_timeout());
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

    /// Queue an event for Python. Count it as dropped where too many wait.
    pub fn put(&self, event: Event) {
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
