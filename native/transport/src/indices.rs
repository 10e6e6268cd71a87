//! The receiver indices that we gave out: 32 random bits each, none twice (whitepaper section
//! 5.4.2).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;

use crate::contract::PeerId;
use crate::locks::lock;

/// Fills a slice with random bytes.
pub type Random = Box<dyn Fn(&mut [u8]) + Send + Sync>;

/// Indices reserved for a handshake, and those in use by a session.
#[derive(Default)]
pub struct Indices(Mutex<Books>);

#[derive(Default)]
struct Books {
    reserved: HashMap<PeerId, u32>,
    /// The peer that each one was given to.
    used: HashMap<u32, PeerId>,
}

impl Books {
    fn forget(&mut self, peer: PeerId) {
        if let Some(index) = self.reserved.remove(&peer) {
            self.used.remove(&index);
        }
    }
}

impl Indices {
    /// Return an index that is not in use. An earlier one that `peer` reserved and did not use is
    /// released.
    pub fn reserve(&self, peer: PeerId, random: &Random) -> u32 {
        let mut books = lock(&self.0);
        books.forget(peer);
        loop {
            let mut drawn = [0; 4];
            random(&mut drawn);
            let index = u32::from_le_bytes(drawn);
            if let Entry::Vacant(free) = books.used.entry(index) {
                free.insert(peer);
                books.reserved.insert(peer, index);
                return index;
            }
        }
    }

    /// Mark an index as used by a session.
    pub fn take(&self, peer: PeerId, index: u32) {
        let mut books = lock(&self.0);
        if books.reserved.get(&peer) == Some(&index) {
            books.reserved.remove(&peer);
        }
        books.used.insert(index, peer);
    }

    /// Release an index that a session had.
    pub fn release(&self, index: u32) {
        lock(&self.0).used.remove(&index);
    }

    /// Release the index that `peer` reserved and did not use.
    pub fn forget(&self, peer: PeerId) {
        lock(&self.0).forget(peer);
    }

    /// Return whether we gave it out.
    pub fn contains(&self, index: u32) -> bool {
        self.owner(index).is_some()
    }

    /// Return the peer that we gave it to.
    pub fn owner(&self, index: u32) -> Option<PeerId> {
        lock(&self.0).used.get(&index).copied()
    }

    /// Return how many are given out.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).used.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn no_index_is_given_twice_and_an_unused_one_is_given_back() {
        let drawn = AtomicU32::new(0);
        // 0, 0, 1, 1, …
        let random: Random = Box::new(move |bytes| {
            let next = drawn.fetch_add(1, Ordering::Relaxed) / 2;
            bytes.copy_from_slice(&next.to_le_bytes());
        });
        let indices = Indices::default();
        assert_eq!((indices.reserve(1, &random), indices.reserve(2, &random)), (0, 1));
        indices.take(1, 0);
        assert_eq!(indices.reserve(1, &random), 2);
        assert_eq!([0, 1, 2, 3].map(|index| indices.owner(index)), [Some(1), Some(2), Some(1), None]);
        indices.forget(1);
        indices.forget(2);
        indices.release(0);
        assert_eq!(indices.len(), 0);
    }
}
