//! The same plane over io_uring: what waits is taken and what goes out is given in one system call a batch.
//!
//! Each thread has a ring of its own. The device and the sockets are read by multishot operations, which go on by
//! themselves and put what they read into buffers that the ring was given; on a device that keeps packets in order,
//! which several reads at once would not. With DEFER_TASKRUN all of that happens inside our own calls of the kernel,
//! so a thread that spins watches a word in memory. What a ring can't do, and all that is rare, goes over the system
//! calls of the default path.

mod inward;
mod outward;
mod ring;

use std::io;

use io_uring::{opcode, types::Fd};

use crate::counters::Counters;
use crate::spin::Spin;
use crate::worker::{self, Io};
use ring::Ring;

/// What a thread reads from has this tag, plus its number.
const ARRIVAL: u64 = 1 << 32;
/// It is time to stop.
const STOP: u64 = 2 << 32;

/// Say why there can be no ring here; None if there can.
pub fn refusal() -> Option<String> {
    Ring::new(1, 4096).err().map(|error| reason(&error))
}

/// The sentence for a refusal.
pub fn note(reason: &str) -> String {
    format!("The kernel refuses io_uring ({reason}): system calls are used instead.")
}

/// The way out of a queue; over system calls if there can be no ring after all.
pub fn out(io: &Io, queue: usize) -> io::Result<()> {
    match outward::ring() {
        Ok(ring) => outward::run(io, queue, ring),
        Err(error) => {
            io.note(&note(&reason(&error)));
            worker::out(io, queue)
        }
    }
}

/// The way in of a queue; the same.
pub fn inward(io: &Io, queue: usize) -> io::Result<()> {
    match inward::ring() {
        Ok(ring) => inward::run(io, queue, ring),
        Err(error) => {
            io.note(&note(&reason(&error)));
            worker::inward(io, queue)
        }
    }
}

/// The kernel's word for an error, without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Have `ring` wake its thread when it is time to stop.
fn watch_stop(ring: &mut Ring, io: &Io) -> io::Result<()> {
    let poll = opcode::PollAdd::new(Fd(io.stop.fd()), libc::POLLIN as u32).build().user_data(STOP);
    // SAFETY: the operation uses no memory of ours.
    unsafe { ring.push(&poll) }
}

/// Wait until there is something to take: first awake where that pays, then asleep.
fn idle(ring: &mut Ring, spin: &mut Spin, counters: &Counters) -> io::Result<()> {
    if ring.has_work() || spin.look(|| Ok(ring.has_work()))? {
        return ring.enter(0);
    }
    counters.count_calls();
    ring.enter(1)
}

/// Whether a multishot operation that ended with this error only has to be begun again: all buffers were ours, or
/// the kernel couldn't go on with it.
fn is_passing(error: i32) -> bool {
    matches!(error, libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR)
}
