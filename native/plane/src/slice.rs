//! How long this thread may run before the scheduler prefers another one.
//!
//! A program that receives UDP usually has a socket of 208 KiB, which holds some 90 datagrams of
//! 1,372 bytes. The kernel wakes it while we write to the TUN device, but lets us run on until our
//! slice is over. By then we have written more than its socket holds. Where our slice is longer than
//! its own, the scheduler gives it the core at once (EEVDF, from Linux 6.12 on). Our share of the
//! core doesn't change.
//!
//! TCP doesn't send more than its receiver has room for, and changing threads more often costs it
//! time. So the slice is long only while batches of UDP come.

use std::io;
use std::mem::{size_of, zeroed};

use transport::coalesce::Inner;
use transport::vnet::IPPROTO_UDP;

use crate::descriptor::check;
use crate::device::Device;

/// The long slice, in nanoseconds. The usual one is 0.7 ms with one core and 2.8 ms with eight and
/// more.
const LONG: u64 = 6_000_000;
/// A batch of fewer packets doesn't count as much UDP.
const MANY: usize = 16;
/// The slice changes after this many more batches of one kind than of the other.
const CHANGE: u32 = 16;

/// The slice of the calling thread.
#[derive(Default)]
pub struct Slice {
    /// Batches of UDP, less the others, from 0 to CHANGE.
    score: u32,
    /// Whether it is the long one.
    long: bool,
    /// What it was before, in nanoseconds.
    before: u64,
    /// Whether the system doesn't let us change it.
    refused: bool,
}

impl Slice {
    /// Note a batch that is written to a device, and change the slice if it is time to. Only the
    /// first packet is looked at, as a single batch changes nothing.
    pub fn note(&mut self, device: &dyn Device, buffer: &[u8], packets: &[Inner]) {
        if let (true, Some(first)) = (device.answers_at_once(), packets.first()) {
            self.count(packets.len(), first.of(buffer));
        }
    }

    fn count(&mut self, packets: usize, first: &[u8]) {
        let udp = packets >= MANY && is_udp(first);
        self.score = if udp { (self.score + 1).min(CHANGE) } else { self.score.saturating_sub(1) };
        let is_due = self.score == if self.long { 0 } else { CHANGE };
        if is_due && !self.refused {
            match change(if self.long { self.before } else { LONG }) {
                Ok(before) => (self.long, self.before) = (!self.long, before),
                Err(_) => self.refused = true,
            }
        }
    }
}

fn is_udp(packet: &[u8]) -> bool {
    let protocol = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9),
        Some(6) => packet.get(6),
        _ => None,
    };
    protocol == Some(&IPPROTO_UDP)
}

/// Set the slice of the calling thread in nanoseconds. Return what it was. Kernels before 6.12 ignore
/// it.
fn change(slice: u64) -> io::Result<u64> {
    let mut attributes = attributes()?;
    if !matches!(attributes.sched_policy as libc::c_int, libc::SCHED_OTHER | libc::SCHED_BATCH) {
        // For others the field has another meaning.
        return Err(io::ErrorKind::Unsupported.into());
    }
    let before = attributes.sched_runtime;
    attributes.sched_runtime = slice;
    // SAFETY: the kernel reads as many bytes as `size` says. Zero means the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } as libc::c_int)?;
    Ok(before)
}

/// Return how the calling thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: a sched_attr is plain bytes, and all zeros is one of its values.
    let mut attributes: libc::sched_attr = unsafe { zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes. Zero means the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } as libc::c_int)?;
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of packets.
    const UDP: [u8; 20] = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const TCP: [u8; 20] = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn udp_is_told_from_the_rest() {
        let six = |next| [&[0x60, 0, 0, 0, 0, 0, next][..], &[0; 33]].concat();
        assert!(is_udp(&UDP) && is_udp(&six(17)));
        assert!(!is_udp(&TCP) && !is_udp(&six(6)) && !is_udp(&six(44)));
        for short in [&[][..], &[0x45], &[0x60], &[17; 20]] {
            assert!(!is_udp(short));
        }
    }

    #[test]
    fn the_slice_is_long_while_batches_of_udp_come() {
        let usual = attributes().unwrap().sched_runtime;
        if usual == 0 {
            eprintln!("nothing tested: this kernel has no slices");
            return;
        }
        let mut slice = Slice::default();
        let mut after = |times: u32, packets, first: &[u8]| {
            for _ in 0..times {
                slice.count(packets, first);
            }
            attributes().unwrap().sched_runtime
        };
        assert_eq!(after(100, 1000, &TCP), usual);
        assert_eq!(after(100, MANY - 1, &UDP), usual);
        assert_eq!(after(CHANGE - 1, MANY, &UDP), usual);
        assert_eq!(after(1, MANY, &UDP), LONG);
        assert_eq!(after(100, 1000, &UDP), LONG);
        assert_eq!(after(CHANGE - 1, 1000, &TCP), LONG);
        assert_eq!(after(1, 1000, &TCP), usual);
        assert_eq!(after(CHANGE, 1000, &UDP), LONG);
        assert_eq!(after(CHANGE, 1, &UDP), usual, "few packets are no flood");
    }

    #[test]
    fn where_the_system_refuses_nothing_changes() {
        let mut slice = Slice { refused: true, ..Slice::default() };
        let usual = attributes().unwrap().sched_runtime;
        (0..100).for_each(|_| slice.count(1000, &UDP));
        assert_eq!(attributes().unwrap().sched_runtime, usual);
    }
}
