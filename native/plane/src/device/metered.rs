//! What a device's calls cost, for `rustguard bench generate`: a few of them are timed.

use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Device;

/// One call in so many is timed. A prime, so that nothing keeps step with batches.
const EVERY: u64 = 61;
/// A call that took longer was interrupted by another thread.
const LONGEST: Duration = Duration::from_micros(20);

/// The cost of one kind of call.
#[derive(Default)]
#[repr(align(128))]
struct Meter {
    calls: AtomicU64,
    timed: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Meter {
    /// Do a call that succeeds or not. Those that fail aren't counted.
    fn call<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        // Threads that read the same number time the same call in vain, at worst.
        let number = self.calls.load(Ordering::Relaxed);
        if number % EVERY != 0 {
            let done = act()?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            return Ok(done);
        }
        let before = Instant::now();
        // Reading the clock costs about as much as the call.
        let start = Instant::now();
        let done = act()?;
        let whole = start.elapsed();
        self.calls.fetch_add(1, Ordering::Relaxed);
        if whole < LONGEST {
            let net = whole.saturating_sub(start - before);
            self.timed.fetch_add(1, Ordering::Relaxed);
            self.nanoseconds.fetch_add(net.as_nanos() as u64, Ordering::Relaxed);
        }
        Ok(done)
    }

    /// Return the nanoseconds of all calls so far, as far as the timed ones tell.
    fn nanoseconds(&self) -> f64 {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let timed = read(&self.timed);
        if timed == 0.0 { 0.0 } else { read(&self.nanoseconds) / timed * read(&self.calls) }
    }
}

/// What the calls of all queues cost.
#[derive(Default)]
pub struct Meters {
    read: Meter,
    write: Meter,
}

impl Meters {
    /// Return queues whose calls are metered.
    pub fn of(self: &Arc<Self>, queues: Vec<Arc<dyn Device>>) -> Vec<Arc<dyn Device>> {
        let metered = |queue| Arc::new(Metered::new(queue, Arc::clone(self))) as Arc<dyn Device>;
        queues.into_iter().map(metered).collect()
    }

    /// Return the nanoseconds of all reads and of all writes so far.
    pub fn nanoseconds(&self) -> (f64, f64) {
        (self.read.nanoseconds(), self.write.nanoseconds())
    }
}

/// A queue whose calls are metered.
pub struct Metered {
    queue: Arc<dyn Device>,
    meters: Arc<Meters>,
}

impl Metered {
    /// Meter a queue's calls with `meters`.
    pub fn new(queue: Arc<dyn Device>, meters: Arc<Meters>) -> Self {
        Self { queue, meters }
    }
}

impl Device for Metered {
    fn kind(&self) -> &'static str {
        self.queue.kind()
    }

    fn fd(&self) -> RawFd {
        self.queue.fd()
    }

    fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.meters.read.call(|| self.queue.read(frame))
    }

    fn write(&self, frame: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.meters.write.call(|| self.queue.write(frame))
    }

    fn flush(&self) {
        self.queue.flush();
    }

    fn fall_asleep(&self) -> bool {
        self.queue.fall_asleep()
    }

    fn is_up(&self) -> bool {
        self.queue.is_up()
    }

    fn up_fd(&self) -> (RawFd, libc::c_short) {
        self.queue.up_fd()
    }

    fn has_vnet(&self) -> bool {
        self.queue.has_vnet()
    }

    fn answers_at_once(&self) -> bool {
        self.queue.answers_at_once()
    }

    fn set_mtu(&self, mtu: usize) {
        self.queue.set_mtu(mtu);
    }

    fn end_offloads(&self) -> bool {
        self.queue.end_offloads()
    }

    fn drops(&self) -> Vec<(String, u64)> {
        self.queue.drops()
    }

    fn uring_fd(&self) -> Option<RawFd> {
        self.queue.uring_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timed_calls_stand_for_all_and_failed_ones_for_none() {
        let meter = Meter::default();
        let work = || {
            let until = Instant::now() + Duration::from_micros(2);
            while Instant::now() < until {}
            Ok(())
        };
        for _ in 0..10 * EVERY {
            assert!(meter.call(|| Err::<(), _>(io::ErrorKind::WouldBlock.into())).is_err());
            meter.call(work).unwrap();
        }
        assert_eq!(meter.calls.load(Ordering::Relaxed), 10 * EVERY);
        assert!(meter.timed.load(Ordering::Relaxed) <= 10);
        let each = meter.nanoseconds() / (10 * EVERY) as f64;
        assert!((1500.0..20_000.0).contains(&each), "{each}");
    }
}
