//! A map that is read without a lock. A change replaces one shard of it.
//!
//! A reader loads the shard of its key (arc-swap). A writer copies that shard, changes the copy and
//! puts it in place. With 10,000 entries in 256 shards that is some forty entries. So a change
//! costs no more than a packet, and no reader ever waits for it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use crate::locks::lock;

const SHARDS: usize = 256;

/// Mixes integers by one multiplication. The keys are our own random indices, and prefixes that an
/// administrator set. Nobody else can choose keys that collide.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u128(&mut self, number: u128) {
        self.write_u64((number >> 64) as u64);
        self.write_u64(number as u64);
    }
}

/// Makes [`Mixer`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mix;

impl BuildHasher for Mix {
    type Hasher = Mixer;

    fn build_hasher(&self) -> Mixer {
        Mixer::default()
    }
}

type Shard<K, V> = HashMap<K, V, Mix>;

/// The map.
pub struct SnapshotMap<K, V> {
    shards: Box<[ArcSwap<Shard<K, V>>]>,
    /// The number of entries. The lock is held while something changes.
    writer: Mutex<usize>,
}

impl<K: Copy + Eq + Hash, V: Clone> Default for SnapshotMap<K, V> {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        let shards = (0..SHARDS).map(|_| ArcSwap::new(Arc::clone(&empty))).collect();
        Self { shards, writer: Mutex::new(0) }
    }
}

impl<K: Copy + Eq + Hash, V: Clone> SnapshotMap<K, V> {
    fn shard(&self, key: &K) -> &ArcSwap<Shard<K, V>> {
        // The top bits, because the map within the shard uses the lower ones.
        &self.shards[(Mix.hash_one(key) >> 20) as usize % SHARDS]
    }

    /// Return the value of `key`.
    pub fn get(&self, key: &K) -> Option<V> {
        self.shard(key).load().get(key).cloned()
    }

    /// Return what `look` returns for the value of `key`.
    pub fn with<R>(&self, key: &K, look: impl FnOnce(&V) -> R) -> Option<R> {
        self.shard(key).load().get(key).map(look)
    }

    /// Put a value in.
    pub fn insert(&self, key: K, value: V) {
        let mut count = lock(&self.writer);
        let shard = self.shard(&key);
        let mut changed = Shard::clone(&shard.load());
        *count += usize::from(changed.insert(key, value).is_none());
        shard.store(Arc::new(changed));
    }

    /// Take a value out if `test` returns true for it.
    pub fn remove_if(&self, key: &K, test: impl FnOnce(&V) -> bool) {
        let mut count = lock(&self.writer);
        let shard = self.shard(key);
        let before = shard.load();
        if before.get(key).is_some_and(test) {
            let mut changed = Shard::clone(&before);
            changed.remove(key);
            // The copy would keep the room that was once needed.
            changed.shrink_to_fit();
            shard.store(Arc::new(changed));
            *count -= 1;
        }
    }

    /// Return the number of entries.
    pub fn len(&self) -> usize {
        *lock(&self.writer)
    }

    /// Return whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn it_is_a_map() {
        let map = SnapshotMap::<u32, u32>::default();
        for key in 0..10_000 {
            map.insert(key, key * 2);
        }
        assert_eq!(map.len(), 10_000);
        assert!((0..10_000).all(|key| map.get(&key) == Some(key * 2)));
        assert_eq!(map.get(&10_000), None);
        map.remove_if(&7, |value| *value == 15);
        assert_eq!(map.with(&7, |value| value + 1), Some(15));
        map.remove_if(&7, |value| *value == 14);
        assert_eq!((map.get(&7), map.len()), (None, 9_999));
    }

    #[test]
    fn reading_threads_see_whole_values_while_a_writer_changes_them() {
        let rounds = if cfg!(miri) { 200 } else { 20_000 };
        let map = SnapshotMap::<u32, [u32; 2]>::default();
        map.insert(1, [0, 0]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..rounds {
                    map.insert(1, [number, number]);
                }
            });
            for _ in 0..rounds {
                let [one, other] = map.get(&1).unwrap();
                assert_eq!(one, other);
            }
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn shards_fill_evenly_with_the_addresses_of_one_network() {
        let map = SnapshotMap::<u128, ()>::default();
        for host in 0..10_000 {
            map.insert(0xfd00 << 112 | host, ());
        }
        let fullest = map.shards.iter().map(|shard| shard.load().len()).max().unwrap();
        assert!(fullest < 120, "{fullest} of 10,000 in one of {SHARDS} shards");
    }
}
