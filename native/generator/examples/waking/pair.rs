//! One thread wakes another.

use std::io::Result;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::system::{check, now, pin, sleep};

/// Print a line of JSON: how long each wake-up took, in nanoseconds.
pub fn run(waker: usize, sleeper: usize, pause: u64, times: usize) -> Result<()> {
    // SAFETY: the call touches no memory of ours.
    let event = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) } as isize)? as i32;
    let (sent, woken) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut delays = Vec::new();
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| -> Result<()> {
            pin(sleeper)?;
            for _ in 0..times {
                sleep([event, -1])?;
                woken.store(now(), Ordering::Release);
                let mut count = 0_u64;
                // SAFETY: the kernel writes the 8 bytes of `count`.
                check(unsafe { libc::read(event, (&raw mut count).cast(), 8) })?;
            }
            Ok(())
        });
        pin(waker)?;
        for _ in 0..times {
            thread::sleep(Duration::from_micros(pause));
            woken.store(0, Ordering::Relaxed);
            let one = 1_u64;
            sent.store(now(), Ordering::Relaxed);
            // SAFETY: the kernel reads the 8 bytes of `one`.
            check(unsafe { libc::write(event, (&raw const one).cast(), 8) })?;
            // Leave the core, as a thread that has nothing else to do does.
            while woken.load(Ordering::Acquire) == 0 {
                thread::sleep(Duration::from_micros(200));
            }
            delays.push(woken.load(Ordering::Acquire) - sent.load(Ordering::Relaxed));
        }
        sleeper.join().unwrap()
    })?;
    println!(r#"{{"delays": {delays:?}}}"#);
    Ok(())
}
