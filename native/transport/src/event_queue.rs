//! The events that wait for Python: a lane for each kind, so that none takes another's place.
//!
//! Every lane is bounded. Of one peer at most one event of a kind waits, with its last value.

use std::collections::{HashMap, VecDeque};

use crate::contract::{Endpoint, Event, PeerId, Reason};
use crate::drops::DropReason;
use crate::gate::HANDSHAKE_QUEUE;

/// Enrollment datagrams that may wait for Python.
pub const FOREIGN_QUEUE: usize = 1024;
/// Events taken at once. Python handles them before it takes more, and the gate sees how many still
/// wait.
pub const EVENTS_AT_ONCE: usize = 32;

/// The lanes, in the order of their turns.
const PROVEN: usize = 0;
const UNPROVEN: usize = 1;
const FOREIGN: usize = 2;
const DATAGRAMS: usize = 3;

/// The queue.
#[derive(Default)]
pub struct EventQueue {
    faults: VecDeque<Event>,
    datagrams: [VecDeque<Event>; DATAGRAMS],
    peers: PeerEvents,
}

impl EventQueue {
    /// Queue an event, or return why it is dropped: too many of its kind wait. Faults and a peer's
    /// events always have room.
    pub fn put(&mut self, event: Event) -> Result<(), DropReason> {
        let (lane, most, full) = match event {
            Event::HandshakeReceived { proven: true, .. } => (PROVEN, HANDSHAKE_QUEUE, DropReason::HandshakeQueue),
            Event::HandshakeReceived { .. } => (UNPROVEN, HANDSHAKE_QUEUE, DropReason::HandshakeQueue),
            Event::ForeignReceived(..) => (FOREIGN, FOREIGN_QUEUE, DropReason::ForeignQueue),
            Event::Fault { .. } => {
                if !self.faults.contains(&event) {
                    self.faults.push_back(event);
                }
                return Ok(());
            }
            Event::EndpointMoved(peer, endpoint) => {
                self.peers.of(peer).moved = Some(endpoint);
                return Ok(());
            }
            Event::KeypairConfirmed(peer, index) => {
                let waiting = self.peers.of(peer);
                waiting.confirmed = Some(index);
                // The session that was asked for has come.
                waiting.wanted = None;
                return Ok(());
            }
            Event::HandshakeWanted(peer, reason) => {
                let waiting = self.peers.of(peer);
                // That a peer doesn't answer is more than that a session is missing or old.
                if waiting.wanted != Some(Reason::NoAnswer) {
                    waiting.wanted = Some(reason);
                }
                return Ok(());
            }
        };
        let lane = &mut self.datagrams[lane];
        if lane.len() >= most {
            return Err(full);
        }
        lane.push_back(event);
        Ok(())
    }

    /// Take the next events: faults, and then one of each lane in turn.
    pub fn take(&mut self) -> Vec<Event> {
        let count = self.faults.len().min(EVENTS_AT_ONCE);
        let mut taken: Vec<Event> = self.faults.drain(..count).collect();
        let mut before = usize::MAX;
        while taken.len() != before {
            before = taken.len();
            let datagrams = self.datagrams.iter_mut().filter_map(VecDeque::pop_front);
            let room = EVENTS_AT_ONCE - taken.len();
            taken.extend(datagrams.take(room));
            if taken.len() < EVENTS_AT_ONCE {
                taken.extend(self.peers.take());
            }
        }
        taken
    }

    /// Return how many handshake datagrams wait.
    pub fn handshakes(&self) -> usize {
        self.datagrams[PROVEN].len() + self.datagrams[UNPROVEN].len()
    }

    /// Return whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.faults.is_empty() && self.peers.order.is_empty() && self.datagrams.iter().all(VecDeque::is_empty)
    }
}

/// What waits of each peer.
#[derive(Default)]
struct PeerEvents {
    waiting: HashMap<PeerId, PeerEvent>,
    /// The peers of `waiting`, those that came first in front.
    order: VecDeque<PeerId>,
}

/// What waits of one peer: the last value of each kind.
#[derive(Default)]
struct PeerEvent {
    moved: Option<Endpoint>,
    confirmed: Option<u32>,
    wanted: Option<Reason>,
}

impl PeerEvents {
    fn of(&mut self, peer: PeerId) -> &mut PeerEvent {
        self.waiting.entry(peer).or_insert_with(|| {
            self.order.push_back(peer);
            PeerEvent::default()
        })
    }

    fn take(&mut self) -> Option<Event> {
        let peer = *self.order.front()?;
        let waiting = self.waiting.get_mut(&peer)?;
        let moved = waiting.moved.take().map(|endpoint| Event::EndpointMoved(peer, endpoint));
        let confirmed = || waiting.confirmed.take().map(|index| Event::KeypairConfirmed(peer, index));
        let wanted = || waiting.wanted.take().map(|reason| Event::HandshakeWanted(peer, reason));
        let event = moved.or_else(confirmed).or_else(wanted);
        if matches!(waiting, PeerEvent { moved: None, confirmed: None, wanted: None }) {
            self.waiting.remove(&peer);
            self.order.pop_front();
        }
        event
    }
}
