//! Packets out, one at a time: route, claim a nonce, pad, seal; or hold the packet while there is no session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Tally, Transport};
use crate::aead::Aead;
use crate::contract::{MAX_STAGED_PACKETS, NEVER, Outbox, Reason, Seconds, Transmit};
use crate::drops::DropReason;
use crate::ecn;
use crate::ip::destination;
use crate::keypairs::Session;
use crate::peers::{Peer, PeerState};
use crate::vnet::padded;
use crate::wire::{DATA_HEADER_SIZE, OVERHEAD};

/// Packets held for all peers together. The limit keeps many silent peers from taking all memory.
pub const MAX_HELD_PACKETS: usize = 64 * MAX_STAGED_PACKETS;

impl Transport {
    /// Send one inner IP packet to its peer, or hold it while there is no session.
    pub fn handle_packet(&self, packet: &[u8], now: Seconds, out: &mut Outbox) {
        let Some(peer) = destination(packet).and_then(|address| self.allowed.find(address)) else {
            self.drops.count(DropReason::NoPeer, 1);
            self.answer_unreachable(packet, now, out);
            return;
        };
        let mut state = peer.state();
        if state.endpoint.is_none() {
            self.count_drops(&peer, DropReason::NoEndpoint, 1);
            self.answer_unreachable(packet, now, out);
        } else if !self.transmit_sealed(&peer, &mut state, packet, now, out) {
            self.hold(&peer, &mut state, packet.into(), now, out);
        }
    }

    /// Return the address that a packet of the host would be sent to, if it is known.
    pub fn goes_to(&self, packet: &[u8]) -> Option<SocketAddr> {
        let peer = destination(packet).and_then(|address| self.allowed.find(address))?;
        let endpoint = peer.state().endpoint;
        endpoint.map(|endpoint| endpoint.remote)
    }

    /// Seal one packet (empty for a keepalive) for its peer. Return false if no session may send
    /// it.
    pub(super) fn transmit_sealed(
        &self,
        peer: &Arc<Peer>,
        state: &mut PeerState,
        packet: &[u8],
        now: Seconds,
        out: &mut Outbox,
    ) -> bool {
        let (Some(endpoint), Some(session)) = (state.endpoint, state.keypairs.current.clone()) else { return false };
        let Some(nonce) = session.claim(1, now) else { return false };
        let mut datagram = vec![0; padded(packet.len(), self.mtu()) + OVERHEAD];
        datagram[..8].copy_from_slice(&session.header);
        datagram[8..DATA_HEADER_SIZE].copy_from_slice(&nonce.to_le_bytes());
        datagram[DATA_HEADER_SIZE..DATA_HEADER_SIZE + packet.len()].copy_from_slice(packet);
        session.sealer().seal(nonce, &mut datagram[DATA_HEADER_SIZE..]);
        let tally = Tally { datagrams: 1, bytes: datagram.len(), data: !packet.is_empty() };
        self.sent(peer, state, &session, tally, now, out);
        out.transmits.push(Transmit { endpoint, datagram, tos: ecn::outer(packet) });
        true
    }

    /// Note that datagrams are sent to `peer`.
    pub(crate) fn sent(
        &self,
        peer: &Arc<Peer>,
        state: &mut PeerState,
        session: &Session,
        tally: Tally,
        now: Seconds,
        out: &mut Outbox,
    ) {
        state.counters.tx_packets += tally.datagrams as u64;
        state.counters.tx_bytes += tally.bytes as u64;
        state.counters.last_sent = Some(now);
        state.liveness.sent(now, tally.data);
        self.schedule(peer, state);
        if session.worn_by_sending(now) {
            self.want(peer, state, Reason::Rekey, now, out);
        }
    }

    /// Hold a packet until there is a session, and ask for one. If the peer has too many, its
    /// oldest is dropped.
    pub(crate) fn hold(
        &self,
        peer: &Arc<Peer>,
        state: &mut PeerState,
        packet: Box<[u8]>,
        now: Seconds,
        out: &mut Outbox,
    ) {
        if state.removed {
            self.drops.count(DropReason::RemovedPeer, 1);
            return;
        }
        if state.held.len() >= MAX_STAGED_PACKETS {
            state.held.pop_front();
            self.held.fetch_sub(1, Ordering::Relaxed);
            self.count_drops(peer, DropReason::HeldTooMany, 1);
        }
        let one_more = |held: usize| (held < MAX_HELD_PACKETS).then_some(held + 1);
        if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
            state.held.push_back(packet);
        } else {
            self.count_drops(peer, DropReason::HeldTooMany, 1);
        }
        self.want(peer, state, Reason::NoSession, now, out);
    }

    pub(super) fn send_held(&self, peer: &Arc<Peer>, state: &mut PeerState, now: Seconds, out: &mut Outbox) {
        let held = std::mem::take(&mut state.held);
        self.held.fetch_sub(held.len(), Ordering::Relaxed);
        for packet in held {
            if !self.transmit_sealed(peer, state, &packet, now, out) {
                self.hold(peer, state, packet, now, out);
            }
        }
    }

    /// Send the held packets, or an empty datagram if there are none. Without a session, ask for
    /// one.
    pub(super) fn send_keepalive(&self, peer: &Arc<Peer>, state: &mut PeerState, now: Seconds, out: &mut Outbox) {
        if self.is_down() {
            return;
        }
        if !state.held.is_empty() {
            self.send_held(peer, state, now, out);
        } else if state.endpoint.is_some() && !self.transmit_sealed(peer, state, &[], now, out) {
            self.want(peer, state, Reason::NoSession, now, out);
        }
    }

    pub(super) fn persistent_keepalive(
        &self,
        peer: &Arc<Peer>,
        state: &mut PeerState,
        now: Seconds,
        out: &mut Outbox,
    ) {
        let next = now + Seconds::from(state.liveness.interval);
        state.liveness.persistent_at = if self.is_down() { NEVER } else { next };
        self.send_keepalive(peer, state, now, out);
    }
}
