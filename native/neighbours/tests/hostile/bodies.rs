//! What any frame of the link, and any packet of a peer, may do: functions for the fuzz targets and for
//! `main.rs`.

use std::sync::OnceLock;

use neighbours::link::{Link, Received, Settings};
use neighbours::{arp, ndp};
use transport::contract::{Address, Network};
use transport::ethernet::{ETHERNET, MacAddress};

const OWN: MacAddress = [2, 0, 0, 0, 0, 1];

/// Return a link whose every address is answered for, or learnt. It is always the same one, because
/// making one takes long.
fn link() -> &'static Link {
    static LINK: OnceLock<Link> = OnceLock::new();
    let all = |address, prefix| Network { address, prefix };
    let make = || {
        Link::new(&Settings {
            mac: OWN,
            gateway: None,
            answered: vec![all(Address::V4(0), 1), all(Address::V6(0), 0)],
            learnt: vec![all(Address::V4(1 << 31), 1), all(Address::V6(0xfd09 << 112), 16)],
        })
    };
    LINK.get_or_init(make)
}

/// Take a frame. A packet lies inside it, and an answer is one that its asker understands.
pub fn frame(input: &[u8]) {
    let Some((header, body)) = input.split_first_chunk::<ETHERNET>() else { return };
    match link().receive(header, body, || 1.0) {
        Received::Packet(size) => assert!((20..=body.len()).contains(&size)),
        Received::Reply(frame, Address::V4(target)) => {
            let asked = arp::Message::parse(body).expect("somebody asked");
            let told = arp::Message::parse(&frame.bytes()[ETHERNET..]).expect("it is a reply");
            assert_eq!((told.sender_mac, told.sender, asked.target), (OWN, target, target));
            assert_eq!((told.target_mac, told.target), (asked.sender_mac, asked.sender));
            assert_ne!(asked.sender, asked.target);
        }
        Received::Reply(frame, Address::V6(target)) => {
            let ndp::Found::Message(told) = ndp::parse(&frame.bytes()[ETHERNET..]) else {
                panic!("no advertisement")
            };
            assert!(matches!(told.kind, ndp::Kind::Advertisement { .. }));
            assert_eq!((told.target, told.source, told.mac), (target, target, Some(OWN)));
        }
        Received::Nothing | Received::Drop(_) => {}
    }
}

/// Send a packet. Nothing that a peer sends is an advertisement on the link.
pub fn packet(input: &[u8]) {
    let sending = link().send(input, || 1.0);
    // Whoever receives it reads it as what its EtherType says.
    if sending.header.is_ok_and(|header| header[12..] == [0x86, 0xdd]) {
        assert!(!matches!(ndp::parse(input), ndp::Found::Message(_)));
    }
}
