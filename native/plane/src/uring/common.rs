//! What both directions do with a ring: tags, the end, and idling.

use std::io;

use io_uring::{opcode, types::Fd};

use super::ring::Ring;
use crate::counters::WorkerCounters;
use crate::io::Io;
use crate::spin::Spin;

/// What a thread reads from has this tag, plus its number.
pub const ARRIVAL: u64 = 1 << 32;
/// It is time to stop.
pub const STOP: u64 = 2 << 32;

/// Have `ring` wake its thread when it is time to stop.
pub fn watch_stop(ring: &mut Ring, io: &Io) -> io::Result<()> {
    let poll = opcode::PollAdd::new(Fd(io.stop.fd()), libc::POLLIN as u32).build().user_data(STOP);
    // SAFETY: the operation uses no memory of ours.
    unsafe { ring.push(&poll) }
}

/// Wait until there is something to take: first awake where that pays, then asleep.
pub fn idle(ring: &mut Ring, spin: &mut Spin, counters: &WorkerCounters) -> io::Result<()> {
    if ring.has_work() || spin.look(|| Ok(ring.has_work()))? {
        return ring.enter(0);
    }
    counters.count_calls();
    ring.enter(1)
}

/// Whether a multishot operation that ended with this error only has to be begun again: all buffers were ours, or
/// the kernel couldn't go on with it.
pub fn is_passing(error: i32) -> bool {
    matches!(error, libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR)
}
