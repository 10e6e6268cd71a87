//! The thread that makes packets.

use std::io;

use hdrhistogram::Histogram;

use super::clock::{CpuTime, be_punctual, now, sleep_until};
use super::histogram;
use super::layout::Packets;
use super::pace::{MOST_AT_ONCE, Pace};
use super::port::Inlet;

/// A trial that takes longer than its time by more than this share ends: the generator has no
/// processor for the load.
const MOST_OVERRUN: f64 = 0.5;

/// What to send.
pub struct Order {
    /// Number of the trial.
    pub trial: u32,
    /// Sizes of the packets, again and again; 64 to 1,500 bytes.
    pub sizes: Vec<usize>,
    /// Number of flows, at least 1.
    pub flows: usize,
    /// Packets per second. None: as fast as they are taken.
    pub rate: Option<f64>,
    /// How long.
    pub seconds: f64,
}

/// What was sent.
pub struct Sent {
    /// Packets that were made.
    pub offered: u64,
    /// Those of them that were taken.
    pub sent: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// How long it took.
    pub nanoseconds: u64,
    /// How much later than due each burst was made, in nanoseconds.
    pub lateness: Histogram<u64>,
    /// What the generator cost.
    pub cpu: CpuTime,
}

/// Makes packets from one address to another.
pub struct Source<I> {
    inlet: I,
    source: [u8; 4],
    target: [u8; 4],
}

impl<I: Inlet> Source<I> {
    /// Make packets for `inlet`.
    pub fn new(inlet: I, source: [u8; 4], target: [u8; 4]) -> Self {
        Self { inlet, source, target }
    }

    /// Send, and return once all is sent.
    pub fn send(&mut self, order: &Order) -> io::Result<Sent> {
        be_punctual();
        let mut packets = Packets::new(order.trial, order.flows, &order.sizes, self.source, self.target);
        let before = CpuTime::of_thread();
        let start = now();
        let mut sent = Sent {
            offered: 0,
            sent: 0,
            bytes: 0,
            nanoseconds: 0,
            lateness: histogram::new(),
            cpu: CpuTime::default(),
        };
        match order.rate {
            Some(rate) => {
                self.at_pace(&mut packets, Pace::new(rate, order.seconds), start, order.seconds, &mut sent)?
            }
            None => self.without_pace(&mut packets, start + (order.seconds * 1e9) as u64, &mut sent)?,
        }
        sent.nanoseconds = now() - start;
        sent.cpu = CpuTime::of_thread() - before;
        sent.sent = packets.kept();
        Ok(sent)
    }

    /// Send each burst when it is due. Packets that find no room aren't offered again.
    fn at_pace(
        &mut self,
        packets: &mut Packets,
        pace: Pace,
        start: u64,
        seconds: f64,
        sent: &mut Sent,
    ) -> io::Result<()> {
        let latest = start + (seconds * (1.0 + MOST_OVERRUN) * 1e9) as u64;
        loop {
            let count = pace.next(sent.offered);
            let due = start + pace.due(sent.offered);
            let mut time = now();
            if count == 0 || time > latest {
                return Ok(());
            }
            if time < due {
                sleep_until(due);
                time = now();
            }
            sent.lateness.saturating_record(time - due);
            packets.fill(count, due);
            let taken = self.inlet.put(&mut packets.made(count))?;
            sent.bytes += packets.keep(taken, count);
            sent.offered += count as u64;
        }
    }

    /// Send as fast as packets are taken.
    fn without_pace(&mut self, packets: &mut Packets, until: u64, sent: &mut Sent) -> io::Result<()> {
        let mut time = now();
        while time < until {
            packets.fill(MOST_AT_ONCE, time);
            let taken = self.inlet.put(&mut packets.made(MOST_AT_ONCE))?;
            sent.bytes += packets.keep(taken, MOST_AT_ONCE);
            sent.offered += taken as u64;
            if taken < MOST_AT_ONCE {
                self.inlet.wait()?;
            }
            time = now();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes some of each burst.
    struct Half {
        taken: usize,
        waits: usize,
    }

    impl Inlet for Half {
        fn put(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
            let taken = packets.count().div_ceil(2);
            self.taken += taken;
            Ok(taken)
        }

        fn wait(&mut self) -> io::Result<()> {
            self.waits += 1;
            Ok(())
        }
    }

    fn order(rate: Option<f64>) -> Order {
        Order { trial: 1, sizes: vec![64], flows: 3, rate, seconds: 0.05 }
    }

    #[test]
    fn at_a_pace_what_finds_no_room_is_offered_once_and_not_sent() {
        let mut source = Source::new(Half { taken: 0, waits: 0 }, [10, 0, 0, 1], [10, 0, 0, 2]);
        let sent = source.send(&order(Some(100_000.0))).unwrap();
        assert_eq!((sent.offered, sent.sent, source.inlet.waits), (5000, 2500, 0));
        assert_eq!((sent.sent, sent.bytes), (source.inlet.taken as u64, 2500 * 64));
        assert_eq!(sent.lateness.len(), 500);
        assert!(sent.nanoseconds >= 49_000_000);
    }

    #[test]
    fn without_a_pace_all_that_is_offered_is_sent() {
        let mut source = Source::new(Half { taken: 0, waits: 0 }, [10, 0, 0, 1], [10, 0, 0, 2]);
        let sent = source.send(&order(None)).unwrap();
        assert!(sent.sent > 1000 && source.inlet.waits > 30);
        assert_eq!((sent.offered, sent.bytes), (sent.sent, 64 * sent.sent));
    }
}
