//! The contract's commands: peers, endpoints, keypairs, statistics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Transport;
use crate::contract::{
    Endpoint, Flow, Keypair, NEVER, Network, Outbox, PairingGate, PeerId, Reason, Seconds, Transmit,
};
use crate::drops::DropReason;
use crate::ecn;
use crate::keypairs::Session;
use crate::liveness::NO_ANSWER_JITTER;
use crate::locks::lock;
use crate::pairing::PairingFilter;
use crate::peers::{Owned, Peer, PeerCounters, PeerState};
use crate::wire::{FOREIGN_MAGIC, INITIATION, INITIATION_SIZE, RESPONSE, RESPONSE_SIZE, message_type, u32_at};

impl Transport {
    /// Change our public key. Sessions stop sending, but still receive.
    pub fn set_public_key(&self, public_key: &[u8; 32]) {
        self.gate.set_public_key(public_key);
        let peers: Vec<_> = lock(&self.peers).values().cloned().collect();
        for peer in peers {
            let mut state = peer.state();
            state.keypairs.end_sending();
            state.wanted_at = Seconds::NEG_INFINITY;
        }
    }

    /// Guard a server's pairing from now on: open the window, change its epoch, or close it (None).
    pub fn set_pairing(&self, gate: Option<PairingGate>, now: Seconds) {
        lock(&self.pairing).get_or_insert_with(|| PairingFilter::new(&self.random)).set_gate(gate, now);
    }

    /// Note whether the interface is up. While it is down, nothing but enrollment passes: no timer
    /// runs, and no handshake is sent or taken. Sessions stay. Once it is up, each peer with a
    /// persistent keepalive gets one.
    pub fn set_up(&self, up: bool, now: Seconds, out: &mut Outbox) {
        if self.down.swap(!up, Ordering::Relaxed) != up {
            return;
        }
        let peers: Vec<_> = lock(&self.peers).values().cloned().collect();
        for peer in peers {
            let mut state = peer.state();
            if !up {
                state.unsent = false;
                state.liveness.stop();
                state.liveness.persistent_at = NEVER;
                self.drop_packets(&peer, &mut state, DropReason::InterfaceDown);
            } else if state.liveness.interval != 0 && state.endpoint.is_some() {
                state.wanted_at = Seconds::NEG_INFINITY;
                state.liveness.persistent_at = now + Seconds::from(state.liveness.interval);
                if !self.transmit_sealed(&peer, &mut state, &[], now, out) {
                    let reason = if state.unsent { Reason::InterfaceUp } else { Reason::NoSession };
                    self.want(&peer, &mut state, reason, now, out);
                }
                self.deadlines.schedule(&peer, &mut state.liveness);
            }
        }
    }

    /// Send one datagram as it is. A handshake counts as sent to its peer.
    pub fn send(&self, endpoint: Endpoint, datagram: Vec<u8>, now: Seconds, out: &mut Outbox) {
        if datagram.starts_with(FOREIGN_MAGIC) {
            lock(&self.pairing).iter_mut().for_each(|filter| filter.sent(&datagram, now));
        }
        let handshake = matches!(
            (message_type(&datagram), datagram.len()),
            (INITIATION, INITIATION_SIZE) | (RESPONSE, RESPONSE_SIZE)
        );
        let owner = if handshake { self.indices.owner(u32_at(&datagram, 4)) } else { None };
        let peer = owner.and_then(|owner| self.peer(owner));
        if self.is_down() && !datagram.starts_with(FOREIGN_MAGIC) {
            self.drops.count(DropReason::InterfaceDown, 1);
            peer.iter().for_each(|peer| peer.state().unsent = true);
            return;
        }
        if let Some(peer) = peer {
            let counters = &mut peer.state().counters;
            counters.tx_bytes += datagram.len() as u64;
            counters.tx_handshake_bytes += datagram.len() as u64;
        }
        let tos = ecn::of_datagram(&datagram);
        out.transmits.push(Transmit { endpoint, datagram, tos });
    }

    /// Add a peer or change it. Its sessions are kept. If the persistent keepalive is turned on,
    /// one is sent at once.
    ///
    /// `endpoint`: None keeps the known one. `networks`: each is taken from the peer that has it.
    /// `interval`: seconds of the persistent keepalive, 0 for none.
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

    /// Let the kernel cut messages into datagrams for this peer, or send it each datagram by itself.
    pub fn set_segmenting(&self, peer: PeerId, on: bool) {
        if let Some(known) = self.peer(peer) {
            known.state().segmenting = on;
        }
    }

    /// Return what a peer's sessions have sent and received, the one that sends first.
    pub fn flows(&self, peer: PeerId) -> Vec<Flow> {
        let Some(known) = self.peer(peer) else { return Vec::new() };
        let sessions = {
            let keypairs = &known.state().keypairs;
            [keypairs.current.clone(), keypairs.previous.clone()]
        };
        sessions.iter().flatten().map(|session| session.flow()).collect()
    }

    /// Forget a peer with its keys, indices and held packets.
    pub fn remove_peer(&self, peer: PeerId) {
        let known = lock(&self.peers).remove(&peer);
        self.indices.forget(peer);
        let Some(known) = known else { return };
        let mut state = known.state();
        state.removed = true;
        self.allowed.remove(&known);
        self.retire(state.keypairs.clear());
        self.drop_packets(&known, &mut state, DropReason::RemovedPeer);
        state.liveness.forget();
    }

    /// Return a fresh random index for a handshake. An earlier one that the peer reserved and did
    /// not use is released.
    pub fn reserve_index(&self, peer: PeerId) -> u32 {
        self.indices.reserve(peer, &self.random)
    }

    /// Install a keypair. The handshake counts as sent and received, as in the kernel. So does the
    /// peer's message in the counters.
    ///
    /// An initiator's keypair becomes the current one and is used at once: held packets are sent,
    /// or an empty one if none is held. A responder's becomes the next one until a datagram
    /// confirms it.
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
        let message = if keypair.initiator { RESPONSE_SIZE } else { INITIATION_SIZE } as u64;
        state.counters.rx_bytes += message;
        state.counters.rx_handshake_bytes += message;
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

    /// Drop the packets that wait for a handshake, because it was given up.
    pub fn drop_held(&self, peer: PeerId) {
        if let Some(known) = self.peer(peer) {
            let mut state = known.state();
            self.drop_packets(&known, &mut state, DropReason::NoAnswer);
            state.liveness.keepalive_at = NEVER;
        }
    }

    /// Return each peer's endpoint and counters.
    pub fn stats(&self) -> Vec<(PeerId, Option<Endpoint>, PeerCounters)> {
        let peers: Vec<_> = lock(&self.peers).values().cloned().collect();
        let read = |peer: &Arc<Peer>| {
            let state = peer.state();
            (peer.id, state.endpoint, PeerCounters { drops: peer.drops(), ..state.counters })
        };
        peers.iter().map(read).collect()
    }

    fn drop_packets(&self, peer: &Peer, state: &mut PeerState, reason: DropReason) {
        let held = std::mem::take(&mut state.held);
        self.held.fetch_sub(held.len(), Ordering::Relaxed);
        self.count_drops(peer, reason, held.len() as u64);
    }
}
