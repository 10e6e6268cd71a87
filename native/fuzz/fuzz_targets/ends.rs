//! Two ends that share a session; all of IPv4 and IPv6 belongs to the other.

use std::net::SocketAddr;

use transport::Transport;
use transport::contract::{Address, Keypair, Network, Outbox};
use zeroize::Zeroizing;

pub const MTU: usize = 1420;

/// An end, connected to one of the same keys; `initiator` may send at once.
pub fn end(initiator: bool) -> Transport {
    let made = Transport::new(&[7; 32], MTU, Box::new(|bytes| bytes.fill(9)), Box::new(|| 0));
    let everything = [Address::V4(0), Address::V6(0)].map(|address| Network { address, prefix: 0 });
    let mut out = Outbox::default();
    made.set_peer(1, Some(somewhere()), &everything, 0, 0.0, &mut out);
    let keypair = Keypair {
        local_index: 1,
        remote_index: 1,
        send_key: Zeroizing::new([1; 32]),
        receive_key: Zeroizing::new([1; 32]),
        initiator,
        birth: 0.0,
    };
    made.install_keypair(1, &keypair, 0.0, &mut out);
    made
}

pub fn somewhere() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 51820))
}
