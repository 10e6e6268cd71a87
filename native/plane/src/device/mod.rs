//! What the plane reads packets from to seal them, and writes opened ones to. TUN is one device
//! among others.

pub mod batch;
pub mod channel;
#[cfg(test)]
pub mod contract;
pub mod lane;
pub mod memif;
pub mod metered;
pub mod tun;

use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::sync::Arc;

/// One queue of a device.
///
/// A *frame* is a virtio_net_hdr ([`transport::vnet`]) and behind it a packet. On a device with
/// [`Device::has_vnet`] the header may also say that a superpacket follows, or that a checksum is
/// left to the reader.
///
/// One thread at a time reads a queue, and one writes it most of the time. Threads that answer
/// on behalf of the plane write as well, so `write` and `flush` are called from several threads at
/// once. No method but those that say so may wait.
pub trait Device: Send + Sync {
    /// Return a short word for what it is, in snake_case. Its drops are counted as `{kind}_full`,
    /// `{kind}_enobufs` and so on.
    fn kind(&self) -> &'static str;

    /// Return the descriptor that is readable (POLLIN) while frames wait. It stays the same. A reader
    /// polls it only after [`Device::fall_asleep`].
    fn fd(&self) -> RawFd;

    /// Read one frame to the start of `frame`, which has room for the longest. Return its bytes.
    ///
    /// Nothing of `frame` is read, and it is the caller's again on return. The error is
    /// `WouldBlock` if nothing waits (or much came that was left out), and `UnexpectedEof` if the other side has ended and nothing
    /// will come any more: the plane then ends without a fault. Any other error means that the
    /// device is gone, and is a fault.
    fn read(&self, frame: &mut [u8]) -> io::Result<usize>;

    /// Write one frame, whose pieces lie one behind the other. The first piece begins with all of
    /// the virtio_net_hdr. The pieces may be moved on, but what they point to is copied, never kept.
    ///
    /// Writing never waits for a reader. If there is no room the frame is lost, and the error is
    /// [`full`]'s. After any other error the plane goes on as well: the reason is counted.
    fn write(&self, frame: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Let the other side see what was written. Called once after each batch of writes, and it wakes
    /// the other side at most once.
    fn flush(&self) {}

    /// Have [`Device::fd`] become readable with the next frame. Return false if a frame waits
    /// already, so there is no reason to sleep. What the descriptor reports afterwards is used up by
    /// [`Device::read`].
    fn fall_asleep(&self) -> bool {
        true
    }

    /// Return whether the device is up. While it is down the plane neither sends nor takes anything
    /// but enrollment.
    fn is_up(&self) -> bool {
        true
    }

    /// Return what is polled while the device is down: a descriptor, and the events of poll(2) that
    /// it reports once the device is up. -1 stands for no descriptor.
    fn up_fd(&self) -> (RawFd, libc::c_short) {
        (-1, 0)
    }

    /// Return whether frames may be superpackets, in both directions. Otherwise the header of each is
    /// zeros, and packets have complete checksums.
    fn has_vnet(&self) -> bool {
        false
    }

    /// Return whether the other side may answer a packet within [`Device::write`], as the kernel
    /// answers a ping. Then the thread that wrote reads as well, even while another sleeps on
    /// [`Device::fd`].
    fn answers_at_once(&self) -> bool {
        false
    }

    /// Take the tunnel's MTU, if whoever writes to the device doesn't keep to it by itself. Longer packets
    /// are then left out.
    fn set_mtu(&self, _mtu: usize) {}

    /// After a read was refused (not because nothing waits), hand over plain packets from now on.
    /// Return false if superpackets can't be the reason.
    fn end_offloads(&self) -> bool {
        false
    }

    /// Return how many packets the device itself left out, for each reason, of all its queues together.
    fn drops(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// Return the descriptor whose read(2) returns a frame and whose writev(2) takes one, without
    /// the virtio_net_hdr unless [`Device::has_vnet`]. A ring of io_uring uses it in place of `read`
    /// and `write`. None if there is no such descriptor: then only the UDP side is on the ring.
    fn uring_fd(&self) -> Option<RawFd> {
        None
    }
}

/// All queues of a device.
pub struct Queues {
    /// What to call it: the name of the interface.
    pub name: String,
    /// The queues, at least one.
    pub queues: Vec<Arc<dyn Device>>,
    /// What it does without, one sentence each.
    pub lacks: Vec<&'static str>,
}

/// Return the error of a write that finds no room.
pub fn full() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// Return whether an error is [`full`]'s. The kernel's errors have numbers.
pub fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock && error.raw_os_error().is_none()
}
