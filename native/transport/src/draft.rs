//! A message to one peer while it is written. Packets lie where their datagrams will be, and are
//! sealed there.

use std::sync::Arc;

use crate::aead::Aead;
use crate::body::Body;
use crate::contract::{Endpoint, Outbox, Seconds};
use crate::drops::DropReason;
use crate::ecn;
use crate::ip::is_looped;
use crate::keypairs::Session;
use crate::peers::Peer;
use crate::sink::Sink;
use crate::transport::Tally;
use crate::transport::Transport;
use crate::vnet::{MAX_MESSAGE, MAX_PACKET, MAX_SEGMENTS, padded};
use crate::wire::{DATA_HEADER_SIZE, OVERHEAD, TAG_SIZE};

/// A packet in the buffer, with room for header and tag around it.
struct Slot {
    /// Where its datagram begins.
    at: usize,
    /// Bytes of the packet.
    size: usize,
    /// Bytes of the packet with padding.
    padded: usize,
    /// The TOS or traffic class of its datagram. Known once it is sealed.
    tos: u8,
}

/// The packets of one peer that wait to be sealed, at most 64, in the order they came.
pub struct Draft {
    buffer: Box<[u8]>,
    used: usize,
    slots: Vec<Slot>,
    /// The same packets for the cipher. Kept to reuse its memory.
    bodies: Vec<Body>,
    /// The peer they are for. None between two batches.
    pub peer: Option<Arc<Peer>>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            // The largest packet, padded.
            buffer: vec![0; MAX_PACKET + 15 + OVERHEAD].into(),
            used: 0,
            slots: Vec::with_capacity(MAX_SEGMENTS),
            bodies: Vec::with_capacity(MAX_SEGMENTS),
            peer: None,
        }
    }
}

impl Draft {
    /// Return how many packets wait here.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Return whether another full packet may not fit. Sealing now makes a message that is as full
    /// as possible.
    pub fn is_ripe(&self, mtu: usize) -> bool {
        self.slots.len() == MAX_SEGMENTS || self.used > 0 && self.used + mtu + OVERHEAD > MAX_MESSAGE
    }

    /// Make a slot for a packet of `size` bytes. Return where to write the packet. Its padding is
    /// zero.
    ///
    /// If the packet doesn't fit into the message, the message is sent first.
    pub fn room(
        &mut self,
        transport: &Transport,
        size: usize,
        now: Seconds,
        out: &mut Outbox,
        sink: &mut impl Sink,
    ) -> &mut [u8] {
        let padded = padded(size, transport.mtu());
        if self.slots.len() == MAX_SEGMENTS || self.used > 0 && self.used + padded + OVERHEAD > MAX_MESSAGE {
            self.seal(transport, now, out, sink);
        }
        let at = self.used;
        self.used += padded + OVERHEAD;
        self.slots.push(Slot { at, size, padded, tos: 0 });
        let start = at + DATA_HEADER_SIZE;
        if padded > size {
            self.buffer[start + size..start + padded].fill(0);
        }
        &mut self.buffer[start..start + size]
    }

    /// Seal the packets and send them, or hold them if no session may send. The buffer is empty
    /// afterwards.
    pub fn seal(&mut self, transport: &Transport, now: Seconds, out: &mut Outbox, sink: &mut impl Sink) {
        let Some(peer) = self.peer.clone().filter(|_| !self.slots.is_empty()) else { return };
        let count = self.slots.len();
        let mut state = peer.state();
        if let Some(endpoint) = state.endpoint {
            let session = state.keypairs.current.clone();
            if session.as_ref().is_some_and(|session| self.is_looped(session)) {
                // What this message carries would come back as well.
                transport.count_drops(&peer, DropReason::RoutingLoop, count as u64);
                self.slots.clear();
                self.used = 0;
                return;
            }
            let claimed = session.and_then(|session| Some((session.claim(count as u64, now)?, session)));
            if let Some((nonce, session)) = claimed {
                let tally = Tally { datagrams: count, bytes: self.used, data: true };
                transport.sent(&peer, &mut state, &session, tally, now, out);
                let segmenting = state.segmenting;
                drop(state);
                self.seal_slots(&session, nonce);
                if !self.send_slots(endpoint, segmenting, sink) {
                    peer.state().forget_local();
                }
            } else {
                for Slot { at, size, .. } in &self.slots {
                    let packet = &self.buffer[at + DATA_HEADER_SIZE..][..*size];
                    transport.hold(&peer, &mut state, packet.into(), now, out);
                }
            }
        } else {
            transport.count_drops(&peer, DropReason::NoEndpoint, count as u64);
            for Slot { at, size, .. } in &self.slots {
                transport.answer_unreachable(&self.buffer[at + DATA_HEADER_SIZE..][..*size], now, out);
            }
        }
        self.slots.clear();
        self.used = 0;
    }

    fn is_looped(&self, session: &Session) -> bool {
        let packet = |slot: &Slot| &self.buffer[slot.at + DATA_HEADER_SIZE..][..slot.size];
        self.slots.iter().any(|slot| is_looped(packet(slot), session.header))
    }

    fn seal_slots(&mut self, session: &Session, first: u64) {
        self.bodies.clear();
        for (slot, counter) in self.slots.iter_mut().zip(first..) {
            let header = &mut self.buffer[slot.at..slot.at + DATA_HEADER_SIZE];
            header[..8].copy_from_slice(&session.header);
            header[8..].copy_from_slice(&counter.to_le_bytes());
            slot.tos = ecn::outer(&self.buffer[slot.at + DATA_HEADER_SIZE..][..slot.size]);
            self.bodies.push(Body { at: slot.at + DATA_HEADER_SIZE, size: slot.padded + TAG_SIZE, counter });
        }
        session.sealer().seal_batch(&mut self.buffer, &self.bodies);
    }

    /// Send neighbours of one size and mark together, or each by itself. The last of several may be
    /// shorter. Return false if a message did not leave from the endpoint's local address.
    fn send_slots(&self, endpoint: Endpoint, together: bool, sink: &mut impl Sink) -> bool {
        let mut rest = &self.slots[..];
        let mut from_there = true;
        while let [first, others @ ..] = rest {
            let mut count = 1;
            for (slot, before) in others.iter().zip(rest) {
                if !together || before.padded < first.padded || slot.padded > first.padded || slot.tos != first.tos {
                    break;
                }
                count += 1;
            }
            let last = &rest[count - 1];
            let message = &self.buffer[first.at..last.at + last.padded + OVERHEAD];
            from_there &= sink.send(message, first.padded + OVERHEAD, endpoint, first.tos);
            rest = &rest[count..];
        }
        from_there
    }
}
