//! The header of a message to or from the kernel: address and control messages.

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use transport::contract::Endpoint;

use super::address::name_for;

/// Room for control messages, aligned as the kernel requires: two of four bytes, and an in6_pktinfo
/// or in_pktinfo. The kernel silently leaves out what doesn't fit.
pub type Control = [u64; 11];

/// The header of a message to send, and everything that it points to.
pub struct Letter {
    name: libc::sockaddr_storage,
    vector: libc::iovec,
    control: Control,
    pub(super) header: libc::msghdr,
}

impl Default for Letter {
    fn default() -> Self {
        // SAFETY: all of them are plain bytes, and all zeros is one of their values.
        unsafe { zeroed() }
    }
}

impl Letter {
    /// Write the header for `message`. The kernel cuts it into datagrams of `segment` bytes, if
    /// given. Their TOS or traffic class is `tos`.
    ///
    /// The header points into this letter and to the message. Neither may be moved or dropped
    /// before the kernel is done with it.
    pub fn address(
        &mut self,
        message: &[u8],
        segment: Option<u16>,
        endpoint: Endpoint,
        tos: u8,
    ) -> *const libc::msghdr {
        let name_size;
        (self.name, name_size) = name_for(endpoint.remote);
        self.vector = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
        // SAFETY: a msghdr is plain bytes, and all zeros is one of its values.
        self.header = unsafe { zeroed() };
        self.header.msg_name = (&raw mut self.name).cast();
        self.header.msg_namelen = name_size;
        self.header.msg_iov = &raw mut self.vector;
        self.header.msg_iovlen = 1;
        let mut used = 0;
        if let Some(segment) = segment {
            used = self.attach(used, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
        }
        if tos != 0 {
            let (level, kind) = if endpoint.remote.is_ipv4() {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            used = self.attach(used, level, kind, libc::c_int::from(tos));
        }
        match endpoint.local {
            None => {}
            // The route decides on the interface. A link-local address has it from the endpoint's
            // scope.
            Some(IpAddr::V4(v4)) => {
                let address = libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: address };
                used = self.attach(used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(v6)) => {
                let address = libc::in6_addr { s6_addr: v6.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
                used = self.attach(used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
        if used > 0 {
            self.header.msg_control = (&raw mut self.control).cast();
            self.header.msg_controllen = used;
        }
        &raw const self.header
    }

    /// Add a control message after the `used` bytes of earlier ones. Return how many bytes are used
    /// then.
    fn attach<T: Copy>(&mut self, used: usize, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
        let size = size_of::<T>() as libc::c_uint;
        // SAFETY: the macros only compute sizes.
        let (space, length) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
        assert!(used + space <= size_of::<Control>());
        // SAFETY: the CMSG_SPACE bytes from `used` on are within `control`, by the assertion above.
        // They begin at a multiple of eight, which is the alignment of a cmsghdr, because
        // CMSG_SPACE returns such multiples. The value goes where CMSG_DATA points.
        unsafe {
            let header = (&raw mut self.control).cast::<u8>().add(used).cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = length;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        used + space
    }
}

/// What the kernel reports with a message.
#[derive(Default)]
pub struct Details {
    /// The size of each datagram in it, if the kernel merged several.
    pub segment: Option<usize>,
    /// Our address that it was sent to.
    pub local: Option<IpAddr>,
    /// The number of the interface that it came by, 0 if the kernel doesn't report it.
    pub interface: u32,
    /// The TOS or traffic class. 0 if the kernel doesn't report it.
    pub tos: u8,
}

impl Details {
    /// Read the control messages of a header that the kernel has filled in.
    pub fn of(header: &libc::msghdr) -> Self {
        let mut found = Self::default();
        // SAFETY: the kernel has filled in the control buffer that `header` points to, and its
        // length. The macros stay within that length. UDP_GRO and IPV6_TCLASS hold an int, IP_TOS
        // a byte, IP_PKTINFO an in_pktinfo, IPV6_PKTINFO an in6_pktinfo.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            while !message.is_null() {
                let data = libc::CMSG_DATA(message);
                match ((*message).cmsg_level, (*message).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        let size = data.cast::<libc::c_int>().read_unaligned();
                        found.segment = usize::try_from(size).ok().filter(|size| *size > 0);
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        // For a broadcast this is the address to answer from.
                        let to = data.cast::<libc::in_pktinfo>().read_unaligned();
                        found.local = local(Ipv4Addr::from(to.ipi_spec_dst.s_addr.to_ne_bytes()).into());
                        found.interface = to.ipi_ifindex as u32;
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let to = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        found.local = local(Ipv6Addr::from(to.ipi6_addr.s6_addr).into());
                        found.interface = to.ipi6_ifindex;
                    }
                    (libc::IPPROTO_IP, libc::IP_TOS) => found.tos = data.read(),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                        found.tos = data.cast::<libc::c_int>().read_unaligned() as u8;
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
        found
    }
}

/// Return the address if datagrams can be sent from it.
fn local(address: IpAddr) -> Option<IpAddr> {
    Some(address).filter(|one| !one.is_multicast() && !one.is_unspecified())
}
