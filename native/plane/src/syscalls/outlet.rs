//! The way to one address: a socket of its own, by which the kernel tells how much it holds for that
//! address alone, and the packets that wait for it.

use std::net::SocketAddr;
use std::sync::Arc;

use transport::contract::Seconds;
use transport::fair_queue::FairQueue;

use super::pace::{PATIENCE, Pace};
use crate::udp::Udp;

/// The way to one address.
pub struct Outlet {
    pub address: SocketAddr,
    pub socket: Arc<Udp>,
    pub pace: Pace,
    pub waiting: FairQueue,
    /// Bytes sent since the kernel was asked.
    unasked: usize,
    /// Bytes for it in this batch.
    pub taken: usize,
    /// Since when the kernel holds enough.
    full: Option<Seconds>,
    /// When something was last sent.
    pub used: Seconds,
}

impl Outlet {
    /// Make the way to an address. Nothing waits.
    pub fn new(address: SocketAddr, socket: Arc<Udp>, now: Seconds) -> Self {
        let (pace, waiting) = (Pace::default(), FairQueue::default());
        Self { address, socket, pace, waiting, unasked: 0, taken: 0, full: None, used: now }
    }

    /// Return whether the kernel holds enough.
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Return whether this batch may have another frame for it.
    pub fn takes(&self) -> bool {
        self.full.is_none() && self.taken < self.pace.share()
    }

    /// Return whether frames for it are held back.
    pub fn waits(&self) -> bool {
        self.full.is_some() || !self.waiting.is_empty()
    }

    /// Return whether it may become the way to another address.
    pub fn is_idle(&self, now: Seconds) -> bool {
        now - self.used > 1.0 && self.waiting.is_empty() && self.socket.unsent() == 0
    }

    /// Ask the kernel how much it holds. `fair`: see [`Pace::note`].
    pub fn ask(&mut self, fair: f64, now: Seconds) {
        if self.pace.note(self.socket.unsent(), fair, now) {
            self.full = None;
            return;
        }
        let since = *self.full.get_or_insert(now);
        if now - since >= PATIENCE {
            // Send a message all the same, or this might never end.
            self.full = None;
        }
    }

    /// Return whether to ask the kernel before so many bytes more are sent.
    pub fn should_ask(&mut self, size: usize) -> bool {
        self.unasked += size;
        let should = self.unasked >= self.pace.unasked() || !self.waiting.is_empty() || self.pace.is_measuring();
        if should {
            self.unasked = 0;
        }
        should
    }

    /// Note that a message was sent after the kernel was asked.
    pub fn sent(&mut self, now: Seconds) {
        self.pace.gave(self.socket.unsent(), now);
    }
}

/// Lose packets until no more than so many bytes wait for all addresses. The longest queue of the
/// address with the most loses first.
pub fn keep_within(outlets: &mut [Outlet], bytes: usize) {
    while outlets.iter().map(|outlet| outlet.waiting.bytes()).sum::<usize>() > bytes {
        let most = outlets.iter_mut().max_by_key(|outlet| outlet.waiting.bytes());
        most.into_iter().for_each(|outlet| outlet.waiting.lose_one());
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::offloads::Offloads;

    fn outlets(count: u16) -> Vec<Outlet> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = Arc::new(Udp::adopt(socket.as_raw_fd(), Offloads::ALL).unwrap().0);
        let at = |port| Outlet::new(SocketAddr::from(([192, 0, 2, 1], port)), Arc::clone(&socket), 0.0);
        (0..count).map(at).collect()
    }

    #[test]
    fn peers_have_one_limit_together_and_who_keeps_the_most_loses() {
        let (mut outlets, limit) = (outlets(16), 1 << 20);
        let mut sent = [0_u64; 16];
        for round in 0..3000 {
            for (number, outlet) in outlets.iter_mut().enumerate() {
                // The first one floods.
                for _ in 0..if number == 0 { 20 } else { usize::from(round % 100 == 0) } {
                    outlet.waiting.push(&[number as u8; 1500], usize::MAX, 0.0);
                    sent[number] += 1;
                }
            }
            keep_within(&mut outlets, limit);
            let waiting: usize = outlets.iter().map(|outlet| outlet.waiting.bytes()).sum();
            assert!(waiting <= limit, "{waiting}");
        }
        let lost: Vec<u64> = outlets.iter_mut().map(|outlet| outlet.waiting.take_lost()).collect();
        assert!(lost[0] > sent[0] - 700 && lost[1..].iter().all(|lost| *lost == 0), "{lost:?}");
    }

    #[test]
    fn a_batch_takes_a_share_and_none_while_the_kernel_has_enough() {
        let mut outlet = outlets(1).remove(0);
        assert!(outlet.takes() && !outlet.waits());
        outlet.taken = 1 << 20;
        assert!(!outlet.takes());
        (outlet.taken, outlet.full) = (0, Some(1.0));
        assert!(!outlet.takes() && outlet.waits());
        // The kernel holds nothing.
        outlet.ask(0.0, 1.001);
        assert!(outlet.takes() && !outlet.waits());
        outlet.waiting.push(&[0; 100], usize::MAX, 1.0);
        assert!(outlet.waits() && !outlet.is_idle(9.0));
        outlet.waiting.pop(1.0).unwrap();
        assert!(outlet.is_idle(9.0) && !outlet.is_idle(0.9));
    }
}
