//! Regions: memory that two programs have mapped.
//!
//! A region of the other side is mapped only if it is a memfd of the declared size that can't
//! shrink. Then no access within the mapping faults, whatever the other side does with its file. A
//! file on hugetlbfs is refused: its holes fault when no huge page is free.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use crate::sync::AtomicU16;

/// The most that the regions of a connection may have together. VPP's and DPDK's are far smaller.
pub const MOST: u64 = 1 << 32;
/// linux/magic.h, for memfds of ordinary pages.
const TMPFS: i64 = 0x0102_1994;

/// Why a region can't be used.
#[derive(Debug)]
pub enum Refused {
    /// The descriptor isn't a memfd of ordinary pages.
    NoMemfd,
    /// It can shrink, and doesn't let us forbid that.
    CanShrink,
    /// The declared size is zero, too large, or more than the file has.
    Size(u64),
    /// A system call failed.
    System(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemfd => write!(out, "a region that isn't a memfd of ordinary pages"),
            Self::CanShrink => write!(out, "a region that can shrink"),
            Self::Size(size) => write!(out, "a region whose file doesn't have the declared {size} bytes"),
            Self::System(error) => write!(out, "a region that can't be mapped: {error}"),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// A mapped region. Other programs may change its contents at any time.
pub struct Memory {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory is a mapping of its own, which any thread may use. All accesses go through raw
// pointers and atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Make a region. Return it with its descriptor for the other side. It is zero.
    pub fn make(size: usize) -> io::Result<(Self, OwnedFd)> {
        // SAFETY: the name ends in a zero byte.
        let fd = unsafe { libc::memfd_create(c"memif".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        check(fd)?;
        // SAFETY: the kernel has just returned `fd` to this call, so nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = libc::off_t::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: both calls take their arguments by value.
        unsafe {
            check(libc::ftruncate(fd.as_raw_fd(), length))?;
            check(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW))?;
        }
        Ok((Self::map_file(fd.as_fd(), size)?, fd))
    }

    /// Map a region of the other side.
    pub fn map(fd: BorrowedFd<'_>, size: u64) -> Result<Self, Refused> {
        let length = usize::try_from(size).ok().filter(|_| size > 0 && size <= MOST).ok_or(Refused::Size(size))?;
        // SAFETY: a statfs is plain data, and all zeros is one of its values. The call writes one.
        let system = unsafe {
            let mut system: libc::statfs = std::mem::zeroed();
            check(libc::fstatfs(fd.as_raw_fd(), &raw mut system))?;
            system
        };
        // SAFETY: the calls take their arguments by value. The second returns the seals, and fails if
        // this is no memfd.
        let seals = unsafe {
            libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK);
            libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS)
        };
        if seals < 0 || system.f_type as i64 != TMPFS {
            return Err(Refused::NoMemfd);
        }
        if seals & libc::F_SEAL_SHRINK == 0 {
            return Err(Refused::CanShrink);
        }
        // Measured after the seal: now the file keeps at least the size that is seen.
        // SAFETY: a stat is plain data, and all zeros is one of its values. The call writes one.
        let file = unsafe {
            let mut file: libc::stat = std::mem::zeroed();
            check(libc::fstat(fd.as_raw_fd(), &raw mut file))?;
            file
        };
        if u64::try_from(file.st_size).unwrap_or(0) < size {
            return Err(Refused::Size(size));
        }
        Ok(Self::map_file(fd, length)?)
    }

    /// Return private memory that no other program has: for tests of rings.
    pub fn private(size: usize) -> io::Result<Self> {
        Self::mapped(size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn map_file(fd: BorrowedFd<'_>, size: usize) -> io::Result<Self> {
        Self::mapped(size, libc::MAP_SHARED, fd.as_raw_fd())
    }

    fn mapped(size: usize, flags: libc::c_int, fd: libc::c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses a free address, so the mapping replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Self { base, size })
    }

    /// Return the bytes of the region.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Return a pointer to `size` bytes at `at`, or None if they don't lie in the region.
    pub fn at(&self, at: usize, size: usize) -> Option<NonNull<u8>> {
        let end = at.checked_add(size)?;
        // SAFETY: `at` lies in the mapping or at its end.
        (end <= self.size).then(|| unsafe { self.base.add(at) })
    }

    /// Copy bytes out. Return false if they don't lie in the region.
    ///
    /// The other side may write meanwhile: then the copy has some mixture of bytes. It is what is used
    /// from here on; the region isn't read again.
    #[must_use]
    pub fn read(&self, at: usize, into: &mut [u8]) -> bool {
        let Some(from) = self.at(at, into.len()) else { return false };
        // SAFETY: `from` has as many bytes, in a mapping that lives as long as `self`. The two don't
        // overlap: nobody has a reference into the mapping.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copy bytes in. Return false if they don't lie in the region.
    #[must_use]
    pub fn write(&self, at: usize, from: &[u8]) -> bool {
        let Some(to) = self.at(at, from.len()) else { return false };
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        true
    }

    /// Return the 16-bit number at `at`, or None if it doesn't lie in the region at an even place.
    pub fn word(&self, at: usize) -> Option<&AtomicU16> {
        let place = self.at(at, 2)?.as_ptr().cast::<u16>();
        // SAFETY: the place is in the mapping and aligned. Every access to it is atomic, here and in
        // the other program.
        place.is_aligned().then(|| unsafe { AtomicU16::from_ptr(place) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
