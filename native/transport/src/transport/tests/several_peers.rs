//! Batches whose packets go to several peers.

use super::{Wire, address, frame, networks, random};
use crate::aead::{Aead, RingCipher};
use crate::contract::{Outbox, PeerId};
use crate::keypairs::tests::keypair;
use crate::outbound::Outbound;
use crate::segment::tests::{packet, superpacket};
use crate::transport::Transport;
use crate::vnet::Vnet;
use crate::wire::{DATA_HEADER_SIZE, u32_at, u64_at};

/// Return a transport with sessions to `count` peers. The nth peer is host n, and n is its receiver
/// index, too.
fn hub(count: u32) -> Transport {
    let hub = Transport::new(b"h".repeat(32)[..].try_into().unwrap(), 1420, random(), Box::new(|| 0));
    for number in 1..=count {
        let mut out = Outbox::default();
        let mut pair = keypair(hub.reserve_index(PeerId::from(number)), true, 0.0);
        pair.remote_index = number;
        pair.send_key = [number as u8; 32].into();
        let networks = networks(u128::from(number));
        hub.set_peer(PeerId::from(number), Some(address("192.0.2.2:1")), &networks, 0, 0.0, &mut out);
        hub.install_keypair(PeerId::from(number), &pair, 0.0, &mut out);
    }
    hub
}

/// Return a frame to a host. Its payload begins with `mark`.
fn frame_to(host: u32, mark: u32, size: usize) -> Vec<u8> {
    let mut made = packet(true, false, 0, 0, &vec![0; size]);
    made[16..20].copy_from_slice(&(0x0a09_0000 + host).to_be_bytes());
    made[28..32].copy_from_slice(&mark.to_be_bytes());
    frame(Vnet::default(), &made)
}

/// Return the host that a message is for, and the marks of its packets. Their counters must be
/// consecutive.
fn marks((message, segment): &(Vec<u8>, usize)) -> (u32, Vec<u32>) {
    let host = u32_at(message, 4);
    let first = u64_at(message, 8);
    let opened = message.chunks(*segment).zip(first..).map(|(datagram, counter)| {
        assert_eq!((u32_at(datagram, 4), u64_at(datagram, 8)), (host, counter));
        let mut body = datagram[DATA_HEADER_SIZE..].to_vec();
        assert!(RingCipher::new(&[host as u8; 32]).open(counter, &mut body));
        u32::from_be_bytes(body[28..32].try_into().unwrap())
    });
    (host, opened.collect())
}

#[test]
fn packets_of_peers_that_alternate_go_out_as_one_message_a_peer() {
    let hub = hub(3);
    let (mut outbound, mut wire, mut out) = (Outbound::default(), Wire::default(), Outbox::default());
    for batch in 0..2 {
        for mark in 0..12 {
            outbound.frame(&hub, &mut frame_to(3 - mark % 3, mark, 100), 1.0, &mut out, &mut wire);
        }
        assert!(wire.0.is_empty() && !outbound.is_due(), "batch {batch}");
        outbound.flush(&hub, 1.0, &mut out, &mut wire);
        let sent: Vec<_> = wire.0.drain(..).map(|message| marks(&message)).collect();
        assert_eq!(sent, [(3, vec![0, 3, 6, 9]), (2, vec![1, 4, 7, 10]), (1, vec![2, 5, 8, 11])]);
    }
}

#[test]
fn what_makes_a_message_by_itself_waits_for_no_other_peer() {
    let hub = hub(2);
    let (mut outbound, mut wire, mut out) = (Outbound::default(), Wire::default(), Outbox::default());
    for mark in 0..20 {
        outbound.frame(&hub, &mut frame_to(1, mark, 100), 1.0, &mut out, &mut wire);
    }
    assert!(wire.0.is_empty());
    outbound.frame(&hub, &mut frame_to(2, 20, 100), 1.0, &mut out, &mut wire);
    assert_eq!(wire.0.drain(..).map(|message| marks(&message)).collect::<Vec<_>>(), [(1, (0..20).collect())]);
    outbound.flush(&hub, 1.0, &mut out, &mut wire);
    assert_eq!(wire.0.iter().map(marks).collect::<Vec<_>>(), [(2, vec![20])]);
}

#[test]
fn more_peers_than_drafts_lose_nothing_and_keep_their_order() {
    const PEERS: u32 = 150;
    let hub = hub(PEERS);
    let (mut outbound, mut wire, mut out) = (Outbound::default(), Wire::default(), Outbox::default());
    for mark in 0..3 * PEERS {
        outbound.frame(&hub, &mut frame_to(1 + mark % PEERS, mark, 100), 1.0, &mut out, &mut wire);
    }
    outbound.flush(&hub, 1.0, &mut out, &mut wire);
    let mut taken = vec![Vec::new(); PEERS as usize];
    for message in &wire.0 {
        let (host, marks) = marks(message);
        taken[host as usize - 1].extend(marks);
    }
    for (expected, taken) in (0..).zip(taken) {
        assert_eq!(taken, [expected, expected + PEERS, expected + 2 * PEERS]);
    }
}

#[test]
fn nothing_waits_long_for_packets_of_others() {
    let hub = hub(40);
    let (mut outbound, mut wire, mut out) = (Outbound::default(), Wire::default(), Outbox::default());
    for size in [100, 1300] {
        let mut count = 0;
        while !outbound.is_due() {
            outbound.frame(&hub, &mut frame_to(1 + count % 40, count, size), 1.0, &mut out, &mut wire);
            count += 1;
            assert!(count <= 512);
        }
        // Each of them had a share in it.
        assert!(count > 40);
        outbound.flush(&hub, 1.0, &mut out, &mut wire);
        assert!(!outbound.is_due());
    }
    // The packets of a single peer become full messages.
    wire.0.clear();
    for mark in 0..1000 {
        outbound.frame(&hub, &mut frame_to(1, mark, 100), 1.0, &mut out, &mut wire);
        assert_eq!(outbound.is_due(), (mark + 1) % 64 == 0);
    }
    assert_eq!(wire.0.iter().map(|(_, segment)| *segment).collect::<Vec<_>>(), [160; 15]);
    assert!(wire.0.iter().all(|(message, _)| message.len() == 64 * 160));
}

#[test]
fn a_turn_of_one_peer_ends_too() {
    let hub = hub(1);
    let (mut outbound, mut wire, mut out) = (Outbound::default(), Wire::default(), Outbox::default());
    // A packet, and superpackets of a full message each: one packet is always left over.
    let mut send = |segments: usize| {
        let (vnet, mut made) = superpacket(true, true, 0x10, &vec![0; segments * 1380], 1380);
        made[16..20].copy_from_slice(&0x0a09_0001_u32.to_be_bytes());
        outbound.frame(&hub, &mut frame(vnet, &made), 1.0, &mut out, &mut wire);
        outbound.is_due()
    };
    assert!(!send(1));
    let turns = (1..100).take_while(|_| !send(45)).count();
    assert!((14..18).contains(&turns), "{turns}");
}
