//! Conversions between socket addresses and the kernel's structures.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::descriptor::check;

/// Return the address that a socket is bound to, and how many bytes of it are used.
pub fn name_of(fd: &OwnedFd) -> io::Result<(libc::sockaddr_storage, libc::socklen_t)> {
    // SAFETY: a sockaddr_storage is plain bytes, and all zeros is one of its values.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    let mut size = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: `name` has `size` bytes to write to.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut name).cast(), &raw mut size) })?;
    Ok((name, size))
}

/// Return the kernel's structure for an address, and how many bytes of it are used.
pub fn name_for(endpoint: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: a sockaddr_storage is plain bytes, and all zeros is one of its values.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    let size = match endpoint {
        SocketAddr::V4(v4) => {
            let made = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is large enough and aligned for each family's address.
            unsafe { (&raw mut name).cast::<libc::sockaddr_in>().write(made) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let made = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut name).cast::<libc::sockaddr_in6>().write(made) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (name, size as libc::socklen_t)
}

/// Return the address in a structure that the kernel wrote, or None for a family other than IPv4
/// and IPv6.
pub fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family shows that a sockaddr_in was written. A sockaddr_storage is
            // aligned for it.
            let v4 = unsafe { (&raw const *name).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for a sockaddr_in6.
            let v6 = unsafe { (&raw const *name).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}
