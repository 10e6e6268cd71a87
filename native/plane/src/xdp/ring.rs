//! A ring of an AF_XDP socket (Linux, Documentation/networking/af_xdp.rst). One side puts entries,
//! the other takes them. The kernel is one of the sides.

use std::io;
use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::xdp::memory::Mapping;

/// A type that can be an entry: plain bytes.
///
/// # Safety
/// All bit patterns must be values, and the layout must be the kernel's.
pub unsafe trait Entry: Copy {}
// SAFETY: an address in the UMEM, the kernel's entry of the fill and completion rings.
unsafe impl Entry for u64 {}
// SAFETY: the kernel's struct xdp_desc, which consists of three numbers.
unsafe impl Entry for libc::xdp_desc {}

/// What both kinds of ring have.
struct Shared<T> {
    _mapping: Mapping,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    /// Our position, and the other side's when it was last read.
    ours: u32,
    theirs: u32,
    _entries: PhantomData<T>,
}

// SAFETY: the pointers are into the mapping, which moves along and which no thread owns.
unsafe impl<T: Entry> Send for Shared<T> {}

impl<T: Entry> Shared<T> {
    /// Map a ring of `size` entries, a power of two.
    fn map(fd: RawFd, page: libc::off_t, offsets: &libc::xdp_ring_offset, size: u32) -> io::Result<Self> {
        let bytes = offsets.desc as usize + size as usize * size_of::<T>();
        let mapping = Mapping::shared(bytes, fd, page)?;
        let wrong = || io::Error::from_raw_os_error(libc::EPROTO);
        let number = |offset: u64| {
            let found = mapping.at(offset as usize, size_of::<u32>()).map(NonNull::cast::<AtomicU32>);
            found.filter(|one| one.as_ptr().is_aligned()).ok_or_else(wrong)
        };
        let entries = mapping.at(offsets.desc as usize, size as usize * size_of::<T>()).ok_or_else(wrong)?;
        if entries.as_ptr().align_offset(align_of::<T>()) != 0 || !size.is_power_of_two() {
            return Err(wrong());
        }
        let (producer, consumer, flags) =
            (number(offsets.producer)?, number(offsets.consumer)?, number(offsets.flags)?);
        let entries = entries.cast();
        let mask = size - 1;
        Ok(Self {
            _mapping: mapping,
            producer,
            consumer,
            flags,
            entries,
            mask,
            ours: 0,
            theirs: 0,
            _entries: PhantomData,
        })
    }

    fn entry(&self, position: u32) -> NonNull<T> {
        // SAFETY: the mask keeps the index below the number of entries, all of which are mapped.
        unsafe { self.entries.add((position & self.mask) as usize) }
    }

    fn read(number: NonNull<AtomicU32>) -> u32 {
        // SAFETY: it is mapped and aligned, and both sides use it as an atomic.
        unsafe { number.as_ref() }.load(Ordering::Acquire)
    }

    fn write(number: NonNull<AtomicU32>, value: u32) {
        // SAFETY: as above.
        unsafe { number.as_ref() }.store(value, Ordering::Release);
    }

    fn wants_waking(&self) -> bool {
        Self::read(self.flags) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring that we put entries into: fill or TX.
pub struct Producer<T>(Shared<T>);

impl<T: Entry> Producer<T> {
    /// See [`Shared::map`].
    pub fn map(fd: RawFd, page: libc::off_t, offsets: &libc::xdp_ring_offset, size: u32) -> io::Result<Self> {
        Shared::map(fd, page, offsets, size).map(Self)
    }

    /// Return how many entries the kernel has not taken yet.
    pub fn waiting(&mut self) -> u32 {
        self.0.theirs = Shared::<T>::read(self.0.consumer);
        self.0.ours.wrapping_sub(self.0.theirs)
    }

    /// Return whether there is room for an entry.
    pub fn has_room(&mut self) -> bool {
        self.0.ours.wrapping_sub(self.0.theirs) <= self.0.mask || self.waiting() <= self.0.mask
    }

    /// Put an entry. There must be room for it. The kernel sees it after `publish`.
    pub fn put(&mut self, entry: T) {
        assert!(self.0.ours.wrapping_sub(self.0.theirs) <= self.0.mask, "a ring is overfull");
        // SAFETY: the place is mapped and aligned. There was room, so it is ours until it is
        // published.
        unsafe { self.0.entry(self.0.ours).write(entry) };
        self.0.ours = self.0.ours.wrapping_add(1);
    }

    /// Hand the new entries to the kernel.
    pub fn publish(&mut self) {
        Shared::<T>::write(self.0.producer, self.0.ours);
    }

    /// Return whether the kernel needs a system call before it looks.
    pub fn wants_waking(&self) -> bool {
        self.0.wants_waking()
    }
}

/// A ring that we take entries from: RX or completion.
pub struct Consumer<T>(Shared<T>);

impl<T: Entry> Consumer<T> {
    /// See [`Shared::map`].
    pub fn map(fd: RawFd, page: libc::off_t, offsets: &libc::xdp_ring_offset, size: u32) -> io::Result<Self> {
        Shared::map(fd, page, offsets, size).map(Self)
    }

    /// Take the next entry. The kernel may reuse its place after `release`.
    pub fn take(&mut self) -> Option<T> {
        if self.0.ours == self.0.theirs {
            self.0.theirs = Shared::<T>::read(self.0.producer);
            if self.0.ours == self.0.theirs {
                return None;
            }
        }
        // SAFETY: the place is mapped and aligned, and the kernel has published it. The kernel
        // writes there again only after the release.
        let entry = unsafe { self.0.entry(self.0.ours).read() };
        self.0.ours = self.0.ours.wrapping_add(1);
        Some(entry)
    }

    /// Give the places of the taken entries back to the kernel.
    pub fn release(&mut self) {
        Shared::<T>::write(self.0.consumer, self.0.ours);
    }
}
