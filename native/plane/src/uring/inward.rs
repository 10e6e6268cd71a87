//! The way in of a queue over io_uring. One multishot operation reads each socket. The system call
//! that writes a batch to the device also fetches the next messages.

use std::io;
use std::mem::{size_of, zeroed};

use io_uring::types::{Fd, RecvMsgOut};
use io_uring::{opcode, squeue};
use transport::coalesce::{Inner, Run};
use transport::contract::{Endpoint, Outbox};
use transport::inbound::{Inbound, Message};
use transport::vnet::VNET_SIZE;

use super::common::{ARRIVAL, CALL, STOP, idle, is_passing, watch_call, watch_stop};
use super::ring::{AT_ONCE, Completion, GROUP, Lease, Ring};

use crate::descriptor::{error_word, now};
use crate::device::Device;
use crate::io::Io;
use crate::offloads::refuses;
use crate::slice::Slice;
use crate::spin::Spin;
use crate::udp::{Control, Details, NO_GRO, address_of};
use crate::udp_side::{MESSAGE, Patience};

/// Messages that the sockets may deliver before they are opened.
const BUFFERS: u16 = 16;
/// Bytes for a source's address: those of a sockaddr_in6, aligned for the control message that
/// follows.
const NAME: usize = size_of::<libc::sockaddr_in6>().next_multiple_of(8);
/// Bytes of a buffer, in whole cache lines: the kernel's io_uring_recvmsg_out, the source, a
/// control message, the message.
const BUFFER: usize = (16 + NAME + size_of::<Control>() + MESSAGE).next_multiple_of(64);

/// Make the ring that [`run`] needs.
pub fn ring() -> io::Result<Ring> {
    Ring::new(BUFFERS, BUFFER)
}

/// Move packets until it is time to stop.
pub fn run(io: &Io, queue: usize, ring: Ring) -> io::Result<()> {
    let mut way = Inward {
        io,
        queue,
        ring,
        layout: layout(),
        receiving: vec![false; io.queues[queue].sockets.len()],
        messages: Vec::new(),
        writes: Writes::default(),
        slice: Slice::default(),
    };
    let (mut inbound, mut outbox) = (Inbound::default(), Outbox::default());
    let counters = &io.counters.queues[queue].inward;
    let mut spin = Spin::default();
    watch_stop(&mut way.ring, io)?;
    watch_call(&mut way.ring, &io.roll.inward[queue])?;
    while io.goes_on() {
        io.roll.inward[queue].answer();
        // An operation that ended because there were no buffers would end again at once.
        if way.messages.len() < usize::from(BUFFERS) {
            way.receive_on()?;
        }
        if way.messages.is_empty() {
            idle(&mut way.ring, &mut spin, counters)?;
        } else {
            let (packets, bytes) = way.batch(&mut inbound, &mut outbox);
            io.dispatch(&mut outbox, queue, Patience::Some);
            counters.count(packets, bytes);
        }
        while let Some(completion) = way.ring.next() {
            way.took(completion)?;
        }
    }
    Ok(())
}

/// Return how a buffer is divided, as the kernel expects it. Only sizes count.
fn layout() -> Box<libc::msghdr> {
    // SAFETY: a msghdr is plain bytes, and all zeros is one of its values.
    let mut layout: Box<libc::msghdr> = Box::new(unsafe { zeroed() });
    layout.msg_namelen = NAME as libc::socklen_t;
    layout.msg_controllen = size_of::<Control>();
    layout
}

struct Inward<'a> {
    io: &'a Io,
    queue: usize,
    /// Declared before what its operations use, so it is dropped first.
    ring: Ring,
    layout: Box<libc::msghdr>,
    /// Whether each socket's operation is still active.
    receiving: Vec<bool>,
    /// The messages of the next batch, and their buffers.
    messages: Vec<(Lease, Message)>,
    writes: Writes,
    slice: Slice,
}

/// What is written to the device at once. Kept to reuse its memory.
#[derive(Default)]
struct Writes {
    runs: Vec<Run>,
    vectors: Vec<libc::iovec>,
    /// The number of each run that wasn't written, and the error.
    refused: Vec<(usize, i32)>,
}

impl Inward<'_> {
    /// Start receiving on each socket that doesn't receive.
    fn receive_on(&mut self) -> io::Result<()> {
        for (number, goes_on) in self.receiving.iter_mut().enumerate() {
            if !*goes_on {
                let socket = Fd(self.io.queues[self.queue].sockets[number].fd());
                let receive = opcode::RecvMsgMulti::new(socket, &raw const *self.layout, GROUP).build();
                // SAFETY: the operation reads `layout`, which is dropped after the ring, and writes
                // only to the ring's buffers.
                unsafe { self.ring.push(&receive.user_data(ARRIVAL + number as u64))? };
                *goes_on = true;
            }
        }
        Ok(())
    }

    fn took(&mut self, completion: Completion) -> io::Result<()> {
        let Completion { tag, result, lease, more } = completion;
        if tag >= STOP {
            if tag == CALL {
                let sign = &self.io.roll.inward[self.queue];
                sign.answer();
                watch_call(&mut self.ring, sign)?;
            }
            return Ok(());
        }
        self.receiving[(tag - ARRIVAL) as usize] = more;
        match result {
            Ok(size) => {
                if let Some(lease) = lease {
                    match self.message(&lease, size) {
                        Some(message) => self.messages.push((lease, message)),
                        None => self.ring.give_back(lease),
                    }
                }
                return Ok(());
            }
            Err(error @ (libc::EBADF | libc::ENOTSOCK)) => return Err(io::Error::from_raw_os_error(error)),
            Err(error) if is_passing(error) => {}
            Err(error) => self.failed((tag - ARRIVAL) as usize, &io::Error::from_raw_os_error(error)),
        }
        lease.into_iter().for_each(|lease| self.ring.give_back(lease));
        Ok(())
    }

    /// Handle an error of a socket: it can't merge datagrams, or something that was sent earlier
    /// failed.
    fn failed(&self, socket: usize, error: &io::Error) {
        if refuses(error) && self.io.queues[self.queue].sockets[socket].end_merging() {
            self.io.note(NO_GRO);
        } else {
            self.io.transport.drops.count_other(format!("receive_{}", error_word(error)));
        }
    }

    /// Find the message in a buffer. The kernel wrote its first `size` bytes.
    fn message(&mut self, lease: &Lease, size: usize) -> Option<Message> {
        let place = self.ring.place(lease);
        let buffer = &self.ring.memory()[place..place + size];
        let parsed = RecvMsgOut::parse(buffer, &self.layout).ok()?;
        // SAFETY: a sockaddr_storage is plain bytes, and all zeros is one of its values. It is
        // longer than any name.
        let name = unsafe {
            let mut name: libc::sockaddr_storage = zeroed();
            let given = parsed.name_data();
            std::ptr::copy_nonoverlapping(
                given.as_ptr(),
                (&raw mut name).cast(),
                given.len().min(size_of_val(&name)),
            );
            name
        };
        // SAFETY: as above.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_control = parsed.control_data().as_ptr().cast_mut().cast();
        header.msg_controllen = parsed.control_data().len();
        let payload = parsed.payload_data();
        let details = Details::of(&header);
        Some(Message {
            at: place + (payload.as_ptr() as usize - buffer.as_ptr() as usize),
            size: payload.len(),
            segment: details.segment.unwrap_or(payload.len()),
            source: Endpoint { remote: address_of(&name)?, local: details.local, interface: details.interface },
            tos: details.tos,
        })
    }

    /// Move the messages to the device. Return how many datagrams they were, and their bytes.
    fn batch(&mut self, inbound: &mut Inbound, outbox: &mut Outbox) -> (usize, usize) {
        let now = now();
        let (mut packets, mut bytes) = (0, 0);
        inbound.clear();
        let memory = self.ring.memory();
        for (_, message) in &self.messages {
            packets += message.datagrams();
            bytes += message.size;
            inbound.message(&self.io.transport, memory, *message, now, outbox);
        }
        let device = &*self.io.queues[self.queue].device;
        let mut rest = inbound.packets();
        self.slice.note(device, memory, rest);
        match device.uring_fd() {
            None => self.io.deliver(device, self.ring.memory(), rest),
            Some(fd) => {
                while !rest.is_empty() {
                    rest = self.write(Fd(fd), device, rest);
                }
            }
        }
        for (lease, _) in self.messages.drain(..) {
            self.ring.give_back(lease);
        }
        (packets, bytes)
    }

    /// Write packets to the device, merged where possible. Return the packets that are left.
    fn write<'p>(&mut self, fd: Fd, device: &dyn Device, packets: &'p [Inner]) -> &'p [Inner] {
        let rest = self.writes.plan(self.ring.memory(), packets, self.io);
        self.writes.point(device.has_vnet(), self.ring.base(), packets);
        let mut refused = std::mem::take(&mut self.writes.refused);
        // SAFETY: nothing changes the vectors, the heads, or the leased buffers they point to
        // during the call.
        unsafe {
            self.ring.complete(self.writes.operations(fd), |number, result| {
                refused.extend(result.err().map(|error| (number, error)));
            });
        }
        for (number, error) in refused.drain(..) {
            self.was_refused(device, number, error, packets);
        }
        self.writes.refused = refused;
        rest
    }

    /// Handle a refused run. Its packets come after the merged ones that were accepted.
    fn was_refused(&mut self, device: &dyn Device, number: usize, error: i32, packets: &[Inner]) {
        let (before, rest) = self.writes.runs.split_at(number);
        let first = before.iter().map(|run| run.count).sum::<usize>();
        let mine = &packets[first..first + rest[0].count];
        let error = io::Error::from_raw_os_error(error);
        self.io.refused_write(device, self.ring.memory(), mine, &rest[0], &error);
    }
}

impl Writes {
    /// Divide packets into at most [`AT_ONCE`] writes. Return the packets that are left.
    fn plan<'p>(&mut self, memory: &[u8], packets: &'p [Inner], io: &Io) -> &'p [Inner] {
        self.runs.clear();
        let mut rest = packets;
        while !rest.is_empty() && self.runs.len() < AT_ONCE {
            let run = io.next_run(memory, rest);
            rest = &rest[run.count..];
            self.runs.push(run);
        }
        rest
    }

    /// Point to the pieces of each run: its head, then its packets' payloads in the memory from
    /// `base` on.
    fn point(&mut self, vnet: bool, base: *const u8, packets: &[Inner]) {
        self.vectors.clear();
        let mut packets = packets.iter();
        for run in &self.runs {
            let head = if vnet { run.head() } else { &run.head()[VNET_SIZE..] };
            self.vectors.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
            for packet in packets.by_ref().take(run.count) {
                let payload = base.wrapping_add(packet.at + run.skip);
                let size = packet.size - run.skip;
                self.vectors.push(libc::iovec { iov_base: payload.cast_mut().cast(), iov_len: size });
            }
        }
    }

    /// Return a write for each run. The device takes them in this order, because it never makes one
    /// wait for room.
    fn operations(&self, device: Fd) -> impl Iterator<Item = squeue::Entry> {
        let mut first = 0;
        self.runs.iter().map(move |run| {
            let vectors = &self.vectors[first..=first + run.count];
            first += vectors.len();
            opcode::Writev::new(device, vectors.as_ptr(), vectors.len() as u32).offset(u64::MAX).build()
        })
    }
}
