//! A ring that lies in a region.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::layout::{
    COOKIE, COOKIE_AT, DESCRIPTOR, FLAGS_AT, HEAD_AT, MAX_LOG2_RING_SIZE, RING_HEADER, TAIL_AT, ring_size,
};
use crate::memory::Memory;
use crate::ring::{Descriptor, Slots};
use crate::sync::AtomicU16;

/// A ring in one of the regions of a connection.
pub struct RegionSlots {
    regions: Arc<[Memory]>,
    /// Where the ring begins. Its whole length lies in one of the regions.
    base: NonNull<u8>,
    size: u16,
}

// SAFETY: the pointer leads into a region, which the value keeps mapped. All accesses through it are
// atomic.
unsafe impl Send for RegionSlots {}

impl RegionSlots {
    /// Return the ring at `offset` of a region, or None if it doesn't lie there, or not aligned.
    pub fn new(regions: &Arc<[Memory]>, region: u16, offset: usize, log2: u8) -> Option<Self> {
        if log2 > MAX_LOG2_RING_SIZE {
            return None;
        }
        let base = regions.get(usize::from(region))?.at(offset, ring_size(log2))?;
        base.cast::<u32>().is_aligned().then(|| Self { regions: Arc::clone(regions), base, size: 1 << log2 })
    }

    /// Return whether the ring begins with the cookie.
    pub fn has_cookie(&self) -> bool {
        self.number(COOKIE_AT).load(Ordering::Relaxed) == COOKIE
    }

    /// Make the ring an empty one.
    pub fn clear(&self) {
        self.number(COOKIE_AT).store(COOKIE, Ordering::Relaxed);
        for word in [self.flags(), self.head(), self.tail()] {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is an even place in the ring's header. All accesses to it are atomic.
        unsafe { AtomicU16::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    /// Return the 32-bit number at `at`, a multiple of 4 within the ring.
    fn number(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the place lies in the ring and is aligned. All accesses to it are atomic.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    fn descriptor(&self, index: u16) -> usize {
        RING_HEADER + usize::from(index & (self.size - 1)) * DESCRIPTOR
    }

    fn region(&self, buffer: Descriptor) -> Option<&Memory> {
        self.regions.get(usize::from(buffer.region))
    }
}

impl Slots for RegionSlots {
    fn size(&self) -> u16 {
        self.size
    }

    fn head(&self) -> &AtomicU16 {
        self.word(HEAD_AT)
    }

    fn tail(&self) -> &AtomicU16 {
        self.word(TAIL_AT)
    }

    fn flags(&self) -> &AtomicU16 {
        self.word(FLAGS_AT)
    }

    fn get(&self, index: u16) -> Descriptor {
        let at = self.descriptor(index);
        let [first, length, offset] = [0, 4, 8].map(|field| self.number(at + field).load(Ordering::Relaxed));
        let [a, b, c, d] = first.to_ne_bytes();
        Descriptor { flags: u16::from_ne_bytes([a, b]), region: u16::from_ne_bytes([c, d]), length, offset }
    }

    fn put(&self, index: u16, descriptor: Descriptor) {
        let at = self.descriptor(index);
        let ([a, b], [c, d]) = (descriptor.flags.to_ne_bytes(), descriptor.region.to_ne_bytes());
        let fields = [u32::from_ne_bytes([a, b, c, d]), descriptor.length, descriptor.offset, 0];
        for (n, field) in fields.into_iter().enumerate() {
            self.number(at + 4 * n).store(field, Ordering::Relaxed);
        }
    }

    fn holds(&self, buffer: Descriptor) -> bool {
        let (at, size) = (buffer.offset as usize, buffer.length as usize);
        self.region(buffer).is_some_and(|region| region.at(at, size).is_some())
    }

    fn read(&self, buffer: Descriptor, skip: usize, into: &mut [u8]) -> bool {
        self.region(buffer).is_some_and(|region| region.read(buffer.offset as usize + skip, into))
    }

    fn write(&self, buffer: Descriptor, skip: usize, from: &[u8]) -> bool {
        self.region(buffer).is_some_and(|region| region.write(buffer.offset as usize + skip, from))
    }
}
