//! Alice, who starts handshakes, and Bob, who answers. The wire between them is a list.

mod several_peers;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::Transport;
use crate::contract::{
    Address, Endpoint, Event, Network, Outbox, PeerId, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_TIME,
    Reason, Seconds,
};
use crate::inbound::{Inbound, Message};
use crate::indices::Random;
use crate::keypairs::tests::keypair;
use crate::locks::lock;
use crate::outbound::Outbound;
use crate::segment::tests::{packet, superpacket};
use crate::sink::Sink;
use crate::vnet::{VNET_SIZE, Vnet};
use crate::wire::{INITIATION_SIZE, OVERHEAD, u64_at};

const PEER: PeerId = 7;

fn random() -> Random {
    let state = AtomicU64::new(1);
    Box::new(move |bytes| {
        for byte in bytes {
            let before = state.load(Ordering::Relaxed);
            let next = before.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.store(next, Ordering::Relaxed);
            *byte = (next >> 33) as u8;
        }
    })
}

fn address(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

fn networks(host: u128) -> [Network; 2] {
    let (four, six) = (Address::V4(0x0a09_0000 + host as u32), Address::V6(0xfd00 << 112 | host));
    [Network { address: four, prefix: 32 }, Network { address: six, prefix: 128 }]
}

struct End {
    transport: Transport,
    out: Outbox,
    here: Endpoint,
}

impl End {
    fn new(key: u8, here: &str, peer: &str, host: u128) -> Self {
        let transport = Transport::new(&[key; 32], 1420, random(), Box::new(|| 0));
        let mut out = Outbox::default();
        transport.set_peer(PEER, Some(address(peer)), &networks(host), 0, 0.0, &mut out);
        Self { transport, out, here: address(here) }
    }

    fn take(&mut self) -> (Vec<Event>, Vec<Vec<u8>>) {
        let taken = std::mem::take(&mut self.out);
        (taken.events, taken.transmits.into_iter().map(|one| one.datagram).collect())
    }

    fn send(&mut self, payload: &[u8], now: Seconds) {
        let packet = packet(true, false, 0, 0, payload);
        self.transport.handle_packet(&packet, now, &mut self.out);
    }

    fn receive(&mut self, datagrams: &[Vec<u8>], source: Endpoint, now: Seconds) -> Vec<Vec<u8>> {
        let mut delivered = Vec::new();
        for datagram in datagrams {
            let mut datagram = datagram.clone();
            let found = self.transport.handle_datagram(&mut datagram, source, 0, now, &mut self.out);
            delivered.extend(found.map(|range| datagram[range].to_vec()));
        }
        delivered
    }
}

/// Alice has 10.9.0.1 and sends to Bob's 10.9.0.2.
fn connected() -> (End, End) {
    let mut alice = End::new(b'a', "192.0.2.1:51820", "192.0.2.2:51820", 2);
    let mut bob = End::new(b'b', "192.0.2.2:51820", "192.0.2.1:51820", 1);
    handshake(&mut alice, &mut bob, 0.0);
    (alice, bob)
}

fn handshake(alice: &mut End, bob: &mut End, now: Seconds) {
    let (ours, theirs) = (alice.transport.reserve_index(PEER), bob.transport.reserve_index(PEER));
    let mut at_bob = keypair(theirs, false, now);
    let mut at_alice = keypair(ours, true, now);
    (at_bob.remote_index, at_alice.remote_index) = (ours, theirs);
    at_alice.receive_key = at_bob.send_key.clone();
    at_bob.receive_key = at_alice.send_key.clone();
    bob.transport.install_keypair(PEER, &at_bob, now, &mut bob.out);
    alice.transport.install_keypair(PEER, &at_alice, now, &mut alice.out);
    let (_, datagrams) = alice.take();
    bob.receive(&datagrams, alice.here, now);
    bob.take();
}

#[test]
fn packets_wait_for_a_session_and_go_out_in_order() {
    let mut alice = End::new(b'a', "192.0.2.1:1", "192.0.2.2:1", 2);
    let mut bob = End::new(b'b', "192.0.2.2:1", "192.0.2.1:1", 1);
    for payload in [b"one", b"two"] {
        alice.send(payload, 0.0);
    }
    let (events, datagrams) = alice.take();
    assert_eq!(events, [Event::HandshakeWanted(PEER, Reason::NoSession)]);
    assert!(datagrams.is_empty());
    let index = alice.transport.reserve_index(PEER);
    alice.transport.install_keypair(PEER, &keypair(index, true, 0.0), 0.0, &mut alice.out);
    let mut theirs = keypair(index, false, 0.0);
    theirs.remote_index = 1;
    bob.transport.install_keypair(PEER, &theirs, 0.0, &mut bob.out);
    let (_, datagrams) = alice.take();
    let expected = [b"one", b"two"].map(|payload| packet(true, false, 0, 0, payload));
    assert_eq!(bob.receive(&datagrams, alice.here, 0.0), expected);
    let (events, _) = bob.take();
    assert!(events.contains(&Event::KeypairConfirmed(PEER, index)));
}

#[test]
fn row_17_and_18_replays_and_forgeries_move_nothing() {
    let (mut alice, mut bob) = connected();
    alice.send(b"once", 1.0);
    let (_, datagrams) = alice.take();
    let elsewhere = address("[2001:db8::9]:4000");
    let mut forged = datagrams.clone();
    forged[0][30] ^= 1;
    assert!(bob.receive(&forged, elsewhere, 1.0).is_empty());
    assert_eq!(bob.receive(&datagrams, alice.here, 1.0).len(), 1);
    assert!(bob.receive(&datagrams, elsewhere, 1.0).is_empty());
    let drops = bob.transport.drops.read();
    assert_eq!(drops, [("bad_tag".to_string(), 1), ("replayed".to_string(), 1)]);
    assert!(bob.take().0.is_empty());
    assert_eq!(bob.transport.stats()[0].1, Some(alice.here));
}

/// Sixteen and more are opened at once, but accepted or refused one after the other.
#[test]
fn row_17_and_18_of_copies_in_one_message_the_first_that_holds_is_taken() {
    let (mut alice, mut bob) = connected();
    (0..20).for_each(|_| alice.send(b"one of twenty", 1.0));
    let (_, mut datagrams) = alice.take();
    let expected = bob_receives_alone(&alice, &datagrams);
    let mut forged = datagrams[12].clone();
    forged[40] ^= 1;
    datagrams.insert(7, datagrams[3].clone());
    datagrams.insert(12, forged);
    datagrams.push(datagrams[0].clone());
    let (segment, buffer) = (datagrams[0].len(), datagrams.concat());
    for drops in [[("bad_tag", 1), ("replayed", 2)], [("bad_tag", 1), ("replayed", 25)]] {
        let (mut inbound, size) = (Inbound::default(), buffer.len());
        let mut opened = buffer.clone();
        let message = Message { at: 0, size, segment, source: alice.here, tos: 0 };
        inbound.message(&bob.transport, &mut opened, message, 1.0, &mut bob.out);
        let given: Vec<_> = inbound.packets().iter().map(|one| opened[one.at..one.at + one.size].to_vec()).collect();
        assert_eq!(given, if drops[1].1 == 2 { expected.clone() } else { vec![] });
        assert_eq!(bob.transport.drops.read(), drops.map(|(reason, count)| (reason.to_string(), count)));
    }
}

/// Return what another Bob receives from the same datagrams, one by one.
fn bob_receives_alone(alice: &End, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (_, mut bob) = connected();
    bob.receive(datagrams, alice.here, 1.0)
}

#[test]
fn row_35_what_comes_after_the_last_nonce_goes_out_on_the_next_session() {
    let (mut alice, mut bob) = connected();
    let state = alice.transport.peer(PEER).unwrap();
    state.state().keypairs.current.as_ref().unwrap().set_counter(REJECT_AFTER_MESSAGES - 1);
    alice.send(b"last", 1.0);
    alice.send(b"kept", 1.0);
    let (_, datagrams) = alice.take();
    assert_eq!(u64_at(&datagrams[0], 8), REJECT_AFTER_MESSAGES - 1);
    assert_eq!(bob.receive(&datagrams, alice.here, 1.0), [packet(true, false, 0, 0, b"last")]);
    let index = alice.transport.reserve_index(PEER);
    alice.transport.install_keypair(PEER, &keypair(index, true, 1.0), 1.0, &mut alice.out);
    let (_, datagrams) = alice.take();
    assert_eq!((datagrams.len(), u64_at(&datagrams[0], 8)), (1, 0));
}

#[test]
fn sessions_end_by_time_and_leave_no_index() {
    let (mut alice, mut bob) = connected();
    alice.send(b"x", REKEY_AFTER_TIME);
    assert_eq!(alice.take().0, [Event::HandshakeWanted(PEER, Reason::Rekey)]);
    alice.send(b"x", REJECT_AFTER_TIME);
    assert_eq!(alice.take().0, [Event::HandshakeWanted(PEER, Reason::NoSession)]);
    for now in 0..5 {
        handshake(&mut alice, &mut bob, 200.0 + f64::from(now));
    }
    for end in [&alice, &bob] {
        assert_eq!(end.transport.bookings(), (2, 2));
        end.transport.remove_peer(PEER);
        assert_eq!(end.transport.bookings(), (0, 0));
    }
}

#[test]
fn timers_run_out_in_their_order() {
    let (mut alice, mut bob) = connected();
    alice.send(b"x", 1.0);
    let (_, datagrams) = alice.take();
    bob.receive(&datagrams, alice.here, 1.0);
    assert_eq!(bob.transport.poll_timeout(), Some(11.0));
    bob.transport.handle_timeout(11.0, &mut bob.out);
    assert_eq!(bob.take().1.iter().map(Vec::len).collect::<Vec<_>>(), [OVERHEAD]);
    assert_eq!(bob.transport.poll_timeout(), None);
    let due = alice.transport.poll_timeout().unwrap();
    assert!((16.0..16.34).contains(&due));
    alice.transport.handle_timeout(due, &mut alice.out);
    assert_eq!(alice.take().0, [Event::HandshakeWanted(PEER, Reason::NoAnswer)]);
}

#[derive(Default)]
struct Wire(Vec<(Vec<u8>, usize)>);

impl Sink for Wire {
    fn send(&mut self, message: &[u8], segment: usize, _: Endpoint, _: u8) -> bool {
        self.0.push((message.to_vec(), segment));
        true
    }
}

fn frame(vnet: Vnet, packet: &[u8]) -> Vec<u8> {
    [&vnet.encode()[..], packet].concat()
}

#[test]
fn a_superpacket_becomes_one_message_and_what_comes_of_it_the_packets() {
    let (mut alice, mut bob) = connected();
    let payload: Vec<u8> = (0..30_001_u32).map(|n| (n * 7) as u8).collect();
    let (vnet, whole) = superpacket(true, true, 0x18, &payload, 1380);
    let (mut outbound, mut wire) = (Outbound::default(), Wire::default());
    let mut single = frame(Vnet::default(), &packet(true, true, 5, 0x10, b"small"));
    outbound.frame(&alice.transport, &mut frame(vnet, &whole), 1.0, &mut alice.out, &mut wire);
    outbound.frame(&alice.transport, &mut single, 1.0, &mut alice.out, &mut wire);
    outbound.flush(&alice.transport, 1.0, &mut alice.out, &mut wire);
    assert_eq!(wire.0.iter().map(|(message, segment)| message.len().div_ceil(*segment)).collect::<Vec<_>>(), [22, 1]);

    let mut inbound = Inbound::default();
    let (message, segment) = &wire.0[0];
    let mut buffer = message.clone();
    let given = Message { at: 0, size: buffer.len(), segment: *segment, source: alice.here, tos: 0 };
    inbound.message(&bob.transport, &mut buffer, given, 1.0, &mut bob.out);
    let mut received = Vec::new();
    for inner in inbound.packets() {
        received.extend_from_slice(&buffer[inner.at + 40..inner.at + inner.size]);
    }
    assert_eq!((inbound.packets().len(), received), (22, payload));
    let counters = bob.transport.stats()[0].2;
    assert_eq!((counters.rx_packets, counters.rx_bytes), (23, (message.len() + OVERHEAD + INITIATION_SIZE) as u64));

    inbound.clear();
    let mut again = message.clone();
    inbound.message(&bob.transport, &mut again, given, 1.0, &mut bob.out);
    assert!(inbound.packets().is_empty());
    assert_eq!(bob.transport.drops.read(), [("replayed".to_string(), 22)]);
}

#[test]
fn a_superpacket_of_tiny_segments_overflows_nothing() {
    let (mut alice, _) = connected();
    let (vnet, whole) = superpacket(true, true, 0x18, &vec![1; 60_000], 1);
    let (mut outbound, mut wire) = (Outbound::default(), Wire::default());
    outbound.frame(&alice.transport, &mut frame(vnet, &whole), 1.0, &mut alice.out, &mut wire);
    outbound.flush(&alice.transport, 1.0, &mut alice.out, &mut wire);
    let datagrams: usize = wire.0.iter().map(|(message, segment)| message.len().div_ceil(*segment)).sum();
    assert_eq!(datagrams, 60_000);
    assert!(wire.0.iter().all(|(message, _)| message.len() <= 65_507));
}

#[test]
fn the_largest_packet_fits_and_messages_of_any_shape_are_survived() {
    let (mut alice, mut bob) = connected();
    let (mut outbound, mut wire) = (Outbound::default(), Wire::default());
    let mut largest = frame(Vnet::default(), &packet(true, true, 0, 0x10, &vec![0; 65_535 - 40]));
    outbound.frame(&alice.transport, &mut largest, 1.0, &mut alice.out, &mut wire);
    for size in 0..VNET_SIZE + 44 {
        outbound.frame(&alice.transport, &mut vec![0x45; size], 1.0, &mut alice.out, &mut wire);
    }
    outbound.flush(&alice.transport, 1.0, &mut alice.out, &mut wire);
    assert!(wire.0[0].0.len() >= 65_535);
    let mut inbound = Inbound::default();
    for size in [0, 1, 15, 16, 31, 32, 33, 100] {
        for segment in [0, 1, 8, 31, 32, 33, 200] {
            let mut buffer = vec![0; size];
            buffer.iter_mut().zip([4, 0, 0, 0]).for_each(|(byte, begin)| *byte = begin);
            let message = Message { at: 0, size, segment, source: alice.here, tos: 0 };
            inbound.message(&bob.transport, &mut buffer, message, 1.0, &mut bob.out);
        }
    }
    assert!(inbound.packets().is_empty());
}

#[test]
fn row_20_a_peer_sends_from_its_own_addresses_only() {
    let (mut alice, mut bob) = connected();
    bob.transport.set_peer(8, None, &networks(1), 0, 0.0, &mut bob.out);
    alice.send(b"x", 1.0);
    let (_, datagrams) = alice.take();
    let mut inbound = Inbound::default();
    let mut buffer = datagrams[0].clone();
    let message = Message { at: 0, size: buffer.len(), segment: 0, source: alice.here, tos: 0 };
    inbound.message(&bob.transport, &mut buffer, message, 1.0, &mut bob.out);
    assert!(inbound.packets().is_empty());
    assert_eq!(bob.transport.drops.read(), [("inner_source".to_string(), 1)]);
}

/// Packets that each of two threads sends.
const EACH: usize = if cfg!(miri) { 5 } else { 2_000 };

/// Everything at once: traffic, rekeys, removals, timers, statistics.
#[test]
fn threads_take_no_nonce_twice_and_deliver_nothing_twice() {
    let (alice, bob) = connected();
    let (alice, bob) = (&alice, &bob);
    let sent = Mutex::new(Vec::new());
    let delivered = Mutex::new(Vec::new());
    let running = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        for sender in 0..2_u32 {
            let (sent, delivered, running) = (&sent, &delivered, &running);
            scope.spawn(move || {
                traffic(alice, bob, sender, sent, delivered);
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            let mut out = Outbox::default();
            for round in 0_u32.. {
                if running.load(Ordering::Relaxed) == 0 {
                    break;
                }
                rekey(alice, bob, round, &mut out);
                for end in [alice, bob] {
                    end.transport.handle_timeout(1.0 + f64::from(round) / 1e6, &mut out);
                    assert_eq!(end.transport.stats().len(), 1);
                }
                for transmit in out.transmits.drain(..) {
                    lock(&sent).push(transmit.datagram[4..16].to_vec());
                }
                out.events.clear();
            }
        });
    });
    for (what, taken, least) in [("nonces", sent, 2 * EACH), ("packets", delivered, 1)] {
        let mut taken = taken.into_inner().unwrap();
        let count = taken.len();
        assert!(count >= least, "{count} {what}");
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), count, "{what}");
    }
}

/// Send packets from Alice to Bob, each datagram twice. Keep the nonces that were sent and what was delivered.
fn traffic(alice: &End, bob: &End, sender: u32, sent: &Mutex<Vec<Vec<u8>>>, delivered: &Mutex<Vec<Vec<u8>>>) {
    let (mut outbound, mut inbound, mut out) = (Outbound::default(), Inbound::default(), Outbox::default());
    let mut left = EACH;
    for number in 0_u32.. {
        if left == 0 {
            break;
        }
        let mut wire = Wire::default();
        let mark = (sender << 31 | number).to_be_bytes();
        let mut single = frame(Vnet::default(), &packet(true, false, 0, 0, &mark));
        outbound.frame(&alice.transport, &mut single, 1.0, &mut out, &mut wire);
        outbound.flush(&alice.transport, 1.0, &mut out, &mut wire);
        wire.0.extend(out.transmits.drain(..).map(|one| (one.datagram.clone(), one.datagram.len())));
        left = left.saturating_sub(wire.0.len());
        for (mut message, segment) in wire.0 {
            lock(sent).push(message[4..16].to_vec());
            let given = Message { at: 0, size: message.len(), segment, source: alice.here, tos: 0 };
            let mut copy = message.clone();
            inbound.clear();
            inbound.message(&bob.transport, &mut message, given, 1.0, &mut out);
            inbound.packets().iter().for_each(|one| lock(delivered).push(message[one.at + 28..][..4].to_vec()));
            inbound.clear();
            inbound.message(&bob.transport, &mut copy, given, 1.0, &mut out);
            assert!(inbound.packets().is_empty());
        }
    }
}

/// Start a fresh session at both ends. Every now and then the peer is removed and set again.
fn rekey(alice: &End, bob: &End, round: u32, out: &mut Outbox) {
    if round % 16 == 15 {
        alice.transport.remove_peer(PEER);
        alice.transport.set_peer(PEER, Some(bob.here), &networks(2), 0, 1.0, out);
    }
    let (ours, theirs) = (alice.transport.reserve_index(PEER), bob.transport.reserve_index(PEER));
    let (mut at_alice, mut at_bob) = (keypair(ours, true, 1.0), keypair(theirs, false, 1.0));
    (at_alice.remote_index, at_bob.remote_index) = (theirs, ours);
    at_bob.receive_key = at_alice.send_key.clone();
    bob.transport.install_keypair(PEER, &at_bob, 1.0, out);
    alice.transport.install_keypair(PEER, &at_alice, 1.0, out);
}
