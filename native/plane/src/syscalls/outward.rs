//! The way out of a queue: read the device into a message per peer, seal, send.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use transport::contract::{Endpoint, Outbox};
use transport::outbound::Outbound;
use transport::sink::Sink;
use transport::vnet::{MAX_PACKET, VNET_SIZE};

use crate::descriptor::{is_nothing, now, wait};
use crate::io::Io;
use crate::spin::Spin;
use crate::udp_side::Patience;

/// A sink that counts.
pub trait Sender: Sink {
    /// Return how many datagrams were sent since this was last called, and their bytes.
    fn take_counts(&mut self) -> (usize, usize);
}

/// Sends over the sockets of a queue, and counts.
struct SocketSender<'a> {
    io: &'a Io,
    queue: usize,
    counts: (usize, usize),
}

impl Sink for SocketSender<'_> {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        self.counts.0 += message.len().div_ceil(segment);
        self.counts.1 += message.len();
        self.io.send(message, segment, endpoint, tos, self.queue, Patience::Some)
    }
}

impl Sender for SocketSender<'_> {
    fn take_counts(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.counts)
    }
}

/// Run the way out of a queue over the sockets.
pub fn run(io: &Io, queue: usize) -> io::Result<()> {
    run_with(io, queue, &mut SocketSender { io, queue, counts: (0, 0) })
}

/// What turns the device's frames into messages. One thread at a time: the packets of a flow keep
/// their order.
#[derive(Default)]
pub struct Pump {
    frame: Vec<u8>,
    outbound: Outbound,
    outbox: Outbox,
}

impl Pump {
    /// Send what waits in the device, a batch at most. Return whether anything came, and whether that
    /// was the end.
    pub fn run(&mut self, io: &Io, queue: usize, sender: &mut impl Sender) -> io::Result<(bool, bool)> {
        let (device, counters) = (&*io.queues[queue].device, &io.counters.queues[queue].out);
        let Self { frame, outbound, outbox } = self;
        frame.resize(VNET_SIZE + MAX_PACKET, 0);
        let now = now();
        let transport = &*io.transport;
        let (mut any, mut ended) = (false, false);
        while !outbound.is_due() {
            match device.read(frame) {
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
        }
        Ok((any || ended, ended))
    }
}

/// Send what the device has, unless the thread for that is at it already. Called by the thread that
/// has just written to the device: where the host answers at once, as to a ping, the answer leaves
/// without waking another thread.
pub fn answer(io: &Io, queue: usize) -> io::Result<()> {
    if let Ok(mut shared) = io.pumps[queue].try_lock() {
        if let Some(pump) = &mut *shared {
            pump.run(io, queue, &mut SocketSender { io, queue, counts: (0, 0) })?;
        }
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
    let mut pump = || {
        let done = match &mut *lock(&io.pumps[queue]) {
            Some(shared) => shared.run(io, queue, sender),
            None => own.run(io, queue, sender),
        };
        counters.count_calls();
        done
    };
    let mut spin = Spin::default();
    let sign = &io.roll.out[queue];
    let mut ended = false;
    while io.goes_on() {
        sign.answer();
        let mut found = false;
        if !ended {
            (found, ended) = pump()?;
            if !found {
                spin.look(|| {
                    (found, ended) = pump()?;
                    Ok(found)
                })?;
            }
            if ended && io.is_last_to_end() {
                return Ok(());
            }
        }
        if ended || (!found && device.fall_asleep()) {
            counters.count_calls();
            let arrivals = if ended { -1 } else { device.fd() };
            wait([arrivals, sign.fd(), io.stop.fd()].map(|fd| (fd, libc::POLLIN)), -1)?;
        }
    }
    Ok(())
}

fn lock(pump: &Mutex<Option<Pump>>) -> MutexGuard<'_, Option<Pump>> {
    pump.lock().unwrap_or_else(PoisonError::into_inner)
}
