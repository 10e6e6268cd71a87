//! From the network to the TUN device, a batch of messages at a time.
//!
//! The kernel delivers datagrams of one source and size as one message. Stages:
//!
//! - Divide a message into runs of one session.
//! - Leave out what the window refuses, open the rest in place, mark the window.
//! - Roam, and confirm the keypair, per run.
//! - Check each packet's source.
//!
//! The packets of several messages then go through [`crate::coalesce`] together.

use crate::aead::Aead;
use crate::body::Body;
use crate::coalesce::Inner;
use crate::contract::{Address, Endpoint, Outbox, Seconds};
use crate::drops::DropReason;
use crate::ecn;
use crate::ip::inner_source;
use crate::peers::Owned;
use crate::transport::Tally;
use crate::transport::Transport;
use crate::wire::{DATA_HEADER_SIZE, DATA_MAGIC, OVERHEAD, TAG_SIZE, u32_at, u64_at};

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Where it begins in the buffer.
    pub at: usize,
    /// Bytes.
    pub size: usize,
    /// Bytes of each datagram in it. The last one may be shorter.
    pub segment: usize,
    /// The sender, and our address that it was sent to.
    pub source: Endpoint,
    /// The TOS or traffic class of the datagrams.
    pub tos: u8,
}

impl Message {
    /// Return how many datagrams it stands for.
    pub fn datagrams(&self) -> usize {
        self.size.div_ceil(self.segment.max(1)).max(1)
    }
}

/// The way in of one queue.
#[derive(Default)]
pub struct Inbound {
    packets: Vec<Inner>,
    /// The datagrams of a run. Kept to reuse its memory, as is the next.
    bodies: Vec<Body>,
    /// Whether each one's tag is right.
    held: Vec<bool>,
}

impl Inbound {
    /// Take one message. Its datagrams are opened in place.
    pub fn message(
        &mut self,
        transport: &Transport,
        buffer: &mut [u8],
        message: Message,
        now: Seconds,
        out: &mut Outbox,
    ) {
        let (mut at, end) = (message.at, message.at + message.size);
        let segment = if message.segment == 0 { message.size } else { message.segment };
        loop {
            let size = segment.min(end - at);
            let session = Self::session(transport, &buffer[at..at + size]);
            if let Some(owned) = session {
                at =
                    self.run(transport, buffer, &owned, Message { at, size: end - at, segment, ..message }, now, out);
            } else {
                // Handshakes, enrollment and strangers are handled one by one. They contain no
                // inner packet.
                transport.handle_datagram(&mut buffer[at..at + size], message.source, message.tos, now, out);
                at += size;
            }
            if at >= end {
                return;
            }
        }
    }

    /// Return the packets of this batch in order, and where they lie in the buffer.
    pub fn packets(&self) -> &[Inner] {
        &self.packets
    }

    /// Begin the next batch.
    pub fn clear(&mut self) {
        self.packets.clear();
    }

    fn session(transport: &Transport, datagram: &[u8]) -> Option<Owned> {
        let data = datagram.len() >= OVERHEAD && datagram.starts_with(&DATA_MAGIC) && !transport.is_down();
        if data { transport.sessions.get(&u32_at(datagram, 4)) } else { None }
    }

    /// Open the datagrams at the beginning of the message that are of one session. Return where the
    /// next one begins.
    fn run(
        &mut self,
        transport: &Transport,
        buffer: &mut [u8],
        owned: &Owned,
        message: Message,
        now: Seconds,
        out: &mut Outbox,
    ) -> usize {
        let first = self.packets.len();
        let end = self.collect(buffer, message);
        if owned.session.expired(now) {
            transport.count_drops(&owned.peer, DropReason::ExpiredSession, self.bodies.len() as u64);
            return end;
        }
        let tally = self.open(transport, buffer, owned);
        if tally.datagrams > 0 {
            transport.received(owned, message.source, tally, now, out);
        }
        self.check_sources(transport, buffer, owned, first);
        if ecn::changes(message.tos) {
            for packet in &self.packets[first..] {
                ecn::mark(&mut buffer[packet.at..packet.at + packet.size], message.tos);
            }
        }
        end
    }

    /// Find the datagrams that have the first one's session. Return where the next one begins.
    fn collect(&mut self, buffer: &[u8], message: Message) -> usize {
        let (mut at, end) = (message.at, message.at + message.size);
        let header = &buffer[at..at + 8];
        self.bodies.clear();
        while at < end {
            let size = message.segment.min(end - at);
            let datagram = &buffer[at..at + size];
            if size < OVERHEAD || datagram[..8] != *header {
                break;
            }
            let body =
                Body { at: at + DATA_HEADER_SIZE, size: size - DATA_HEADER_SIZE, counter: u64_at(datagram, 8) };
            self.bodies.push(body);
            at += size;
        }
        at
    }

    /// Open what was collected, in place, and mark the window, as if each datagram had come alone.
    ///
    /// What the window already refuses isn't opened. After that, the window is asked again for each
    /// datagram, with those before it marked. So if a counter came twice, the first datagram with
    /// the right tag is taken.
    fn open(&mut self, transport: &Transport, buffer: &mut [u8], owned: &Owned) -> Tally {
        let mut tally = Tally { datagrams: 0, bytes: 0, data: false };
        let mut window = owned.session.window();
        let collected = self.bodies.len();
        self.bodies.retain(|body| window.fresh(body.counter));
        if self.bodies.len() < collected {
            transport.count_drops(&owned.peer, DropReason::Replayed, (collected - self.bodies.len()) as u64);
        }
        self.held.clear();
        owned.session.opener().open_batch(buffer, &self.bodies, &mut self.held);
        for (body, held) in self.bodies.iter().zip(&self.held) {
            if !window.fresh(body.counter) {
                transport.count_drops(&owned.peer, DropReason::Replayed, 1);
            } else if !held {
                transport.count_drops(&owned.peer, DropReason::BadTag, 1);
            } else {
                window.mark(body.counter);
                tally.datagrams += 1;
                tally.bytes += body.size + DATA_HEADER_SIZE;
                if body.size > TAG_SIZE {
                    tally.data = true;
                    self.packets.push(Inner { at: body.at, size: body.size - TAG_SIZE });
                }
            }
        }
        tally
    }

    /// Of the packets from `first` on, keep those that their peer may send, without their padding.
    fn check_sources(&mut self, transport: &Transport, buffer: &[u8], owned: &Owned, first: usize) {
        let mut checked: Option<Address> = None;
        let mut kept = first;
        for number in first..self.packets.len() {
            let Inner { at, size } = self.packets[number];
            match inner_source(&buffer[at..at + size]) {
                Ok((source, length)) => {
                    if checked == Some(source) || transport.allowed.is_owned_by(source, &owned.peer) {
                        checked = Some(source);
                        self.packets[kept] = Inner { at, size: length };
                        kept += 1;
                    } else {
                        transport.count_drops(&owned.peer, DropReason::InnerSource, 1);
                    }
                }
                Err(reason) => transport.count_drops(&owned.peer, reason, 1),
            }
        }
        self.packets.truncate(kept);
    }
}
