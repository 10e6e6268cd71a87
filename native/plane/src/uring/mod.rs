//! The same plane over io_uring: what waits is taken and what goes out is given in one system call a batch.
//!
//! Each thread has a ring of its own. The device and the sockets are read by multishot operations, which go on by
//! themselves and put what they read into buffers that the ring was given; on a device that keeps packets in order,
//! which several reads at once would not. With DEFER_TASKRUN all of that happens inside our own calls of the kernel,
//! so a thread that spins watches a word in memory. What a ring can't do, and all that is rare, goes over the system
//! calls of the default path.

mod common;
mod inward;
mod outward;
mod ring;

use std::io;

use self::ring::Ring;
use crate::io::Io;
use crate::syscalls;

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
            syscalls::out(io, queue)
        }
    }
}

/// The way in of a queue; the same.
pub fn inward(io: &Io, queue: usize) -> io::Result<()> {
    match inward::ring() {
        Ok(ring) => inward::run(io, queue, ring),
        Err(error) => {
            io.note(&note(&reason(&error)));
            syscalls::inward(io, queue)
        }
    }
}

/// The kernel's word for an error, without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
