//! Sending over any UDP side: AF_XDP where that is possible, otherwise the sockets.

use std::io::{self, IoSlice};

use transport::contract::{Endpoint, Outbox, Transmit};
use transport::drops::DropReason;
use transport::vnet::VNET_SIZE;

use crate::descriptor::error_word;
use crate::io::Io;
use crate::udp::{Sent, Udp};
use crate::udp_side::Patience;

impl Io {
    /// Handle the results of a call: queue its events for Python and send its datagrams over the
    /// sockets of `queue`. [`Self::at_gate`] stands for the gate's sockets.
    pub fn dispatch(&self, out: &mut Outbox, queue: usize, patience: Patience) {
        for event in out.events.drain(..) {
            self.put(event);
        }
        for transmit in &mut out.transmits {
            transmit.endpoint = self.usable(transmit.endpoint);
        }
        self.send_all(&out.transmits, queue, patience);
        out.transmits.clear();
        if !out.answers.is_empty() {
            let device = &self.queues[0].device;
            for answer in out.answers.drain(..) {
                // The host can do without.
                let _ = device.write(&mut [&[0; VNET_SIZE], &answer[..]].map(IoSlice::new));
            }
            device.flush();
        }
        self.alarm.set(self.transport.poll_timeout());
    }

    /// Send datagrams, in one system call if possible.
    fn send_all(&self, mut transmits: &[Transmit], queue: usize, patience: Patience) {
        while let Some(Transmit { endpoint, datagram, tos }) = transmits.first() {
            let together = if transmits.len() > 1 && self.xdp.is_none() {
                self.socket(queue, *endpoint).map_or(0, |socket| socket.send_together(transmits))
            } else {
                0
            };
            if together == 0 {
                self.send(datagram, datagram.len(), *endpoint, *tos, queue, patience);
            }
            transmits = &transmits[together.max(1)..];
        }
    }

    /// Send a message as datagrams of `segment` bytes, with this TOS or traffic class. Refusals by the
    /// network are only counted.
    ///
    /// Return false if the kernel refused the endpoint's local address and the datagrams left from
    /// another.
    pub fn send(
        &self,
        message: &[u8],
        segment: usize,
        endpoint: Endpoint,
        tos: u8,
        queue: usize,
        patience: Patience,
    ) -> bool {
        let endpoint = self.usable(endpoint);
        let done = self.send_by_xdp(message, segment, endpoint, tos, queue, patience);
        if done > 0 && done == message.len() {
            return true;
        }
        let message = &message[done..];
        let Some(socket) = self.socket(queue, endpoint) else {
            self.transport.drops.count(DropReason::NoSocket, 1);
            return true;
        };
        self.send_by(socket, message, segment, endpoint, tos, patience)
    }

    /// The same over a given socket, to an endpoint that is usable.
    pub fn send_by(
        &self,
        socket: &Udp,
        message: &[u8],
        segment: usize,
        endpoint: Endpoint,
        tos: u8,
        patience: Patience,
    ) -> bool {
        let (sent, from_there) = socket.send_from(message, segment, endpoint, tos, patience);
        match sent {
            Ok(Sent::Whole) => {}
            Ok(Sent::Singly(error)) => self.note(&not_cut(&error, socket.segments())),
            Err(error) => self.transport.drops.count_other(format!("send_{}", error_word(&error))),
        }
        from_there
    }

    /// Send what can go over AF_XDP. Return how many bytes of the message that was.
    fn send_by_xdp(
        &self,
        message: &[u8],
        segment: usize,
        endpoint: Endpoint,
        tos: u8,
        queue: usize,
        patience: Patience,
    ) -> usize {
        let Some(xdp) = &self.xdp else { return 0 };
        xdp.send(message, segment, endpoint, tos, queue, patience).unwrap_or_else(|error| {
            self.transport.drops.count_other(format!("xdp_{}", error_word(&error)));
            message.len()
        })
    }

    /// Return the endpoint without its local address if another route is better than the one from
    /// there. Where nobody can ask for routes, the address is used.
    pub fn usable(&self, endpoint: Endpoint) -> Endpoint {
        self.sources.as_ref().map_or(endpoint, |sources| sources.usable(endpoint))
    }

    /// Return the number that stands for the gate where a queue is expected.
    pub fn at_gate(&self) -> usize {
        self.queues.len()
    }

    /// Return the socket of a queue, or of the gate, for the endpoint's address family.
    pub fn socket(&self, queue: usize, endpoint: Endpoint) -> Option<&Udp> {
        let sockets = self.queues.get(queue).map_or(&self.gate, |queue| &queue.sockets);
        sockets.iter().find(|socket| socket.v6 == endpoint.remote.is_ipv6())
    }
}

/// Return the note for a message that the kernel refused to cut.
fn not_cut(error: &io::Error, again: bool) -> String {
    if again {
        format!(
            "The kernel refused to cut a UDP message ({error}): its datagrams went one by one. It is asked again."
        )
    } else {
        format!("The kernel can't cut UDP messages here ({error}): datagrams go one by one from now on.")
    }
}
