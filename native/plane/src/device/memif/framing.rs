//! Between a frame of the other side and a packet of ours.

use neighbours::link::{Link, Received, Sending};
use transport::ethernet::ETHERNET;

use crate::descriptor::now;

/// What is in front of each packet.
pub enum Framing {
    /// Nothing.
    Ip,
    /// An Ethernet header.
    Ethernet(Box<Link>),
}

impl Framing {
    /// Return the bytes in front of a packet.
    pub fn size(&self) -> usize {
        match self {
            Self::Ip => 0,
            Self::Ethernet(_) => ETHERNET,
        }
    }

    /// Return where a packet goes. `start`: its first bytes.
    pub fn wrap(&self, start: &[u8]) -> Sending {
        match self {
            Self::Ip => Sending { ask: None, header: Ok([0; ETHERNET]) },
            Self::Ethernet(link) => link.send(start, now),
        }
    }

    /// Look at a frame. `body`: what is behind its header.
    pub fn unwrap(&self, header: &[u8; ETHERNET], body: &[u8]) -> Received {
        match self {
            Self::Ip if matches!(body.first().map(|first| first >> 4), Some(4 | 6)) => Received::Packet(body.len()),
            Self::Ip => Received::Drop("not_ip"),
            Self::Ethernet(link) => link.receive(header, body, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ethernet_only_what_is_no_ip_is_left_out() {
        assert_eq!(Framing::Ip.unwrap(&[0; ETHERNET], &[0x60, 0]), Received::Packet(2));
        assert_eq!(Framing::Ip.unwrap(&[0; ETHERNET], &[0x50, 0]), Received::Drop("not_ip"));
        assert_eq!(Framing::Ip.size(), 0);
    }
}
