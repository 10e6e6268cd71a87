//! The way in of a queue, and of the gate: take the messages that wait, open, merge, write to the
//! device.

use std::io;
use std::thread::yield_now;

use transport::contract::Outbox;
use transport::inbound::Inbound;

use super::source::Source;
use crate::counters::{WorkerCounters, count_call};
use crate::descriptor::{error_word, is_nothing, now, wait_for};
use crate::device::Device;
use crate::io::Io;
use crate::offloads::refuses;
use crate::roll_call::Sign;
use crate::slice::Slice;
use crate::spin::Spin;
use crate::udp::NO_GRO;
use crate::udp_side::{Patience, Receiver};
use crate::watch::{FEW, Watch};

/// After this many batches from one socket the others get a turn, even if more comes. A thread that
/// hasn't slept for so long has much to do.
const TURNS: u32 = 64;

/// Run the way in of a queue.
pub fn run(io: &Io, queue: usize) -> io::Result<()> {
    let mut sources: Vec<_> = io.queues[queue].sockets.iter().map(Source::Socket).collect();
    if let Some(xdp) = &io.xdp {
        sources.extend(xdp.channels(queue).map(|channel| Source::Channel(xdp, channel)));
    }
    let way = Inward::new(io, queue, &*io.queues[queue].device, &io.counters.queues[queue].inward);
    take(way, &sources, Some(Spin::default()))
}

/// Run the way in at the gate. The kernel merges datagrams of one source, so a little data may come
/// here too.
pub fn gate(io: &Io) -> io::Result<()> {
    let sources: Vec<_> = io.gate.iter().map(Source::Socket).collect();
    take(Inward::new(io, io.at_gate(), &*io.queues[0].device, &io.counters.gate), &sources, None)
}

/// Take what comes from `sources` until it is time to stop. A thread that doesn't spin yields to
/// others.
fn take(mut way: Inward<'_>, sources: &[Source<'_>], mut spin: Option<Spin>) -> io::Result<()> {
    let io = way.io;
    let everyone = (1_u64 << sources.len()) - 1;
    let mut ready = everyone;
    let mut last = 0;
    let mut turn = 0;
    let sign = if way.queue == io.at_gate() { &io.roll.gate } else { &io.roll.inward[way.queue] };
    while io.goes_on() {
        sign.answer();
        for (n, source) in sources.iter().enumerate() {
            if ready >> n & 1 != 0 && way.pump(*source)? {
                last = n;
            } else {
                ready &= !(1 << n);
            }
        }
        turn += 1;
        if turn == TURNS {
            (ready, turn) = (everyone, 0);
            if let Some(watch) = way.watch {
                watch.note_much(now());
            }
        }
        if spin.is_none() && ready != 0 {
            // The threads that move data get the core after our batch, not after a slice of the
            // scheduler's.
            count_call();
            yield_now();
        }
        let mut look = || sources.get(last).map_or(Ok(false), |source| way.pump(*source));
        if ready == 0 && spin.as_mut().map_or(Ok(false), |spin| spin.look(&mut look))? {
            ready = 1 << last;
        }
        if ready == 0 {
            (ready, turn) = (way.wait(sources, sign)?, 0);
        }
    }
    Ok(())
}

struct Inward<'a> {
    io: &'a Io,
    /// The number of the queue, or [`Io::at_gate`].
    queue: usize,
    device: &'a dyn Device,
    counters: &'a WorkerCounters,
    receiver: Receiver,
    inbound: Inbound,
    outbox: Outbox,
    slice: Slice,
    /// None at the gate.
    watch: Option<&'a Watch>,
}

impl<'a> Inward<'a> {
    fn new(io: &'a Io, queue: usize, device: &'a dyn Device, counters: &'a WorkerCounters) -> Self {
        Self {
            io,
            queue,
            device,
            counters,
            receiver: Receiver::default(),
            inbound: Inbound::default(),
            outbox: Outbox::default(),
            slice: Slice::default(),
            watch: io.watches.get(queue),
        }
    }

    /// Sleep until something comes from a source, or from the device if it was lent. That is sent at
    /// once. Return a bit for each source that is ready.
    fn wait(&self, sources: &[Source<'_>], sign: &Sign) -> io::Result<u64> {
        let lent = self.watch.filter(|watch| watch.is_lent()).map_or(-1, |_| self.device.fd());
        let borrowed = self.watch.map_or(-1, |watch| watch.borrowed.fd());
        let others = [lent, borrowed, sign.fd(), self.io.stop.fd()];
        let polled: Vec<_> = sources.iter().map(Source::fd).chain(others).map(|fd| (fd, libc::POLLIN)).collect();
        self.counters.count_calls();
        let ready = wait_for(&polled, -1)?;
        let others = ready >> sources.len();
        if others & 1 != 0 {
            super::outward::answer(self.io, self.queue)?;
        }
        if let (true, Some(watch)) = (others & 1 << 1 != 0, self.watch) {
            watch.borrowed.clear();
        }
        Ok(ready & ((1 << sources.len()) - 1))
    }

    /// Move the messages that wait at a source to the device. Return false if there were none.
    fn pump(&mut self, source: Source<'_>) -> io::Result<bool> {
        match source.receive(&mut self.receiver) {
            Ok(()) => {}
            Err(error) if is_nothing(&error) => return Ok(false),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK)) => return Err(error),
            Err(error) if refuses(&error) && source.end_merging() => {
                self.io.note(NO_GRO);
                return Ok(true);
            }
            Err(error) => {
                // An error of something that was sent earlier.
                self.io.transport.drops.count_other(format!("receive_{}", error_word(&error)));
                return Ok(true);
            }
        }
        let now = now();
        self.inbound.clear();
        let (mut packets, mut bytes) = (0, 0);
        for message in &self.receiver.messages {
            packets += message.datagrams();
            bytes += message.size;
            let buffer = &mut self.receiver.buffer;
            self.inbound.message(&self.io.transport, buffer, *message, now, &mut self.outbox);
        }
        self.slice.note(self.device, &self.receiver.buffer, self.inbound.packets());
        self.io.deliver(self.device, &self.receiver.buffer, self.inbound.packets());
        // A peer that is challenged asks again, so no thread waits for room to send that.
        let patience = if self.queue == self.io.at_gate() { Patience::None } else { Patience::Some };
        self.io.dispatch(&mut self.outbox, self.queue, patience);
        self.counters.count(packets, bytes);
        let Some(watch) = self.watch else { return Ok(true) };
        if packets > FEW {
            watch.note_much(now);
        } else if !self.inbound.packets().is_empty() {
            super::outward::answer(self.io, self.queue)?;
        }
        Ok(true)
    }
}
