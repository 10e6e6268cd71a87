//! The way out of a queue: read the device into a message per peer, seal, send.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use transport::contract::Endpoint;
use transport::sink::Sink;
use transport::vnet::{MAX_PACKET, VNET_SIZE};

use super::backlog::{Backlog, Rest};
use super::pace::UNASKED;
use crate::descriptor::{is_nothing, now, wait};
use crate::device::Device;
use crate::io::Io;
use crate::pump::Pump;
use crate::spin::Spin;
use crate::udp_side::Patience;
use crate::watch::FEW;

/// Milliseconds of a short sleep.
const PAUSE: libc::c_int = 1;

/// A sink that counts.
pub trait Sender: Sink {
    /// Read one frame: of those that wait, or of the device.
    fn read(&mut self, device: &dyn Device, frame: &mut [u8]) -> io::Result<usize> {
        device.read(frame)
    }

    /// Return whether frames that were read wait to be sent.
    fn holds_back(&self) -> bool {
        false
    }

    /// Return how to sleep when there is nothing to send.
    fn rest(&self) -> Rest {
        Rest::Long
    }

    /// Begin another batch.
    fn begin(&mut self) {}

    /// Return how many datagrams were sent since this was last called, and their bytes.
    fn take_counts(&mut self) -> (usize, usize);
}

/// Sends over the sockets of a queue, and counts.
struct SocketSender<'a> {
    io: &'a Io,
    queue: usize,
    counts: (usize, usize),
    /// None with AF_XDP, whose rings are short, and for an answer, which mustn't wait.
    backlog: Option<Backlog<'a>>,
}

impl Sink for SocketSender<'_> {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        self.counts.0 += message.len().div_ceil(segment);
        self.counts.1 += message.len();
        match &mut self.backlog {
            Some(backlog) => backlog.send(message, segment, endpoint, tos),
            None => self.io.send(message, segment, endpoint, tos, self.queue, Patience::Some),
        }
    }
}

impl Sender for SocketSender<'_> {
    fn read(&mut self, device: &dyn Device, frame: &mut [u8]) -> io::Result<usize> {
        match &mut self.backlog {
            Some(backlog) => backlog.read(frame),
            None => device.read(frame),
        }
    }

    fn holds_back(&self) -> bool {
        self.backlog.as_ref().is_some_and(Backlog::holds_back)
    }

    fn rest(&self) -> Rest {
        self.backlog.as_ref().map_or(Rest::Long, Backlog::rest)
    }

    fn begin(&mut self) {
        self.backlog.iter_mut().for_each(Backlog::begin);
    }

    fn take_counts(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.counts)
    }
}

/// Run the way out of a queue over the sockets.
pub fn run(io: &Io, queue: usize) -> io::Result<()> {
    let backlog = io.xdp.is_none().then(|| Backlog::new(io, queue));
    run_with(io, queue, &mut SocketSender { io, queue, counts: (0, 0), backlog })
}

/// Send what waits in the device, a batch at most. Return whether anything came, and whether that
/// was the end.
fn run_once(pump: &mut Pump, io: &Io, queue: usize, sender: &mut impl Sender) -> io::Result<(bool, bool)> {
    let (device, counters) = (&*io.queues[queue].device, &io.counters.queues[queue].out);
    let Pump { frame, outbound, outbox, holds_back, .. } = pump;
    frame.resize(VNET_SIZE + MAX_PACKET, 0);
    let now = now();
    let transport = &*io.transport;
    let (mut any, mut ended) = (false, false);
    sender.begin();
    while !outbound.is_due() {
        match sender.read(device, frame) {
            Ok(size) => outbound.frame(transport, &mut frame[..size], now, outbox, sender),
            Err(error) if is_nothing(&error) => break,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                ended = true;
                break;
            }
            Err(error) if io.refused_read(device, &error) => {}
            Err(error) => return Err(error),
        }
        any = true;
    }
    if any {
        outbound.flush(transport, now, outbox, sender);
        io.dispatch(outbox, queue, Patience::Some);
        let (packets, bytes) = sender.take_counts();
        counters.count_packets(packets, bytes);
        if packets > FEW {
            io.watches[queue].note_much(now);
        }
    }
    *holds_back = sender.holds_back();
    Ok((any || ended, ended))
}

/// Send what the device has, unless the thread for that is at it already or holds back what came
/// before. Called by the thread that has just written to the device: where the host answers at once,
/// as to a ping, the answer leaves without waking another thread. Also called by a thread that the
/// device was lent to.
///
/// A device that was lent is returned where the network takes less than it brings: only the way out
/// lets packets wait in turn.
pub fn answer(io: &Io, queue: usize) -> io::Result<()> {
    let Ok(mut shared) = io.pumps[queue].try_lock() else { return Ok(()) };
    let Some(pump) = &mut *shared else { return Ok(()) };
    let held_back = pump.holds_back;
    if !held_back {
        run_once(pump, io, queue, &mut SocketSender { io, queue, counts: (0, 0), backlog: None })?;
    }
    let watch = &io.watches[queue];
    if watch.is_lent() && (held_back || !holds_little(io, queue)) {
        watch.note_much(now());
    }
    Ok(())
}

/// Run the way out of a queue: read the device by its methods, send by `sender`.
pub fn run_with(io: &Io, queue: usize, sender: &mut impl Sender) -> io::Result<()> {
    let (device, counters) = (&*io.queues[queue].device, &io.counters.queues[queue].out);
    let mut own = Pump::default();
    if device.answers_at_once() {
        *lock(&io.pumps[queue]) = Some(Pump::default());
    }
    let mut pump = |sender: &mut _| {
        let done = match &mut *lock(&io.pumps[queue]) {
            Some(shared) => run_once(shared, io, queue, sender),
            None => run_once(&mut own, io, queue, sender),
        };
        counters.count_calls();
        done
    };
    let mut spin = Spin::default();
    let (sign, watch) = (&io.roll.out[queue], &io.watches[queue]);
    let mut ended = false;
    while io.goes_on() {
        sign.answer();
        let mut found = false;
        if !ended {
            (found, ended) = pump(sender)?;
            if !found && sender.rest() == Rest::Long {
                spin.look(|| {
                    (found, ended) = pump(sender)?;
                    Ok(found)
                })?;
            }
            if ended && io.is_last_to_end() {
                return Ok(());
            }
        }
        let rest = if ended { Rest::Long } else { sender.rest() };
        let listens = !ended && rest != Rest::Deaf;
        if ended || (!found && (!listens || device.fall_asleep())) {
            counters.count_calls();
            if rest == Rest::Long && !ended && !sender.holds_back() && may_lend(io, queue) {
                watch.lend();
            }
            let arrivals = if !listens || watch.is_lent() { -1 } else { device.fd() };
            let timeout = if rest == Rest::Long { -1 } else { PAUSE };
            let fds = [arrivals, watch.returned.fd(), sign.fd(), io.stop.fd()].map(|fd| (fd, libc::POLLIN));
            if wait(fds, timeout)? & 1 << 1 != 0 {
                watch.returned.clear();
            }
        }
    }
    Ok(())
}

/// Return whether the device may be lent to the thread of the way in: little flows.
fn may_lend(io: &Io, queue: usize) -> bool {
    let (device, watch) = (&io.queues[queue].device, &io.watches[queue]);
    device.answers_at_once() && !io.uring && !watch.is_lent() && watch.is_calm(now()) && holds_little(io, queue)
}

/// Return whether the kernel holds so little that no packet has to wait for its turn.
fn holds_little(io: &Io, queue: usize) -> bool {
    io.queues[queue].sockets.iter().all(|socket| socket.unsent() < UNASKED)
}

fn lock(pump: &Mutex<Option<Pump>>) -> MutexGuard<'_, Option<Pump>> {
    pump.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls::backlog::tests::{fill, io_of};

    /// Return whether a device is still lent after the thread that it was lent to has sent.
    fn stays_lent(io: &Io, holds_back: bool) -> bool {
        *lock(&io.pumps[0]) = Some(Pump { holds_back, ..Pump::default() });
        io.watches[0].lend();
        answer(io, 0).unwrap();
        io.watches[0].is_lent()
    }

    #[test]
    fn a_lent_device_is_returned_while_packets_wait_here_or_in_the_kernel() {
        let io = io_of(&[]);
        assert!(stays_lent(&io, false));
        // Nobody may read it, so it would stay readable for the thread that waits for it.
        assert!(!stays_lent(&io, true));
        fill(&io, 60_000);
        assert!(!stays_lent(&io, false));
    }
}
