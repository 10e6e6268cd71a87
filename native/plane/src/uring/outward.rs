//! The way out of a queue over io_uring. One multishot operation reads the device. The system call
//! that sends a message also fetches the next packets.

use std::collections::VecDeque;
use std::os::fd::RawFd;
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
use crate::syscalls::{self, Sender};
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

/// Make the ring that [`run_beside`] needs: it only sends.
pub fn ring_beside() -> io::Result<Ring> {
    Ring::new(1, 64)
}

/// Move packets of a device that the ring can't read.
pub fn run_beside(io: &Io, queue: usize, ring: Ring) -> io::Result<()> {
    syscalls::out_with(io, queue, &mut RingSender::new(io, queue, ring))
}

/// Move packets until it is time to stop. The ring reads the device at this descriptor.
pub fn run(io: &Io, queue: usize, ring: Ring, device: RawFd) -> io::Result<()> {
    let (mut outbound, mut outbox) = (Outbound::default(), Outbox::default());
    let counters = &io.counters.queues[queue].out;
    let mut spin = Spin::default();
    let read = DeviceRead { device: Fd(device), frames: VecDeque::new(), goes_on: false };
    let mut way = Outward { io, queue, sender: RingSender::new(io, queue, ring), read };
    watch_stop(&mut way.sender.ring, io)?;
    watch_call(&mut way.sender.ring, &io.roll.out[queue])?;
    while io.goes_on() {
        io.roll.out[queue].answer();
        way.read_on()?;
        if way.read.frames.is_empty() {
            idle(&mut way.sender.ring, &mut spin, counters)?;
        } else {
            way.batch(&mut outbound, &mut outbox)?;
            io.dispatch(&mut outbox, queue, Patience::Some);
            let (packets, bytes) = way.sender.take_counts();
            counters.count(packets, bytes);
        }
        way.take()?;
    }
    Ok(())
}

struct Outward<'a> {
    io: &'a Io,
    queue: usize,
    sender: RingSender<'a>,
    read: DeviceRead,
}

/// What was read from the device.
struct DeviceRead {
    device: Fd,
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
            let frame = unsafe { self.sender.ring.bytes(&lease) };
            outbound.frame(transport, &mut frame[..size], now, outbox, &mut self.sender);
            self.sender.ring.give_back(lease);
        }
        outbound.flush(transport, now, outbox, &mut self.sender);
        Ok(())
    }

    /// Fetch what the device has. Return false if there is nothing.
    fn read_more(&mut self) -> io::Result<bool> {
        self.read_on()?;
        if self.sender.ring.has_work() {
            self.sender.ring.enter(0)?;
            self.take()?;
        }
        Ok(!self.read.frames.is_empty())
    }

    /// Start reading the device, unless it is being read.
    fn read_on(&mut self) -> io::Result<()> {
        if self.read.goes_on {
            return Ok(());
        }
        let read = opcode::ReadMulti::new(self.read.device, 0, GROUP).offset(u64::MAX).build().user_data(ARRIVAL);
        // SAFETY: the operation reads only into the ring's buffers.
        unsafe { self.sender.ring.push(&read)? };
        self.read.goes_on = true;
        Ok(())
    }

    /// Take the completions that are there.
    fn take(&mut self) -> io::Result<()> {
        while let Some(completion) = self.sender.ring.next() {
            self.took(completion)?;
        }
        Ok(())
    }

    fn took(&mut self, completion: Completion) -> io::Result<()> {
        if completion.tag != ARRIVAL {
            if completion.tag == CALL {
                let sign = &self.io.roll.out[self.queue];
                sign.answer();
                watch_call(&mut self.sender.ring, sign)?;
            }
            return Ok(());
        }
        self.read.goes_on = completion.more;
        match (completion.result, completion.lease) {
            (Ok(size), Some(lease)) => self.read.frames.push_back((lease, size)),
            (Err(error), _) if !is_passing(error) => {
                let error = io::Error::from_raw_os_error(error);
                if !self.io.refused_read(&*self.io.queues[self.queue].device, &error) {
                    return Err(error);
                }
            }
            (_, lease) => lease.into_iter().for_each(|lease| self.sender.ring.give_back(lease)),
        }
        Ok(())
    }
}

/// Sends over a ring, and counts.
struct RingSender<'a> {
    io: &'a Io,
    queue: usize,
    ring: Ring,
    /// Boxed, because the kernel reads it while it sends.
    letter: Box<Letter>,
    counts: (usize, usize),
}

impl<'a> RingSender<'a> {
    fn new(io: &'a Io, queue: usize, ring: Ring) -> Self {
        Self { io, queue, ring, letter: Box::default(), counts: (0, 0) }
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

impl Sink for RingSender<'_> {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        self.counts.0 += message.len().div_ceil(segment);
        self.counts.1 += message.len();
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

impl Sender for RingSender<'_> {
    fn take_counts(&mut self) -> (usize, usize) {
        mem::take(&mut self.counts)
    }
}
