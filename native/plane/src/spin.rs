//! Looking for work again before a thread sleeps.
//!
//! Waking a thread costs more than most pauses in traffic last. But a thread that spins keeps a
//! core from others, such as the programs that wait for these very packets. So a thread spins only
//! while that pays: not between single packets, and not where another program takes the core at
//! each look.

use std::io;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use crate::counters::count_call;

/// How long to look.
const SPIN: Duration = Duration::from_micros(50);
/// Spinning no longer pays after this many failures, less the successes.
const PATIENCE: u32 = 8;
/// How many failures one success makes up for.
const GAIN: u32 = 2;
/// While spinning doesn't pay, it is tried once in this many times.
const TRIAL: u32 = 32;

/// Whether a thread's spinning has paid lately.
pub struct Spin {
    patience: u32,
    left_out: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { patience: PATIENCE, left_out: 0 }
    }
}

impl Spin {
    /// Look for work until there is some, for at most SPIN. Return false at once while spinning
    /// doesn't pay.
    pub fn look(&mut self, mut look: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
        if !self.pays() {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < SPIN {
            yield_now();
            count_call();
            if look()? {
                self.patience = (self.patience + GAIN).min(PATIENCE);
                return Ok(true);
            }
        }
        self.patience = self.patience.saturating_sub(1);
        Ok(false)
    }

    fn pays(&mut self) -> bool {
        self.left_out = if self.patience > 0 || self.left_out == TRIAL { 0 } else { self.left_out + 1 };
        self.left_out == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Return how often it looks in `times` tries. `found`: what each look returns.
    fn looks(spin: &mut Spin, times: u32, found: bool) -> u32 {
        let mut tried = 0;
        for _ in 0..times {
            let mut looked = false;
            let look = || {
                looked = true;
                Ok(found)
            };
            assert_eq!(spin.look(look).unwrap(), found && looked);
            tried += u32::from(looked);
        }
        tried
    }

    #[test]
    fn what_was_in_vain_is_tried_seldom_until_it_pays_again() {
        let mut spin = Spin::default();
        assert_eq!(looks(&mut spin, 100, true), 100);
        assert_eq!(looks(&mut spin, PATIENCE, false), PATIENCE);
        assert_eq!(looks(&mut spin, 10 * (TRIAL + 1), false), 10);
        assert_eq!(looks(&mut spin, TRIAL, true), 0);
        assert_eq!(looks(&mut spin, 100, true), 100);
    }

    #[test]
    fn one_success_in_three_is_enough() {
        let mut spin = Spin::default();
        for _ in 0..50 {
            assert_eq!(looks(&mut spin, 2, false), 2);
            assert_eq!(looks(&mut spin, 1, true), 1);
        }
    }
}
