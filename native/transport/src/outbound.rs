//! From the TUN device to the network, a batch at a time.
//!
//! Stages: look up the peer; complete the checksum, or cut the superpacket, writing each packet where its datagram
//! will be; when a message is full, the peer changes or the device is empty: claim a run of nonces, seal the packets
//! in place, and send those of one size as one message.

use std::sync::Arc;

use crate::Transport;
use crate::aead::{Aead, Body};
use crate::contract::{Address, Endpoint, Outbox, Seconds};
use crate::drops::Drop;
use crate::keypairs::Session;
use crate::peers::Peer;
use crate::segment::{Superpacket, complete_checksum};
use crate::transport::{Tally, destination, is_looped};
use crate::vnet::{GSO_NONE, MAX_MESSAGE, MAX_PACKET, MAX_SEGMENTS, VNET_SIZE, Vnet, padded};
use crate::wire::{DATA_HEADER_SIZE, OVERHEAD, TAG_SIZE};

/// Sends a message as datagrams of a size, the last perhaps shorter.
pub trait Send {
    /// What the network has against it is the sender's to count. False: not from the endpoint's address of ours.
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint) -> bool;
}

/// A packet in the buffer, with room for header and tag around it.
struct Slot {
    /// Where its datagram begins.
    at: usize,
    /// Bytes of the packet.
    size: usize,
    /// The same with padding.
    padded: usize,
}

/// The way out of one queue.
pub struct Outbound {
    buffer: Box<[u8]>,
    used: usize,
    slots: Vec<Slot>,
    /// The same for the cipher; kept for its memory.
    bodies: Vec<Body>,
    /// Whose the packets in the buffer are.
    peer: Option<Arc<Peer>>,
    /// The destination looked up last, and whose it is. Forgotten with each batch: routes change.
    route: Option<(Address, Arc<Peer>)>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            // The largest packet, padded.
            buffer: vec![0; MAX_PACKET + 15 + OVERHEAD].into(),
            used: 0,
            slots: Vec::with_capacity(MAX_SEGMENTS),
            bodies: Vec::with_capacity(MAX_SEGMENTS),
            peer: None,
            route: None,
        }
    }
}

impl Outbound {
    /// Take what one read of the device gave: virtio_net_hdr, then a packet or superpacket.
    pub fn frame(
        &mut self,
        transport: &Transport,
        frame: &mut [u8],
        now: Seconds,
        out: &mut Outbox,
        send: &mut impl Send,
    ) {
        let Some((header, packet)) = frame.split_first_chunk_mut::<VNET_SIZE>() else { return };
        let Some(peer) = self.find(transport, packet) else {
            transport.drops.count(Drop::NoPeer, 1);
            return;
        };
        if self.peer.as_ref().is_some_and(|one| *one != peer) {
            self.seal(transport, now, out, send);
        }
        self.peer = Some(peer);
        let vnet = Vnet::decode(header);
        if vnet.gso_type == GSO_NONE {
            complete_checksum(vnet, packet);
            let size = packet.len();
            self.room(transport, size, now, out, send)[..size].copy_from_slice(packet);
        } else if let Some(cut) = Superpacket::examine(vnet, packet) {
            for number in 0..cut.count() {
                cut.write(number, self.room(transport, cut.size(number), now, out, send));
            }
        } else if let Some(peer) = &self.peer {
            transport.count_drops(peer, Drop::Superpacket, 1);
        }
    }

    /// Send what is still in the buffer: the device is empty, or the batch is large enough.
    pub fn flush(&mut self, transport: &Transport, now: Seconds, out: &mut Outbox, send: &mut impl Send) {
        self.seal(transport, now, out, send);
        self.route = None;
    }

    /// Whether another full packet may not fit: flushing now makes a message as good as it gets.
    pub fn is_ripe(&self, mtu: usize) -> bool {
        self.slots.len() == MAX_SEGMENTS || self.used > 0 && self.used + mtu + OVERHEAD > MAX_MESSAGE
    }

    fn find(&mut self, transport: &Transport, packet: &[u8]) -> Option<Arc<Peer>> {
        let address = destination(packet)?;
        match &self.route {
            Some((known, peer)) if *known == address => Some(Arc::clone(peer)),
            _ => {
                let peer = transport.allowed.find(address)?;
                self.route = Some((address, Arc::clone(&peer)));
                Some(peer)
            }
        }
    }

    /// Make a slot for a packet of `size` bytes; give where to write it. Its padding is zero.
    fn room(
        &mut self,
        transport: &Transport,
        size: usize,
        now: Seconds,
        out: &mut Outbox,
        send: &mut impl Send,
    ) -> &mut [u8] {
        let padded = padded(size, transport.mtu);
        if self.slots.len() == MAX_SEGMENTS || self.used > 0 && self.used + padded + OVERHEAD > MAX_MESSAGE {
            let peer = self.peer.clone();
            self.seal(transport, now, out, send);
            self.peer = peer;
        }
        let at = self.used;
        self.used += padded + OVERHEAD;
        self.slots.push(Slot { at, size, padded });
        let start = at + DATA_HEADER_SIZE;
        self.buffer[start + size..start + padded].fill(0);
        &mut self.buffer[start..start + size]
    }

    /// Seal the packets in the buffer and send them, or hold them where no session may; the buffer is empty then.
    fn seal(&mut self, transport: &Transport, now: Seconds, out: &mut Outbox, send: &mut impl Send) {
        let Some(peer) = self.peer.take() else { return };
        let count = self.slots.len();
        let mut state = peer.state();
        if state.endpoint.is_none() {
            transport.count_drops(&peer, Drop::NoEndpoint, count as u64);
        }
        if let Some(endpoint) = state.endpoint.filter(|_| count > 0) {
            let session = state.keypairs.current.clone();
            if session.as_ref().is_some_and(|session| self.is_looped(session)) {
                // What goes with it would come back as well.
                transport.count_drops(&peer, Drop::RoutingLoop, count as u64);
                self.slots.clear();
                self.used = 0;
                return;
            }
            let claimed = session.and_then(|session| Some((session.claim(count as u64, now)?, session)));
            if let Some((nonce, session)) = claimed {
                let tally = Tally { datagrams: count, bytes: self.used, data: true };
                transport.sent(&peer, &mut state, &session, tally, now, out);
                drop(state);
                self.seal_slots(&session, nonce);
                if !self.send_slots(endpoint, send) {
                    peer.state().forget_local();
                }
            } else {
                for Slot { at, size, .. } in &self.slots {
                    let packet = &self.buffer[at + DATA_HEADER_SIZE..][..*size];
                    transport.hold(&peer, &mut state, packet.into(), now, out);
                }
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
        for (slot, counter) in self.slots.iter().zip(first..) {
            let header = &mut self.buffer[slot.at..slot.at + DATA_HEADER_SIZE];
            header[..8].copy_from_slice(&session.header);
            header[8..].copy_from_slice(&counter.to_le_bytes());
            self.bodies.push(Body { at: slot.at + DATA_HEADER_SIZE, size: slot.padded + TAG_SIZE, counter });
        }
        session.sealer().seal_batch(&mut self.buffer, &self.bodies);
    }

    /// Send neighbours of one size together; a shorter one may be the last. False where [`Send::send`] said so.
    fn send_slots(&self, endpoint: Endpoint, send: &mut impl Send) -> bool {
        let (mut rest, mut from_there) = (&self.slots[..], true);
        while let [first, others @ ..] = rest {
            let mut count = 1;
            for (slot, before) in others.iter().zip(rest) {
                if before.padded < first.padded || slot.padded > first.padded {
                    break;
                }
                count += 1;
            }
            let last = &rest[count - 1];
            let message = &self.buffer[first.at..last.at + last.padded + OVERHEAD];
            from_there &= send.send(message, first.padded + OVERHEAD, endpoint);
            rest = &rest[count..];
        }
        from_there
    }
}
