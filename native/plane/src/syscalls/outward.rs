//! The way out of a queue: read the device into a message per peer, seal, send.

use std::io;

use transport::contract::{Endpoint, Outbox};
use transport::outbound::Outbound;
use transport::sink::Sink;
use transport::vnet::{MAX_PACKET, VNET_SIZE};

use super::backlog::Backlog;
use crate::descriptor::{is_nothing, now, wait};
use crate::device::Device;
use crate::io::Io;
use crate::spin::Spin;
use crate::udp_side::Patience;

/// A sink that counts.
pub trait Sender: Sink {
    /// Read one frame: of those that wait, or of the device.
    fn read(&mut self, device: &dyn Device, frame: &mut [u8]) -> io::Result<usize> {
        device.read(frame)
    }

    /// Return how many datagrams were sent since this was last called, and their bytes.
    fn take_counts(&mut self) -> (usize, usize);
}

/// Sends over the sockets of a queue, and counts.
struct SocketSender<'a> {
    io: &'a Io,
    queue: usize,
    counts: (usize, usize),
    /// None with AF_XDP, whose rings are short.
    backlog: Option<Backlog<'a>>,
}

impl Sink for SocketSender<'_> {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        self.counts.0 += message.len().div_ceil(segment);
        self.counts.1 += message.len();
        if let Some(backlog) = &mut self.backlog {
            backlog.make_room(message.len(), endpoint);
        }
        self.io.send(message, segment, endpoint, tos, self.queue, Patience::Some)
    }
}

impl Sender for SocketSender<'_> {
    fn read(&mut self, device: &dyn Device, frame: &mut [u8]) -> io::Result<usize> {
        match &mut self.backlog {
            Some(backlog) => backlog.read(frame),
            None => device.read(frame),
        }
    }

    fn take_counts(&mut self) -> (usize, usize) {
        if let Some(backlog) = &mut self.backlog {
            backlog.begin();
        }
        std::mem::take(&mut self.counts)
    }
}

/// Run the way out of a queue over the sockets.
pub fn run(io: &Io, queue: usize) -> io::Result<()> {
    let backlog = io.xdp.is_none().then(|| Backlog::new(io, queue));
    run_with(io, queue, &mut SocketSender { io, queue, counts: (0, 0), backlog })
}

/// Run the way out of a queue: read the device by its methods, send by `sender`.
pub fn run_with(io: &Io, queue: usize, sender: &mut impl Sender) -> io::Result<()> {
    let (device, counters) = (&*io.queues[queue].device, &io.counters.queues[queue].out);
    let mut frame = vec![0; VNET_SIZE + MAX_PACKET].into_boxed_slice();
    let mut outbound = Outbound::default();
    let mut outbox = Outbox::default();
    let mut spin = Spin::default();
    // Returns whether anything came, and whether that was the end.
    let mut pump = || {
        let now = now();
        let transport = &*io.transport;
        let (mut any, mut ended) = (false, false);
        while !outbound.is_due() {
            match sender.read(device, &mut frame) {
                Ok(size) => outbound.frame(transport, &mut frame[..size], now, &mut outbox, sender),
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
            outbound.flush(transport, now, &mut outbox, sender);
            io.dispatch(&mut outbox, queue, Patience::Some);
            let (packets, bytes) = sender.take_counts();
            counters.count(packets, bytes);
        }
        Ok((any || ended, ended))
    };
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
