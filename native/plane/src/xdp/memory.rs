//! Memory shared with the kernel: mappings, and the frames of a UMEM.
//!
//! A frame belongs to one side at a time. It is ours while we hold its [`Frame`], a token that
//! can't be copied. A token is made once, given away with a ring's entry, and comes back with one.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

/// Bytes of a frame with its headroom. Drivers work best with pages.
pub const FRAME: usize = 4096;
/// Bytes that the kernel keeps free before a frame that it writes (XDP_PACKET_HEADROOM).
pub const HEADROOM: usize = 256;

/// A mapping. It is unmapped when dropped.
pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a mapping is memory at a fixed place that no thread owns. It is read and written through
// pointers only, and each such place states why that is right.
unsafe impl Send for Mapping {}
// SAFETY: as above. The methods only return the pointer.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map fresh memory, filled with zeros.
    pub fn anonymous(size: usize) -> io::Result<Self> {
        Self::map(size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Map a part of what a descriptor stands for, shared with the kernel.
    pub fn shared(size: usize, fd: RawFd, offset: libc::off_t) -> io::Result<Self> {
        Self::map(size, libc::MAP_SHARED | libc::MAP_POPULATE, fd, offset)
    }

    fn map(size: usize, flags: libc::c_int, fd: RawFd, offset: libc::off_t) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so no other mapping is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, size })
    }

    /// Return the pointer to the byte at `offset`, if `bytes` bytes from there are inside.
    pub fn at(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.size);
        // SAFETY: the offset is within the mapping.
        inside.then(|| unsafe { self.start.add(offset) })
    }

    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nothing borrows from a mapping that is dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// The exclusive right to use a frame.
pub struct Frame(u64);

impl Frame {
    /// Return the frame's address in the UMEM, as the rings name it, and give up the right. Only
    /// for a ring's entry.
    pub fn into_address(self) -> u64 {
        self.0
    }
}

/// The memory of all frames.
pub struct Umem(Mapping);

impl Umem {
    /// Make `count` frames, all of them ours.
    pub fn new(count: usize) -> io::Result<(Self, Vec<Frame>)> {
        let umem = Self(Mapping::anonymous(count * FRAME)?);
        let frames = (0..count).map(|number| Frame((number * FRAME) as u64)).collect();
        Ok((umem, frames))
    }

    /// Return the address and the size of all frames, for the kernel.
    pub fn area(&self) -> (u64, u64) {
        (self.0.start.as_ptr() as u64, self.0.size() as u64)
    }

    /// Take back a frame that the kernel is done with. Return None if the address is not in this
    /// UMEM.
    ///
    /// # Safety
    /// The address must have come out of a ring of this UMEM. The kernel puts each frame there once
    /// that it was given.
    pub unsafe fn take_back(&self, address: u64) -> Option<Frame> {
        let start = address / FRAME as u64 * FRAME as u64;
        self.0.at(start as usize, FRAME).map(|_| Frame(start))
    }

    /// Return the bytes of one of our frames.
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let start = self.0.at(frame.0 as usize, FRAME).expect("frames are made of what is there");
        // SAFETY: FRAME bytes from there are mapped. The token is borrowed for as long as the slice
        // lives, and there is one token per frame. While we hold it the kernel neither reads nor
        // writes the frame.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), FRAME) }
    }

    /// Return `size` bytes of one of our frames, from an address that a ring returned for it. None
    /// if they aren't within the frame.
    pub fn received<'a>(&'a self, frame: &'a mut Frame, address: u64, size: u32) -> Option<&'a [u8]> {
        let from = usize::try_from(address.checked_sub(frame.0)?).ok()?;
        self.bytes_mut(frame).get(from..from.checked_add(size as usize)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_apart_and_addresses_checked() {
        let (umem, mut frames) = Umem::new(2).unwrap();
        umem.bytes_mut(&mut frames[0]).fill(1);
        umem.bytes_mut(&mut frames[1]).fill(2);
        assert_eq!(umem.received(&mut frames[0], 256, 3), Some(&[1, 1, 1][..]));
        assert_eq!(umem.received(&mut frames[1], FRAME as u64 + 256, 2), Some(&[2, 2][..]));
        assert_eq!(umem.received(&mut frames[0], 4095, 2), None);
        assert_eq!(umem.received(&mut frames[1], 256, 1), None);
        assert_eq!(umem.received(&mut frames[0], u64::MAX, 1), None);
        // SAFETY: the frame it would make is dropped unused.
        assert!(unsafe { umem.take_back(2 * FRAME as u64) }.is_none());
    }
}
