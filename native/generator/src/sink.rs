//! The thread that checks and counts what arrives.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::clock::{CpuTime, now};
use super::histogram;
use super::layout::{HEADERS, Record, parse};
use super::port::Outlet;

/// A trial has ended once nothing has arrived for so long,
const QUIET: Duration = Duration::from_millis(100);
/// and in any case after this.
const LONGEST: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// A flow, as far as it has arrived.
#[derive(Clone, Default)]
struct Flow {
    /// One more than the highest sequence number.
    expected: u64,
    /// A bit for each sequence number that has arrived.
    seen: Vec<u64>,
}

/// What arrived.
pub struct Received {
    trial: u32,
    flows: Vec<Flow>,
    /// Packets, each counted once.
    pub received: u64,
    /// Packets that had been sent when the last one of each flow was.
    pub expected: u64,
    /// Packets that arrived again.
    pub duplicates: u64,
    /// Packets that arrived after a later one of their flow.
    pub reordered: u64,
    /// How many places late the latest of these was.
    pub extent: u64,
    /// Packets of an earlier trial.
    pub stale: u64,
    /// Packets that aren't whole or aren't ours.
    pub invalid: u64,
    /// Bytes of the packets that were received.
    pub bytes: u64,
    /// When the first arrived, in nanoseconds.
    pub first: u64,
    /// When the last arrived.
    pub last: u64,
    /// From when a packet was due to its arrival, in nanoseconds.
    pub latency: Histogram<u64>,
    /// What the sink cost.
    pub cpu: CpuTime,
}

impl Received {
    /// Begin to count a trial.
    pub fn new(trial: u32, flows: usize) -> Self {
        Self {
            trial,
            flows: vec![Flow::default(); flows],
            received: 0,
            expected: 0,
            duplicates: 0,
            reordered: 0,
            extent: 0,
            stale: 0,
            invalid: 0,
            bytes: 0,
            first: 0,
            last: 0,
            latency: histogram::new(),
            cpu: CpuTime::default(),
        }
    }

    /// Count a packet by its UDP payload.
    fn take(&mut self, payload: Option<&[u8]>, now: u64) {
        let Some((payload, record)) = payload.and_then(|payload| Some((payload, parse(payload)?))) else {
            self.invalid += 1;
            return;
        };
        if record.trial != self.trial {
            self.stale += 1;
            return;
        }
        let Some(flow) = self.flows.get_mut(record.flow as usize) else {
            self.invalid += 1;
            return;
        };
        let Record { sequence, due, .. } = record;
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if flow.seen.len() <= word {
            flow.seen.resize((word + 1).next_power_of_two(), 0);
        }
        if flow.seen[word] & bit != 0 {
            self.duplicates += 1;
            return;
        }
        flow.seen[word] |= bit;
        if sequence < flow.expected {
            self.reordered += 1;
            self.extent = self.extent.max(flow.expected - sequence);
        } else {
            self.expected += sequence + 1 - flow.expected;
            flow.expected = sequence + 1;
        }
        if self.received == 0 {
            self.first = now;
        }
        self.last = now;
        self.received += 1;
        self.bytes += (payload.len() + HEADERS) as u64;
        self.latency.saturating_record(now.saturating_sub(due));
    }
}

/// A sink that counts one trial.
pub struct Sink<O> {
    thread: JoinHandle<io::Result<(O, Received)>>,
    received: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
}

impl<O: Outlet + 'static> Sink<O> {
    /// Start to take packets.
    pub fn start(outlet: O, trial: u32, flows: usize) -> io::Result<Self> {
        let (received, stopping) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&received), Arc::clone(&stopping));
        let work = move || run(outlet, Received::new(trial, flows), &shared.0, &shared.1);
        let thread = thread::Builder::new().name("rg-sink".into()).spawn(work)?;
        Ok(Self { thread, received, stopping })
    }

    /// Wait until `sent` packets have arrived or nothing more does. Return what did, and the outlet.
    pub fn finish(self, sent: u64) -> io::Result<(O, Received)> {
        let (began, mut moved, mut before) = (Instant::now(), Instant::now(), self.count());
        while before < sent && moved.elapsed() < QUIET && began.elapsed() < LONGEST && !self.thread.is_finished() {
            thread::sleep(LOOK);
            if self.count() != before {
                (moved, before) = (Instant::now(), self.count());
            }
        }
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the sink panicked")))
    }

    fn count(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

fn run<O: Outlet>(
    mut outlet: O,
    mut received: Received,
    count: &AtomicU64,
    stopping: &AtomicBool,
) -> io::Result<(O, Received)> {
    let before = CpuTime::of_thread();
    while !stopping.load(Ordering::Relaxed) {
        // One time for all that came together. It is read once they are there.
        let mut time = None;
        let taken = outlet.take(&mut |payload| received.take(payload, *time.get_or_insert_with(now)))?;
        count.store(received.received, Ordering::Relaxed);
        if taken == 0 {
            outlet.wait(LOOK)?;
        }
    }
    received.cpu = CpuTime::of_thread() - before;
    Ok((outlet, received))
}

#[cfg(test)]
mod tests {
    use super::super::histogram::pairs;
    use super::super::layout::Packets;
    use super::*;

    /// Return the payloads of the first packets of a trial, which were due at time 1,000.
    fn payloads(count: usize, flows: usize, trial: u32) -> Vec<Vec<u8>> {
        let mut packets = Packets::new(trial, flows, &[100], [10, 0, 0, 1], [10, 0, 0, 2]);
        packets.fill(count, 1000);
        packets.made(count).map(|packet| packet[HEADERS..].to_vec()).collect()
    }

    /// Return what a sink counts of the packets of one flow that arrive in this order.
    fn counted(order: &[usize]) -> Received {
        let (all, mut received) = (payloads(16, 1, 5), Received::new(5, 1));
        order.iter().for_each(|number| received.take(Some(&all[*number]), 2000));
        received
    }

    #[test]
    fn packets_in_order_are_counted_and_nothing_else() {
        let received = counted(&[0, 1, 2, 3]);
        assert_eq!((received.received, received.reordered, received.duplicates, received.bytes), (4, 0, 0, 400));
    }

    #[test]
    fn a_gap_is_no_reordering() {
        let received = counted(&[0, 3, 4, 9]);
        assert_eq!((received.received, received.reordered, received.extent, received.duplicates), (4, 0, 0, 0));
        assert_eq!(received.expected, 10);
    }

    #[test]
    fn what_comes_after_a_later_one_is_reordered_by_so_many_places() {
        let received = counted(&[0, 4, 1, 2, 5, 3]);
        assert_eq!((received.received, received.reordered, received.extent), (6, 3, 4));
    }

    #[test]
    fn what_comes_again_is_a_duplicate_and_counted_once() {
        let received = counted(&[0, 1, 1, 0, 2, 5, 5]);
        assert_eq!((received.received, received.duplicates, received.reordered), (4, 3, 0));
        assert_eq!(received.latency.len(), 4);
    }

    #[test]
    fn flows_are_apart() {
        let (all, mut received) = (payloads(8, 2, 5), Received::new(5, 2));
        // All of the second flow before all of the first.
        for number in [1, 3, 5, 7, 0, 2, 4, 6] {
            received.take(Some(&all[number]), 2000);
        }
        assert_eq!((received.received, received.reordered, received.duplicates, received.expected), (8, 0, 0, 8));
    }

    #[test]
    fn other_trials_and_damaged_packets_are_not_received() {
        let mut received = Received::new(5, 1);
        received.take(Some(&payloads(1, 1, 4)[0]), 2000);
        let whole = &payloads(2, 2, 5)[1];
        // A flow that there isn't.
        received.take(Some(whole), 2000);
        let whole = &payloads(1, 1, 5)[0];
        received.take(Some(&whole[..whole.len() - 1]), 2000);
        received.take(None, 2000);
        assert_eq!((received.received, received.stale, received.invalid), (0, 1, 3));
    }

    #[test]
    fn latencies_are_those_of_the_packets() {
        let (all, mut received) = (payloads(16, 1, 5), Received::new(5, 1));
        for (number, latency) in [(0, 10), (1, 10), (2, 2047), (3, 4095), (4, 1_000_000)] {
            received.take(Some(&all[number]), 1000 + latency);
        }
        // Before it was due: the clocks are one, so this is a burst that was made early. It counts as none.
        received.take(Some(&all[5]), 999);
        assert_eq!(pairs(&received.latency), [(0, 1), (10, 2), (2047, 1), (4095, 1), (1_000_447, 1)]);
        assert_eq!(received.latency.value_at_quantile(0.5), 10);
    }

    /// Hands out what it has, some at a time.
    struct Ready(Vec<Vec<u8>>);

    impl Outlet for Ready {
        fn take(&mut self, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<usize> {
            let count = self.0.len().min(3);
            self.0.drain(..count).for_each(|payload| each(Some(&payload)));
            Ok(count)
        }

        fn wait(&mut self, most: Duration) -> io::Result<()> {
            thread::sleep(most);
            Ok(())
        }
    }

    #[test]
    fn a_sink_ends_when_all_is_there_or_nothing_more_comes() {
        for (sent, quick) in [(10, true), (11, false)] {
            let began = Instant::now();
            let sink = Sink::start(Ready(payloads(10, 2, 3)), 3, 2).unwrap();
            let (_, received) = sink.finish(sent).unwrap();
            assert_eq!((received.received, received.invalid), (10, 0));
            assert!(quick || began.elapsed() >= QUIET);
        }
    }
}
