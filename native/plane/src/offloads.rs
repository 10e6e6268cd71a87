//! Which of the kernel's offloads are used, and how it refuses one.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use transport::coalesce::Merge;

/// Whether each offload is used, as in `rustguard_py/model/offloads.py`.
#[derive(Clone, Copy)]
pub struct Offloads {
    /// The device hands over packets whose checksum is left to us.
    pub tun_checksum: bool,
    /// The device hands over superpackets of TCP.
    pub tso: bool,
    /// The device hands over superpackets of UDP.
    pub uso: bool,
    /// What is merged for the device.
    pub merge: Merge,
    /// The kernel cuts UDP messages into datagrams.
    pub udp_segmentation: bool,
    /// The kernel merges received datagrams into messages.
    pub udp_gro: bool,
}

impl Offloads {
    /// All of them.
    #[cfg(test)]
    pub const ALL: Self =
        Self { tun_checksum: true, tso: true, uso: true, merge: Merge::ALL, udp_segmentation: true, udp_gro: true };

    /// Return whether packets of the device need a virtio_net_hdr.
    pub fn needs_vnet(&self) -> bool {
        self.tun_checksum || self.merge.tcp || self.merge.udp
    }
}

/// Return whether an error may mean that the kernel can't do an offload here.
pub fn refuses(error: &io::Error) -> bool {
    let refusals = [libc::EINVAL, libc::EIO, libc::EMSGSIZE, libc::ENOPROTOOPT, libc::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}

/// What may still be merged for the device. It only ever gets less.
pub struct Merging {
    tcp: AtomicBool,
    udp: AtomicBool,
    short_tail: AtomicBool,
}

impl Merging {
    /// Begin with `merge`.
    pub fn new(merge: Merge) -> Self {
        Self {
            tcp: AtomicBool::new(merge.tcp),
            udp: AtomicBool::new(merge.udp),
            short_tail: AtomicBool::new(merge.short_tail),
        }
    }

    /// Return what may be merged now.
    pub fn now(&self) -> Merge {
        let read = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        Merge { tcp: read(&self.tcp), udp: read(&self.udp), short_tail: read(&self.short_tail) }
    }

    /// Merge no packets whose last one is shorter.
    pub fn end_short_tails(&self) {
        self.short_tail.store(false, Ordering::Relaxed);
    }

    /// Merge nothing.
    pub fn end(&self) {
        self.tcp.store(false, Ordering::Relaxed);
        self.udp.store(false, Ordering::Relaxed);
    }
}
