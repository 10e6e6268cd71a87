//! From the TUN device to the network, a batch at a time. Stages:
//!
//! - Look up the peer.
//! - Complete the checksum, or cut the superpacket. Each packet is written where its datagram will
//!   be, into the peer's [`Draft`].
//! - When a draft is full, or the device is empty: claim a run of nonces, seal the packets in
//!   place, and send those of one size as one message.
//!
//! So the packets that a batch has for a peer are sealed and sent together, even if those of
//! several peers alternate. The packets of one peer keep their order.

use std::sync::Arc;

use crate::contract::{Address, Outbox, Seconds};
use crate::draft::Draft;
use crate::drops::DropReason;
use crate::ip::destination;
use crate::peers::Peer;
use crate::segment::{Superpacket, complete_checksum};
use crate::sink::Sink;
use crate::transport::Transport;
use crate::vnet::{GSO_NONE, VNET_SIZE, Vnet};

/// Peers whose packets may wait at once. A draft has 64 KiB, used as far as a batch needs it.
const MAX_DRAFTS: usize = 64;
/// A draft with this many packets is worth its own system call, and long enough for the cipher. It
/// is sent as soon as a packet for another peer comes.
const ENOUGH: usize = 16;
/// If there are packets for several peers, none waits any longer after this many bytes, even if the
/// device has more.
const MOST: usize = 256 << 10;
/// The longest turn where all packets are for one peer. Its packets don't wait: each full message is
/// sent at once. But the clock is read, and events are passed on, between two turns.
const LONGEST: usize = 1 << 20;
/// What a packet counts for at least: it costs as much as this many bytes.
const LEAST: usize = 512;

/// The way out of one queue.
#[derive(Default)]
pub struct Outbound {
    /// The first `open` drafts are those of this batch, one per peer. The others are kept to reuse
    /// their memory.
    drafts: Vec<Draft>,
    open: usize,
    /// The destination that was looked up last, and its peer's draft. Forgotten with each batch,
    /// because routes change.
    route: Option<(Address, usize)>,
    /// Bytes that this batch has taken so far.
    taken: usize,
}

impl Outbound {
    /// Take the result of one read of the device: a virtio_net_hdr, then a packet or superpacket.
    pub fn frame(
        &mut self,
        transport: &Transport,
        frame: &mut [u8],
        now: Seconds,
        out: &mut Outbox,
        sink: &mut impl Sink,
    ) {
        let Some((header, packet)) = frame.split_first_chunk_mut::<VNET_SIZE>() else { return };
        let Some(draft) = self.draft(transport, packet, now, out, sink) else {
            transport.drops.count(DropReason::NoPeer, 1);
            transport.answer_unreachable(packet, now, out);
            return;
        };
        let vnet = Vnet::decode(header);
        if vnet.gso_type == GSO_NONE {
            complete_checksum(vnet, packet);
            let size = packet.len();
            draft.room(transport, size, now, out, sink)[..size].copy_from_slice(packet);
        } else if let Some(cut) = Superpacket::examine(vnet, packet) {
            for number in 0..cut.count() {
                cut.write(number, draft.room(transport, cut.size(number), now, out, sink));
            }
        } else if let Some(peer) = &draft.peer {
            transport.count_drops(peer, DropReason::Superpacket, 1);
        }
        if draft.is_ripe(transport.mtu()) {
            draft.seal(transport, now, out, sink);
        }
        self.taken += frame.len().max(LEAST);
    }

    /// Send what still waits, because the device is empty or the batch is large enough.
    pub fn flush(&mut self, transport: &Transport, now: Seconds, out: &mut Outbox, sink: &mut impl Sink) {
        for draft in &mut self.drafts[..self.open] {
            draft.seal(transport, now, out, sink);
            draft.peer = None;
        }
        self.open = 0;
        self.route = None;
        self.taken = 0;
    }

    /// Return whether to flush even if the device may have more: nothing waits, the packets of one
    /// peer would wait too long for those of others, or the turn is long.
    pub fn is_due(&self) -> bool {
        let mut waiting = self.drafts[..self.open].iter().filter(|draft| draft.len() > 0);
        match waiting.next() {
            None => self.taken > 0,
            Some(_) => self.taken >= if waiting.next().is_some() { MOST } else { LONGEST },
        }
    }

    /// Return the draft of the peer that a packet goes to. If other peers use all drafts, those are
    /// sent first.
    fn draft(
        &mut self,
        transport: &Transport,
        packet: &[u8],
        now: Seconds,
        out: &mut Outbox,
        sink: &mut impl Sink,
    ) -> Option<&mut Draft> {
        let address = destination(packet)?;
        let at = match self.route {
            Some((known, at)) if known == address => at,
            _ => {
                let peer = transport.allowed.find(address)?;
                let known = self.drafts[..self.open].iter().position(|draft| draft.peer.as_ref() == Some(&peer));
                known.unwrap_or_else(|| {
                    if self.open == MAX_DRAFTS {
                        self.flush(transport, now, out, sink);
                    }
                    self.open_draft(peer)
                })
            }
        };
        if let Some((_, before)) = self.route.filter(|(_, before)| *before != at) {
            if self.drafts[before].len() >= ENOUGH {
                self.drafts[before].seal(transport, now, out, sink);
            }
        }
        self.route = Some((address, at));
        Some(&mut self.drafts[at])
    }

    fn open_draft(&mut self, peer: Arc<Peer>) -> usize {
        let at = self.open;
        if at == self.drafts.len() {
            self.drafts.push(Draft::default());
        }
        self.drafts[at].peer = Some(peer);
        self.open += 1;
        at
    }
}
