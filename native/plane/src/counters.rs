//! What the workers did.
//!
//! Each worker has its own counters on its own cache lines. Only the worker writes them, once per
//! batch, by plain stores. Reading them costs the worker nothing.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries of the histogram: `BATCH_CLASSES` of the contract.
pub const CLASSES: usize = 16;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Count a system call of this thread.
pub fn count_call() {
    CALLS.set(CALLS.get() + 1);
}

/// The counters of one worker.
#[derive(Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    batch_sizes: [AtomicU64; CLASSES],
    system_calls: AtomicU64,
}

/// The counters of one worker at some time.
#[derive(Debug, PartialEq)]
pub struct Reading {
    /// Datagrams sent to the network or received from it.
    pub packets: u64,
    /// Bytes of these datagrams.
    pub bytes: u64,
    /// How many batches had 1 datagram, 2 or 3, 4 to 7, and so on.
    pub batch_sizes: [u64; CLASSES],
    /// System calls that the worker made.
    pub system_calls: u64,
}

/// The counters of one queue's workers.
#[derive(Default)]
pub struct QueueCounters {
    /// From the device to the network.
    pub out: WorkerCounters,
    /// From the network to the device.
    pub inward: WorkerCounters,
}

/// The counters of all workers.
pub struct PlaneCounters {
    /// The counters of each queue.
    pub queues: Box<[QueueCounters]>,
    /// The counters of the thread at the gate.
    pub gate: WorkerCounters,
    /// Packets that the device had no room for.
    pub full: AtomicU64,
}

impl PlaneCounters {
    /// Make counters for `queues` queues.
    pub fn new(queues: usize) -> Self {
        let queues = (0..queues).map(|_| QueueCounters::default()).collect();
        Self { queues, gate: WorkerCounters::default(), full: AtomicU64::new(0) }
    }
}

/// Add by a load and a store. There is one writer, so no atomic addition is needed.
fn add(counter: &AtomicU64, count: usize) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count as u64), Ordering::Relaxed);
}

impl WorkerCounters {
    /// Count a batch of `packets` datagrams with `bytes` bytes together, and this thread's system
    /// calls so far.
    pub fn count(&self, packets: usize, bytes: usize) {
        self.count_packets(packets, bytes);
        self.count_calls();
    }

    /// Count a batch, but no system calls. Whoever calls it holds the lock of the worker's work, so
    /// there is still one writer at a time.
    pub fn count_packets(&self, packets: usize, bytes: usize) {
        if packets > 0 {
            add(&self.packets, packets);
            add(&self.bytes, bytes);
            add(&self.batch_sizes[(packets.ilog2() as usize).min(CLASSES - 1)], 1);
        }
    }

    /// Count this thread's system calls so far. Called before the thread sleeps.
    pub fn count_calls(&self) {
        self.system_calls.store(CALLS.get(), Ordering::Relaxed);
    }

    /// Read the counters. Any thread may do so.
    pub fn read(&self) -> Reading {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Reading {
            packets: read(&self.packets),
            bytes: read(&self.bytes),
            batch_sizes: self.batch_sizes.each_ref().map(read),
            system_calls: read(&self.system_calls),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_counted_by_powers_of_two() {
        let counters = WorkerCounters::default();
        for packets in [0, 1, 2, 3, 4, 64, 65_535, 1 << 20] {
            counters.count(packets, packets * 10);
        }
        let mut batch_sizes = [0; CLASSES];
        for (class, count) in [(0, 1), (1, 2), (2, 1), (6, 1), (15, 2)] {
            batch_sizes[class] = count;
        }
        let packets = 10 + 64 + 65_535 + (1 << 20);
        assert_eq!(counters.read(), Reading { packets, bytes: packets * 10, batch_sizes, system_calls: 0 });
    }

    #[test]
    fn a_thread_counts_its_own_calls() {
        let counters = WorkerCounters::default();
        std::thread::scope(|scope| {
            let worker = || {
                (0..3).for_each(|_| count_call());
                counters.count_calls();
            };
            scope.spawn(worker).join().unwrap();
        });
        count_call();
        assert_eq!(counters.read().system_calls, 3);
    }

    #[test]
    fn two_workers_share_no_cache_line() {
        assert_eq!(size_of::<QueueCounters>(), 2 * size_of::<WorkerCounters>());
        assert!(size_of::<WorkerCounters>() % 128 == 0);
    }
}
