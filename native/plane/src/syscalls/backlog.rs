//! What the way out does while the network takes less than the device brings.
//!
//! On a slow link, whatever we hand to the kernel waits there, in the order it came: a ping behind
//! a download. So the kernel gets as much as leaves within a few milliseconds. The rest waits here,
//! where each flow has a queue of its own.
//!
//! The kernel only tells how much it holds per socket, and a slow link to one peer must not delay
//! what goes to others. So each address for which packets wait gets a socket of its own
//! ([`Outlet`]). By which interfaces and queues they leave needn't be known.
//!
//! Where the kernel takes everything at once, this costs one question per 16 KiB.

use std::io;

use transport::contract::{Endpoint, Seconds};
use transport::drops::DropReason;
use transport::vnet::VNET_SIZE;

use super::outlet::{Outlet, keep_within};
use super::pace::{FIRST, UNASKED};
use crate::descriptor::now;
use crate::device::Device;
use crate::io::Io;
use crate::udp_side::Patience;

/// Addresses with a socket of their own. What goes to others isn't held back.
const OUTLETS: usize = 16;
/// Bytes that may wait for all of them.
const MOST: usize = 4 << 20;
/// Frames that are read from the device at once, so that a flood doesn't keep others from leaving.
const GATHERED: usize = 256;
/// How long until the kernel is asked again. A sleep of 1 ms may end a little early.
const PAUSE: Seconds = 0.0005;
/// How long until an outlet is looked for again when there was none.
const LATER: Seconds = 0.1;
/// The same after the system refused one, maybe for want of descriptors or memory.
const MUCH_LATER: Seconds = 60.0;

/// How long a thread that has nothing to send may sleep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Until the device brings something.
    Long,
    /// The same, but for a millisecond at most.
    Short,
    /// For a millisecond, whatever the device brings: new packets would wait in any case, and a flood
    /// would keep the thread busy.
    Deaf,
}

/// The packets of a queue that wait for the network.
pub struct Backlog<'a> {
    io: &'a Io,
    queue: usize,
    outlets: Vec<Outlet>,
    /// Whether the kernel gets no more for some address, or packets wait.
    waits: bool,
    /// Whether each frame is looked at: `waits` is set, or may soon be.
    sorting: bool,
    /// The time of the last look at the clock, and when the kernel was last asked about full outlets.
    now: Seconds,
    asked: Seconds,
    /// The mean rate of the addresses for which packets wait, 0 if there is only one.
    fair: f64,
    /// Bytes sent over the shared sockets since the kernel was asked.
    unasked: usize,
    /// From when an outlet may be opened.
    later: Seconds,
    /// Frames read from the device in this batch, and those of them that wait.
    gathered: usize,
    kept: usize,
    /// Whether the device had no more in this batch.
    empty: bool,
    /// The outlet whose turn is next.
    turn: usize,
    /// Whether a frame that waited comes before one of the device.
    waiting_first: bool,
}

impl<'a> Backlog<'a> {
    /// Make the backlog of a queue. Nothing waits.
    pub fn new(io: &'a Io, queue: usize) -> Self {
        Self {
            io,
            queue,
            outlets: Vec::new(),
            waits: false,
            sorting: false,
            now: 0.0,
            asked: 0.0,
            fair: 0.0,
            unasked: 0,
            later: 0.0,
            gathered: 0,
            kept: 0,
            empty: false,
            turn: 0,
            waiting_first: false,
        }
    }

    /// Return whether frames wait, or soon may: nobody else may read the device.
    pub fn holds_back(&self) -> bool {
        self.sorting
    }

    /// Return how to sleep after a batch that had nothing to send.
    pub fn rest(&self) -> Rest {
        match (self.waits, self.kept > 0) {
            (false, _) => Rest::Long,
            (true, false) => Rest::Short,
            (true, true) => Rest::Deaf,
        }
    }

    /// Begin another batch.
    pub fn begin(&mut self) {
        (self.gathered, self.kept, self.empty) = (0, 0, false);
        let mut lost = 0;
        for outlet in &mut self.outlets {
            outlet.taken = 0;
            lost += outlet.waiting.take_lost();
        }
        if lost > 0 {
            self.io.transport.drops.count(DropReason::SendQueue, lost);
        }
    }

    /// Read the next frame to send. The error is `WouldBlock` if there is none, or if what was read
    /// should leave first.
    pub fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        if !self.sorting {
            return self.device().read(frame);
        }
        self.look_again();
        // In turns, so that neither what waits nor what comes keeps the other from leaving.
        self.waiting_first = !self.waiting_first;
        if self.waiting_first {
            if let Some(size) = self.take_waiting(frame) {
                return Ok(size);
            }
        }
        match self.gather(frame)? {
            Some(size) => Ok(size),
            None => self.take_waiting(frame).ok_or_else(|| io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Ask the kernel about the full outlets, unless that was done just now.
    fn look_again(&mut self) {
        self.now = now();
        if self.now - self.asked < PAUSE {
            return;
        }
        self.asked = self.now;
        (self.waits, self.sorting) = (false, false);
        let (mut rates, mut waiting) = (0.0, 0_u32);
        for outlet in self.outlets.iter().filter(|outlet| outlet.waits()) {
            rates += outlet.pace.rate();
            waiting += 1;
        }
        self.fair = if waiting > 1 { rates / f64::from(waiting) } else { 0.0 };
        for outlet in &mut self.outlets {
            if outlet.is_full() {
                outlet.ask(self.fair, self.now);
            }
            self.waits |= outlet.waits();
            self.sorting |= outlet.waits() || outlet.pace.is_slow(self.now);
        }
    }

    /// Take a frame that waits and may leave.
    fn take_waiting(&mut self, frame: &mut [u8]) -> Option<usize> {
        let count = self.outlets.len();
        for at in (self.turn..self.turn + count).map(|at| at % count) {
            let outlet = &mut self.outlets[at];
            if let Some(next) = if outlet.takes() { outlet.waiting.pop(self.now) } else { None } {
                frame[..next.len()].copy_from_slice(&next);
                outlet.taken += next.len();
                self.turn = at + 1;
                return Some(next.len());
            }
        }
        None
    }

    /// Read frames from the device, until one may leave. The others wait.
    fn gather(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        while !self.empty && self.gathered < GATHERED {
            match self.device().read(frame) {
                Ok(size) => {
                    self.gathered += 1;
                    if self.may_leave(&frame[..size]) {
                        return Ok(Some(size));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.empty = true,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.waits => {
                    // The device will report its end again. The thread must not wake up for it now.
                    (self.empty, self.kept) = (true, self.kept + 1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Return whether a frame of the device may leave at once. If not, it waits.
    fn may_leave(&mut self, frame: &[u8]) -> bool {
        let to = self.io.transport.goes_to(frame.get(VNET_SIZE..).unwrap_or_default());
        let Some(outlet) = self.outlets.iter_mut().find(|outlet| Some(outlet.address) == to) else { return true };
        let longest = outlet.pace.longest(self.now);
        if outlet.takes() && outlet.waiting.is_empty() && frame.len() <= longest {
            outlet.taken += frame.len();
            return true;
        }
        outlet.waiting.push(frame, longest, self.now);
        self.kept += 1;
        // A look at the outlets may just have cleared both.
        (self.waits, self.sorting) = (true, true);
        keep_within(&mut self.outlets, MOST);
        false
    }

    /// Send a message. See [`transport::sink::Sink`].
    pub fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        let io = self.io;
        let Some(at) = self.outlet(message.len(), endpoint) else {
            return io.send(message, segment, endpoint, tos, self.queue, Patience::Some);
        };
        let outlet = &mut self.outlets[at];
        let asks = outlet.should_ask(message.len());
        if asks {
            self.now = now();
            outlet.used = self.now;
            outlet.ask(self.fair, self.now);
            self.waits |= outlet.waits();
            self.sorting |= outlet.waits() || outlet.pace.is_slow(self.now);
        }
        let from_there = io.send_by(&outlet.socket, message, segment, io.usable(endpoint), tos, Patience::Some);
        if asks {
            outlet.sent(now());
        }
        from_there
    }

    /// Return the number of the outlet for a message of `size` bytes, if it has one. It is opened if
    /// the kernel doesn't send at once what it was given.
    fn outlet(&mut self, size: usize, endpoint: Endpoint) -> Option<usize> {
        let known = self.outlets.iter().position(|outlet| outlet.address == endpoint.remote);
        if known.is_some() {
            return known;
        }
        self.unasked += size;
        if self.unasked < UNASKED {
            return None;
        }
        self.unasked = 0;
        let shared = self.io.socket(self.queue, endpoint)?;
        if shared.unsent() <= FIRST {
            return None;
        }
        self.now = now();
        if self.now < self.later {
            return None;
        }
        self.later = self.now + LATER;
        if self.outlets.len() == OUTLETS {
            let idle = self.outlets.iter().position(|outlet| outlet.is_idle(self.now))?;
            self.outlets.swap_remove(idle);
        }
        match self.io.open_sender(shared) {
            Ok(socket) => {
                self.outlets.push(Outlet::new(endpoint.remote, socket, self.now));
                self.later = self.now;
                Some(self.outlets.len() - 1)
            }
            Err(error) => {
                let note =
                    format!("No further socket ({error}): on a slow link, packets wait in the order they came.");
                self.io.note(&note);
                self.later = self.now + MUCH_LATER;
                None
            }
        }
    }

    fn device(&self) -> &'a dyn Device {
        &*self.io.queues[self.queue].device
    }
}

impl Drop for Backlog<'_> {
    /// What still waits when the thread ends is lost.
    fn drop(&mut self) {
        self.outlets.iter_mut().for_each(|outlet| outlet.waiting.clear());
        self.begin();
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::VecDeque;
    use std::mem::ManuallyDrop;
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
    use std::sync::{Arc, Mutex};

    use transport::Transport;
    use transport::coalesce::Merge;
    use transport::contract::{Address, Network, Outbox};

    use super::*;
    use crate::counters::PlaneCounters;
    use crate::descriptor::check_size;
    use crate::events::Events;
    use crate::io::Queue;
    use crate::offloads::Offloads;
    use crate::udp::Udp;

    const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 51820);

    /// A device that brings these frames.
    struct Given(Mutex<VecDeque<Vec<u8>>>);

    impl Device for Given {
        fn kind(&self) -> &'static str {
            "given"
        }

        fn fd(&self) -> RawFd {
            -1
        }

        fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
            let next = self.0.lock().unwrap().pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            frame[..next.len()].copy_from_slice(&next);
            Ok(next.len())
        }

        fn write(&self, _frame: &mut [io::IoSlice<'_>]) -> io::Result<()> {
            Ok(())
        }
    }

    /// Return what threads share: a device that brings these frames, a socket, and one peer.
    pub fn io_of(frames: &[Vec<u8>]) -> Io {
        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sockets = vec![Udp::adopt(bound.as_raw_fd(), Offloads::ALL).unwrap().0];
        let device = Arc::new(Given(Mutex::new(frames.iter().cloned().collect())));
        let transport = Transport::new(&[0; 32], 1420, Box::new(|bytes| bytes.fill(1)), Box::new(|| 0));
        let (to, all) = (SocketAddr::from(PEER), Network { address: Address::V4(0), prefix: 0 });
        transport.set_peer(1, Some(to.into()), &[all], 0, 0.0, &mut Outbox::default());
        let (events, counters) = (Events::new(Arc::default()).unwrap(), PlaneCounters::new(1));
        let (events, counters, queues) = (Arc::new(events), Arc::new(counters), vec![Queue { device, sockets }]);
        Io::new(Arc::new(transport), events, Arc::default(), counters, queues, Merge::NONE, false).unwrap()
    }

    /// Have the kernel hold this many bytes or more in the socket of what threads share.
    pub fn fill(io: &Io, bytes: usize) {
        let (fd, address) = (io.queues[0].sockets[0].fd(), io.queues[0].sockets[0].local_address().unwrap());
        // SAFETY: a socket of ours, which is borrowed and not closed.
        let socket = ManuallyDrop::new(unsafe { UdpSocket::from_raw_fd(fd) });
        socket.connect(address).unwrap();
        let (given, more) = (vec![0_u8; bytes], libc::MSG_MORE);
        // SAFETY: the kernel reads so many bytes of `given`. It waits for the rest of the datagram.
        check_size(unsafe { libc::send(fd, given.as_ptr().cast(), bytes, more) }).unwrap();
    }

    /// Return a frame with a packet of IPv4.
    fn frame(number: u8) -> Vec<u8> {
        let mut frame = vec![0; VNET_SIZE + 100];
        (frame[VNET_SIZE], frame[VNET_SIZE + 99]) = (0x45, number);
        frame
    }

    #[test]
    fn a_frame_that_is_more_than_a_batch_takes_leaves_in_the_next() {
        let io = io_of(&[frame(1), frame(2)]);
        let mut backlog = Backlog::new(&io, 0);
        let like = &io.queues[0].sockets[0];
        let socket = Arc::new(Udp::adopt(like.fd(), Offloads::ALL).unwrap().0);
        let mut outlet = Outlet::new(PEER.into(), socket, now());
        // The kernel had enough, and has sent it since.
        outlet.taken = 1 << 20;
        backlog.outlets.push(outlet);
        (backlog.waits, backlog.sorting) = (true, true);
        let mut into = [0; 1000];
        assert_eq!(backlog.read(&mut into).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(backlog.holds_back() && backlog.rest() == Rest::Deaf);
        backlog.begin();
        for number in [1, 2] {
            let size = backlog.read(&mut into).unwrap();
            assert_eq!(into[..size], frame(number));
        }
        assert!(backlog.read(&mut into).is_err());
    }
    #[test]
    fn a_socket_that_was_refused_is_asked_for_again_much_later() {
        let io = io_of(&[]);
        fill(&io, 60_000);
        let mut backlog = Backlog::new(&io, 0);
        // Nobody sorts what comes, so there is none that only sends.
        assert!(backlog.outlet(UNASKED, SocketAddr::from(PEER).into()).is_none());
        assert_eq!(io.notes.read().len(), 1);
        assert!(backlog.later > now() + LATER && backlog.later < now() + 2.0 * MUCH_LATER);
    }
}
