//! The way out of a queue: read the device into a message per peer, seal, send.

use std::io;

use transport::contract::{Endpoint, Outbox};
use transport::outbound::Outbound;
use transport::sink::Sink;
use transport::vnet::{MAX_PACKET, VNET_SIZE};

use crate::descriptor::{is_nothing, now, wait};
use crate::io::Io;
use crate::spin::Spin;
use crate::udp_side::Patience;

/// Sends over the sockets of a queue, and counts.
struct Sender<'a> {
    io: &'a Io,
    queue: usize,
    packets: usize,
    bytes: usize,
}

impl Sink for Sender<'_> {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        self.packets += message.len().div_ceil(segment);
        self.bytes += message.len();
        self.io.send(message, segment, endpoint, tos, self.queue, Patience::Some)
    }
}

/// Run the way out of a queue.
pub fn run(io: &Io, queue: usize) -> io::Result<()> {
    let (tun, counters) = (&io.queues[queue].tun, &io.counters.queues[queue].out);
    let mut frame = vec![0; VNET_SIZE + MAX_PACKET].into_boxed_slice();
    let mut outbound = Outbound::default();
    let mut outbox = Outbox::default();
    let mut spin = Spin::default();
    let mut pump = || {
        let now = now();
        let (transport, mut sender) = (&*io.transport, Sender { io, queue, packets: 0, bytes: 0 });
        let mut any = false;
        while !outbound.is_due() {
            match tun.read(&mut frame) {
                Ok(size) => outbound.frame(transport, &mut frame[..size], now, &mut outbox, &mut sender),
                Err(error) if is_nothing(&error) => break,
                Err(error) if io.refused_read(tun, &error) => {}
                Err(error) => return Err(error),
            }
            any = true;
        }
        if any {
            outbound.flush(transport, now, &mut outbox, &mut sender);
            io.dispatch(&mut outbox, queue, Patience::Some);
            counters.count(sender.packets, sender.bytes);
        }
        Ok(any)
    };
    let sign = &io.roll.out[queue];
    while io.goes_on() {
        sign.answer();
        if !pump()? && !spin.look(&mut pump)? {
            counters.count_calls();
            wait([tun.fd(), sign.fd(), io.stop.fd()].map(|fd| (fd, libc::POLLIN)), -1)?;
        }
    }
    Ok(())
}
