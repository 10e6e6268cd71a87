//! Packets that wait while the network can't take any: a queue for each flow, served in turn.
//!
//! Flows that begin to wait come first, as in fq_codel (RFC 8290), so a ping doesn't wait behind a
//! download. A flow whose packets keep waiting loses some, as in CoDel (RFC 8289), so its TCP slows
//! down. Packets of senders that take part in ECN are marked instead.

use std::collections::VecDeque;

use crate::contract::Seconds;
use crate::ecn;
use crate::segment::Superpacket;
use crate::vnet::{IPPROTO_TCP, IPPROTO_UDP, VNET_SIZE, Vnet};

/// Queues. Flows are spread over them by a hash.
const FLOWS: usize = 256;
/// Bytes that a flow may send before the next one's turn.
const QUANTUM: isize = 4096;
/// What a packet counts for at least: memory, besides its bytes.
const LEAST: usize = 256;
/// A flow keeps the memory for a list of so many frames. More is given back once it is hardly used.
const KEPT: usize = 64;
/// How long the packets of a flow may wait: for longer than this only during one interval.
const TARGET: Seconds = 0.005;
const INTERVAL: Seconds = 0.1;

/// A frame of the device, and when it came.
struct Waiting {
    frame: Box<[u8]>,
    since: Seconds,
}

/// The frames of one flow.
#[derive(Default)]
struct Flow {
    frames: VecDeque<Waiting>,
    bytes: usize,
    /// Bytes that it may still send in this turn.
    credit: isize,
    /// Whether a turn of it is planned.
    planned: bool,
    /// When its sender is next told to slow down, if it waits for too long until then.
    due: Option<Seconds>,
    /// How often that was done since it waits for too long: frames lost or marked.
    told: u32,
}

impl Flow {
    fn pop(&mut self) -> Option<Waiting> {
        let first = self.frames.pop_front()?;
        self.bytes -= cost(&first.frame);
        let few = KEPT.max(2 * self.frames.len());
        if self.frames.capacity() > 2 * few {
            self.frames.shrink_to(few);
        }
        Some(first)
    }

    /// Return the next frame to send. Count the packets that it loses.
    fn next(&mut self, now: Seconds, lost: &mut u64) -> Option<Box<[u8]>> {
        loop {
            let mut first = self.pop()?;
            if now - first.since < TARGET || self.frames.is_empty() {
                (self.due, self.told) = (None, 0);
                return Some(first.frame);
            }
            match self.due {
                Some(due) if now >= due => {
                    self.told += 1;
                    self.due = Some(now + INTERVAL / f64::from(self.told).sqrt());
                    if ecn::congest(first.frame.get_mut(VNET_SIZE..).unwrap_or_default()) {
                        return Some(first.frame);
                    }
                    *lost += packets(&first.frame);
                }
                due => {
                    self.due = due.or(Some(now + INTERVAL));
                    return Some(first.frame);
                }
            }
        }
    }
}

/// Packets of all flows.
pub struct FairQueue {
    flows: Box<[Flow]>,
    /// Flows that began to wait and had no turn yet, and the others that wait.
    fresh: VecDeque<usize>,
    others: VecDeque<usize>,
    bytes: usize,
    /// Packets that were lost since [`Self::take_lost`].
    lost: u64,
}

impl Default for FairQueue {
    fn default() -> Self {
        Self {
            flows: (0..FLOWS).map(|_| Flow::default()).collect(),
            fresh: VecDeque::new(),
            others: VecDeque::new(),
            bytes: 0,
            lost: 0,
        }
    }
}

impl FairQueue {
    /// Return whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Return how many bytes wait, a little more than those of the frames.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Return how many packets were lost since this was last called.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Add a frame: a virtio_net_hdr, then a packet or superpacket. A superpacket of more than
    /// `longest` bytes is cut into its packets: on a slow link, others would wait for too long behind
    /// it.
    pub fn push(&mut self, frame: &[u8], longest: usize, now: Seconds) {
        match if frame.len() > longest { superpacket_in(frame) } else { None } {
            Some(cut) => {
                for number in 0..cut.count() {
                    let mut one = vec![0; VNET_SIZE + cut.size(number)];
                    cut.write(number, &mut one[VNET_SIZE..]);
                    self.add(one.into(), now);
                }
            }
            None => self.add(frame.into(), now),
        }
    }

    fn add(&mut self, frame: Box<[u8]>, now: Seconds) {
        let (size, number) = (cost(&frame), flow_of(frame.get(VNET_SIZE..).unwrap_or_default()));
        let flow = &mut self.flows[number];
        flow.frames.push_back(Waiting { frame, since: now });
        flow.bytes += size;
        self.bytes += size;
        if !flow.planned {
            flow.planned = true;
            flow.credit = QUANTUM;
            self.fresh.push_back(number);
        }
    }

    /// Lose the first frame of the longest queue.
    pub fn lose_one(&mut self) {
        let longest = self.flows.iter_mut().max_by_key(|flow| flow.bytes);
        let Some(first) = longest.and_then(Flow::pop) else { return };
        self.bytes -= cost(&first.frame);
        self.lost += packets(&first.frame);
    }

    /// Lose everything that waits.
    pub fn clear(&mut self) {
        let waiting = self.flows.iter().flat_map(|flow| &flow.frames);
        let lost = self.lost + waiting.map(|one| packets(&one.frame)).sum::<u64>();
        *self = Self { lost, ..Self::default() };
    }

    /// Return the next frame to send.
    pub fn pop(&mut self, now: Seconds) -> Option<Box<[u8]>> {
        loop {
            let is_fresh = !self.fresh.is_empty();
            let list = if is_fresh { &mut self.fresh } else { &mut self.others };
            let number = *list.front()?;
            let flow = &mut self.flows[number];
            if flow.credit <= 0 {
                flow.credit += QUANTUM;
                list.pop_front();
                self.others.push_back(number);
                continue;
            }
            let before = flow.bytes;
            let next = flow.next(now, &mut self.lost);
            self.bytes -= before - flow.bytes;
            if let Some(frame) = next {
                flow.credit -= cost(&frame) as isize;
                return Some(frame);
            }
            list.pop_front();
            if is_fresh && !self.others.is_empty() {
                // So it can't overtake the others again and again.
                self.others.push_back(number);
            } else {
                flow.planned = false;
            }
        }
    }
}

fn cost(frame: &[u8]) -> usize {
    frame.len().max(LEAST)
}

/// Return the superpacket of a frame, if it is one that adds up.
fn superpacket_in(frame: &[u8]) -> Option<Superpacket<'_>> {
    let (header, packet) = frame.split_first_chunk()?;
    Superpacket::examine(Vnet::decode(header), packet)
}

/// Return how many packets a frame stands for.
fn packets(frame: &[u8]) -> u64 {
    superpacket_in(frame).map_or(1, |cut| cut.count() as u64)
}

/// Return the number of a packet's flow: addresses, protocol, and ports if it has them.
fn flow_of(packet: &[u8]) -> usize {
    let (addresses, protocol, ports) = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            (12..20, packet[9], if fragment { packet.len() } else { usize::from(packet[0] & 15) * 4 })
        }
        Some(6) if packet.len() >= 40 => (8..40, packet[6], 40),
        _ => return 0,
    };
    let ports = if matches!(protocol, IPPROTO_TCP | IPPROTO_UDP) { packet.get(ports..ports + 4) } else { None };
    // FNV-1a.
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let bytes = packet[addresses].iter().chain([&protocol]).chain(ports.unwrap_or_default());
    let hash = bytes.fold(0x811c_9dc5, mix);
    (hash ^ hash >> 16) as usize % FLOWS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::tests::superpacket;

    /// More than the queues keep memory for.
    const MANY: usize = 4 << 20;

    /// Return a frame of TCP from `port`, of `size` bytes.
    fn frame(port: u16, size: usize) -> Vec<u8> {
        let mut frame = vec![0; size];
        let packet = &mut frame[VNET_SIZE..];
        (packet[0], packet[9]) = (0x45, IPPROTO_TCP);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        frame
    }

    fn port_of(frame: &[u8]) -> u16 {
        u16::from_be_bytes([frame[VNET_SIZE + 20], frame[VNET_SIZE + 21]])
    }

    #[test]
    fn a_flow_that_begins_to_wait_comes_first() {
        let mut queue = FairQueue::default();
        for _ in 0..1000 {
            queue.push(&frame(1, 1500), usize::MAX, 0.0);
        }
        for _ in 0..7 {
            queue.pop(0.0).unwrap();
        }
        queue.push(&frame(2, 100), usize::MAX, 0.0);
        assert_eq!(port_of(&queue.pop(0.0).unwrap()), 2);
        assert_eq!(port_of(&queue.pop(0.0).unwrap()), 1);
    }

    #[test]
    fn flows_get_the_same_share_of_bytes_and_keep_their_order() {
        let mut queue = FairQueue::default();
        for number in 0..400_u16 {
            for (port, size) in [(1, 1500), (2, 300)] {
                let mut one = frame(port, size);
                one[VNET_SIZE + 4..VNET_SIZE + 6].copy_from_slice(&number.to_be_bytes());
                queue.push(&one, usize::MAX, 0.0);
            }
        }
        let (mut bytes, mut next) = ([0; 3], [0; 3]);
        while bytes[2] < 90_000 {
            let one = queue.pop(0.0).unwrap();
            let flow = usize::from(port_of(&one));
            assert_eq!(u16::from_be_bytes([one[VNET_SIZE + 4], one[VNET_SIZE + 5]]), next[flow]);
            next[flow] += 1;
            bytes[flow] += one.len();
        }
        assert!(bytes[1].abs_diff(bytes[2]) < 2 * QUANTUM as usize, "{bytes:?}");
    }

    #[test]
    fn a_flow_that_waits_too_long_loses_packets_and_one_that_does_not_loses_none() {
        let mut queue = FairQueue::default();
        let mut lost = [0, 0];
        for (at, pace) in [0.02, 0.0].into_iter().enumerate() {
            for tick in 0..1000 {
                let now = f64::from(tick) * 0.001;
                queue.push(&frame(1, 1500), usize::MAX, now);
                if now >= pace {
                    queue.pop(now).unwrap();
                }
            }
            while queue.pop(1.0).is_some() {}
            lost[at] = queue.take_lost();
        }
        assert!((5..100).contains(&lost[0]) && lost[1] == 0, "{lost:?}");
        assert!(queue.is_empty());
    }

    #[test]
    fn the_longest_queue_loses_first() {
        let mut queue = FairQueue::default();
        queue.push(&frame(2, 1000), usize::MAX, 0.0);
        for _ in 0..100 {
            queue.push(&frame(1, 60_000), usize::MAX, 0.0);
        }
        while queue.bytes() > 601_000 {
            queue.lose_one();
        }
        let mut ports = Vec::new();
        while let Some(one) = queue.pop(0.0) {
            ports.push(port_of(&one));
        }
        assert_eq!(ports.iter().filter(|port| **port == 2).count(), 1);
        assert_eq!((ports.len(), queue.take_lost()), (1 + 10, 90));
        queue.lose_one();
        assert_eq!((queue.bytes(), queue.take_lost()), (0, 0));
    }

    #[test]
    fn a_sender_that_takes_part_in_ecn_is_told_by_marks() {
        for (tos, marks, losses) in [(ecn::ECT_0, 5..100, 0..1), (ecn::ECT_1, 5..100, 0..1), (0, 0..1, 5..100)] {
            let (mut queue, mut marked) = (FairQueue::default(), 0);
            let mut one = frame(1, 1500);
            one[VNET_SIZE + 1] = tos;
            for tick in 0..1000 {
                let now = f64::from(tick) * 0.001;
                queue.push(&one, usize::MAX, now);
                if tick >= 20 {
                    marked += usize::from(queue.pop(now).unwrap()[VNET_SIZE + 1] & ecn::CE == ecn::CE);
                }
            }
            assert!(marks.contains(&marked) && losses.contains(&queue.take_lost()), "{tos}: {marked}");
        }
    }

    #[test]
    fn what_is_too_long_is_cut_into_the_packets_it_stands_for() {
        for (v4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
            let payload: Vec<u8> = (0..10_000_u32).map(|n| (n / 7) as u8).collect();
            let (vnet, packet) = superpacket(v4, tcp, 0x18, &payload, 1380);
            let frame = [&vnet.encode()[..], &packet].concat();
            let mut queue = FairQueue::default();
            queue.push(&frame, frame.len(), 0.0);
            assert_eq!(*queue.pop(0.0).unwrap(), *frame);
            queue.push(&frame, frame.len() - 1, 0.0);
            let cut = superpacket_in(&frame).unwrap();
            for number in 0..8 {
                let mut expected = vec![0; VNET_SIZE + cut.size(number)];
                cut.write(number, &mut expected[VNET_SIZE..]);
                assert_eq!(*queue.pop(0.0).unwrap(), *expected);
            }
            assert!(queue.is_empty() && queue.take_lost() == 0);
        }
    }

    #[test]
    fn what_is_lost_is_counted_in_packets() {
        let mut queue = FairQueue::default();
        let (vnet, packet) = superpacket(true, true, 0x10, &[0; 40 * 1380], 1380);
        let large = [&vnet.encode()[..], &packet].concat();
        for _ in 0..10 {
            queue.push(&large, usize::MAX, 0.0);
        }
        assert_eq!(queue.take_lost(), 0);
        queue.lose_one();
        assert_eq!(queue.take_lost(), 40);
        queue.push(&frame(1, 100), usize::MAX, 0.0);
        queue.clear();
        assert!(queue.is_empty() && queue.pop(0.0).is_none());
        assert_eq!(queue.take_lost(), 9 * 40 + 1);
    }

    #[test]
    fn a_flow_that_has_left_keeps_no_memory() {
        let mut queue = FairQueue::default();
        for port in 0..64 {
            for _ in 0..MANY / LEAST {
                queue.push(&frame(port, 40), usize::MAX, 0.0);
            }
            while queue.pop(0.0).is_some() {}
        }
        let kept: usize = queue.flows.iter().map(|flow| flow.frames.capacity()).sum();
        assert!(kept <= FLOWS * 2 * KEPT, "{kept}");
    }

    #[test]
    fn rubbish_is_a_flow_too() {
        let mut queue = FairQueue::default();
        for size in 0..80 {
            for first in [0, 0x45, 0x4f, 0x60, 0xff] {
                let mut one = vec![first; size];
                one[..size.min(VNET_SIZE)].fill(0);
                queue.push(&one, usize::MAX, 0.0);
            }
        }
        assert_eq!(std::iter::from_fn(|| queue.pop(0.0)).count(), 400);
    }
}
