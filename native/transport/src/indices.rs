//! The receiver indices that we gave out: 32 random bits each, none twice (whitepaper section
//! 5.4.2).

use std::collections::{HashMap, HashSet};
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
    used: HashSet<u32>,
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
            if books.used.insert(index) {
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
        books.used.insert(index);
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
        lock(&self.0).used.contains(&index)
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
        assert!(indices.contains(0) && indices.contains(2));
        indices.forget(1);
        indices.forget(2);
        indices.release(0);
        assert_eq!(indices.len(), 0);
    }
}
