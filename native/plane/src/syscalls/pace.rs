//! How much of one peer's packets the kernel may hold: what leaves within a few milliseconds.
//!
//! The kernel only tells how much it holds. From how that changes, the rate is known, and so is how
//! long a byte waits there (Little's law). The limit grows while that is less than it should be, and
//! shrinks while it is more.
//!
//! Where packets for several peers wait in one queue of the kernel, each peer's wait for all of
//! them. A peer that gets more than the others is given a shorter time to aim at, so it shrinks
//! while the others grow. This needs no knowledge of which packets share a queue: where they don't,
//! each peer's packets still wait for no longer than they should.

use transport::contract::Seconds;
use transport::vnet::MAX_MESSAGE;

/// How long a byte should wait.
const DELAY: Seconds = 0.004;
/// `DELAY` is multiplied by as little as `LESS` for a peer that gets more than others, and by as much
/// as `MORE` for one that gets less.
const LESS: f64 = 0.5;
const MORE: f64 = 1.25;
/// The rate is measured over at least this time, and until something has left, for at most
/// `PATIENCE`.
const WINDOW: Seconds = 0.004;
pub const PATIENCE: Seconds = 0.25;
/// Bytes that the kernel counts for a packet of 1,500 bytes, its own memory included.
const PACKET: usize = 2304;
/// The first limit: less than a slow link's own queue has room for. On a fast link it doubles with
/// each wait.
pub const FIRST: usize = 32 << 10;
/// More than one packet: while it is being sent, the kernel already gets the next one.
const LEAST: usize = PACKET + PACKET / 2;
const MOST: usize = 8 << 20;
/// The kernel is asked what it holds after this many bytes.
pub const UNASKED: usize = 16 << 10;

/// The limit, and what it is derived from.
pub struct Pace {
    /// Bytes that the kernel may hold before it gets more, as it counts them.
    most: usize,
    /// When the kernel was last asked, and what it held, unless that was nothing.
    last: Option<(Seconds, usize)>,
    window: Window,
    /// Bytes per second, averaged over the last windows. 0 if nothing is known.
    rate: f64,
    /// When the link was last seen to be slow.
    slow_at: Seconds,
}

/// What was seen since the limit was last adapted.
#[derive(Default)]
struct Window {
    elapsed: Seconds,
    /// Bytes that have left.
    left: usize,
    /// What the kernel held, multiplied by how long.
    area: f64,
    /// Whether the limit was reached.
    reached: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { most: FIRST, last: None, window: Window::default(), rate: 0.0, slow_at: Seconds::NEG_INFINITY }
    }
}

impl Pace {
    /// Note what the kernel holds before it gets more. Return whether it may. `fair` is the mean rate
    /// of the peers that have packets waiting, 0 if it is the only one.
    pub fn note(&mut self, held: usize, fair: f64, now: Seconds) -> bool {
        let mut dry = false;
        let window = &mut self.window;
        if let Some((at, before)) = self.last {
            window.elapsed += now - at;
            window.left += before.saturating_sub(held);
            window.area += (before + held) as f64 / 2.0 * (now - at);
            // More could have left.
            dry = held < before / 4;
        }
        self.last = (held > 0).then_some((now, held));
        if dry {
            if window.reached {
                self.most = (2 * self.most).min(MOST);
            }
            self.window = Window::default();
        } else if window.elapsed >= WINDOW && (window.left > 0 || window.elapsed >= PATIENCE) {
            self.learn(fair, now);
            self.window = Window::default();
        }
        self.window.reached |= held > self.most;
        held <= self.most
    }

    /// Note what the kernel holds after it got more.
    pub fn gave(&mut self, held: usize, now: Seconds) {
        self.last = (held > 0).then_some((now, held));
    }

    /// Return whether the kernel held something when it was last asked. Then it is asked before each
    /// message: what is sent in between would be taken for what didn't leave.
    pub fn is_measuring(&self) -> bool {
        self.last.is_some()
    }

    /// Adapt the limit.
    fn learn(&mut self, fair: f64, now: Seconds) {
        let Window { elapsed, left, area, reached } = self.window;
        let (rate, held) = (left as f64 / elapsed, area / elapsed);
        self.rate = if self.rate > 0.0 { 0.9 * self.rate + 0.1 * rate } else { rate };
        let wanted = rate * DELAY;
        let aim = if fair > 0.0 { wanted * (fair / self.rate.max(1.0)).clamp(LESS, MORE) } else { wanted };
        if held > 2.0 * wanted {
            // The link has become slow.
            self.most = self.most.min(wanted as usize);
        } else if held > aim {
            self.most -= self.most / 8;
        } else if reached {
            self.most += PACKET.max(self.most / 16);
        }
        self.most = self.most.clamp(LEAST, MOST);
        if wanted < MAX_MESSAGE as f64 {
            self.slow_at = now;
        }
    }

    /// Return bytes per second, 0 if nothing is known.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Return whether a full message would wait for longer than it should, as far as was seen
    /// lately.
    pub fn is_slow(&self, now: Seconds) -> bool {
        now - self.slow_at < 1.0
    }

    /// Return how many bytes to send as one message while others wait.
    pub fn share(&self) -> usize {
        (self.most / 4).min(MAX_MESSAGE)
    }

    /// Return the longest frame to send whole. Others would wait for too long behind a longer one.
    pub fn longest(&self, now: Seconds) -> usize {
        if self.is_slow(now) { self.share().max(PACKET) } else { usize::MAX }
    }

    /// Return how many bytes may be sent until the kernel is asked again.
    pub fn unasked(&self) -> usize {
        (self.most / 2).min(UNASKED)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A queue of the kernel in which packets of several peers wait, in the order they came.
    struct Link {
        /// Bytes per second, as the kernel counts them.
        rate: f64,
        /// The peer of each packet.
        queue: VecDeque<usize>,
        spare: f64,
        now: Seconds,
        sent: Vec<usize>,
        /// The longest that a packet would have waited since this was last cleared.
        delay: Seconds,
        idle: u32,
    }

    impl Link {
        fn new(rate: f64) -> Self {
            Self { rate, queue: VecDeque::new(), spare: 0.0, now: 1.0, sent: vec![0; 8], delay: 0.0, idle: 0 }
        }

        fn held(&self, peer: usize) -> usize {
            PACKET * self.queue.iter().filter(|one| **one == peer).count()
        }

        /// Send for a millisecond. Each peer with a pace always has more to send.
        fn tick(&mut self, paces: &mut [Pace]) {
            self.now += 0.00106;
            self.spare += self.rate * 0.00106;
            while self.spare >= PACKET as f64 {
                match self.queue.pop_front() {
                    Some(peer) => {
                        self.sent[peer] += 1;
                        self.spare -= PACKET as f64;
                    }
                    None => {
                        self.spare = 0.0;
                        self.idle += 1;
                    }
                }
            }
            let fair = paces.iter().map(Pace::rate).sum::<f64>() / paces.len() as f64;
            for (peer, pace) in paces.iter_mut().enumerate() {
                while pace.note(self.held(peer), fair, self.now) {
                    for _ in 0..(pace.share() / PACKET).max(1) {
                        self.queue.push_back(peer);
                    }
                    pace.gave(self.held(peer), self.now);
                }
            }
            self.delay = self.delay.max((self.queue.len() * PACKET) as f64 / self.rate);
        }

        /// Run for so long, then measure for a second. Return the delay and the packets of each peer.
        fn run(&mut self, paces: &mut [Pace], seconds: Seconds) -> (Seconds, Vec<usize>) {
            let end = self.now + seconds;
            while self.now < end {
                self.tick(paces);
            }
            (self.delay, self.idle) = (0.0, 0);
            self.sent.fill(0);
            while self.now < end + 1.0 {
                self.tick(paces);
            }
            (self.delay, self.sent.clone())
        }
    }

    #[test]
    fn the_kernel_holds_what_leaves_in_a_few_milliseconds() {
        for rate in [2e6, 10e6, 100e6, 1e9] {
            let (mut link, mut paces) = (Link::new(rate), [Pace::default()]);
            let (delay, _) = link.run(&mut paces, 1.0);
            assert!(delay < 0.0075 && link.idle < 20, "{rate}: {delay}, {}", link.idle);
            assert_eq!(paces[0].is_slow(link.now), rate < 16e6, "{rate}");
        }
    }

    #[test]
    fn on_a_very_slow_link_one_packet_waits_for_another() {
        let mut paces = [Pace::default()];
        let (delay, _) = Link::new(100e3).run(&mut paces, 2.0);
        assert!(delay <= 2.0 * PACKET as f64 / 100e3, "{delay}");
    }

    #[test]
    fn peers_that_share_a_queue_get_equal_shares_of_it() {
        for (rate, peers) in [(12.5e6, 2), (12.5e6, 4), (125e6, 4)] {
            let mut link = Link::new(rate);
            let mut paces: Vec<Pace> = (0..peers).map(|_| Pace::default()).collect();
            // The first has it alone at the beginning.
            link.run(&mut paces[..1], 1.0);
            let (delay, sent) = link.run(&mut paces, 2.0);
            let (least, most) = (sent[..peers].iter().min().unwrap(), sent[..peers].iter().max().unwrap());
            assert!(delay < 0.0095, "{rate}, {peers}: {delay}");
            assert!(*least as f64 > 0.6 * *most as f64, "{rate}, {peers}: {sent:?}");
        }
    }

    #[test]
    fn a_link_that_becomes_slow_or_fast_is_noticed() {
        let (mut link, mut paces) = (Link::new(125e6), [Pace::default()]);
        link.run(&mut paces, 1.0);
        link.rate = 1.5e6;
        let (delay, _) = link.run(&mut paces, 1.0);
        assert!(delay < 0.0075, "{delay}");
        link.rate = 125e6;
        link.run(&mut paces, 0.5);
        assert!(link.sent[0] as f64 > 0.9 * 125e6 / PACKET as f64, "{:?}", link.sent);
    }

    #[test]
    fn a_slow_link_whose_own_queue_is_shorter_than_the_limit_is_noticed() {
        let mut pace = Pace { most: 1 << 20, ..Pace::default() };
        let (mut now, mut held) = (1.0, 0_usize);
        for _ in 0..100 {
            // 1.5 MB/s, and no more than 60 kB are queued: the others are lost.
            now += 0.01;
            held = held.saturating_sub(15_000);
            pace.note(held, 0.0, now);
            held = (held + 30_000).min(60_000);
            pace.gave(held, now);
        }
        assert!(pace.most < 10_000, "{}", pace.most);
    }
}
