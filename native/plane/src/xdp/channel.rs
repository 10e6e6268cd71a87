//! One queue of an interface: its AF_XDP socket with four rings, and the frames that circulate in
//! them.
//!
//! A frame for receiving is in the fill ring, with the driver, or in the RX ring. When it comes out
//! of there its datagram is copied, and it goes back into the fill ring. A frame for sending is
//! ours, in the TX ring, with the driver, or in the completion ring.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use transport::contract::Endpoint;
use transport::ethernet::{self, Fields, Path};
use transport::inbound::Message;

use crate::descriptor::{check, check_size, own, wait};
use crate::udp_side::{Patience, Receiver};
use crate::xdp::memory::{Frame, Umem};
use crate::xdp::ring::{Consumer, Producer};

/// Entries of each ring, and frames of each direction. A driver's queue holds fewer, and the cache
/// holds as many.
pub const RING: u32 = 1024;
/// Frames that a channel needs.
pub const FRAMES: usize = 2 * RING as usize;
/// Frames taken in one batch, and datagrams that one message stands for at most.
const BATCH: usize = 128;
const MERGED: usize = 64;
const SEND_BUFFER: libc::c_int = 7 << 20;
/// Milliseconds to wait for the driver.
const SEND_PATIENCE: u32 = 500;
/// Frames the kernel may take at once from a TX ring (from Linux 6.17 on). Otherwise it takes 32.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const TX_BUDGET: libc::c_int = 128;

/// What the sockets of an interface have in common.
pub struct Shape {
    /// The interface.
    pub interface: u32,
    /// Whether its driver runs the program.
    pub native: bool,
}

/// One queue of the interface.
pub struct Channel {
    fd: OwnedFd,
    /// Whether the driver reads and writes the frames itself.
    pub zero_copy: bool,
    rx: Mutex<Rx>,
    tx: Mutex<Tx>,
}

struct Rx {
    ring: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    /// Our frames. The kernel reports room in the fill ring late.
    frames: Vec<Frame>,
}

struct Tx {
    ring: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    /// Our frames.
    frames: Vec<Frame>,
    identification: u16,
}

impl Channel {
    /// Open a socket for queue `queue`. The first socket of a UMEM registers it. The others share
    /// the first one's.
    pub fn open(
        shape: &Shape,
        queue: u32,
        umem: &Umem,
        mut frames: Vec<Frame>,
        first: Option<&Self>,
    ) -> io::Result<Self> {
        // SAFETY: the call touches no memory of ours.
        let fd = own(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        let raw = fd.as_raw_fd();
        if first.is_none() {
            let (addr, len) = umem.area();
            let area = libc::xdp_umem_reg {
                addr,
                len,
                chunk_size: crate::xdp::memory::FRAME as u32,
                headroom: 0,
                flags: 0,
                tx_metadata_len: 0,
            };
            set(raw, libc::SOL_XDP, libc::XDP_UMEM_REG, &area)?;
        }
        let rings = [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING];
        for ring in rings {
            set(raw, libc::SOL_XDP, ring, &RING)?;
        }
        // Refused without CAP_NET_ADMIN, and before Linux 6.17. Then fewer frames are taken at
        // once.
        let _ = set(raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
        let _ = set(raw, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
        let offsets: libc::xdp_mmap_offsets = get(raw, libc::XDP_MMAP_OFFSETS)?;
        let (fill_at, completion_at) = (libc::XDP_UMEM_PGOFF_FILL_RING, libc::XDP_UMEM_PGOFF_COMPLETION_RING);
        let fill = Producer::map(raw, fill_at as libc::off_t, &offsets.fr, RING)?;
        let completion = Consumer::map(raw, completion_at as libc::off_t, &offsets.cr, RING)?;
        let ring = Consumer::map(raw, libc::XDP_PGOFF_RX_RING, &offsets.rx, RING)?;
        let mut rx = Rx { ring, fill, frames: frames.split_off(RING as usize) };
        rx.refill();
        let tx = Tx {
            ring: Producer::map(raw, libc::XDP_PGOFF_TX_RING, &offsets.tx, RING)?,
            completion,
            frames,
            identification: 0,
        };
        bind(raw, shape, queue, first)?;
        let options: libc::xdp_options = get(raw, libc::XDP_OPTIONS)?;
        let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        Ok(Self { fd, zero_copy, rx: Mutex::new(rx), tx: Mutex::new(tx) })
    }

    /// Return the descriptor that is readable while frames wait.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Take the datagrams that wait. Neighbours of one source, mark and size become one message.
    ///
    /// `scope`: the interface. `merged`: the kernel may have merged several
    /// datagrams into one without reporting it.
    pub fn receive(&self, umem: &Umem, into: &mut Receiver, scope: u32, merged: bool) {
        into.messages.clear();
        let mut rx = lock(&self.rx);
        let mut used = 0;
        for _ in 0..BATCH {
            let Some(entry) = rx.ring.take() else { break };
            // SAFETY: the kernel puts a frame into the RX ring once for each time that it was in
            // the fill ring.
            let Some(mut frame) = (unsafe { umem.take_back(entry.addr) }) else { continue };
            let bytes = umem.received(&mut frame, entry.addr, entry.len).unwrap_or_default();
            if let Some(datagram) = ethernet::parse(bytes).filter(|one| !one.payload.is_empty()) {
                let payload = &bytes[datagram.payload];
                let size = payload.len();
                into.buffer[used..used + size].copy_from_slice(payload);
                let segment = if merged { segment_size(payload) } else { size };
                let (remote, local) = (scoped(datagram.source, scope), Some(datagram.destination));
                let source = Endpoint { remote, local, interface: scope };
                let message = Message { at: used, size, segment, source, tos: datagram.tos };
                append(&mut into.messages, message);
                used += size;
            }
            rx.frames.push(frame);
        }
        rx.ring.release();
        rx.refill();
        if rx.fill.wants_waking() {
            // The result doesn't matter: the next look tries again.
            let _ = wake_rx(self.fd());
        }
    }

    /// Send `message` as datagrams of `segment` bytes. Each must fit the path.
    ///
    /// Return how many bytes of it are in frames. That is less than all only if the driver takes
    /// none for too long, or (without patience) another thread sends.
    pub fn send(
        &self,
        umem: &Umem,
        path: &Path,
        fields: Fields,
        message: &[u8],
        segment: usize,
        patience: Patience,
    ) -> io::Result<usize> {
        let mut tx = match (patience, self.tx.try_lock()) {
            (_, Ok(tx)) => tx,
            (Patience::None, Err(TryLockError::WouldBlock)) => return Ok(0),
            _ => lock(&self.tx),
        };
        let mut done = 0;
        for datagram in message.chunks(segment) {
            let Some(mut frame) = self.free_frame(&mut tx, umem, patience)? else { break };
            tx.identification = tx.identification.wrapping_add(1);
            let size = ethernet::build(umem.bytes_mut(&mut frame), path, fields, tx.identification, datagram);
            let Some(size) = size else {
                tx.frames.push(frame);
                break;
            };
            tx.ring.put(libc::xdp_desc { addr: frame.into_address(), len: size as u32, options: 0 });
            done += datagram.len();
        }
        tx.ring.publish();
        self.push(&mut tx, patience)?;
        Ok(done)
    }

    /// Return a frame to write to. Wait for the driver if all frames are in use.
    fn free_frame(&self, tx: &mut Tx, umem: &Umem, patience: Patience) -> io::Result<Option<Frame>> {
        for attempt in 0..SEND_PATIENCE {
            if tx.frames.is_empty() {
                tx.reclaim(umem);
            }
            // A frame may be back before the ring shows room for it.
            if tx.ring.has_room() {
                if let Some(frame) = tx.frames.pop() {
                    return Ok(Some(frame));
                }
            }
            if attempt > 0 && patience == Patience::None {
                break;
            }
            tx.ring.publish();
            self.push(tx, patience)?;
            if attempt > 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        Ok(None)
    }

    /// Have the kernel take what is in the TX ring.
    fn push(&self, tx: &mut Tx, patience: Patience) -> io::Result<()> {
        let mut waits = 0;
        while tx.ring.wants_waking() {
            let before = tx.ring.waiting();
            // SAFETY: only what is in the ring is sent, so no pointer is passed.
            let result = check_size(unsafe {
                libc::sendto(self.fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
            });
            let Err(error) = result else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => {}
                _ => return Err(error),
            }
            // The driver continues by itself, or takes no more now. What is left is sent with the
            // next message.
            if self.zero_copy || patience == Patience::None && waits > 0 || waits == SEND_PATIENCE {
                return Ok(());
            }
            if tx.ring.waiting() == before {
                waits += 1;
                wait([(self.fd(), libc::POLLOUT)], 1)?;
            }
        }
        Ok(())
    }
}

impl Rx {
    /// Give frames to the kernel to write to.
    fn refill(&mut self) {
        while self.fill.has_room() {
            let Some(frame) = self.frames.pop() else { break };
            self.fill.put(frame.into_address());
        }
        self.fill.publish();
    }
}

impl Tx {
    /// Take back the frames that were sent.
    fn reclaim(&mut self, umem: &Umem) {
        while let Some(address) = self.completion.take() {
            // SAFETY: the kernel puts a frame into the completion ring once for each time that the TX ring had it.
            self.frames.extend(unsafe { umem.take_back(address) });
        }
        self.completion.release();
    }
}

/// Add a message, or append it to the last one: if both have one source and mark, and if no datagram
/// of the last one is shorter than the others.
fn append(messages: &mut Vec<Message>, next: Message) {
    if let Some(last) = messages.last_mut() {
        let whole = last.size % last.segment == 0 && last.size / last.segment < MERGED;
        if whole
            && last.source == next.source
            && last.tos == next.tos
            && next.size <= last.segment
            && next.segment == next.size
        {
            last.size += next.size;
            return;
        }
    }
    messages.push(next);
}

/// Return the size of the datagrams that the kernel merged into a payload. All of them are of one
/// session, so the second one begins where the first one's header (type and receiver, 8 bytes)
/// appears again. In a sealed packet that happens by chance at one of 2^64 positions.
fn segment_size(payload: &[u8]) -> usize {
    const LEAST: usize = 32;
    let Some((head, _)) = payload.split_first_chunk::<8>() else { return payload.len() };
    if head[..4] != [4, 0, 0, 0] || payload.len() < 2 * LEAST {
        return payload.len();
    }
    let again = payload[LEAST..].windows(8).position(|window| window == head);
    again.map_or(payload.len(), |at| LEAST + at)
}

fn scoped(mut source: SocketAddr, scope: u32) -> SocketAddr {
    if let SocketAddr::V6(v6) = &mut source {
        if v6.ip().is_unicast_link_local() {
            v6.set_scope_id(scope);
        }
    }
    source
}

/// Have the kernel read the fill ring.
fn wake_rx(fd: RawFd) -> io::Result<usize> {
    let nowhere = std::ptr::null_mut();
    // SAFETY: no bytes are received, so no pointer is written to.
    check_size(unsafe { libc::recvfrom(fd, nowhere, 0, libc::MSG_DONTWAIT, nowhere.cast(), nowhere.cast()) })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set<T>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `value`.
    check(unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(value).cast(), size) }).map(drop)
}

/// Read an option that consists of plain numbers.
fn get<T: Numbers>(fd: RawFd, option: libc::c_int) -> io::Result<T> {
    // SAFETY: `Numbers` are plain bytes, and all zeros is one of their values.
    let mut value: T = unsafe { zeroed() };
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes `size` bytes at most.
    check(unsafe { libc::getsockopt(fd, libc::SOL_XDP, option, (&raw mut value).cast(), &raw mut size) })?;
    if size as usize == size_of::<T>() { Ok(value) } else { Err(io::Error::from_raw_os_error(libc::EPROTO)) }
}

/// A structure that consists of plain numbers.
///
/// # Safety
/// All bit patterns must be values.
unsafe trait Numbers {}
// SAFETY: twelve numbers and four.
unsafe impl Numbers for libc::xdp_mmap_offsets {}
// SAFETY: one number.
unsafe impl Numbers for libc::xdp_options {}

fn bind(fd: RawFd, shape: &Shape, queue: u32, first: Option<&Channel>) -> io::Result<()> {
    let (flags, shared) = match first {
        Some(first) => (libc::XDP_SHARED_UMEM, first.fd() as u32),
        // With neither XDP_ZEROCOPY nor XDP_COPY the kernel tries zero copy, then copies.
        None if shape.native => (libc::XDP_USE_NEED_WAKEUP, 0),
        None => (libc::XDP_USE_NEED_WAKEUP | libc::XDP_COPY, 0),
    };
    let name = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: shape.interface,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared,
    };
    let size = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `name`.
    check(unsafe { libc::bind(fd, (&raw const name).cast(), size) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_source_and_size_are_one_message() {
        let [one, other] = ["192.0.2.1:1", "192.0.2.2:1"].map(|text| text.parse::<SocketAddr>().unwrap().into());
        let mut messages = Vec::new();
        let mut at = 0;
        for (source, size) in [(one, 100), (one, 100), (one, 60), (one, 60), (other, 60), (other, 100)] {
            append(&mut messages, Message { at, size, segment: size, source, tos: 0 });
            at += size;
        }
        let found: Vec<_> = messages.iter().map(|one| (one.at, one.size, one.segment)).collect();
        assert_eq!(found, [(0, 260, 100), (260, 60, 60), (320, 60, 60), (380, 100, 100)]);
        let mut many = Vec::new();
        (0..65).for_each(|n| append(&mut many, Message { at: n, size: 1, segment: 1, source: one, tos: 0 }));
        assert_eq!(many.iter().map(|one| one.size).collect::<Vec<_>>(), [64, 1]);
    }

    #[test]
    fn datagrams_that_the_kernel_merged_are_found() {
        let datagram = |size: usize| {
            let mut made = vec![9; size];
            made[..8].copy_from_slice(&[4, 0, 0, 0, 1, 2, 3, 4]);
            made
        };
        assert_eq!(segment_size(&datagram(400)), 400);
        assert_eq!(segment_size(&[datagram(128), datagram(128), datagram(64)].concat()), 128);
        assert_eq!(segment_size(&datagram(32)), 32);
        assert_eq!(segment_size(&[7; 100]), 100);
        assert_eq!(segment_size(&[]), 0);
    }
}
