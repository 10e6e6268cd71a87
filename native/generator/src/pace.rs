//! When packets are due: small bursts at even distances.

/// Packets of the largest burst.
pub const MOST_AT_ONCE: usize = 64;
/// The distance between bursts, where MOST_AT_ONCE allows it.
const BURST_TIME: f64 = 100e-6;

/// The pace of one trial.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate: f64,
    /// Packets of a burst.
    pub burst: usize,
    /// Packets of the whole trial.
    pub planned: u64,
}

impl Pace {
    /// Return the pace of `rate` packets per second over some seconds.
    pub fn new(rate: f64, seconds: f64) -> Self {
        let burst = ((rate * BURST_TIME) as usize).clamp(1, MOST_AT_ONCE);
        Self { rate, burst, planned: (rate * seconds) as u64 }
    }

    /// Return when the packet after `offered` ones is due, in nanoseconds after the start.
    pub fn due(&self, offered: u64) -> u64 {
        (offered as f64 / self.rate * 1e9) as u64
    }

    /// Return how many packets are due together after `offered` ones: 0 at the end.
    pub fn next(&self, offered: u64) -> usize {
        (self.planned - offered).min(self.burst as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_are_small_and_even_and_all_packets_are_planned() {
        for (rate, seconds, burst) in [(10.0, 1.0, 1), (250_000.0, 0.5, 25), (2e6, 0.1, 64), (33_333.0, 0.25, 3)] {
            let pace = Pace::new(rate, seconds);
            assert_eq!(pace.burst, burst);
            let (mut offered, mut before) = (0, 0);
            while pace.next(offered) > 0 {
                let due = pace.due(offered);
                let even = (offered as f64 / rate * 1e9) as u64;
                assert!(due == even && (offered == 0 || due > before));
                before = due;
                offered += pace.next(offered) as u64;
            }
            assert_eq!(offered, (rate * seconds) as u64);
        }
    }
}
