//! The addresses that the ordinary sockets are bound to.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::udp::Udp;

/// What the ordinary sockets are bound to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    v4: Option<SocketAddr>,
    v6: Option<SocketAddr>,
}

impl Bound {
    pub fn of(sockets: &[Udp]) -> io::Result<Self> {
        let mut bound = Self::default();
        for socket in sockets {
            let address = socket.local_address()?;
            *(if address.is_ipv4() { &mut bound.v4 } else { &mut bound.v6 }) = Some(address);
        }
        Ok(bound)
    }

    pub fn family(&self, v4: bool) -> Option<SocketAddr> {
        if v4 { self.v4 } else { self.v6 }
    }

    /// Return whether the sockets receive datagrams for this address of ours.
    pub fn takes(&self, address: IpAddr) -> bool {
        let bound = self.family(address.is_ipv4());
        bound.is_some_and(|bound| bound.ip().is_unspecified() || bound.ip() == address)
    }

    /// Return the address that everything to `destination` is sent from, or None if the route
    /// decides.
    pub fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        let bound = self.family(destination.is_ipv4())?;
        (!bound.ip().is_unspecified()).then(|| bound.ip())
    }
}
