//! When a peer needs a keepalive or has fallen silent (whitepaper section 6.5; the kernel's
//! timers.c).
//!
//! Each peer has four timers. [`Deadlines`] finds the next timer of all peers without a tick. A
//! peer that neither sends nor receives has no timer set and costs nothing.

use std::cmp;
use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::contract::{KEEPALIVE_TIMEOUT, NEVER, REKEY_TIMEOUT, Seconds};
use crate::locks::lock;

/// The session is considered lost if data was sent and nothing was received for this long.
pub const NO_ANSWER_TIMEOUT: Seconds = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT;
/// A random time up to this is added, so that both ends do not start a handshake at the same
/// moment.
pub const NO_ANSWER_JITTER: Seconds = 0.334;

/// The timers of one peer.
#[derive(Debug)]
pub struct Liveness {
    /// Send an empty datagram: data came, and nothing was sent since.
    pub keepalive_at: Seconds,
    /// Start a handshake: data was sent, and nothing came since.
    pub no_answer_at: Seconds,
    /// Send an empty datagram in any case.
    pub persistent_at: Seconds,
    /// Tell Python where the peer is now.
    pub report_at: Seconds,
    /// Seconds of the persistent keepalive, 0 for none.
    pub interval: u32,
    /// Added to NO_ANSWER_TIMEOUT. Random up to NO_ANSWER_JITTER, drawn again for each session.
    pub jitter: Seconds,
    /// The earliest time at which [`Deadlines`] will look at this peer.
    scheduled_at: Seconds,
    /// More data came while the keepalive was pending.
    another: bool,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            keepalive_at: NEVER,
            no_answer_at: NEVER,
            persistent_at: NEVER,
            report_at: NEVER,
            interval: 0,
            jitter: 0.0,
            scheduled_at: NEVER,
            another: false,
        }
    }
}

impl Liveness {
    /// Note that an authenticated datagram was sent. `data`: it was neither a keepalive nor a
    /// handshake.
    pub fn sent(&mut self, now: Seconds, data: bool) {
        self.keepalive_at = NEVER;
        self.postpone_persistent(now);
        if data && self.no_answer_at == NEVER {
            self.no_answer_at = now + NO_ANSWER_TIMEOUT + self.jitter;
        }
    }

    /// Note that an authenticated datagram was received. `data`: it was neither a keepalive nor a
    /// handshake.
    pub fn received(&mut self, now: Seconds, data: bool) {
        self.no_answer_at = NEVER;
        self.postpone_persistent(now);
        if !data {
            return;
        }
        if self.keepalive_at == NEVER {
            self.keepalive_at = now + KEEPALIVE_TIMEOUT;
        } else {
            self.another = true;
        }
    }

    fn postpone_persistent(&mut self, now: Seconds) {
        if self.interval != 0 {
            self.persistent_at = now + Seconds::from(self.interval);
        }
    }

    /// Note that the keepalive was sent. If more data came while it was pending, there will be
    /// another.
    pub fn keepalive_ran_out(&mut self, now: Seconds) {
        self.keepalive_at = if self.another { now + KEEPALIVE_TIMEOUT } else { NEVER };
        self.another = false;
    }

    /// Stop the timers of a session: none is left.
    pub fn stop(&mut self) {
        self.keepalive_at = NEVER;
        self.no_answer_at = NEVER;
        self.another = false;
    }

    /// Reset everything: the peer is gone. What is still scheduled is stale.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Return the next of the four.
    pub fn deadline(&self) -> Seconds {
        self.keepalive_at.min(self.no_answer_at).min(self.persistent_at).min(self.report_at)
    }
}

struct Deadline<T> {
    at: Seconds,
    order: u64,
    owner: T,
}

impl<T> Ord for Deadline<T> {
    /// The heap returns the greatest entry first. That must be the earliest one, and the oldest of
    /// equals.
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        other.at.total_cmp(&self.at).then(other.order.cmp(&self.order))
    }
}

impl<T> PartialOrd for Deadline<T> {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Deadline<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Deadline<T> {}

/// The next deadline of all owners: a heap whose stale entries stay until they come to the top.
///
/// A timer that moves later changes nothing (each packet moves the persistent one). Its old entry
/// comes to the top early, and goes back with the right time. Only a timer that moves earlier adds
/// an entry. So the lock is taken every ten seconds per peer, not per packet.
pub struct Deadlines<T> {
    heap: Mutex<Heap<T>>,
    /// The time of the first entry as bits, to be read without the lock. Times are positive, so
    /// their bits have the same order.
    first: AtomicU64,
}

struct Heap<T> {
    entries: BinaryHeap<Deadline<T>>,
    order: u64,
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        let heap = Mutex::new(Heap { entries: BinaryHeap::new(), order: 0 });
        Self { heap, first: AtomicU64::new(NEVER.to_bits()) }
    }
}

impl<T> Heap<T> {
    fn first(&self) -> Seconds {
        self.entries.peek().map_or(NEVER, |entry| entry.at)
    }
}

impl<T: Clone> Deadlines<T> {
    /// Schedule `owner`. Call this after one of its timers may have been set.
    pub fn schedule(&self, owner: &T, liveness: &mut Liveness) {
        let deadline = liveness.deadline();
        if deadline < liveness.scheduled_at {
            liveness.scheduled_at = deadline;
            let mut heap = lock(&self.heap);
            heap.order += 1;
            let order = heap.order;
            heap.entries.push(Deadline { at: deadline, order, owner: owner.clone() });
            self.first.store(heap.first().to_bits(), Ordering::SeqCst);
        }
    }

    /// Return when to call [`Self::pop`]. That may be too early, but never too late.
    pub fn next(&self) -> Option<Seconds> {
        let first = Seconds::from_bits(self.first.load(Ordering::SeqCst));
        (first < NEVER).then_some(first)
    }

    /// Remove the next owner that was scheduled at or before `now`. Return it with its time, which
    /// [`Self::is_due`] has to check.
    pub fn pop(&self, now: Seconds) -> Option<(Seconds, T)> {
        let mut heap = lock(&self.heap);
        let entry = if heap.first() <= now { heap.entries.pop() } else { None };
        self.first.store(heap.first().to_bits(), Ordering::SeqCst);
        entry.map(|entry| (entry.at, entry.owner))
    }

    /// Return whether the owner that [`Self::pop`] returned has a timer at or before `now`. If so,
    /// schedule it again afterwards.
    pub fn is_due(&self, at: Seconds, owner: &T, liveness: &mut Liveness, now: Seconds) -> bool {
        if at != liveness.scheduled_at {
            return false;
        }
        liveness.scheduled_at = NEVER;
        let due = liveness.deadline() <= now;
        if !due {
            self.schedule(owner, liveness);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(deadlines: &Deadlines<usize>, peers: &mut [Liveness], now: Seconds) -> Vec<usize> {
        let mut owners = Vec::new();
        while let Some((at, owner)) = deadlines.pop(now) {
            if deadlines.is_due(at, &owner, &mut peers[owner], now) {
                owners.push(owner);
            }
        }
        owners
    }

    #[test]
    fn moving_a_timer_later_adds_nothing_and_it_still_runs_out_in_time() {
        let deadlines = Deadlines::default();
        let mut peers = [Liveness { interval: 25, ..Liveness::default() }];
        for now in 0..1000 {
            peers[0].sent(f64::from(now), false);
            deadlines.schedule(&0, &mut peers[0]);
            assert!(due(&deadlines, &mut peers, f64::from(now)).is_empty());
        }
        assert_eq!(lock(&deadlines.heap).entries.len(), 1);
        assert!(due(&deadlines, &mut peers, 1023.9).is_empty());
        assert_eq!(due(&deadlines, &mut peers, 1024.0), [0]);
    }

    #[test]
    fn a_timer_that_moves_earlier_is_found_and_its_old_entry_is_not() {
        let deadlines = Deadlines::default();
        let mut peers = [Liveness { persistent_at: 100.0, ..Liveness::default() }];
        deadlines.schedule(&0, &mut peers[0]);
        peers[0].keepalive_at = 10.0;
        deadlines.schedule(&0, &mut peers[0]);
        assert_eq!(deadlines.next(), Some(10.0));
        assert_eq!(due(&deadlines, &mut peers, 10.0), [0]);
        peers[0].keepalive_at = NEVER;
        deadlines.schedule(&0, &mut peers[0]);
        assert!(due(&deadlines, &mut peers, 99.0).is_empty());
        assert_eq!(due(&deadlines, &mut peers, 100.0), [0]);
        assert!(due(&deadlines, &mut peers, 200.0).is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn those_due_at_once_come_in_the_order_they_were_set() {
        let deadlines = Deadlines::default();
        let mut peers: Vec<Liveness> = (0..10_000).map(|_| Liveness::default()).collect();
        for (number, liveness) in peers.iter_mut().enumerate() {
            liveness.received(0.0, true);
            deadlines.schedule(&number, liveness);
        }
        assert_eq!(due(&deadlines, &mut peers, 10.0), (0..10_000).collect::<Vec<_>>());
        assert_eq!(deadlines.next(), None);
    }
}
