//! What both directions do with a ring: tags, stopping, idling.

use std::io;

use io_uring::{opcode, types::Fd};

use super::ring::Ring;
use crate::counters::WorkerCounters;
use crate::io::Io;
use crate::roll_call::Sign;
use crate::spin::Spin;

/// The tag of the first source that a thread reads from. Add the number of the source for the
/// others.
pub const ARRIVAL: u64 = 1 << 32;
/// The tag of the descriptor that is readable when it is time to stop.
pub const STOP: u64 = 2 << 32;
/// The tag of the descriptor that is readable when the thread is asked for a sign of life.
pub const CALL: u64 = 3 << 32;

/// Have `ring` wake its thread when it is time to stop.
pub fn watch_stop(ring: &mut Ring, io: &Io) -> io::Result<()> {
    let poll = opcode::PollAdd::new(Fd(io.stop.fd()), libc::POLLIN as u32).build().user_data(STOP);
    // SAFETY: the operation uses no memory of ours.
    unsafe { ring.push(&poll) }
}

/// Have `ring` wake its thread when it is next asked for a sign of life. Each completion tagged
/// [`CALL`] ends this.
pub fn watch_call(ring: &mut Ring, sign: &Sign) -> io::Result<()> {
    let poll = opcode::PollAdd::new(Fd(sign.fd()), libc::POLLIN as u32).build().user_data(CALL);
    // SAFETY: the operation uses no memory of ours.
    unsafe { ring.push(&poll) }
}

/// Wait until there is a completion. Spin first, if that pays, then sleep.
pub fn idle(ring: &mut Ring, spin: &mut Spin, counters: &WorkerCounters) -> io::Result<()> {
    if ring.has_work() || spin.look(|| Ok(ring.has_work()))? {
        return ring.enter(0);
    }
    counters.count_calls();
    ring.enter(1)
}

/// Return whether a multishot operation that ended with this error only has to be started again:
/// all buffers were in use, or the kernel couldn't continue it.
pub fn is_passing(error: i32) -> bool {
    matches!(error, libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR)
}
