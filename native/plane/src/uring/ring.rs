//! A ring, and the buffers that it reads into.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, CancelBuilder};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};

use crate::counters::count_call;

/// Operations that may be submitted at once.
const ENTRIES: u32 = 256;
/// Completions that may wait. There are more of them than operations, because a multishot one
/// completes often.
const COMPLETIONS: u32 = 1024;
/// Operations that [`Ring::complete`] takes at most.
pub const AT_ONCE: usize = 128;
/// The tag of the first of these operations. All other tags are less.
const AT_ONCE_TAG: u64 = 1 << 63;
/// The group of all buffers of a ring.
pub const GROUP: u16 = 0;
/// The alignment of the ring of buffers: the kernel requires a page, and no page is larger.
const PAGE: usize = 65536;
/// The operations in use, newest first, with what to report if the kernel lacks them.
const OPERATIONS: [(u8, &str); 6] = [
    (opcode::ReadMulti::CODE, "READ_MULTISHOT, which needs Linux 6.7"),
    (opcode::RecvMsgMulti::CODE, "RECVMSG"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
];

/// The ring of one thread.
///
/// The kernel writes to the buffers only inside this thread's [`Ring::enter`]. DEFER_TASKRUN makes
/// every completion run there, and the kernel never hands a multishot operation on a pollable file
/// to one of its threads.
pub struct Ring {
    ring: IoUring,
    /// Operations whose last completion hasn't been taken.
    flying: usize,
    pool: Pool,
    /// Completions that came while others were waited for.
    taken: VecDeque<Completion>,
}

/// A result of an operation. A multishot operation has several.
pub struct Completion {
    /// The operation's `user_data`.
    pub tag: u64,
    /// Bytes, or the error.
    pub result: Result<usize, i32>,
    /// The buffer with the bytes, if the operation takes its buffers from the ring.
    pub lease: Option<Lease>,
    /// Whether the operation continues.
    pub more: bool,
}

/// A buffer that is ours until it is given back.
pub struct Lease(u16);

impl Ring {
    /// Make a ring with `count` (a power of two) buffers of `size` bytes.
    ///
    /// Only the thread that makes it may use it. Fails if the kernel has no io_uring, if its
    /// io_uring lacks something, or if a policy forbids it.
    pub fn new(count: u16, size: usize) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_cqsize(COMPLETIONS).dontfork();
        let ring = builder.build(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if let Some((_, name)) = OPERATIONS.iter().find(|(code, _)| !probe.is_supported(*code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("it has no {name}")));
        }
        let pool = Pool::new(count, size);
        // SAFETY: there are `count` entries, aligned to a page. They live until `drop` has
        // unregistered them.
        unsafe { ring.submitter().register_buf_ring_with_flags(pool.entries.as_ptr() as u64, count, GROUP, 0)? };
        let mut made = Self { ring, flying: 0, pool, taken: VecDeque::new() };
        for number in 0..count {
            made.give_back(Lease(number));
        }
        Ok(made)
    }

    /// Queue an operation. The next [`Ring::enter`] submits it.
    ///
    /// # Safety
    /// What the operation reads and writes, other than the ring's buffers, must stay unchanged and
    /// in place until its last completion is taken. So must what it points to for its parameters.
    pub unsafe fn push(&mut self, operation: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller promises it.
        while unsafe { self.ring.submission().push(operation) }.is_err() {
            self.enter(0)?;
        }
        self.flying += 1;
        Ok(())
    }

    /// Submit what is queued, let the kernel do its deferred work, and wait until there are `want`
    /// completions.
    pub fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            count_call();
            let queued = self.ring.submission().len() as u32;
            // GETEVENTS is set even if nothing is waited for: only such a call does the deferred
            // work.
            // SAFETY: so many operations are queued, each as its `push` promised. No argument is
            // passed.
            let done = unsafe {
                let flags = EnterFlags::GETEVENTS.bits();
                self.ring.submitter().enter::<libc::sigset_t>(queued, want as u32, flags, None)
            };
            match done {
                Ok(_) => return Ok(()),
                // Too many completions wait. They are taken next.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Do at most [`AT_ONCE`] operations that end soon, in their order. Return when the kernel is
    /// done with all of them. `done` is called with the number and the result of each.
    ///
    /// # Safety
    /// Everything that the operations point to must stay unchanged and in place during the call.
    pub unsafe fn complete(
        &mut self,
        operations: impl Iterator<Item = squeue::Entry>,
        mut done: impl FnMut(usize, Result<usize, i32>),
    ) {
        let mut waiting = 0;
        for (operation, number) in operations.zip(AT_ONCE_TAG..) {
            // SAFETY: the caller promises it, and the loop below takes the completions.
            unsafe { self.push(&operation.user_data(number)) }.unwrap_or_else(|error| abort(&error));
            waiting += 1;
        }
        let mut want = 0;
        while waiting > 0 {
            self.enter(want).unwrap_or_else(|error| abort(&error));
            while let Some(completion) = self.take() {
                if completion.tag >= AT_ONCE_TAG {
                    done((completion.tag - AT_ONCE_TAG) as usize, completion.result);
                    waiting -= 1;
                } else {
                    self.taken.push_back(completion);
                }
            }
            want = 1;
        }
    }

    /// Return whether an [`Ring::enter`] or a [`Ring::next`] would find something now. This is no
    /// system call.
    pub fn has_work(&mut self) -> bool {
        let waiting = {
            let queue = self.ring.submission();
            queue.taskrun() || queue.cq_overflow() || !queue.is_empty()
        };
        waiting || !self.taken.is_empty() || !self.ring.completion().is_empty()
    }

    /// Take a completion.
    pub fn next(&mut self) -> Option<Completion> {
        self.taken.pop_front().or_else(|| self.take())
    }

    fn take(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let more = cqueue::more(entry.flags());
        self.flying -= usize::from(!more);
        let result = entry.result();
        Some(Completion {
            tag: entry.user_data(),
            result: usize::try_from(result).map_err(|_| -result),
            lease: cqueue::buffer_select(entry.flags()).map(Lease),
            more,
        })
    }

    /// Return the offset of a leased buffer in the memory of all buffers.
    pub fn place(&self, lease: &Lease) -> usize {
        usize::from(lease.0) * self.pool.size
    }

    /// Return the bytes of a leased buffer.
    ///
    /// # Safety
    /// The slice must not be used after the lease or the ring is gone, and it must be the only one
    /// of this buffer.
    pub unsafe fn bytes<'a>(&self, lease: &Lease) -> &'a mut [u8] {
        // SAFETY: the offset is within the memory. The lease shows that the kernel doesn't use the
        // buffer, and the caller promises that nothing else does.
        unsafe { std::slice::from_raw_parts_mut(self.pool.memory.as_ptr().add(self.place(lease)), self.pool.size) }
    }

    /// Return where the memory of all buffers begins, to point to leased buffers.
    pub fn base(&self) -> *const u8 {
        self.pool.memory.as_ptr()
    }

    /// Return the memory of all buffers. While it is borrowed the ring can't be entered, so the
    /// kernel doesn't write to it.
    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: the memory is that long, and nothing else uses it. The kernel writes to it only
        // during `enter`, which the borrow excludes.
        unsafe { std::slice::from_raw_parts_mut(self.pool.memory.as_ptr(), self.pool.layout.size()) }
    }

    /// Give a buffer back to the kernel.
    pub fn give_back(&mut self, Lease(number): Lease) {
        let tail = self.pool.tail;
        // SAFETY: the place is one of the pool's entries, which the kernel reads only once the tail
        // is past it. The tail is the field that the kernel shares. It is aligned for a u16, and
        // only this thread writes it.
        unsafe {
            let entry = &mut *self.pool.entries.as_ptr().add(usize::from(tail & (self.pool.count - 1)));
            entry.set_addr(self.pool.memory.as_ptr().add(usize::from(number) * self.pool.size) as u64);
            entry.set_len(self.pool.size as u32);
            entry.set_bid(number);
            self.pool.tail = tail.wrapping_add(1);
            let shared = BufRingEntry::tail(self.pool.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(shared).store(self.pool.tail, Ordering::Release);
        }
    }

    /// Cancel everything that was submitted, and wait until none of it uses our memory.
    fn settle(&mut self) -> io::Result<()> {
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        while self.flying > 0 {
            // An operation that can't be cancelled is short and ends by itself.
            // SAFETY: the operation uses no memory of ours.
            unsafe { self.push(&cancel)? };
            self.enter(1)?;
            while self.next().is_some() {}
        }
        self.ring.submitter().unregister_buf_ring(GROUP)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Err(error) = self.settle() {
            abort(&error);
        }
    }
}

/// End the process. The kernel returned an error that it never returns for correct calls, so it may
/// still use our memory.
fn abort(error: &io::Error) -> ! {
    eprintln!("io_uring can't be waited for: {error}");
    std::process::abort();
}

/// The buffers, and the ring that hands them to the kernel.
struct Pool {
    memory: NonNull<u8>,
    layout: Layout,
    entries: NonNull<BufRingEntry>,
    entries_layout: Layout,
    count: u16,
    size: usize,
    tail: u16,
}

impl Pool {
    fn new(count: u16, size: usize) -> Self {
        assert!(count.is_power_of_two() && size > 0, "such a pool can't be registered");
        let (layout, entries_layout) = (
            Layout::from_size_align(usize::from(count) * size, PAGE).expect("a few megabytes"),
            Layout::from_size_align(usize::from(count) * size_of::<BufRingEntry>(), PAGE).expect("a few pages"),
        );
        let (memory, entries) = (allocate(layout), allocate(entries_layout).cast());
        Self { memory, layout, entries, entries_layout, count, size, tail: 0 }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: both were allocated with these layouts. The ring that used them has released
        // them.
        unsafe {
            dealloc(self.memory.as_ptr(), self.layout);
            dealloc(self.entries.as_ptr().cast(), self.entries_layout);
        }
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here is empty.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::types::Fd;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    const READ: u64 = 7;

    /// Return a ring, unless the kernel or a policy refuses it here.
    fn ring(count: u16) -> Option<Ring> {
        Ring::new(count, 64).inspect_err(|error| eprintln!("nothing tested: {error}")).ok()
    }

    fn read(ring: &mut Ring, from: &UnixStream) {
        let read = opcode::ReadMulti::new(Fd(from.as_raw_fd()), 0, GROUP).offset(u64::MAX).build().user_data(READ);
        // SAFETY: the operation writes to the ring's buffers alone.
        unsafe { ring.push(&read) }.unwrap();
    }

    fn next(ring: &mut Ring) -> Completion {
        loop {
            if let Some(completion) = ring.next() {
                return completion;
            }
            ring.enter(1).unwrap();
        }
    }

    #[test]
    fn what_is_read_lies_in_leased_buffers_until_there_are_none() {
        let Some(mut ring) = ring(2) else { return };
        let (here, mut there) = UnixStream::pair().unwrap();
        read(&mut ring, &here);
        let mut leases = Vec::new();
        for text in [b"one", b"two"] {
            there.write_all(text).unwrap();
            let completion = next(&mut ring);
            assert_eq!((completion.tag, completion.result), (READ, Ok(3)));
            let lease = completion.lease.unwrap();
            let place = ring.place(&lease);
            assert_eq!(&ring.memory()[place..place + 3], text);
            leases.push(lease);
        }
        there.write_all(b"six").unwrap();
        let ended = next(&mut ring);
        assert_eq!((ended.result, ended.more, ended.lease.is_some()), (Err(libc::ENOBUFS), false, false));
        leases.into_iter().for_each(|lease| ring.give_back(lease));
        read(&mut ring, &here);
        assert!(ring.has_work());
        assert_eq!(next(&mut ring).result, Ok(3));
    }

    #[test]
    fn completions_that_come_meanwhile_are_kept() {
        let Some(mut ring) = ring(4) else { return };
        let (here, mut there) = UnixStream::pair().unwrap();
        read(&mut ring, &here);
        there.write_all(b"meanwhile").unwrap();
        let (target, source) = UnixStream::pair().unwrap();
        let texts = [b"a", b"b", b"c"];
        let writes = texts.map(|text| opcode::Write::new(Fd(target.as_raw_fd()), text.as_ptr(), 1).build());
        let mut done = Vec::new();
        // SAFETY: the texts outlive the call.
        unsafe { ring.complete(writes.into_iter(), |number, result| done.push((number, result))) };
        assert_eq!(done, [(0, Ok(1)), (1, Ok(1)), (2, Ok(1))]);
        assert_eq!(next(&mut ring).result, Ok(9));
        let mut given = [0; 3];
        std::io::Read::read_exact(&mut &source, &mut given).unwrap();
        assert_eq!(&given, b"abc");
    }

    #[test]
    fn a_ring_that_ends_leaves_nothing_in_flight() {
        let Some(mut ring) = ring(4) else { return };
        let (here, mut there) = UnixStream::pair().unwrap();
        read(&mut ring, &here);
        ring.enter(0).unwrap();
        assert_eq!(ring.flying, 1);
        ring.settle().unwrap();
        assert_eq!(ring.flying, 0);
        // Nothing reads any more, so what comes stays there.
        there.write_all(b"left").unwrap();
        let mut given = [0; 4];
        std::io::Read::read_exact(&mut &here, &mut given).unwrap();
        assert_eq!(&given, b"left");
        // The group is gone, and `drop` needs to find it.
        // SAFETY: the entries live until `drop` has unregistered them.
        unsafe { ring.ring.submitter().register_buf_ring_with_flags(ring.pool.entries.as_ptr() as u64, 4, GROUP, 0) }
            .unwrap();
    }
}
