//! The state of one peer.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::contract::{Endpoint, PeerId, Seconds};
use crate::keypairs::{Keypairs, Session};
use crate::liveness::Liveness;
use crate::locks::lock;

/// One peer. Two peers are equal only if they are the same object.
pub struct Peer {
    /// The caller's number for it.
    pub id: PeerId,
    state: Mutex<PeerState>,
    /// Packets dropped on their way to it, and datagrams of its sessions.
    drops: AtomicU64,
}

impl Peer {
    /// Make a peer without sessions.
    pub fn new(id: PeerId) -> Self {
        Self { id, state: Mutex::default(), drops: AtomicU64::new(0) }
    }

    /// Count drops. They are not in the state, because the way in doesn't lock the state where it
    /// drops.
    pub fn count_drops(&self, count: u64) {
        self.drops.fetch_add(count, Ordering::Relaxed);
    }

    /// Return how many drops were counted.
    pub fn drops(&self) -> u64 {
        self.drops.load(Ordering::Relaxed)
    }

    /// Lock what changes. Done per batch.
    pub fn state(&self) -> MutexGuard<'_, PeerState> {
        lock(&self.state)
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for Peer {}

impl Hash for Peer {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.id.hash(hasher);
    }
}

/// What changes in a peer.
pub struct PeerState {
    /// The last endpoint, or the one to use.
    pub endpoint: Option<Endpoint>,
    /// Its sessions.
    pub keypairs: Keypairs,
    /// Its timers.
    pub liveness: Liveness,
    /// Packets that wait for a session.
    pub held: VecDeque<Box<[u8]>>,
    /// When a handshake was last asked for.
    pub wanted_at: Seconds,
    /// When Python was last told of a move.
    pub moved_at: Seconds,
    /// Whether several datagrams to it may go as one message that the kernel cuts.
    pub segmenting: bool,
    /// Whether a handshake message to it was dropped since the interface went down.
    pub unsent: bool,
    /// Its counters.
    pub counters: PeerCounters,
    /// Whether it was removed. A batch that began earlier may still hold the peer, but stores
    /// nothing in it.
    pub removed: bool,
}

impl PeerState {
    /// Let the kernel choose which of our addresses to send from. The known one may be the problem.
    pub fn forget_local(&mut self) {
        self.endpoint = self.endpoint.map(Endpoint::plain);
    }
}

impl Default for PeerState {
    fn default() -> Self {
        Self {
            endpoint: None,
            keypairs: Keypairs::default(),
            liveness: Liveness::default(),
            held: VecDeque::new(),
            wanted_at: Seconds::NEG_INFINITY,
            moved_at: Seconds::NEG_INFINITY,
            segmenting: true,
            unsent: false,
            counters: PeerCounters::default(),
            removed: false,
        }
    }
}

/// Counters of one peer. Bytes are those of whole WireGuard datagrams, handshakes included, as in the
/// kernel's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PeerCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Of those, the bytes of handshakes.
    pub rx_handshake_bytes: u64,
    /// The same of those sent.
    pub tx_handshake_bytes: u64,
    /// Data messages received.
    pub rx_packets: u64,
    /// Data messages sent.
    pub tx_packets: u64,
    /// When the last authenticated datagram came.
    pub last_received: Option<Seconds>,
    /// When the last datagram went out.
    pub last_sent: Option<Seconds>,
    /// Keypairs installed.
    pub handshakes: u64,
    /// Packets dropped on their way to it, and datagrams of its sessions.
    pub drops: u64,
}

/// A session and its peer, found by a datagram's receiver index.
#[derive(Clone)]
pub struct Owned {
    /// The peer.
    pub peer: Arc<Peer>,
    /// The session.
    pub session: Arc<Session>,
}
