//! Packets one behind another in one buffer, which many can read and nobody writes any more.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Bytes that a buffer has room for, unless its one packet is longer.
pub const BUFFER: usize = 64 << 10;
/// Unused buffers that are kept.
const SPARE: usize = 8;

/// Packets while they are gathered.
pub struct Gathering {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Gathering {
    /// Return whether there is room for a packet of `size` bytes. There always is for a first one.
    pub fn has_room(&self, size: usize) -> bool {
        self.ends.is_empty() || self.bytes.len() + size <= BUFFER
    }

    /// Add a packet that lies in pieces. Its bytes are copied.
    pub fn add<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) {
        pieces.for_each(|piece| self.bytes.extend_from_slice(piece));
        self.ends.push(self.bytes.len() as u32);
    }
}

/// Unused buffers.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Gathering>>);

impl Pool {
    /// Return an empty buffer.
    pub fn get(&self) -> Gathering {
        let spare = self.lock().pop();
        spare.unwrap_or_else(|| Gathering { bytes: Vec::with_capacity(BUFFER), ends: Vec::new() })
    }

    /// Turn what was gathered into a batch. Its buffer comes back here once nothing refers to it.
    pub fn seal(self: &Arc<Self>, gathered: Gathering) -> Batch {
        let packets = 0..gathered.ends.len();
        Batch { sealed: Arc::new(Sealed { gathered, pool: Arc::downgrade(self) }), packets }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Gathering>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packets that nobody changes any more.
struct Sealed {
    gathered: Gathering,
    pool: Weak<Pool>,
}

impl Drop for Sealed {
    /// The last reference is gone, so the buffer may be written again.
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut spare = pool.lock();
        if spare.len() < SPARE && self.gathered.bytes.capacity() <= BUFFER {
            let (mut bytes, mut ends) =
                (std::mem::take(&mut self.gathered.bytes), std::mem::take(&mut self.gathered.ends));
            bytes.clear();
            ends.clear();
            spare.push(Gathering { bytes, ends });
        }
    }
}

/// Some of the packets of a buffer. As long as there is a batch, its bytes stay as they are.
#[derive(Clone)]
pub struct Batch {
    sealed: Arc<Sealed>,
    packets: Range<usize>,
}

impl Batch {
    /// Return how many packets these are.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Return the bytes of all packets, one behind another.
    pub fn bytes(&self) -> &[u8] {
        &self.sealed.gathered.bytes[self.start(self.packets.start)..self.start(self.packets.end)]
    }

    /// Return where each packet lies in [`Batch::bytes`].
    pub fn places(&self) -> impl Iterator<Item = Range<usize>> {
        let first = self.start(self.packets.start);
        self.packets.clone().map(move |number| self.start(number) - first..self.start(number + 1) - first)
    }

    /// Take the first packets out, at most `most`.
    pub fn split_off_front(&mut self, most: usize) -> Self {
        let middle = self.packets.start + most.min(self.len());
        let front = Self { sealed: Arc::clone(&self.sealed), packets: self.packets.start..middle };
        self.packets.start = middle;
        front
    }

    /// Take the first packet out.
    pub fn next(&mut self) -> Option<&[u8]> {
        let number = self.packets.next()?;
        Some(&self.sealed.gathered.bytes[self.start(number)..self.start(number + 1)])
    }

    fn start(&self, number: usize) -> usize {
        if number == 0 { 0 } else { self.sealed.gathered.ends[number - 1] as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(pool: &Arc<Pool>, packets: &[&[u8]]) -> Batch {
        let mut gathering = pool.get();
        packets.iter().for_each(|packet| gathering.add([*packet].into_iter()));
        pool.seal(gathering)
    }

    fn texts(batch: &Batch) -> Vec<&[u8]> {
        batch.places().map(|place| &batch.bytes()[place]).collect()
    }

    #[test]
    fn packets_are_found_again_in_whatever_part_of_a_batch() {
        let pool = Arc::default();
        let mut all = batch(&pool, &[b"one", b"", b"three", b"four"]);
        let front = all.split_off_front(2);
        assert_eq!((texts(&front), texts(&all)), (vec![&b"one"[..], b""], vec![&b"three"[..], b"four"]));
        assert_eq!(all.next(), Some(&b"three"[..]));
        assert_eq!((texts(&all.split_off_front(9)), all.next()), (vec![&b"four"[..]], None));
    }

    #[test]
    fn a_buffer_is_used_again_only_after_its_last_batch() {
        let pool: Arc<Pool> = Arc::default();
        let mut whole = batch(&pool, &[b"one", b"two"]);
        let place = whole.bytes().as_ptr();
        let part = whole.split_off_front(1);
        drop(whole);
        let other = batch(&pool, &[b"xxx", b"xxx"]);
        assert_ne!(other.bytes().as_ptr(), place);
        assert_eq!(texts(&part), [b"one"]);
        drop(part);
        assert_eq!(batch(&pool, &[b"xxx"]).bytes().as_ptr(), place);
    }

    #[test]
    fn only_a_few_buffers_of_the_usual_size_are_kept() {
        let pool: Arc<Pool> = Arc::default();
        let long = vec![0; BUFFER + 1];
        drop(batch(&pool, &[&long]));
        assert_eq!(pool.lock().len(), 0);
        drop((0..2 * SPARE).map(|_| batch(&pool, &[b"one"])).collect::<Vec<_>>());
        assert_eq!(pool.lock().len(), SPARE);
    }
}
