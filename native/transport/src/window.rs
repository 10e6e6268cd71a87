//! The replay window of one receiving key (whitepaper section 5.4.6; RFC 6479).
//!
//! It is a ring of words. The word that the highest counter enters is cleared. While no counter is
//! above 63, as in the session of an idle peer, one word is enough.

use crate::contract::REJECT_AFTER_MESSAGES;

/// How far behind the highest counter a datagram may be. The kernel's limit is 8,128.
pub const WINDOW_SIZE: u64 = 8192;
const BITS: u64 = 64;
/// The counters of a window touch at most this many words.
const WORDS: u64 = WINDOW_SIZE / BITS + 2;

/// The counters that were received. Mark a counter only after its datagram was authenticated.
#[derive(Debug, Default)]
pub struct ReplayWindow {
    next: u64,
    /// How many counters were marked.
    marked: u64,
    /// Bits of the counters 0 to 63, until there is a ring.
    first: u64,
    ring: Option<Box<[u64; WORDS as usize]>>,
}

fn slot(counter: u64) -> (usize, u64) {
    ((counter / BITS % WORDS) as usize, 1 << (counter % BITS))
}

impl ReplayWindow {
    /// Return whether `counter` is below REJECT-AFTER-MESSAGES, in the window, and not yet seen.
    pub fn fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < REJECT_AFTER_MESSAGES;
        }
        if self.next - 1 - counter > WINDOW_SIZE {
            return false;
        }
        let (word, bit) = slot(counter);
        let seen = self.ring.as_ref().map_or(self.first, |ring| ring[word]);
        seen & bit == 0
    }

    /// Return one more than the highest counter seen, and how many were seen.
    pub fn arrivals(&self) -> (u64, u64) {
        (self.next, self.marked)
    }

    /// Mark one fresh counter as seen.
    pub fn mark(&mut self, counter: u64) {
        self.marked += 1;
        let (word, bit) = slot(counter);
        if self.ring.is_none() {
            if counter < BITS {
                self.first |= bit;
                self.next = self.next.max(counter + 1);
                return;
            }
            let mut ring = Box::new([0; WORDS as usize]);
            ring[0] = self.first;
            self.ring = Some(ring);
        }
        let ring = self.ring.as_mut().expect("made above");
        if counter >= self.next {
            let top = self.next.saturating_sub(1) / BITS;
            let entered = (counter / BITS - top).min(WORDS);
            for step in 1..=entered {
                ring[((top + step) % WORDS) as usize] = 0;
            }
            self.next = counter + 1;
        }
        ring[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const OVER: u64 = WINDOW_SIZE + 1;
    const REJECT: u64 = REJECT_AFTER_MESSAGES;

    fn take(window: &mut ReplayWindow, counter: u64) -> bool {
        let fresh = window.fresh(counter);
        if fresh {
            window.mark(counter);
        }
        fresh
    }

    /// drivers/net/wireguard/selftest/counter.c
    #[test]
    fn row_31_the_kernels_34_cases_in_their_order() {
        let cases = [
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (OVER, true),
            (OVER - 1, true),
            (OVER - 1, false),
            (OVER - 2, true),
            (2, true),
            (2, false),
            (OVER + 16, true),
            (3, false),
            (OVER + 16, false),
            (OVER * 4, true),
            (OVER * 4 - (OVER - 1), true),
            (10, false),
            (OVER * 4 - OVER, false),
            (OVER * 4 - (OVER + 1), false),
            (OVER * 4 - (OVER - 2), true),
            (OVER * 4 + 1 - OVER, false),
            (0, false),
            (REJECT, false),
            (REJECT - 1, true),
            (REJECT, false),
            (REJECT - 1, false),
            (REJECT - 2, true),
            (REJECT + 1, false),
            (REJECT + 2, false),
            (REJECT - 2, false),
            (REJECT - 3, true),
            (0, false),
        ];
        let mut window = ReplayWindow::default();
        for (counter, good) in cases {
            assert_eq!(take(&mut window, counter), good, "{counter}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn row_31_the_kernels_six_sweeps() {
        type Sweep = (Vec<u64>, Vec<(u64, bool)>);
        let sweeps: [Sweep; 6] = [
            ((1..=WINDOW_SIZE).collect(), vec![(0, true), (0, false)]),
            ((2..=WINDOW_SIZE + 1).collect(), vec![(1, true), (0, false)]),
            ((0..=WINDOW_SIZE).rev().collect(), vec![]),
            ((1..=WINDOW_SIZE + 1).rev().collect(), vec![(0, false)]),
            ((1..=WINDOW_SIZE).rev().collect(), vec![(WINDOW_SIZE + 1, true), (0, false)]),
            ((1..=WINDOW_SIZE).rev().collect(), vec![(0, true), (WINDOW_SIZE + 1, true)]),
        ];
        for (order, then) in sweeps {
            let mut window = ReplayWindow::default();
            assert!(order.into_iter().all(|counter| take(&mut window, counter)));
            for (counter, good) in then {
                assert_eq!(take(&mut window, counter), good, "{counter}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn random_counters_agree_with_a_plain_set() {
        let mut dice = 5_u64;
        let mut roll = |below: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % below
        };
        let (mut window, mut seen, mut top) = (ReplayWindow::default(), BTreeSet::new(), 0);
        for _ in 0..100_000 {
            let counter = match roll(10) {
                0 => top + roll(3 * WINDOW_SIZE),
                1..=4 => top + roll(4),
                _ => top.saturating_sub(roll(WINDOW_SIZE + 6)),
            };
            let good = !seen.contains(&counter) && counter + WINDOW_SIZE >= top;
            assert_eq!(take(&mut window, counter), good, "{counter} with {top} on top");
            if good {
                seen.insert(counter);
                top = top.max(counter);
            }
        }
    }

    #[test]
    fn an_idle_session_has_no_ring() {
        let mut window = ReplayWindow::default();
        assert!((0..64).rev().all(|counter| take(&mut window, counter)));
        assert!(window.ring.is_none());
        assert!(!take(&mut window, 0) && take(&mut window, 64) && !take(&mut window, 63));
    }
}
