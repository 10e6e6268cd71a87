//! The plane's rules: bytes and `now` go in, bytes and events come out.
//!
//! This file has the state and what all rules share. The rules are in `commands`, `outward`,
//! `inward` and `timeouts`. [`crate::outbound`] and [`crate::inbound`] do the steps of `outward`
//! and `inward` for whole batches, with methods of [`Transport`].
//!
//! Timers and their order are the kernel's (drivers/net/wireguard: send.c, receive.c, timers.c).
//!
//! Locks are taken in this order: a peer's state, a session's window, then the maps. Each map
//! releases its lock before it returns.

mod commands;
mod inward;
mod outward;
#[cfg(test)]
mod tests;
mod timeouts;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::allowed_ips::AllowedIps;
use crate::contract::{Event, NEVER, Outbox, PeerId, Reason, Seconds};
use crate::drops::{DropReason, Drops};
use crate::foreign::ForeignPace;
use crate::gate::Gate;
use crate::indices::{Indices, Random};
use crate::keypairs::Dead;
use crate::liveness::Deadlines;
use crate::locks::lock;
use crate::pairing::PairingFilter;
use crate::peers::{Owned, Peer, PeerState};
use crate::snapshot::SnapshotMap;
use crate::unreachable::{Answers, Why};

/// Seconds between two HandshakeWanted events of one peer.
const WANTED_INTERVAL: Seconds = 1.0;

/// Seconds between two EndpointMoved events of one peer.
const MOVED_INTERVAL: Seconds = 0.1;

/// Returns how many HandshakeReceived events wait for Python.
pub type Backlog = Box<dyn Fn() -> usize + Send + Sync>;

/// Datagrams of one session that were sent or received together.
#[derive(Clone, Copy)]
pub(crate) struct Tally {
    /// The number of datagrams.
    pub(crate) datagrams: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// Whether one of them carries a packet. Otherwise all are keepalives.
    pub(crate) data: bool,
}

/// The peers of one interface, and the rules for their packets.
pub struct Transport {
    /// The MTU of the inner interface. Padding does not exceed it.
    mtu: AtomicUsize,
    /// Counters of what was dropped.
    pub drops: Drops,
    pub(crate) allowed: AllowedIps<Arc<Peer>>,
    /// The sessions by local index.
    pub(crate) sessions: SnapshotMap<u32, Owned>,
    peers: Mutex<HashMap<PeerId, Arc<Peer>>>,
    indices: Indices,
    gate: Gate,
    foreign: Mutex<ForeignPace>,
    pairing: Mutex<Option<PairingFilter>>,
    deadlines: Deadlines<Arc<Peer>>,
    held: AtomicUsize,
    /// Whether the interface is down.
    down: AtomicBool,
    unreachable: Answers,
    random: Random,
    backlog: Backlog,
}

impl Transport {
    /// Make an interface without peers for the owner of `public_key`.
    pub fn new(public_key: &[u8; 32], mtu: usize, random: Random, backlog: Backlog) -> Self {
        Self {
            mtu: AtomicUsize::new(mtu),
            drops: Drops::default(),
            allowed: AllowedIps::default(),
            sessions: SnapshotMap::default(),
            peers: Mutex::default(),
            indices: Indices::default(),
            gate: Gate::new(public_key),
            foreign: Mutex::default(),
            pairing: Mutex::default(),
            deadlines: Deadlines::default(),
            held: AtomicUsize::new(0),
            down: AtomicBool::new(false),
            unreachable: Answers::default(),
            random,
            backlog,
        }
    }

    /// Return the MTU of the inner interface.
    pub fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Set the MTU of the inner interface.
    pub fn set_mtu(&self, mtu: usize) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Return whether the interface is down.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    fn peer(&self, peer: PeerId) -> Option<Arc<Peer>> {
        lock(&self.peers).get(&peer).cloned()
    }

    /// Count drops of packets that a peer sent, or that were for it.
    pub(crate) fn count_drops(&self, peer: &Peer, reason: DropReason, count: u64) {
        self.drops.count(reason, count);
        peer.count_drops(count);
    }

    /// Tell the host that it can't reach a packet's destination.
    pub(crate) fn answer_unreachable(&self, packet: &[u8], now: Seconds, out: &mut Outbox) {
        out.answers.extend(self.unreachable.answer(packet, Why::NoPeer, now));
    }

    /// Ask Python for a handshake, at most once per second and peer.
    fn want(&self, peer: &Peer, state: &mut PeerState, reason: Reason, now: Seconds, out: &mut Outbox) {
        if now - state.wanted_at >= WANTED_INTERVAL && !self.is_down() {
            state.wanted_at = now;
            out.events.push(Event::HandshakeWanted(peer.id, reason));
        }
    }

    /// Report to Python that the peer moved. Soon after an earlier report it waits, and then reports the
    /// last place: a peer can move with every datagram.
    fn report_move(peer: &Peer, state: &mut PeerState, now: Seconds, out: &mut Outbox) {
        let due = state.moved_at + MOVED_INTERVAL;
        if now < due {
            state.liveness.report_at = due;
            return;
        }
        state.moved_at = now;
        state.liveness.report_at = NEVER;
        out.events.extend(state.endpoint.map(|endpoint| Event::EndpointMoved(peer.id, endpoint)));
    }

    fn schedule(&self, peer: &Arc<Peer>, state: &mut PeerState) {
        if !state.removed {
            self.deadlines.schedule(peer, &mut state.liveness);
        }
    }

    fn retire(&self, dead: Dead) {
        for session in dead.into_iter().flatten() {
            self.sessions.remove_if(&session.local_index, |owned| Arc::ptr_eq(&owned.session, &session));
            self.indices.release(session.local_index);
        }
    }

    /// Return how many indices are given out, and how many sessions there are.
    #[cfg(test)]
    pub(crate) fn bookings(&self) -> (usize, usize) {
        (self.indices.len(), self.sessions.len())
    }
}
