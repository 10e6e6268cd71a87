//! Looking again before going to sleep: waking a thread costs more than most pauses in traffic last. But who spins
//! keeps a core from others, the programs that wait for these very packets among them. So a thread spins only while
//! that pays: not between single packets, and not where somebody else takes the core at each look.

use std::io;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use crate::counters::count_call;

/// How long to look.
const SPIN: Duration = Duration::from_micros(50);
/// So often in vain, on balance, and it no longer pays.
const PATIENCE: u32 = 8;
/// What once with success makes up for.
const GAIN: u32 = 2;
/// Where it doesn't pay it is tried once in so many.
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
    /// Look for work until there is some, SPIN long at most, or not at all.
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

    /// How often it looks at all, of `times`, if `found` says what each look finds.
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
