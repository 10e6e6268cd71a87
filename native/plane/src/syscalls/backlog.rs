//! What the way out does while the network takes less than the device brings.
//!
//! On a slow link, whatever we hand to the kernel waits there, in the order it came: a ping behind
//! a download. So the kernel gets as much as leaves within a few milliseconds. The rest waits here,
//! where each flow has a queue of its own ([`FairQueue`]).
//!
//! Only while all goes to one address, as at a client: the kernel only gives the sum of what waits,
//! and a slow link to one peer must not delay what goes to others.
//!
//! Where the kernel takes everything at once, this costs one question per 16 KiB.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use std::{io, mem};

use transport::contract::{Endpoint, Seconds};
use transport::drops::DropReason;
use transport::fair_queue::FairQueue;
use transport::vnet::{MAX_MESSAGE, MAX_PACKET, VNET_SIZE};

use crate::descriptor::{now, wait};
use crate::device::Device;
use crate::io::Io;

/// While nothing waits here, the kernel is asked what it holds after this many bytes.
pub const UNASKED: usize = 16 << 10;
/// How long to wait for the kernel before it is given more all the same.
const PATIENCE: Duration = Duration::from_millis(250);
/// Frames that are read from the device at once, so that a flood doesn't keep others from leaving.
const GATHERED: usize = 256;
/// Milliseconds until the kernel is asked again.
const PAUSE: libc::c_int = 1;

/// How much the kernel may hold: what leaves in [`Pace::DELAY`], as far as we know.
struct Pace {
    /// Bytes, as the kernel counts them.
    most: usize,
}

impl Pace {
    const DELAY: f64 = 0.004;
    /// Less than a slow link's own queue has room for: nothing is learned before there is more. On a
    /// fast link it doubles with each wait.
    const FIRST: usize = 32 << 10;
    const LEAST: usize = 24 << 10;
    const MOST: usize = 8 << 20;

    /// Note that of `before` bytes `after` were left, after this time.
    fn note(&mut self, before: usize, after: usize, elapsed: Duration) {
        let left = before.saturating_sub(after) as f64;
        let wanted = (left / elapsed.as_secs_f64().max(1e-6) * Self::DELAY) as usize;
        // If little is left, more could have gone in that time.
        let wanted = if after < before / 4 { wanted.max(2 * self.most) } else { (3 * self.most + wanted) / 4 };
        self.most = wanted.clamp(Self::LEAST, Self::MOST);
    }

    /// Return how many bytes to send as one message while others wait.
    fn share(&self) -> usize {
        (self.most / 4).min(MAX_MESSAGE)
    }
}

/// The address that everything goes to.
#[derive(Default)]
struct Target {
    address: Option<SocketAddr>,
    since: Seconds,
}

impl Target {
    /// How long nothing may have gone elsewhere.
    const ALONE: Seconds = 1.0;

    /// Note that something goes to an address.
    fn note(&mut self, address: SocketAddr, now: impl FnOnce() -> Seconds) {
        if self.address != Some(address) {
            (self.address, self.since) = (Some(address), now());
        }
    }

    /// Return whether it is the only one.
    fn is_alone(&self, now: Seconds) -> bool {
        now - self.since >= Self::ALONE
    }
}

/// The packets of a queue that wait for the network.
pub struct Backlog<'a> {
    io: &'a Io,
    queue: usize,
    waiting: FairQueue,
    pace: Pace,
    target: Target,
    /// Bytes sent since the kernel was asked.
    unasked: usize,
    /// Bytes taken from `waiting` since [`Self::begin`].
    taken: usize,
    /// Where frames are read to that come in the meantime.
    scratch: Box<[u8]>,
}

impl<'a> Backlog<'a> {
    /// Make the backlog of a queue. Nothing waits.
    pub fn new(io: &'a Io, queue: usize) -> Self {
        let pace = Pace { most: Pace::FIRST };
        let (waiting, target) = (FairQueue::default(), Target::default());
        let scratch = vec![0; VNET_SIZE + MAX_PACKET].into();
        Self { io, queue, waiting, pace, target, unasked: 0, taken: 0, scratch }
    }

    /// Read the next frame to send. The error is `WouldBlock` if there is none, or if what was read
    /// should leave first.
    pub fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        if !self.waiting.is_empty() {
            if self.taken >= self.pace.share() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if self.taken == 0 {
                self.gather();
            }
            let next = self.waiting.pop(now());
            self.count_lost();
            if let Some(next) = next {
                frame[..next.len()].copy_from_slice(&next);
                self.taken += next.len();
                return Ok(next.len());
            }
        }
        self.device().read(frame)
    }

    /// Note that another thread has sent to an address: waiting here could hold up what goes there.
    pub fn note(&mut self, address: SocketAddr) {
        self.target.note(address, now);
    }

    /// Return whether packets wait.
    pub fn holds_some(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Begin another message.
    pub fn begin(&mut self) {
        self.taken = 0;
    }

    /// Wait until the kernel holds little enough to get `size` bytes more.
    pub fn make_room(&mut self, size: usize, endpoint: Endpoint) {
        self.target.note(endpoint.remote, now);
        self.unasked += size;
        if self.unasked < UNASKED && self.waiting.is_empty() {
            return;
        }
        self.unasked = 0;
        let io = self.io;
        let Some(socket) = io.socket(self.queue, endpoint) else { return };
        let before = socket.unsent();
        if before <= self.pace.most || !self.target.is_alone(now()) {
            return;
        }
        let (start, mut after) = (Instant::now(), before);
        while after > self.pace.most && start.elapsed() < PATIENCE && io.goes_on() {
            self.gather();
            // Not for each arrival: none can leave before there is room, and a flood would keep this
            // thread busy.
            let _ = wait([(io.stop.fd(), libc::POLLIN)], PAUSE);
            after = socket.unsent();
        }
        self.pace.note(before, after, start.elapsed());
    }

    /// Have what the device brings wait here. An error that stays is found again by [`Self::read`].
    fn gather(&mut self) {
        let now = now();
        let mut scratch = mem::take(&mut self.scratch);
        for _ in 0..GATHERED {
            match self.device().read(&mut scratch) {
                Ok(size) => self.waiting.push(&scratch[..size], now),
                Err(error) if self.io.refused_read(self.device(), &error) => {}
                Err(_) => break,
            }
        }
        self.scratch = scratch;
        self.count_lost();
    }

    fn count_lost(&mut self) {
        let lost = self.waiting.take_lost();
        if lost > 0 {
            self.io.transport.drops.count(DropReason::SendQueue, lost);
        }
    }

    fn device(&self) -> &'a dyn Device {
        &*self.io.queues[self.queue].device
    }
}

impl Drop for Backlog<'_> {
    /// What still waits when the thread ends is lost.
    fn drop(&mut self) {
        self.waiting.clear();
        self.count_lost();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Return what the kernel may hold after waits on a link of so many bytes per second.
    fn most(pace: &mut Pace, rate: f64, waits: usize) -> usize {
        for _ in 0..waits {
            let before = pace.most + 16_000;
            let elapsed = 0.001 + 16_000.0 / rate;
            let after = before.saturating_sub((rate * elapsed) as usize);
            pace.note(before, after, Duration::from_secs_f64(elapsed));
        }
        pace.most
    }

    #[test]
    fn nothing_waits_while_several_addresses_are_sent_to() {
        let [one, other] = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 51820)));
        let mut target = Target::default();
        for (address, now, alone) in
            [(one, 5.0, false), (one, 5.9, false), (one, 6.1, true), (other, 6.2, false), (one, 7.0, false)]
        {
            target.note(address, || now);
            assert_eq!(target.is_alone(now), alone, "at {now}");
        }
    }

    #[test]
    fn the_kernel_holds_what_leaves_in_a_few_milliseconds() {
        // A queue of 40 ms at 10 Mbit/s, as the kernel counts it, is enough to begin.
        const { assert!(Pace::FIRST < 50_000) };
        assert!(most(&mut Pace { most: Pace::FIRST }, 1.25e6, 30) < 30_000);
        assert!(most(&mut Pace { most: Pace::FIRST }, 125e6, 5) > 250_000);
        let mut pace = Pace { most: Pace::FIRST };
        assert!((40_000..60_000).contains(&most(&mut pace, 12.5e6, 30)), "{}", pace.most);
        assert!(pace.share() < 16_000);
        assert!((400_000..1_000_000).contains(&most(&mut pace, 125e6, 30)), "{}", pace.most);
        assert_eq!(pace.share(), MAX_MESSAGE);
        assert!(most(&mut pace, 2.5e9, 30) > 5_000_000, "{}", pace.most);
        assert_eq!(most(&mut pace, 1e5, 60), Pace::LEAST);
    }
}
