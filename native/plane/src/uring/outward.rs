//! The way out of a queue over io_uring. One multishot operation reads the device. The system call
//! that sends a message also fetches the next packets.

use std::collections::VecDeque;
use std::{io, iter, mem};

use io_uring::{opcode, types::Fd};
use transport::contract::{Endpoint, Outbox};
use transport::outbound::Outbound;
use transport::sink::Sink;
use transport::vnet::{MAX_PACKET, VNET_SIZE};

use super::common::{ARRIVAL, CALL, idle, is_passing, watch_call, watch_stop};
use super::ring::{Completion, GROUP, Lease, Ring};

use crate::descriptor::now;
use crate::io::Io;
use crate::spin::Spin;
use crate::udp::{Letter, Udp};
use crate::udp_side::Patience;

/// Packets or superpackets that the device may deliver before they are sealed.
const BUFFERS: u16 = 16;
/// Bytes of a virtio_net_hdr and the largest packet, in whole cache lines.
const BUFFER: usize = (VNET_SIZE + MAX_PACKET).next_multiple_of(64);

/// Make the ring that [`run`] needs.
pub fn ring() -> io::Result<Ring> {
    Ring::new(BUFFERS, BUFFER)
}

/// Move packets until it is time to stop.
pub fn run(io: &Io, queue: usize, ring: Ring) -> io::Result<()> {
    let (mut outbound, mut outbox) = (Outbound::default(), Outbox::default());
    let counters = &io.counters.queues[queue].out;
    let mut spin = Spin::default();
    let mut way =
        Outward { io, queue, ring, read: DeviceRead::default(), letter: Box::default(), packets: 0, bytes: 0 };
    watch_stop(&mut way.ring, io)?;
    watch_call(&mut way.ring, &io.roll.out[queue])?;
    while io.goes_on() {
        io.roll.out[queue].answer();
        way.read_on()?;
        if way.read.frames.is_empty() {
            idle(&mut way.ring, &mut spin, counters)?;
        } else {
            way.batch(&mut outbound, &mut outbox)?;
            io.dispatch(&mut outbox, queue, Patience::Some);
            counters.count(mem::take(&mut way.packets), mem::take(&mut way.bytes));
        }
        way.take()?;
    }
    Ok(())
}

struct Outward<'a> {
    io: &'a Io,
    queue: usize,
    ring: Ring,
    read: DeviceRead,
    /// Boxed, because the kernel reads it while it sends.
    letter: Box<Letter>,
    /// Datagrams of this batch, and their bytes.
    packets: usize,
    bytes: usize,
}

/// What was read from the device.
#[derive(Default)]
struct DeviceRead {
    frames: VecDeque<(Lease, usize)>,
    /// Whether the operation is still active.
    goes_on: bool,
}

impl Outward<'_> {
    /// Seal and send what the device has, up to a full message or a share for each peer.
    fn batch(&mut self, outbound: &mut Outbound, outbox: &mut Outbox) -> io::Result<()> {
        let (transport, now) = (&*self.io.transport, now());
        while !outbound.is_due() {
            let Some((lease, size)) = self.read.frames.pop_front() else {
                if !self.read_more()? {
                    break;
                }
                continue;
            };
            // SAFETY: the lease is given back after the last use of the slice, and nothing else looks at this buffer.
            let frame = unsafe { self.ring.bytes(&lease) };
            outbound.frame(transport, &mut frame[..size], now, outbox, self);
            self.ring.give_back(lease);
        }
        outbound.flush(transport, now, outbox, self);
        Ok(())
    }

    /// Fetch what the device has. Return false if there is nothing.
    fn read_more(&mut self) -> io::Result<bool> {
        self.read_on()?;
        if self.ring.has_work() {
            self.ring.enter(0)?;
            self.take()?;
        }
        Ok(!self.read.frames.is_empty())
    }

    /// Start reading the device, unless it is being read.
    fn read_on(&mut self) -> io::Result<()> {
        if self.read.goes_on {
            return Ok(());
        }
        let tun = self.io.queues[self.queue].tun.fd();
        let read = opcode::ReadMulti::new(Fd(tun), 0, GROUP).offset(u64::MAX).build().user_data(ARRIVAL);
        // SAFETY: the operation reads only into the ring's buffers.
        unsafe { self.ring.push(&read)? };
        self.read.goes_on = true;
        Ok(())
    }

    /// Take the completions that are there.
    fn take(&mut self) -> io::Result<()> {
        while let Some(completion) = self.ring.next() {
            self.took(completion)?;
        }
        Ok(())
    }

    fn took(&mut self, completion: Completion) -> io::Result<()> {
        if completion.tag != ARRIVAL {
            if completion.tag == CALL {
                let sign = &self.io.roll.out[self.queue];
                sign.answer();
                watch_call(&mut self.ring, sign)?;
            }
            return Ok(());
        }
        self.read.goes_on = completion.more;
        match (completion.result, completion.lease) {
            (Ok(size), Some(lease)) => self.read.frames.push_back((lease, size)),
            (Err(error), _) if !is_passing(error) => {
                let error = io::Error::from_raw_os_error(error);
                if !self.io.refused_read(&self.io.queues[self.queue].tun, &error) {
                    return Err(error);
                }
            }
            (_, lease) => lease.into_iter().for_each(|lease| self.ring.give_back(lease)),
        }
        Ok(())
    }

    /// Send a message over the ring. Return false if the default path has to send it.
    fn send_now(&mut self, message: &[u8], segment: Option<u16>, socket: &Udp, endpoint: Endpoint, tos: u8) -> bool {
        let header = self.letter.address(message, segment, endpoint, tos);
        // It doesn't wait for room, so it ends at once.
        let send = opcode::SendMsg::new(Fd(socket.fd()), header).flags(libc::MSG_DONTWAIT as u32).build();
        let mut sent = false;
        // SAFETY: the letter and the message are borrowed for longer than the call.
        unsafe { self.ring.complete(iter::once(send), |_, result| sent = result.is_ok()) };
        sent
    }
}

impl Sink for Outward<'_> {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        self.packets += message.len().div_ceil(segment);
        self.bytes += message.len();
        let endpoint = self.io.usable(endpoint);
        let socket = self.io.socket(self.queue, endpoint);
        let cut = message.len() > segment;
        let sent = socket.is_some_and(|socket| {
            (!cut || socket.segments())
                && self.send_now(message, cut.then_some(segment as u16), socket, endpoint, tos)
        });
        // The default path tries again, waits for room, sends uncut, and counts failures.
        sent || self.io.send(message, segment, endpoint, tos, self.queue, Patience::Some)
    }
}
