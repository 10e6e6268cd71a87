//! The addresses that were answered for since somebody asked last.

use std::collections::HashMap;

use transport::contract::{Address, Seconds};

/// An address isn't reported again before this has passed.
pub const QUIET: Seconds = 180.0;
/// The most addresses that are remembered. Further ones aren't reported before some are forgotten.
pub const MOST: usize = 4096;

/// The addresses that were answered for.
#[derive(Default)]
pub struct Answered {
    /// When each was reported last.
    known: HashMap<Address, Seconds>,
    waiting: Vec<Address>,
}

impl Answered {
    /// Note that an address was answered for. Return whether it is new to who asks.
    pub fn note(&mut self, address: Address, now: Seconds) -> bool {
        if self.known.get(&address).is_some_and(|noted| now - noted < QUIET) {
            return false;
        }
        if self.known.len() >= MOST && !self.known.contains_key(&address) {
            self.known.retain(|_, noted| now - *noted < QUIET);
            if self.known.len() >= MOST {
                return false;
            }
        }
        self.known.insert(address, now);
        if self.waiting.len() >= MOST {
            return false;
        }
        self.waiting.push(address);
        true
    }

    /// Return the addresses since the last call, the oldest first.
    pub fn take(&mut self) -> Vec<Address> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_reported_once_until_it_is_quiet() {
        let mut answered = Answered::default();
        let (one, other) = (Address::V4(1), Address::V6(1));
        assert!(answered.note(one, 0.0));
        assert!(answered.note(other, 1.0));
        assert!(!answered.note(one, QUIET - 0.1));
        assert_eq!(answered.take(), [one, other]);
        assert!(!answered.note(one, QUIET - 0.1));
        assert!(answered.take().is_empty());
        assert!(answered.note(one, QUIET));
        assert_eq!(answered.take(), [one]);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut answered = Answered::default();
        for number in 0..2 * MOST as u32 {
            answered.note(Address::V4(number), 0.0);
        }
        assert_eq!((answered.take().len(), answered.known.len()), (MOST, MOST));
        assert!(!answered.note(Address::V4(u32::MAX), QUIET - 1.0));
        assert!(answered.note(Address::V4(u32::MAX), QUIET));
        assert_eq!(answered.known.len(), 1);
    }
}
