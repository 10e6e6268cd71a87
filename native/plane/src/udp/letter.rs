//! The header that goes with a message to or from the kernel: address and control messages.

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use transport::contract::Endpoint;

use super::address::name_for;

/// For control messages, aligned as the kernel wants them: one of four bytes, and an in6_pktinfo or in_pktinfo.
pub type Control = [u64; 8];

/// What the kernel is told with a message: its header, and all that the header points to.
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
    /// Write it for `message`, to be cut into datagrams of `segment` bytes. What is given points into this letter and
    /// to the message: neither may move or go before the kernel is done with it.
    pub fn address(&mut self, message: &[u8], segment: Option<u16>, endpoint: Endpoint) -> *const libc::msghdr {
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
        match endpoint.local {
            None => {}
            // The route decides on the interface; a link-local address has it from the endpoint's scope.
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

    /// Put a control message behind the `used` bytes of those before it; give how many are used then.
    fn attach<T: Copy>(&mut self, used: usize, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
        let size = size_of::<T>() as libc::c_uint;
        // SAFETY: the macros compute sizes alone.
        let (space, length) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
        assert!(used + space <= size_of::<Control>());
        // SAFETY: CMSG_SPACE bytes from `used` on lie within `control`, as was just asserted, and begin at a multiple
        // of eight, which is a cmsghdr's alignment: CMSG_SPACE gives such. The value lies where CMSG_DATA says.
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

/// What the kernel said with a message.
#[derive(Default)]
pub struct Details {
    /// The size of each datagram in it, if it merged some.
    pub segment: Option<usize>,
    /// Which address of ours it came to.
    pub local: Option<IpAddr>,
}

impl Details {
    /// Read the control messages of a header that the kernel has filled.
    pub fn of(header: &libc::msghdr) -> Self {
        let mut found = Self::default();
        // SAFETY: the kernel has filled the control buffer that `header` points to, and its length; the macros stay
        // within that length. UDP_GRO holds an int, IP_PKTINFO an in_pktinfo, IPV6_PKTINFO an in6_pktinfo.
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
                        // Of a broadcast this is the address to answer from.
                        let to = data.cast::<libc::in_pktinfo>().read_unaligned().ipi_spec_dst;
                        found.local = local(Ipv4Addr::from(to.s_addr.to_ne_bytes()).into());
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let to = data.cast::<libc::in6_pktinfo>().read_unaligned().ipi6_addr;
                        found.local = local(Ipv6Addr::from(to.s6_addr).into());
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
        found
    }
}

/// An address that can be written from.
fn local(address: IpAddr) -> Option<IpAddr> {
    Some(address).filter(|one| !one.is_multicast() && !one.is_unspecified())
}
