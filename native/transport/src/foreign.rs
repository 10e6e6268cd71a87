//! The pace at which enrollment datagrams are passed to Python: a rate for each of the three steps
//! of a join.
//!
//! A flood brings more than that. Python must leave the threads that move packets their share of
//! the machine.
//!
//! A crowd that joins at once is as fast as a flood for a moment. It asks again each second and
//! must be done before it gives up. So many may come at once. Each step has its own rate: a client
//! that was answered doesn't wait for those that have only begun, nor for a flood of first
//! messages, which anybody can send in anybody's name.

use crate::contract::Seconds;

/// Datagrams of one step per second.
const RATE: f64 = 1000.0;
/// Datagrams of one step at once.
const BURST: f64 = 2048.0;
/// In a flood they are passed in runs of this many seconds' worth each. Python is woken per run,
/// not per datagram.
const RUN: Seconds = 0.02;

/// The pace of each step.
#[derive(Default)]
pub struct ForeignPace {
    /// The time at which all datagrams so far would be done at RATE.
    until: [Seconds; 3],
}

/// Return the step that a datagram belongs to: message 1, 3 or 5 of enrollment
/// (docs/internals/enrollment.md), of any revision. Any other counts as message 1.
fn step(datagram: &[u8]) -> usize {
    match datagram.get(4) {
        Some(3) => 1,
        Some(5) => 2,
        _ => 0,
    }
}

impl ForeignPace {
    /// Return whether one more datagram may be passed to Python.
    pub fn admit(&mut self, datagram: &[u8], now: Seconds) -> bool {
        let now = (now / RUN).floor() * RUN;
        let until = &mut self.until[step(datagram)];
        let next = until.max(now) + 1.0 / RATE;
        let admitted = next - now <= BURST / RATE;
        if admitted {
            *until = next;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_comes_in_at_once_and_a_flood_only_at_the_rate() {
        let mut pace = ForeignPace::default();
        let mut admitted = |from: u32, to: u32| {
            (from..to).filter(|n| pace.admit(b"RGE2\x01", 100.0 + f64::from(*n) / 100_000.0)).count()
        };
        // 100,000 per second, for two seconds.
        let (first, second) = (admitted(0, 100_000), admitted(100_000, 200_000));
        assert!((3026..=3030).contains(&first), "{first}");
        assert!((998..=1002).contains(&second), "{second}");
    }

    #[test]
    fn a_flood_comes_in_runs() {
        let mut pace = ForeignPace::default();
        let mut admitted = |at: Seconds| (0..10_000).filter(|_| pace.admit(b"RGE2\x01", at)).count();
        admitted(5.001);
        assert_eq!([5.005, 5.015, 5.021, 5.025, 5.05].map(&mut admitted), [0, 0, 20, 0, 20]);
    }

    #[test]
    fn no_step_takes_anothers_place() {
        let mut pace = ForeignPace::default();
        let mut admitted = |datagram: &[u8]| (0..10_000).filter(|_| pace.admit(datagram, 7.0)).count();
        for message in [&b"RGE2\x01"[..], b"RGE2\x03", b"RGE2\x05"] {
            assert_eq!(admitted(message), BURST as usize);
        }
        for strange in [&b"RGE2"[..], b"RGE2\x02", b"RGE\x01\x03", b"RGE3\x05"] {
            assert_eq!(admitted(strange), 0);
        }
    }
}
