//! Asks each thread of a plane for a sign of life, for a watchdog.
//!
//! A thread answers between two batches, so one that is stuck or was stopped is found, however the
//! others do.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::descriptor::EventFd;

/// The sign of life of one thread.
///
/// Only the asker sets `pending` and then the descriptor, and not again before the thread has
/// cleared both. So the descriptor is never readable with nothing to answer.
pub struct Sign {
    call: EventFd,
    pending: AtomicBool,
}

impl Sign {
    fn new() -> io::Result<Self> {
        Ok(Self { call: EventFd::new()?, pending: AtomicBool::new(false) })
    }

    /// Ask the thread, unless it still owes an answer. Return whether it owed none.
    fn ask(&self) -> bool {
        if self.pending.load(Ordering::Acquire) {
            return false;
        }
        self.pending.store(true, Ordering::Release);
        self.call.set();
        true
    }

    /// Answer, if asked. The thread calls this each time around.
    pub fn answer(&self) {
        // Seen between the asker's two steps, the call isn't in the descriptor yet, and wakes the
        // thread later.
        if self.pending.load(Ordering::Acquire) && self.call.clear() {
            self.pending.store(false, Ordering::Release);
        }
    }

    /// Return the descriptor that is readable when the thread is asked.
    pub fn fd(&self) -> RawFd {
        self.call.fd()
    }
}

/// The signs of life of all threads that move packets or wait for timers.
pub struct RollCall {
    pub out: Vec<Sign>,
    pub inward: Vec<Sign>,
    pub gate: Sign,
    pub timers: Sign,
}

impl RollCall {
    /// Make the signs of the threads of `queues` queues.
    pub fn new(queues: usize) -> io::Result<Self> {
        let signs = || (0..queues).map(|_| Sign::new()).collect::<io::Result<Vec<_>>>();
        Ok(Self { out: signs()?, inward: signs()?, gate: Sign::new()?, timers: Sign::new()? })
    }

    /// Ask every thread. Return the names of those that haven't answered the call before.
    pub fn take(&self, has_gate: bool) -> Vec<String> {
        let named = |kind: &'static str| move |(n, sign)| (format!("{kind}-{n}"), sign);
        let queues = self.out.iter().enumerate().map(named("out"));
        let queues = queues.chain(self.inward.iter().enumerate().map(named("in")));
        let gate = has_gate.then_some(("gate".to_owned(), &self.gate));
        let all = queues.chain(gate).chain([("timers".to_owned(), &self.timers)]);
        all.filter(|(_, sign)| !sign.ask()).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_answer_is_named_at_the_next_call() {
        let roll = RollCall::new(1).unwrap();
        assert_eq!(roll.take(true), [""; 0]);
        roll.out[0].answer();
        roll.timers.answer();
        assert_eq!(roll.take(true), ["in-0", "gate"]);
        assert_eq!(roll.take(false), ["out-0", "in-0", "timers"]);
        assert_eq!(roll.take(true), ["out-0", "in-0", "gate", "timers"]);
    }

    #[test]
    fn one_answer_is_for_every_call_before_it() {
        let roll = RollCall::new(1).unwrap();
        roll.take(false);
        roll.take(false);
        for sign in [&roll.out[0], &roll.inward[0], &roll.timers] {
            sign.answer();
        }
        assert_eq!(roll.take(false), [""; 0]);
    }

    #[test]
    fn a_thread_that_goes_round_all_the_time_answers_every_call() {
        let roll = RollCall::new(1).unwrap();
        let goes_on = AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while goes_on.load(Ordering::Relaxed) {
                    roll.timers.answer();
                }
            });
            for _ in 0..1000 {
                assert!(roll.timers.ask());
                while roll.timers.pending.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            goes_on.store(false, Ordering::Relaxed);
        });
        assert!(!roll.timers.call.clear());
    }

    #[test]
    fn the_descriptor_is_readable_while_a_call_is_unanswered() {
        use crate::descriptor::wait;
        let roll = RollCall::new(1).unwrap();
        let readable = || wait([(roll.timers.fd(), libc::POLLIN)], 0).unwrap() == 1;
        assert!(!readable());
        roll.take(false);
        assert!(readable());
        roll.timers.answer();
        assert!(!readable());
    }
}
