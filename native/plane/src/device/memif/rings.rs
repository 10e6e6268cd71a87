//! The rings of a memif's queues, and what the plane's threads do with them.
//!
//! The thread of the control channel puts rings in and takes them out. Each ring has a lock of its
//! own, which is free but for that.

use std::io::{self, IoSlice};
use std::iter::once;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memif::handshake::{Inlet, Link, Outlet};
use memif::ring::{Received, Sent};
use neighbours::link::{Frame, REASONS, Received as Seen};
use transport::contract::Address;
use transport::ethernet::ETHERNET;
use transport::unreachable::{Answers as Errors, Why};

use super::answers::Answers;
use super::bell::{Ringer, Watch};
use super::framing::Framing;
use crate::descriptor::{EventFd, now};
use crate::device::full;

/// After this many packets the other side may see and have them, though the batch goes on.
const BATCH: u32 = 32;
/// After so many frames that were no packets for the plane, its thread sees to other things first. Who
/// writes such frames without end would keep it for ever.
const MOST_LEFT_OUT: u32 = 256;
/// How often to look again after the bell was asked for. DPDK has no fence between showing a packet
/// and looking whether to ring, so its packet may appear a moment after our look. This takes longer
/// than a store waits in a processor.
const SECOND_LOOKS: u32 = 64;

/// A ring that we receive from.
struct Reading {
    inlet: Inlet,
    /// Whether we asked for no bell.
    masked: bool,
    /// Packets taken since their slots were given back.
    taken: u32,
}

/// A ring that we send on.
struct Writing {
    outlet: Outlet,
    /// Packets that the other side wasn't shown yet.
    queued: u32,
}

/// The rings of all queues.
pub struct Rings {
    pub framing: Framing,
    reading: Box<[Mutex<Option<Reading>>]>,
    watches: Box<[Watch]>,
    ringer: Ringer,
    /// The first `writers` of them are in use.
    writing: Box<[Mutex<Option<Writing>>]>,
    writers: AtomicUsize,
    /// Whether the other side moved an index to where it can't be.
    corrupt: AtomicBool,
    /// Readable once `corrupt` is set.
    pub alarm: EventFd,
    /// The tunnel's MTU: longer packets don't go into it.
    pub mtu: AtomicUsize,
    /// Limits the answers to the senders of such packets.
    errors: Errors,
    /// The addresses that were answered for.
    pub answered: Answers,
    /// Frames of the other side that were left out, and packets of ours, by reason.
    pub drops: Box<[(&'static str, AtomicU64)]>,
}

/// The first bytes of a packet that decide where it goes.
const START: usize = 128;
/// Packets for which there was nobody.
const DISCONNECTED: &str = "disconnected";
/// Frames whose descriptors were none.
const INVALID: &str = "invalid";
/// Frames and packets that were too long.
const TOO_LONG: &str = "too_long";

impl Rings {
    /// Make the queues, without rings.
    pub fn new(queues: usize, framing: Framing) -> io::Result<Self> {
        let names = [DISCONNECTED, INVALID, TOO_LONG].into_iter().chain(REASONS);
        Ok(Self {
            framing,
            reading: (0..queues).map(|_| Mutex::default()).collect(),
            watches: (0..queues).map(|_| Watch::new()).collect::<io::Result<_>>()?,
            ringer: Ringer::new()?,
            writing: (0..queues).map(|_| Mutex::default()).collect(),
            writers: AtomicUsize::new(0),
            corrupt: AtomicBool::new(false),
            alarm: EventFd::new()?,
            mtu: AtomicUsize::new(usize::MAX),
            errors: Errors::default(),
            answered: Answers::new()?,
            drops: names.map(|name| (name, AtomicU64::new(0))).collect(),
        })
    }

    /// Use the rings of a new connection.
    pub fn put_in(&self, link: Link) -> io::Result<()> {
        self.corrupt.store(false, Ordering::Relaxed);
        self.alarm.clear();
        let mut writers = 0;
        for (place, outlet) in self.writing.iter().zip(link.outlets) {
            *lock(place) = Some(Writing { outlet, queued: 0 });
            writers += 1;
        }
        self.writers.store(writers, Ordering::Release);
        for ((place, watch), inlet) in self.reading.iter().zip(&self.watches).zip(link.inlets) {
            watch.add(inlet.bell.as_raw_fd())?;
            // What came before this is noticed as well.
            self.ringer.ring(inlet.bell.as_raw_fd());
            *lock(place) = Some(Reading { inlet, masked: false, taken: 0 });
        }
        Ok(())
    }

    /// Use no rings any more. The memory is unmapped when this returns.
    pub fn take_out(&self) {
        self.writers.store(0, Ordering::Release);
        for place in &self.writing {
            *lock(place) = None;
        }
        for (place, watch) in self.reading.iter().zip(&self.watches) {
            if let Some(reading) = lock(place).take() {
                // The other side has the bell too, so closing it here wouldn't be enough.
                watch.remove(reading.inlet.bell.as_raw_fd());
            }
        }
    }

    /// Return the descriptor to wait at for packets of a queue.
    pub fn fd(&self, queue: usize) -> RawFd {
        self.watches[queue].fd()
    }

    fn count(&self, name: &str) {
        if let Some((_, count)) = self.drops.iter().find(|(known, _)| *known == name) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        self.corrupt.store(true, Ordering::Relaxed);
        self.alarm.set();
    }

    /// Return whether the connection has to end because of what the other side wrote.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt.load(Ordering::Relaxed)
    }

    /// Read a packet. See [`crate::device::Device::read`].
    pub fn read(&self, queue: usize, packet: &mut [u8]) -> io::Result<usize> {
        let mut place = lock(&self.reading[queue]);
        let Some(reading) = &mut *place else { return Err(io::ErrorKind::WouldBlock.into()) };
        let head_size = self.framing.size();
        for _ in 0..MOST_LEFT_OUT {
            if reading.taken >= BATCH {
                reading.give_back();
            }
            let mut header = [0; ETHERNET];
            match reading.inlet.ring.receive_behind(&mut header[..head_size], packet) {
                Ok(Received::Packet(size)) => {
                    reading.taken += 1;
                    if !reading.masked {
                        reading.inlet.ring.mask();
                        reading.masked = true;
                    }
                    match self.framing.unwrap(&header, &packet[..size - head_size]) {
                        Seen::Packet(size) if size <= self.mtu.load(Ordering::Relaxed) => return Ok(size),
                        Seen::Packet(size) => self.refuse(queue, &header, &packet[..size]),
                        Seen::Reply(frame, address) => self.reply(queue, &frame, address),
                        Seen::Nothing => {}
                        Seen::Drop(reason) => self.count(reason),
                    }
                }
                Ok(Received::Empty) => {
                    reading.give_back();
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(Received::Invalid) => self.leave_out(reading, INVALID),
                Ok(Received::TooLong) => self.leave_out(reading, TOO_LONG),
                Err(_) => {
                    self.end();
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
        }
        // `fall_asleep` finds what still waits.
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Answer on the same queue. An answer that finds no room is lost: whoever asked will ask again.
    fn reply(&self, queue: usize, frame: &Frame, address: Address) {
        if let Some(place) = self.writer(queue)
            && let Some(writing) = &mut *lock(place)
            && self.send_own(writing, frame.bytes())
        {
            writing.show(&self.ringer);
            self.answered.note(address, now());
        }
    }

    /// Count a packet that is longer than the tunnel's MTU, and tell its sender how long it may be. Whether
    /// it forbids fragments doesn't matter: on a link nobody makes any for it.
    fn refuse(&self, queue: usize, header: &[u8; ETHERNET], packet: &[u8]) {
        self.count(TOO_LONG);
        let why = Why::TooLong(self.mtu.load(Ordering::Relaxed));
        if let Some(header) = self.framing.back(header)
            && let Some(place) = self.writer(queue)
            && let Some(error) = self.errors.answer(packet, why, now())
            && let Some(writing) = &mut *lock(place)
            && self.send_own(writing, &[&header[..self.framing.size()], &error].concat())
        {
            writing.show(&self.ringer);
        }
    }

    /// Put a frame of our own into a ring. Return whether there was room.
    fn send_own(&self, writing: &mut Writing, frame: &[u8]) -> bool {
        match writing.outlet.ring.send(frame.len(), once(frame)) {
            Ok(sent) => sent == Sent::Queued,
            Err(_) => {
                self.end();
                false
            }
        }
    }

    fn leave_out(&self, reading: &mut Reading, reason: &str) {
        reading.taken += 1;
        self.count(reason);
    }

    /// Ask for the bell. See [`crate::device::Device::fall_asleep`].
    pub fn fall_asleep(&self, queue: usize) -> bool {
        let mut place = lock(&self.reading[queue]);
        let Some(reading) = &mut *place else { return true };
        reading.give_back();
        self.watches[queue].hear();
        reading.inlet.ring.unmask();
        let looks = if reading.masked { SECOND_LOOKS } else { 1 };
        reading.masked = false;
        for _ in 0..looks {
            match reading.inlet.ring.has_packets() {
                Ok(false) => std::hint::spin_loop(),
                Ok(true) => return false,
                Err(_) => {
                    self.end();
                    return true;
                }
            }
        }
        true
    }

    /// Write a packet. See [`crate::device::Device::write`].
    pub fn write(&self, queue: usize, packet: &[IoSlice<'_>]) -> io::Result<()> {
        let Some(place) = self.writer(queue) else { return self.lose(DISCONNECTED) };
        let mut place = lock(place);
        let Some(writing) = &mut *place else { return self.lose(DISCONNECTED) };
        let mut gathered = [0; START];
        let sending = self.framing.wrap(start(packet, &mut gathered));
        if let Some(frame) = &sending.ask {
            self.send_own(writing, frame.bytes());
        }
        let header = match sending.header {
            Ok(header) => header,
            Err(reason) => return self.lose(reason),
        };
        let head_size = self.framing.size();
        let size = packet.iter().map(|piece| piece.len()).sum::<usize>();
        let pieces = once(&header[..head_size]).chain(packet.iter().map(|piece| &**piece));
        match writing.outlet.ring.send(head_size + size, pieces) {
            Ok(Sent::Queued) => {
                writing.queued += 1;
                if writing.queued >= BATCH {
                    writing.show(&self.ringer);
                }
                Ok(())
            }
            Ok(Sent::Full) => {
                writing.show(&self.ringer);
                Err(full())
            }
            Ok(Sent::TooLong) => self.lose(TOO_LONG),
            Err(_) => {
                self.end();
                self.lose(DISCONNECTED)
            }
        }
    }

    /// Count a packet that is lost here. The plane needn't count it once more.
    fn lose(&self, reason: &str) -> io::Result<()> {
        self.count(reason);
        Ok(())
    }

    /// Show the other side what was written.
    pub fn flush(&self, queue: usize) {
        if let Some(place) = self.writer(queue)
            && let Some(writing) = &mut *lock(place)
        {
            writing.show(&self.ringer);
        }
    }

    /// Return the ring that a queue writes to. There may be fewer than queues.
    fn writer(&self, queue: usize) -> Option<&Mutex<Option<Writing>>> {
        let writers = self.writers.load(Ordering::Acquire);
        self.writing.get(queue.checked_rem(writers)?)
    }
}

impl Reading {
    /// Give the other side the slots of what was taken.
    fn give_back(&mut self) {
        self.taken = 0;
        self.inlet.ring.publish();
    }
}

impl Writing {
    /// Show the other side what was sent, and wake it.
    fn show(&mut self, ringer: &Ringer) {
        self.queued = 0;
        if self.outlet.ring.publish() {
            ringer.ring(self.outlet.bell.as_raw_fd());
        }
    }
}

/// Return the first bytes of a packet, at most [`START`], gathered if they lie in several pieces.
fn start<'a>(packet: &'a [IoSlice<'_>], gathered: &'a mut [u8; START]) -> &'a [u8] {
    if let Some(first) = packet.first()
        && (packet.len() == 1 || first.len() >= START)
    {
        return &first[..first.len().min(START)];
    }
    let mut used = 0;
    for piece in packet {
        let part = &piece[..piece.len().min(START - used)];
        gathered[used..used + part.len()].copy_from_slice(part);
        used += part.len();
    }
    &gathered[..used]
}

/// Lock a mutex. Nothing that we lock is left half-changed by a panic.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memif::memory::Memory;
    use memif::ring::{Descriptor, Receiver, Role, Sender, Slots};
    use memif::slots::RegionSlots;

    use super::*;
    use crate::descriptor::own;

    const LOG2: u8 = 10;
    const PACKET_AT: usize = 32_768;

    #[test]
    fn frames_that_are_no_packets_do_not_keep_the_thread() {
        let regions: Arc<[Memory]> = [Memory::private(65_536).unwrap()].into();
        let slots = |offset| RegionSlots::new(&regions, 0, offset, LOG2).unwrap();
        // SAFETY: the call touches no memory of ours.
        let bell = || own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }).unwrap();
        let (theirs, other) = (slots(0), 17_408);
        let inlet = Inlet { ring: Receiver::new(slots(0), Role::Server), bell: bell() };
        let outlet = Outlet { ring: Sender::new(slots(other), Role::Server), bell: bell() };
        let rings = Rings::new(1, Framing::Ip).unwrap();
        let (program, interface) = (Vec::new(), Vec::new());
        rings.put_in(Link { outlets: vec![outlet], inlets: vec![inlet], program, interface }).unwrap();
        // An IPv4 header without anything behind it, 20 bytes.
        assert!(regions[0].write(PACKET_AT, &[0x45, 0, 0, 20]));
        let frame = |region| Descriptor { flags: 0, region, length: 20, offset: PACKET_AT as u32 };
        let bad = MOST_LEFT_OUT + 50;
        (0..bad as u16).for_each(|index| theirs.put(index, frame(9)));
        theirs.put(bad as u16, frame(0));
        theirs.head().store(bad as u16 + 1, Ordering::Release);
        let mut packet = [0; 100];
        let invalid = || rings.drops.iter().find(|(name, _)| *name == INVALID).unwrap().1.load(Ordering::Relaxed);
        assert!(rings.read(0, &mut packet).is_err());
        assert_eq!(invalid(), u64::from(MOST_LEFT_OUT));
        assert!(!rings.fall_asleep(0), "more waits");
        assert_eq!(rings.read(0, &mut packet).unwrap(), 20);
        assert_eq!(invalid(), u64::from(bad));
        assert!(rings.read(0, &mut packet).is_err());
        assert!(rings.fall_asleep(0));
    }
}
