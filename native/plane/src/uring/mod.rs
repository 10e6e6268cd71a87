//! The workers over io_uring: one system call per batch both fetches what waits and sends what is
//! ready.
//!
//! Each thread has its own ring. Multishot operations read the device and the sockets. They
//! continue by themselves and fill buffers of the ring. On the device they keep packets in order,
//! which several reads at once would not.
//!
//! With DEFER_TASKRUN the kernel does all of that inside our own system calls, so a thread that
//! spins watches a word in memory. What a ring can't do, and all that is rare, uses the system
//! calls of the default path.

mod common;
mod inward;
mod outward;
mod ring;

use std::io;

use self::ring::Ring;
use crate::io::Io;
use crate::syscalls;

/// Return why there can be no ring here, or None if there can.
pub fn refusal() -> Option<String> {
    Ring::new(1, 4096).err().map(|error| reason(&error))
}

/// Return the note for a refusal.
pub fn note(reason: &str) -> String {
    format!("The kernel refuses io_uring ({reason}): system calls are used instead.")
}

/// Run the way out of a queue. Use system calls if no ring can be made after all.
pub fn out(io: &Io, queue: usize) -> io::Result<()> {
    let device = &io.queues[queue].device;
    // A ring's read can't leave room for the header that a frame begins with.
    let fd = device.uring_fd().filter(|_| device.has_vnet());
    match if fd.is_some() { outward::ring() } else { outward::ring_beside() } {
        Ok(ring) => match fd {
            Some(fd) => outward::run(io, queue, ring, fd),
            None => outward::run_beside(io, queue, ring),
        },
        Err(error) => {
            io.note(&note(&reason(&error)));
            syscalls::out(io, queue)
        }
    }
}

/// Run the way in of a queue. Use system calls if no ring can be made after all.
pub fn inward(io: &Io, queue: usize) -> io::Result<()> {
    match inward::ring() {
        Ok(ring) => inward::run(io, queue, ring),
        Err(error) => {
            io.note(&note(&reason(&error)));
            syscalls::inward(io, queue)
        }
    }
}

/// Return the kernel's text for an error, without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
