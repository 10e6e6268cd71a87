//! Moving packets over a ring. The code knows how the two sides share a ring, not where it lies.
//!
//! A ring has a head and a tail, which count slots and wrap at 65,536. Slots from the tail to the
//! head (excluded) lie between the two programs:
//!
//! - c2s: the client fills buffers and moves the head over them. The server empties them and moves
//!   the tail.
//! - s2c: the client offers empty buffers and moves the head. The server fills them and moves the
//!   tail. The client empties what the tail has passed.
//!
//! So the client moves the head and the server the tail, in both directions. Who moves an index keeps
//! it in its own memory too and never reads it back. The other index is read with *acquire*, and an
//! own one is written with *release*: what a program wrote before it moved an index is seen by
//! whoever sees the index moved.
//!
//! A chain of slots with the flag NEXT is one packet. It is published whole.
//!
//! **Interrupts**: the receiver of a ring sets the flag MASK_INT while it looks by itself. The sender
//! rings a bell (an eventfd) after it published, unless the flag is set. Between the two accesses of
//! each side stands a full fence, or both could miss each other.

use crate::sync::{AtomicU16, Ordering, fence};

/// A descriptor's flag: the packet goes on in the next slot.
pub const NEXT: u16 = 1;
/// A ring's flag: its receiver looks by itself.
pub const MASK_INT: u16 = 1;
/// The most slots of one packet. A longer chain is dropped. 64 buffers of 1,024 bytes hold the
/// longest IP packet.
pub const MAX_CHAIN: u16 = 64;

/// A descriptor: where a buffer lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// [`NEXT`], or 0.
    pub flags: u16,
    /// The region.
    pub region: u16,
    /// Bytes: of the packet's part, or of the room in an empty buffer.
    pub length: u32,
    /// Where the buffer begins in the region.
    pub offset: u32,
}

/// A ring and the buffers of its descriptors, as both sides see them.
pub trait Slots {
    /// Return the number of slots, a power of 2 up to 32,768.
    fn size(&self) -> u16;
    /// Return the index that the client moves.
    fn head(&self) -> &AtomicU16;
    /// Return the index that the server moves.
    fn tail(&self) -> &AtomicU16;
    /// Return the flags, which the ring's receiver sets.
    fn flags(&self) -> &AtomicU16;
    /// Read the descriptor at an index, each field once.
    fn get(&self, index: u16) -> Descriptor;
    /// Write the descriptor at an index.
    fn put(&self, index: u16, descriptor: Descriptor);
    /// Return whether a buffer lies in a region.
    fn holds(&self, buffer: Descriptor) -> bool;
    /// Copy bytes of a buffer out, from its byte `skip` on. Return false if they lie in no region.
    fn read(&self, buffer: Descriptor, skip: usize, into: &mut [u8]) -> bool;
    /// Copy bytes into a buffer, from its byte `skip` on. Return false if they lie in no region.
    fn write(&self, buffer: Descriptor, skip: usize, from: &[u8]) -> bool;
}

/// Our side of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We move the head. The buffers are ours: slot n has `buffer` bytes at `offset` + n · `buffer`.
    Client {
        /// The region of the buffers.
        region: u16,
        /// Where the first one begins.
        offset: u32,
        /// Bytes of each.
        buffer: u32,
    },
    /// We move the tail. The buffers are those of the descriptors.
    Server,
}

/// The other side moved an index to where it can't be, or offered a buffer that is none. The
/// connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// What became of a packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It lies in the ring. [`Sender::publish`] shows it to the other side.
    Queued,
    /// There is no room for it now.
    Full,
    /// It needs more than [`MAX_CHAIN`] buffers.
    TooLong,
}

/// What a ring had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many bytes.
    Packet(usize),
    /// Nothing.
    Empty,
    /// A packet that was left out: a part lies in no region, or is longer than its buffer, or the
    /// last part is missing.
    Invalid,
    /// A packet that was left out: it is longer than the caller's buffer, or has more than
    /// [`MAX_CHAIN`] parts.
    TooLong,
}

/// The indices of one side.
struct Indices<S> {
    slots: S,
    role: Role,
    /// The next slot to work on.
    next: u16,
    /// The first slot that isn't ours to work on.
    end: u16,
    /// Where our index was when it was published last.
    published: u16,
    /// How far our published index is ahead of `next`: a client that receives offers a whole ring.
    lead: u16,
    /// How far `end` is ahead of the other side's index: a client may send a whole ring.
    ahead: u16,
}

impl<S: Slots> Indices<S> {
    /// Return the buffer of an index if it is ours.
    fn own_buffer(&self, index: u16) -> Option<Descriptor> {
        let Role::Client { region, offset, buffer } = self.role else { return None };
        let slot = u32::from(index & (self.slots.size() - 1));
        Some(Descriptor { flags: 0, region, length: buffer, offset: offset + slot * buffer })
    }

    /// Return how many slots are ours to work on. Look at the other side's index if `wanted` aren't.
    fn available(&mut self, wanted: u16) -> Result<u16, Corrupt> {
        let known = self.end.wrapping_sub(self.next);
        if known >= wanted {
            return Ok(known);
        }
        let index = match self.role {
            Role::Client { .. } => self.slots.tail(),
            Role::Server => self.slots.head(),
        };
        let end = index.load(Ordering::Acquire).wrapping_add(self.ahead);
        let seen = end.wrapping_sub(self.next);
        // An index never goes back, and no more slots can be ours than there are.
        if seen < known || seen > self.slots.size() {
            return Err(Corrupt);
        }
        self.end = end;
        Ok(seen)
    }

    /// Show the other side our index. Return false if it knows that already.
    fn publish(&mut self) -> bool {
        let now = self.next.wrapping_add(self.lead);
        if self.published == now {
            return false;
        }
        self.published = now;
        let index = match self.role {
            Role::Client { .. } => self.slots.head(),
            Role::Server => self.slots.tail(),
        };
        index.store(now, Ordering::Release);
        true
    }
}

/// Sends packets over a ring.
pub struct Sender<S> {
    ring: Indices<S>,
    /// The buffers of the packet that is being sent.
    buffers: Vec<Descriptor>,
}

impl<S: Slots> Sender<S> {
    /// Begin with a ring whose indices are 0.
    pub fn new(slots: S, role: Role) -> Self {
        let ahead = if role == Role::Server { 0 } else { slots.size() };
        let ring = Indices { slots, role, next: 0, end: ahead, published: 0, lead: 0, ahead };
        Self { ring, buffers: Vec::with_capacity(usize::from(MAX_CHAIN)) }
    }

    /// Put a packet into the ring: pieces of `size` bytes together, at least 1. It isn't published yet.
    pub fn send<'a>(&mut self, size: usize, pieces: impl Iterator<Item = &'a [u8]>) -> Result<Sent, Corrupt> {
        match self.find_buffers(size)? {
            Sent::Queued => {}
            other => return Ok(other),
        }
        let ring = &mut self.ring;
        let mut buffers = self.buffers.iter().copied();
        let mut buffer = buffers.next().ok_or(Corrupt)?;
        let mut used = 0;
        for mut piece in pieces {
            while !piece.is_empty() {
                if used == buffer.length as usize {
                    ring.slots.put(ring.next, Descriptor { flags: NEXT, ..buffer });
                    ring.next = ring.next.wrapping_add(1);
                    (buffer, used) = (buffers.next().ok_or(Corrupt)?, 0);
                }
                let (now, later) = piece.split_at(piece.len().min(buffer.length as usize - used));
                if !ring.slots.write(buffer, used, now) {
                    return Err(Corrupt);
                }
                used += now.len();
                piece = later;
            }
        }
        ring.slots.put(ring.next, Descriptor { flags: 0, length: used as u32, ..buffer });
        ring.next = ring.next.wrapping_add(1);
        Ok(Sent::Queued)
    }

    /// Find buffers for a packet of `size` bytes: read each descriptor of the other side once, and
    /// check it.
    fn find_buffers(&mut self, size: usize) -> Result<Sent, Corrupt> {
        self.buffers.clear();
        let mut room = 0;
        while room < size {
            let count = self.buffers.len() as u16 + 1;
            if count > MAX_CHAIN {
                return Ok(Sent::TooLong);
            }
            if self.ring.available(count)? < count {
                return Ok(Sent::Full);
            }
            let index = self.ring.next.wrapping_add(count - 1);
            let buffer = self.ring.own_buffer(index).unwrap_or_else(|| self.ring.slots.get(index));
            if buffer.length == 0 || !self.ring.slots.holds(buffer) {
                return Err(Corrupt);
            }
            room += buffer.length as usize;
            self.buffers.push(buffer);
        }
        Ok(Sent::Queued)
    }

    /// Show the other side what was sent. Return whether its bell has to be rung.
    pub fn publish(&mut self) -> bool {
        if !self.ring.publish() {
            return false;
        }
        fence(Ordering::SeqCst);
        self.ring.slots.flags().load(Ordering::Relaxed) & MASK_INT == 0
    }
}

/// Receives packets from a ring.
pub struct Receiver<S>(Indices<S>);

impl<S: Slots> Receiver<S> {
    /// Begin with a ring whose indices are 0. A client offers its buffers by this: only call it once
    /// the server is connected, because DPDK's sets the indices to 0 when it connects.
    pub fn new(slots: S, role: Role) -> Self {
        let lead = if role == Role::Server { 0 } else { slots.size() };
        let mut ring = Indices { slots, role, next: 0, end: 0, published: 0, lead, ahead: 0 };
        for index in 0..lead {
            ring.refill(index);
        }
        ring.publish();
        Self(ring)
    }

    /// Return whether a packet waits.
    pub fn has_packets(&mut self) -> Result<bool, Corrupt> {
        Ok(self.0.available(1)? > 0)
    }

    /// Take the next packet. Its slots aren't given back before [`Self::publish`].
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Received, Corrupt> {
        self.receive_behind(&mut [], into)
    }

    /// Take the next packet: its first bytes to `head`, which it has to fill, and the rest to `into`.
    pub fn receive_behind(&mut self, head: &mut [u8], into: &mut [u8]) -> Result<Received, Corrupt> {
        let ring = &mut self.0;
        let (mut count, mut at) = (0, 0);
        let mut fault = None;
        loop {
            if ring.available(count + 1)? <= count {
                if count == 0 {
                    return Ok(Received::Empty);
                }
                // The other side published a part of a chain.
                fault = fault.or(Some(Received::Invalid));
                break;
            }
            let index = ring.next.wrapping_add(count);
            let seen = ring.slots.get(index);
            count += 1;
            if fault.is_none() {
                fault = match ring.part(index, seen) {
                    None => Some(Received::Invalid),
                    Some(_) if count > MAX_CHAIN => Some(Received::TooLong),
                    Some(part) => ring.copy_out(part, at, head, into).err(),
                };
                at += seen.length as usize;
            }
            if seen.flags & NEXT == 0 {
                break;
            }
        }
        for index in 0..count {
            ring.refill(ring.next.wrapping_add(index));
        }
        ring.next = ring.next.wrapping_add(count);
        Ok(match fault {
            Some(fault) => fault,
            None if at > head.len() => Received::Packet(at),
            None => Received::Invalid,
        })
    }

    /// Give the other side the slots of what was received.
    pub fn publish(&mut self) {
        self.0.publish();
    }

    /// Ask for no bell: we look by ourselves.
    pub fn mask(&self) {
        self.0.slots.flags().store(MASK_INT, Ordering::Relaxed);
    }

    /// Ask for the bell. The caller has to look once more before it waits.
    pub fn unmask(&self) {
        self.0.slots.flags().store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

impl<S: Slots> Indices<S> {
    /// Return the part of a packet that a descriptor, as it was read, stands for. None if it lies in no
    /// region, or is longer than a buffer of ours.
    fn part(&self, index: u16, seen: Descriptor) -> Option<Descriptor> {
        let part = match self.own_buffer(index) {
            Some(own) if seen.length > own.length => return None,
            Some(own) => Descriptor { length: seen.length, ..own },
            None => seen,
        };
        self.slots.holds(part).then_some(part)
    }

    /// Copy a part that begins at byte `at` of its packet.
    fn copy_out(&self, part: Descriptor, at: usize, head: &mut [u8], into: &mut [u8]) -> Result<(), Received> {
        let (start, size) = (head.len(), part.length as usize);
        let front = start.saturating_sub(at).min(size);
        let behind = (at + front).saturating_sub(start);
        let body = into.get_mut(behind..behind + size - front).ok_or(Received::TooLong)?;
        let copied = (front == 0 || self.slots.read(part, 0, &mut head[at..at + front]))
            && (body.is_empty() || self.slots.read(part, front, body));
        if copied { Ok(()) } else { Err(Received::Invalid) }
    }

    /// Make the slot of a client's index an empty buffer again.
    fn refill(&self, index: u16) {
        if let Some(buffer) = self.own_buffer(index) {
            self.slots.put(index, buffer);
        }
    }
}
