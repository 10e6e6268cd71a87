//! The plane's rules: bytes and `now` in, bytes and events out.
//!
//! The steps of a packet out are route, claim a nonce, pad, seal; of a datagram in look up the index, check the
//! window, open, mark the window, roam, check the inner source. [`crate::outbound`] and [`crate::inbound`] do the
//! same steps for whole batches, with the pieces of this type.
//!
//! Timers and their order are the kernel's (drivers/net/wireguard: send.c, receive.c, timers.c).
//!
//! Locks are taken in this order: a peer's state, a session's window, then the maps, each of which lets go before it
//! returns.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::aead::Aead;
use crate::allowed_ips::AllowedIps;
use crate::contract::{
    Address, Endpoint, Event, Keypair, MAX_STAGED_PACKETS, NEVER, Network, Outbox, PeerId, Reason, Seconds, Transmit,
};
use crate::drops::{Drop, Drops};
use crate::gate::{Gate, Verdict};
use crate::indices::{Indices, Random};
use crate::keypairs::{Dead, Session};
use crate::liveness::{Deadlines, NO_ANSWER_JITTER};
use crate::lock;
use crate::peers::{Counters, Owned, Peer, PeerState};
use crate::snapshot::SnapshotMap;
use crate::vnet::padded;
use crate::wire::{
    COOKIE_REPLY, COOKIE_REPLY_SIZE, DATA_HEADER_SIZE, DATA_MAGIC, FOREIGN_MAGIC, INITIATION, OVERHEAD, RESPONSE,
    TAG_SIZE, message_type, u32_at, u64_at,
};

/// Seconds between two HandshakeWanted of one peer.
const WANTED_INTERVAL: Seconds = 1.0;
/// Packets held for all peers together, so that many silent peers cannot take all memory.
pub const MAX_HELD_PACKETS: usize = 64 * MAX_STAGED_PACKETS;

/// Says how many emitted HandshakeReceived wait for Python.
pub type Backlog = Box<dyn Fn() -> usize + Send + Sync>;

/// The destination of an IP packet; None for what is none.
pub(crate) fn destination(packet: &[u8]) -> Option<Address> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => Some(v4_at(packet, 16)),
        6 if packet.len() >= 40 => Some(v6_at(packet, 24)),
        _ => None,
    }
}

fn v4_at(packet: &[u8], at: usize) -> Address {
    Address::V4(u32_at(packet, at).swap_bytes())
}

fn v6_at(packet: &[u8], at: usize) -> Address {
    Address::V6(u128::from(u64_at(packet, at).swap_bytes()) << 64 | u128::from(u64_at(packet, at + 8).swap_bytes()))
}

/// Whether a packet is itself a datagram of the session with this header: its peer can't be reached but through itself,
/// and sealing it would go on for ever.
pub(crate) fn is_looped(packet: &[u8], header: [u8; 8]) -> bool {
    const UDP: u8 = 17;
    let payload = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.get(9) == Some(&UDP) => usize::from(packet[0] & 15) * 4 + 8,
        Some(6) if packet.get(6) == Some(&UDP) => 48,
        _ => return false,
    };
    packet.get(payload..payload + 8) == Some(&header)
}

/// The source of what a peer sent, and its length without padding.
pub(crate) fn inner_source(plaintext: &[u8]) -> Result<(Address, usize), Drop> {
    let size = plaintext.len();
    let word = |at: usize| usize::from(plaintext[at]) << 8 | usize::from(plaintext[at + 1]);
    let (shortest, length, source) = match plaintext.first().map(|first| first >> 4) {
        Some(4) if size >= 20 => (20, word(2), v4_at(plaintext, 12)),
        Some(6) if size >= 40 => (40, 40 + word(4), v6_at(plaintext, 8)),
        _ => return Err(Drop::InnerNotIp),
    };
    if (shortest..=size).contains(&length) { Ok((source, length)) } else { Err(Drop::InnerLength) }
}

/// Datagrams of one session that go or came together.
#[derive(Clone, Copy)]
pub(crate) struct Tally {
    /// How many.
    pub(crate) datagrams: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// Whether one carries a packet: the others are keepalives.
    pub(crate) data: bool,
}

/// All peers of one interface.
pub struct Transport {
    /// Of the inner interface; padding does not go over it.
    mtu: AtomicUsize,
    /// What was dropped.
    pub drops: Drops,
    pub(crate) allowed: AllowedIps<Arc<Peer>>,
    /// By local index.
    pub(crate) sessions: SnapshotMap<u32, Owned>,
    peers: Mutex<HashMap<PeerId, Arc<Peer>>>,
    indices: Indices,
    gate: Gate,
    deadlines: Deadlines<Arc<Peer>>,
    held: AtomicUsize,
    random: Random,
    backlog: Backlog,
}

impl Transport {
    /// An interface without peers, for the owner of `public_key`.
    pub fn new(public_key: &[u8; 32], mtu: usize, random: Random, backlog: Backlog) -> Self {
        Self {
            mtu: AtomicUsize::new(mtu),
            drops: Drops::default(),
            allowed: AllowedIps::default(),
            sessions: SnapshotMap::default(),
            peers: Mutex::default(),
            indices: Indices::default(),
            gate: Gate::new(public_key),
            deadlines: Deadlines::default(),
            held: AtomicUsize::new(0),
            random,
            backlog,
        }
    }

    /// Of the inner interface.
    pub fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Follow the inner interface.
    pub fn set_mtu(&self, mtu: usize) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    // Commands of the contract.

    /// Belong to the owner of another public key from now on. No session sends any more; what comes is still taken.
    pub fn set_public_key(&self, public_key: &[u8; 32]) {
        self.gate.set_public_key(public_key);
        let peers: Vec<_> = lock(&self.peers).values().cloned().collect();
        for peer in peers {
            let mut state = peer.state();
            state.keypairs.end_sending();
            state.wanted_at = Seconds::NEG_INFINITY;
        }
    }

    /// Add a peer or change it; its sessions stay. Turning the persistent keepalive on sends one at once.
    ///
    /// `endpoint`: None keeps what is known. `networks`: each moves here from other peers. `interval`: seconds of the
    /// persistent keepalive, 0 for none.
    pub fn set_peer(
        &self,
        peer: PeerId,
        endpoint: Option<Endpoint>,
        networks: &[Network],
        interval: u32,
        now: Seconds,
        out: &mut Outbox,
    ) {
        let known = Arc::clone(lock(&self.peers).entry(peer).or_insert_with(|| Arc::new(Peer::new(peer))));
        let mut state = known.state();
        if endpoint.is_some() {
            state.endpoint = endpoint;
        }
        self.allowed.set(&known, networks);
        let turned_on = interval != 0 && state.liveness.interval == 0;
        state.liveness.interval = interval;
        if interval == 0 {
            state.liveness.persistent_at = NEVER;
        } else if turned_on {
            self.persistent_keepalive(&known, &mut state, now, out);
            self.deadlines.schedule(&known, &mut state.liveness);
        }
    }

    /// Send to `endpoint` from now on, until an authenticated datagram comes from elsewhere.
    pub fn set_endpoint(&self, peer: PeerId, endpoint: Endpoint) {
        if let Some(known) = self.peer(peer) {
            known.state().endpoint = Some(endpoint);
        }
    }

    /// Forget a peer, its keys, indices and held packets.
    pub fn remove_peer(&self, peer: PeerId) {
        let known = lock(&self.peers).remove(&peer);
        self.indices.forget(peer);
        let Some(known) = known else { return };
        let mut state = known.state();
        state.removed = true;
        self.allowed.remove(&known);
        self.retire(state.keypairs.clear());
        self.drop_packets(&known, &mut state, Drop::RemovedPeer);
        state.liveness.forget();
    }

    /// Give a fresh random index for a handshake; the peer's reserved, unused one is given back.
    pub fn reserve_index(&self, peer: PeerId) -> u32 {
        self.indices.reserve(peer, &self.random)
    }

    /// Put a keypair in place. The handshake counts as sent and received, as in the kernel.
    ///
    /// An initiator's becomes current and is used at once: held packets go out, or an empty one where none is held.
    /// A responder's becomes next until a datagram confirms it.
    pub fn install_keypair(&self, peer: PeerId, keypair: &Keypair, now: Seconds, out: &mut Outbox) {
        let Some(known) = self.peer(peer) else {
            self.indices.forget(peer);
            return;
        };
        let mut state = known.state();
        let session = Arc::new(Session::new(keypair));
        self.indices.take(peer, keypair.local_index);
        let owned = Owned { peer: Arc::clone(&known), session: Arc::clone(&session) };
        self.sessions.insert(keypair.local_index, owned);
        self.retire(state.keypairs.install(session));
        state.counters.handshakes += 1;
        state.wanted_at = Seconds::NEG_INFINITY;
        state.liveness.received(now, false);
        state.liveness.sent(now, false);
        let mut drawn = [0; 2];
        (self.random)(&mut drawn);
        state.liveness.jitter = f64::from(u16::from_le_bytes(drawn)) / 65536.0 * NO_ANSWER_JITTER;
        if keypair.initiator {
            self.send_keepalive(&known, &mut state, now, out);
        }
        self.deadlines.schedule(&known, &mut state.liveness);
    }

    /// Erase all keys of a peer (section 6.3: none lives longer than 3 * REJECT-AFTER-TIME).
    pub fn erase_keypairs(&self, peer: PeerId) {
        if let Some(known) = self.peer(peer) {
            let mut state = known.state();
            self.retire(state.keypairs.clear());
            state.liveness.stop();
        }
    }

    /// Drop the packets that wait for a handshake: it was given up.
    pub fn drop_held(&self, peer: PeerId) {
        if let Some(known) = self.peer(peer) {
            let mut state = known.state();
            self.drop_packets(&known, &mut state, Drop::NoAnswer);
            state.liveness.keepalive_at = NEVER;
        }
    }

    /// Each peer's endpoint and counters.
    pub fn stats(&self) -> Vec<(PeerId, Option<Endpoint>, Counters)> {
        let peers: Vec<_> = lock(&self.peers).values().cloned().collect();
        let read = |peer: &Arc<Peer>| {
            let state = peer.state();
            (peer.id, state.endpoint, Counters { drops: peer.drops(), ..state.counters })
        };
        peers.iter().map(read).collect()
    }

    // Packets and time.

    /// Take one inner IP packet to its peer: sealed, or held while there is no session.
    pub fn handle_packet(&self, packet: &[u8], now: Seconds, out: &mut Outbox) {
        let Some(peer) = destination(packet).and_then(|address| self.allowed.find(address)) else {
            self.drops.count(Drop::NoPeer, 1);
            return;
        };
        let mut state = peer.state();
        if state.endpoint.is_none() {
            self.count_drops(&peer, Drop::NoEndpoint, 1);
        } else if !self.transmit_sealed(&peer, &mut state, packet, now, out) {
            self.hold(&peer, &mut state, packet.into(), now, out);
        }
    }

    /// Take one datagram from the network, which is opened in place; give where the inner packet is in it, if there
    /// is one to deliver.
    pub fn handle_datagram(
        &self,
        datagram: &mut [u8],
        source: Endpoint,
        now: Seconds,
        out: &mut Outbox,
    ) -> Option<Range<usize>> {
        if datagram.starts_with(&DATA_MAGIC) {
            return self.open(datagram, source, now, out);
        }
        if datagram.starts_with(FOREIGN_MAGIC) {
            out.events.push(Event::ForeignReceived(Box::from(&*datagram), source));
        } else {
            self.handle_handshake(datagram, source, now, out);
        }
        None
    }

    /// Do what is due at `now`.
    pub fn handle_timeout(&self, now: Seconds, out: &mut Outbox) {
        let mut due = Vec::new();
        while let Some((at, peer)) = self.deadlines.pop(now) {
            if self.deadlines.is_due(at, &peer, &mut peer.state().liveness, now) {
                due.push(peer);
            }
        }
        for peer in due {
            let mut state = peer.state();
            if state.removed {
                continue;
            }
            if state.liveness.keepalive_at <= now {
                state.liveness.keepalive_ran_out(now);
                let again = state.liveness.keepalive_at;
                self.send_keepalive(&peer, &mut state, now, out);
                state.liveness.keepalive_at = again;
            }
            if state.liveness.no_answer_at <= now {
                state.liveness.no_answer_at = NEVER;
                state.forget_local();
                self.want(&peer, &mut state, Reason::NoAnswer, now, out);
            }
            if state.liveness.persistent_at <= now {
                self.persistent_keepalive(&peer, &mut state, now, out);
            }
            self.deadlines.schedule(&peer, &mut state.liveness);
        }
    }

    /// When to call [`Self::handle_timeout`], at the latest.
    pub fn poll_timeout(&self) -> Option<Seconds> {
        self.deadlines.next()
    }

    // Pieces, which the batches use too. Who has a peer's state has it locked.

    /// Keep a packet until there is a session, and ask for one; the oldest gives way.
    pub(crate) fn hold(
        &self,
        peer: &Arc<Peer>,
        state: &mut PeerState,
        packet: Box<[u8]>,
        now: Seconds,
        out: &mut Outbox,
    ) {
        if state.removed {
            self.drops.count(Drop::RemovedPeer, 1);
            return;
        }
        if state.held.len() >= MAX_STAGED_PACKETS {
            state.held.pop_front();
            self.held.fetch_sub(1, Ordering::Relaxed);
            self.count_drops(peer, Drop::HeldTooMany, 1);
        }
        let one_more = |held: usize| (held < MAX_HELD_PACKETS).then_some(held + 1);
        if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
            state.held.push_back(packet);
        } else {
            self.count_drops(peer, Drop::HeldTooMany, 1);
        }
        self.want(peer, state, Reason::NoSession, now, out);
    }

    /// Count drops of what a peer sent, or should have got.
    pub(crate) fn count_drops(&self, peer: &Peer, reason: Drop, count: u64) {
        self.drops.count(reason, count);
        peer.count_drops(count);
    }

    /// Ask Python for a handshake, once a second a peer at most.
    fn want(&self, peer: &Peer, state: &mut PeerState, reason: Reason, now: Seconds, out: &mut Outbox) {
        if now - state.wanted_at >= WANTED_INTERVAL {
            state.wanted_at = now;
            out.events.push(Event::HandshakeWanted(peer.id, reason));
        }
    }

    /// Note that datagrams go to `peer`.
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

    /// Note that authentic datagrams came from `source`.
    ///
    /// This is where a peer roams, and where a responder's session becomes the current one.
    pub(crate) fn received(
        &self,
        Owned { peer, session }: &Owned,
        source: Endpoint,
        tally: Tally,
        now: Seconds,
        out: &mut Outbox,
    ) {
        let mut state = peer.state();
        state.counters.rx_packets += tally.datagrams as u64;
        state.counters.rx_bytes += tally.bytes as u64;
        state.counters.last_received = Some(now);
        state.liveness.received(now, tally.data);
        if state.endpoint != Some(source) {
            state.endpoint = Some(source);
            out.events.push(Event::EndpointMoved(peer.id, source));
        }
        if state.keypairs.is_next(session) {
            self.retire(state.keypairs.confirm());
            state.wanted_at = Seconds::NEG_INFINITY;
            out.events.push(Event::KeypairConfirmed(peer.id, session.local_index));
            self.send_held(peer, &mut state, now, out);
        }
        if state.keypairs.is_current(session) && session.worn_by_receiving(now) {
            self.want(peer, &mut state, Reason::Rekey, now, out);
        }
        self.schedule(peer, &mut state);
    }

    fn schedule(&self, peer: &Arc<Peer>, state: &mut PeerState) {
        if !state.removed {
            self.deadlines.schedule(peer, &mut state.liveness);
        }
    }

    fn peer(&self, peer: PeerId) -> Option<Arc<Peer>> {
        lock(&self.peers).get(&peer).cloned()
    }

    /// Seal one packet (empty for a keepalive) to its peer; false where no session may send it.
    fn transmit_sealed(
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
        out.transmits.push(Transmit { endpoint, datagram });
        true
    }

    fn open(&self, datagram: &mut [u8], source: Endpoint, now: Seconds, out: &mut Outbox) -> Option<Range<usize>> {
        let size = datagram.len();
        let opened = self.authenticate(datagram, now)?;
        let plaintext = DATA_HEADER_SIZE..size - TAG_SIZE;
        let tally = Tally { datagrams: 1, bytes: size, data: !plaintext.is_empty() };
        self.received(&opened, source, tally, now, out);
        if plaintext.is_empty() {
            return None;
        }
        let checked = inner_source(&datagram[plaintext]).and_then(|(address, length)| {
            if self.allowed.is_owned_by(address, &opened.peer) { Ok(length) } else { Err(Drop::InnerSource) }
        });
        let length = checked.map_err(|reason| self.count_drops(&opened.peer, reason, 1)).ok()?;
        Some(DATA_HEADER_SIZE..DATA_HEADER_SIZE + length)
    }

    /// Open a data message in place, and mark its counter; None where it was dropped.
    fn authenticate(&self, datagram: &mut [u8], now: Seconds) -> Option<Owned> {
        if datagram.len() < OVERHEAD {
            self.drops.count(Drop::BadLength, 1);
            return None;
        }
        let Some(found) = self.sessions.get(&u32_at(datagram, 4)) else {
            self.drops.count(Drop::UnknownIndex, 1);
            return None;
        };
        let opened = Self::open_on(&found.session, datagram, now);
        opened.map_err(|reason| self.count_drops(&found.peer, reason, 1)).ok()?;
        Some(found)
    }

    fn open_on(session: &Session, datagram: &mut [u8], now: Seconds) -> Result<(), Drop> {
        if session.expired(now) {
            return Err(Drop::ExpiredSession);
        }
        let counter = u64_at(datagram, 8);
        let mut window = session.window();
        if !window.fresh(counter) {
            return Err(Drop::Replayed);
        }
        if !session.opener().open(counter, &mut datagram[DATA_HEADER_SIZE..]) {
            return Err(Drop::BadTag);
        }
        window.mark(counter);
        Ok(())
    }

    fn handle_handshake(&self, datagram: &[u8], source: Endpoint, now: Seconds, out: &mut Outbox) {
        let verdict = match message_type(datagram) {
            INITIATION | RESPONSE => self.gate.judge(datagram, source.remote, (self.backlog)(), now, &self.random),
            // It has no MAC1. Its receiver index must at least be one that we gave out.
            COOKIE_REPLY if datagram.len() == COOKIE_REPLY_SIZE && self.indices.contains(u32_at(datagram, 4)) => {
                Verdict::Pass
            }
            COOKIE_REPLY => Verdict::Drop(Drop::UnknownIndex),
            _ => Verdict::Drop(Drop::UnknownType),
        };
        match verdict {
            Verdict::Pass => out.events.push(Event::HandshakeReceived(datagram.into(), source)),
            Verdict::Drop(reason) => self.drops.count(reason, 1),
            Verdict::Challenge(reply) => {
                out.transmits.push(Transmit { endpoint: source, datagram: reply });
                self.drops.count(Drop::Challenged, 1);
            }
        }
    }

    /// Send what is held, or an empty datagram; without a session ask for one.
    fn send_keepalive(&self, peer: &Arc<Peer>, state: &mut PeerState, now: Seconds, out: &mut Outbox) {
        if !state.held.is_empty() {
            self.send_held(peer, state, now, out);
        } else if state.endpoint.is_some() && !self.transmit_sealed(peer, state, &[], now, out) {
            self.want(peer, state, Reason::NoSession, now, out);
        }
    }

    fn persistent_keepalive(&self, peer: &Arc<Peer>, state: &mut PeerState, now: Seconds, out: &mut Outbox) {
        state.liveness.persistent_at = now + Seconds::from(state.liveness.interval);
        self.send_keepalive(peer, state, now, out);
    }

    fn send_held(&self, peer: &Arc<Peer>, state: &mut PeerState, now: Seconds, out: &mut Outbox) {
        let held = std::mem::take(&mut state.held);
        self.held.fetch_sub(held.len(), Ordering::Relaxed);
        for packet in held {
            if !self.transmit_sealed(peer, state, &packet, now, out) {
                self.hold(peer, state, packet, now, out);
            }
        }
    }

    fn drop_packets(&self, peer: &Peer, state: &mut PeerState, reason: Drop) {
        let held = std::mem::take(&mut state.held);
        self.held.fetch_sub(held.len(), Ordering::Relaxed);
        self.count_drops(peer, reason, held.len() as u64);
    }

    fn retire(&self, dead: Dead) {
        for session in dead.into_iter().flatten() {
            self.sessions.remove_if(&session.local_index, |owned| Arc::ptr_eq(&owned.session, &session));
            self.indices.release(session.local_index);
        }
    }

    /// How many indices are given out, and how many sessions there are.
    #[cfg(test)]
    pub(crate) fn bookings(&self) -> (usize, usize) {
        (self.indices.len(), self.sessions.len())
    }
}

#[cfg(test)]
mod tests;
