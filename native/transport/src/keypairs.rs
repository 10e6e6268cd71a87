//! The sessions of one peer: which key sends, and which may still receive (whitepaper sections 6.1
//! to 6.3).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use zeroize::Zeroizing;

use crate::aead::{Aead, Cipher};
use crate::contract::{
    Flow, Keypair, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME,
    REKEY_AFTER_TIME_RECEIVING, Seconds,
};
use crate::locks::lock;
use crate::window::ReplayWindow;
use crate::wire::DATA_MAGIC;

/// One keypair in use: counters, replay window, limits. Its keys are wiped when the last batch
/// releases it.
pub struct Session {
    /// Our index, in what we receive.
    pub local_index: u32,
    /// The first 8 bytes of each data message: type 4 and the receiver's index.
    pub header: [u8; 8],
    initiator: bool,
    birth: Seconds,
    send_key: Zeroizing<[u8; 32]>,
    receive_key: Zeroizing<[u8; 32]>,
    /// The nonce of the next datagram to send.
    counter: AtomicU64,
    window: Mutex<ReplayWindow>,
    /// Whether a datagram that was received late in its life has already asked for a handshake.
    asked: AtomicBool,
}

impl Session {
    /// Start a session with a keypair.
    pub fn new(keypair: &Keypair) -> Self {
        let mut header = [0; 8];
        header[..4].copy_from_slice(&DATA_MAGIC);
        header[4..].copy_from_slice(&keypair.remote_index.to_le_bytes());
        Self {
            local_index: keypair.local_index,
            header,
            initiator: keypair.initiator,
            birth: keypair.birth,
            send_key: keypair.send_key.clone(),
            receive_key: keypair.receive_key.clone(),
            counter: AtomicU64::new(0),
            window: Mutex::default(),
            asked: AtomicBool::new(false),
        }
    }

    /// Return the cipher for what we send.
    pub fn sealer(&self) -> Cipher {
        Cipher::new(&self.send_key)
    }

    /// Return the cipher for what we receive.
    pub fn opener(&self) -> Cipher {
        Cipher::new(&self.receive_key)
    }

    /// Lock the window of received counters. The lock is held while a batch is opened, so a counter
    /// is checked and marked in one step.
    pub fn window(&self) -> MutexGuard<'_, ReplayWindow> {
        lock(&self.window)
    }

    /// Return what was sent and received so far.
    pub fn flow(&self) -> Flow {
        let [_, _, _, _, index @ ..] = self.header;
        let (next, received) = self.window().arrivals();
        Flow {
            local_index: self.local_index,
            remote_index: u32::from_le_bytes(index),
            sent: self.counter.load(Ordering::Relaxed),
            next,
            received,
        }
    }

    /// Return whether REJECT-AFTER-TIME is over. Then the session may neither send nor receive.
    pub fn expired(&self, now: Seconds) -> bool {
        now - self.birth >= REJECT_AFTER_TIME
    }

    /// Take `count` nonces. Return the first, or None if the session may not send that many more.
    pub fn claim(&self, count: u64, now: Seconds) -> Option<u64> {
        if self.expired(now) {
            return None;
        }
        let after = |first: u64| first.checked_add(count).filter(|next| *next <= REJECT_AFTER_MESSAGES);
        self.counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).ok()
    }

    /// Stop sending. The session still receives.
    pub fn end_sending(&self) {
        self.counter.store(REJECT_AFTER_MESSAGES, Ordering::Relaxed);
    }

    /// Return whether a new handshake is due after sending. REKEY-AFTER-TIME counts for the
    /// initiator only.
    pub fn worn_by_sending(&self, now: Seconds) -> bool {
        self.counter.load(Ordering::Relaxed) > REKEY_AFTER_MESSAGES
            || self.initiator && now - self.birth >= REKEY_AFTER_TIME
    }

    /// Return whether a datagram that came this late requires a new handshake. It is true only
    /// once.
    pub fn worn_by_receiving(&self, now: Seconds) -> bool {
        self.initiator && now - self.birth >= REKEY_AFTER_TIME_RECEIVING && !self.asked.swap(true, Ordering::Relaxed)
    }

    /// Continue from a counter, to test what happens at the limits.
    #[cfg(test)]
    pub(crate) fn set_counter(&self, counter: u64) {
        self.counter.store(counter, Ordering::Relaxed);
    }
}

/// The sessions of one peer.
#[derive(Default)]
pub struct Keypairs {
    /// The session that sends. None before the first handshake.
    pub current: Option<Arc<Session>>,
    /// Made by us as responder. Becomes the current one when a datagram comes on it.
    pub next: Option<Arc<Session>>,
    /// The session before the current one. It may still receive what was on its way.
    pub previous: Option<Arc<Session>>,
}

/// Sessions that are no longer needed.
pub type Dead = [Option<Arc<Session>>; 3];

fn is(one: &Option<Arc<Session>>, session: &Arc<Session>) -> bool {
    one.as_ref().is_some_and(|one| Arc::ptr_eq(one, session))
}

impl Keypairs {
    /// Put a new session in its place. Return those that are not needed any more.
    pub fn install(&mut self, session: Arc<Session>) -> Dead {
        let previous = self.previous.take();
        if !session.initiator {
            return [previous, self.next.replace(session), None];
        }
        let current = self.current.replace(session);
        if self.next.is_some() {
            // Both ends started a handshake. The responder's session is newer than the current one
            // was.
            self.previous = self.next.take();
            [previous, current, None]
        } else {
            self.previous = current;
            [previous, None, None]
        }
    }

    /// Make `next` the current session: an authenticated datagram came on it. Return the sessions
    /// that are not needed any more.
    pub fn confirm(&mut self) -> Dead {
        let dead = self.previous.take();
        self.previous = self.current.take();
        self.current = self.next.take();
        [dead, None, None]
    }

    /// Stop sending on the current session, and on the next one.
    pub fn end_sending(&self) {
        self.current.iter().chain(&self.next).for_each(|session| session.end_sending());
    }

    /// Remove and return all sessions.
    pub fn clear(&mut self) -> Dead {
        [self.current.take(), self.next.take(), self.previous.take()]
    }

    /// Return whether `session` is the one that waits for a datagram.
    pub fn is_next(&self, session: &Arc<Session>) -> bool {
        is(&self.next, session)
    }

    /// Return whether `session` is the one that sends.
    pub fn is_current(&self, session: &Arc<Session>) -> bool {
        is(&self.current, session)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn keypair(local_index: u32, initiator: bool, birth: Seconds) -> Keypair {
        let key = Zeroizing::new([local_index as u8; 32]);
        let (send_key, receive_key) = (key.clone(), key);
        Keypair { local_index, remote_index: local_index, send_key, receive_key, initiator, birth }
    }

    fn session(index: u32, initiator: bool) -> Arc<Session> {
        Arc::new(Session::new(&keypair(index, initiator, 0.0)))
    }

    fn indices<const N: usize>(sessions: [&Option<Arc<Session>>; N]) -> [u32; N] {
        sessions.map(|one| one.as_ref().map_or(0, |one| one.local_index))
    }

    fn state(pairs: &Keypairs) -> [u32; 3] {
        indices([&pairs.current, &pairs.next, &pairs.previous])
    }

    #[test]
    fn an_initiators_session_sends_at_once_and_the_one_before_still_receives() {
        let mut pairs = Keypairs::default();
        pairs.install(session(1, true));
        pairs.install(session(2, true));
        let dead = pairs.install(session(3, true));
        assert_eq!(state(&pairs), [3, 0, 2]);
        assert_eq!(indices([&dead[0], &dead[1], &dead[2]]), [1, 0, 0]);
    }

    #[test]
    fn a_responders_session_waits_to_be_confirmed() {
        let mut pairs = Keypairs::default();
        pairs.install(session(1, true));
        pairs.install(session(2, false));
        let dead = pairs.install(session(3, false));
        assert_eq!(state(&pairs), [1, 3, 0]);
        assert_eq!(indices([&dead[0], &dead[1], &dead[2]]), [0, 2, 0]);
        pairs.confirm();
        assert_eq!(state(&pairs), [3, 0, 1]);
    }

    #[test]
    fn when_both_ends_start_the_responders_becomes_the_one_before() {
        let mut pairs = Keypairs::default();
        pairs.install(session(1, true));
        pairs.install(session(2, false));
        let dead = pairs.install(session(3, true));
        assert_eq!(state(&pairs), [3, 0, 2]);
        assert_eq!(indices([&dead[0], &dead[1], &dead[2]]), [0, 1, 0]);
    }

    #[test]
    fn row_35_no_nonce_is_given_twice_nor_one_beyond_the_limit() {
        let one = session(1, true);
        one.set_counter(REJECT_AFTER_MESSAGES - 3);
        assert_eq!(one.claim(4, 0.0), None);
        assert_eq!(one.claim(2, 0.0), Some(REJECT_AFTER_MESSAGES - 3));
        assert_eq!(one.claim(1, 0.0), Some(REJECT_AFTER_MESSAGES - 1));
        assert_eq!(one.claim(1, 0.0), None);
        let shared = session(2, true);
        let mut claimed: Vec<u64> = std::thread::scope(|scope| {
            let claims = || (0..1000).map(|_| shared.claim(3, 0.0).unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(claims)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        claimed.sort_unstable();
        assert!(claimed.iter().zip(0..).all(|(nonce, n)| *nonce == 3 * n));
        assert_eq!(claimed.len(), 4000);
    }

    #[test]
    fn row_35_a_session_ends_at_reject_after_time() {
        let one = session(1, true);
        assert!(one.claim(1, REJECT_AFTER_TIME - 0.01).is_some());
        assert!(one.claim(1, REJECT_AFTER_TIME).is_none() && one.expired(REJECT_AFTER_TIME));
    }
}
