//! Datagrams in, one at a time: look up the index, check the window, open, mark the window, roam,
//! check the inner source.
//!
//! Handshakes go through the gate. So does enrollment at a server; elsewhere it goes to Python
//! unchanged.

use std::ops::Range;

use super::{Tally, Transport};
use crate::aead::Aead;
use crate::contract::{Endpoint, Event, Outbox, Reason, Seconds, Transmit};
use crate::drops::DropReason;
use crate::ecn;
use crate::gate::Verdict;
use crate::ip::inner_source;
use crate::keypairs::Session;
use crate::locks::lock;
use crate::pairing;
use crate::peers::Owned;
use crate::wire::{
    COOKIE_REPLY, COOKIE_REPLY_SIZE, DATA_HEADER_SIZE, DATA_MAGIC, FOREIGN_MAGIC, INITIATION, OVERHEAD, RESPONSE,
    RESPONSE_SIZE, TAG_SIZE, message_type, u32_at, u64_at,
};

impl Transport {
    /// Take one datagram from the network and open it in place. Return where the inner packet is in
    /// it, if there is one to deliver. `tos` is the TOS or traffic class that it came with.
    pub fn handle_datagram(
        &self,
        datagram: &mut [u8],
        source: Endpoint,
        tos: u8,
        now: Seconds,
        out: &mut Outbox,
    ) -> Option<Range<usize>> {
        if self.is_down() && !datagram.starts_with(FOREIGN_MAGIC) {
            self.drops.count(DropReason::InterfaceDown, 1);
            return None;
        }
        if datagram.starts_with(&DATA_MAGIC) {
            return self.open(datagram, source, tos, now, out);
        }
        if datagram.starts_with(FOREIGN_MAGIC) {
            self.handle_foreign(datagram, source, now, out);
        } else {
            self.handle_handshake(datagram, source, now, out);
        }
        None
    }

    fn open(
        &self,
        datagram: &mut [u8],
        source: Endpoint,
        tos: u8,
        now: Seconds,
        out: &mut Outbox,
    ) -> Option<Range<usize>> {
        let size = datagram.len();
        let opened = self.authenticate(datagram, now)?;
        let plaintext = DATA_HEADER_SIZE..size - TAG_SIZE;
        let tally = Tally { datagrams: 1, bytes: size, data: !plaintext.is_empty() };
        self.received(&opened, source, tally, now, out);
        if plaintext.is_empty() {
            return None;
        }
        let checked = inner_source(&datagram[plaintext]).and_then(|(address, length)| {
            if self.allowed.is_owned_by(address, &opened.peer) { Ok(length) } else { Err(DropReason::InnerSource) }
        });
        let length = checked.map_err(|reason| self.count_drops(&opened.peer, reason, 1)).ok()?;
        let inner = DATA_HEADER_SIZE..DATA_HEADER_SIZE + length;
        ecn::mark(&mut datagram[inner.clone()], tos);
        Some(inner)
    }

    /// Open a data message in place and mark its counter. Return None if it was dropped.
    fn authenticate(&self, datagram: &mut [u8], now: Seconds) -> Option<Owned> {
        if datagram.len() < OVERHEAD {
            self.drops.count(DropReason::BadLength, 1);
            return None;
        }
        let Some(found) = self.sessions.get(&u32_at(datagram, 4)) else {
            self.drops.count(DropReason::UnknownIndex, 1);
            return None;
        };
        let opened = Self::open_on(&found.session, datagram, now);
        opened.map_err(|reason| self.count_drops(&found.peer, reason, 1)).ok()?;
        Some(found)
    }

    fn open_on(session: &Session, datagram: &mut [u8], now: Seconds) -> Result<(), DropReason> {
        if session.expired(now) {
            return Err(DropReason::ExpiredSession);
        }
        let counter = u64_at(datagram, 8);
        let mut window = session.window();
        if !window.fresh(counter) {
            return Err(DropReason::Replayed);
        }
        if !session.opener().open(counter, &mut datagram[DATA_HEADER_SIZE..]) {
            return Err(DropReason::BadTag);
        }
        window.mark(counter);
        Ok(())
    }

    /// Note that authentic datagrams came from `source`.
    ///
    /// A peer roams here, and a responder's session becomes the current one.
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
            Self::report_move(peer, &mut state, now, out);
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

    fn handle_foreign(&self, datagram: &[u8], source: Endpoint, now: Seconds, out: &mut Outbox) {
        let verdict = match &mut *lock(&self.pairing) {
            Some(filter) => filter.judge(datagram, source.remote, now, &self.random),
            None if lock(&self.foreign).admit(datagram, now) => pairing::Verdict::Pass,
            None => pairing::Verdict::Drop(DropReason::ForeignRate),
        };
        match verdict {
            pairing::Verdict::Pass => out.events.push(Event::ForeignReceived(datagram.into(), source)),
            pairing::Verdict::Answer(datagram) => {
                if pairing::is_revision(&datagram) {
                    self.drops.count(DropReason::PairingRevision, 1);
                }
                out.transmits.push(Transmit { endpoint: source.at_once(), datagram, tos: 0 });
            }
            pairing::Verdict::Drop(reason) => self.drops.count(reason, 1),
        }
    }

    /// Return whether a datagram has this size, and an index that we gave out at `at`.
    fn answers_us(&self, datagram: &[u8], size: usize, at: usize) -> bool {
        datagram.len() == size && self.indices.contains(u32_at(datagram, at))
    }

    fn handle_handshake(&self, datagram: &[u8], source: Endpoint, now: Seconds, out: &mut Outbox) {
        let verdict = match message_type(datagram) {
            INITIATION => self.gate.judge(datagram, source.remote, (self.backlog)(), now, &self.random),
            RESPONSE if !self.answers_us(datagram, RESPONSE_SIZE, 8) => Verdict::Drop(DropReason::UnknownIndex),
            RESPONSE => match self.gate.judge(datagram, source.remote, (self.backlog)(), now, &self.random) {
                Verdict::Pass { .. } => Verdict::Pass { proven: true },
                other => other,
            },
            COOKIE_REPLY if !self.answers_us(datagram, COOKIE_REPLY_SIZE, 4) => {
                Verdict::Drop(DropReason::UnknownIndex)
            }
            // It has no MAC1.
            COOKIE_REPLY => self.gate.judge_cookie_reply(u32_at(datagram, 4), now),
            _ => Verdict::Drop(DropReason::UnknownType),
        };
        match verdict {
            Verdict::Pass { proven } => {
                out.events.push(Event::HandshakeReceived { datagram: datagram.into(), source, proven });
            }
            Verdict::Drop(reason) => self.drops.count(reason, 1),
            Verdict::Challenge(reply) => {
                out.transmits.push(Transmit { endpoint: source.at_once(), datagram: reply, tos: 0 });
                self.drops.count(DropReason::Challenged, 1);
            }
        }
    }
}
