//! Between a frame of the other side and a packet of ours.

use neighbours::checks;
use neighbours::link::{Link, Received, Sending};
use transport::contract::Network;
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

    /// Answer for these ranges from now on, if this is Ethernet.
    pub fn answer_for(&self, answered: &[Network]) {
        if let Self::Ethernet(link) = self {
            link.answer_for(answered);
        }
    }

    /// Return where a packet goes. `start`: its first bytes.
    pub fn wrap(&self, start: &[u8]) -> Sending {
        match self {
            Self::Ip => Sending { ask: None, header: Ok([0; ETHERNET]) },
            Self::Ethernet(link) => link.send(start, now),
        }
    }

    /// Return what goes in front of an answer to a frame with this header. None if it gets no answer.
    pub fn back(&self, header: &[u8; ETHERNET]) -> Option<[u8; ETHERNET]> {
        match self {
            Self::Ip => Some([0; ETHERNET]),
            Self::Ethernet(link) => link.back(header),
        }
    }

    /// Look at a frame. `body`: what is behind its header.
    pub fn unwrap(&self, header: &[u8; ETHERNET], body: &[u8]) -> Received {
        match self {
            Self::Ip if matches!(body.first().map(|first| first >> 4), Some(4 | 6)) => {
                checks::check(body).map_or_else(Received::Drop, Received::Packet)
            }
            Self::Ip => Received::Drop("not_ip"),
            Self::Ethernet(link) => link.receive(header, body, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ethernet_the_packets_themselves_are_checked() {
        let mut packet = vec![0; 48];
        packet[..7].copy_from_slice(&[0x60, 0, 0, 0, 0, 8, 44]);
        let seen = |packet: &[u8]| Framing::Ip.unwrap(&[0; ETHERNET], packet);
        assert_eq!(seen(&packet), Received::Packet(48));
        assert_eq!(seen(&packet[..47]), Received::Drop("bad_length"));
        packet[43] = 1;
        assert_eq!(seen(&packet), Received::Drop("bad_fragment"));
        packet[0] = 0x50;
        assert_eq!(seen(&packet), Received::Drop("not_ip"));
        assert_eq!(seen(&[]), Received::Drop("not_ip"));
        assert_eq!(Framing::Ip.back(&[7; ETHERNET]), Some([0; ETHERNET]));
        assert_eq!(Framing::Ip.size(), 0);
    }
}
