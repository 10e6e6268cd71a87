//! Frames in, frames out: who is answered, who is asked, and what is left out.

use neighbours::link::{Link, Received, Settings};
use neighbours::{arp, ndp};
use transport::contract::{Address, Network};
use transport::ethernet::{ETHERNET, MacAddress};

const OWN: MacAddress = [2, 0, 0, 0, 0, 1];
const VPP: MacAddress = [2, 0, 0, 0, 0, 9];
const GATEWAY: MacAddress = [2, 0, 0, 0, 0, 7];
const EVERYBODY: MacAddress = [0xff; 6];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
const PEER: u32 = 0x0a09_0002;
const HOST: u32 = 0x0a09_0101;
const PEER6: u128 = 0xfd09 << 112 | 2;
const HOST6: u128 = 0xfd09 << 112 | 1 << 64 | 1;

/// 10.9.0.0/16 and fd09::/16 are answered for, but for 10.9.1.0/24 and fd09:0:0:1::/64.
fn link(gateway: Option<MacAddress>) -> Link {
    let four = |address, prefix| Network { address: Address::V4(address), prefix };
    let six = |address, prefix| Network { address: Address::V6(address), prefix };
    Link::new(&Settings {
        mac: OWN,
        gateway,
        answered: vec![four(0x0a09_0000, 16), six(0xfd09 << 112, 16)],
        learnt: vec![four(0x0a09_0100, 24), six(HOST6, 64)],
    })
}

fn header(destination: MacAddress, source: MacAddress, kind: [u8; 2]) -> [u8; ETHERNET] {
    [&destination[..], &source, &kind].concat().try_into().unwrap()
}

fn request(sender: u32, target: u32) -> arp::Message {
    arp::Message { operation: arp::Operation::Request, sender_mac: VPP, sender, target_mac: [0; 6], target }
}

fn four(source: u32, destination: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.resize(28, 0);
    packet
}

fn six(source: u128, destination: u128) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.resize(48, 0);
    packet
}

fn solicitation(source: u128, target: u128) -> ndp::Message {
    let kind = ndp::Kind::Solicitation;
    ndp::Message { kind, source, destination: ndp::solicited_node(target), target, mac: Some(VPP) }
}

#[test]
fn an_arp_request_for_an_answered_address_gets_our_mac_address() {
    for to in [EVERYBODY, OWN] {
        for sender in [HOST, 0] {
            let seen = link(None).receive(&header(to, VPP, ARP), &request(sender, PEER).bytes(), || 0.0);
            let reply = arp::Message {
                operation: arp::Operation::Reply,
                sender_mac: OWN,
                sender: PEER,
                target_mac: VPP,
                target: sender,
            };
            let Received::Reply(frame, address) = seen else { panic!("{seen:?}") };
            assert_eq!(address, Address::V4(PEER));
            assert_eq!(frame.bytes(), [&header(VPP, OWN, ARP)[..], &reply.bytes()].concat());
        }
    }
}

#[test]
fn what_is_announced_or_learnt_or_elsewhere_is_not_answered_for() {
    let link = link(None);
    let own = arp::Message { sender_mac: OWN, ..request(HOST, PEER) };
    let many = arp::Message { sender_mac: EVERYBODY, ..request(HOST, PEER) };
    let reply = arp::Message { operation: arp::Operation::Reply, ..request(HOST, PEER) };
    for message in [request(PEER, PEER), request(PEER, HOST), request(HOST, 0x0b00_0001), own, many, reply] {
        assert_eq!(link.receive(&header(EVERYBODY, VPP, ARP), &message.bytes(), || 0.0), Received::Nothing);
    }
    let own = ndp::Message { mac: Some(OWN), ..solicitation(HOST6, PEER6) };
    for message in [solicitation(PEER6, PEER6), solicitation(PEER6, HOST6), solicitation(HOST6, 1), own] {
        assert_eq!(link.receive(&header(EVERYBODY, VPP, IPV6), &message.packet(), || 0.0), Received::Nothing);
    }
}

#[test]
fn a_solicitation_for_an_answered_address_gets_an_advertisement() {
    let seen = link(None).receive(&header(EVERYBODY, VPP, IPV6), &solicitation(HOST6, PEER6).packet(), || 0.0);
    let kind = ndp::Kind::Advertisement { solicited: true, overrides: false };
    let told = ndp::Message { kind, source: PEER6, destination: HOST6, target: PEER6, mac: Some(OWN) };
    let Received::Reply(frame, address) = seen else { panic!("{seen:?}") };
    assert_eq!(address, Address::V6(PEER6));
    assert_eq!(frame.bytes(), [&header(VPP, OWN, IPV6)[..], &told.packet()].concat());
}

#[test]
fn who_has_no_address_yet_is_answered_with_all_others() {
    // Without the option, and so with another length and checksum: as from Linux.
    let mut packet = ndp::Message { mac: Some([0; 6]), ..solicitation(0, PEER6) }.packet()[..64].to_vec();
    packet[5] = 24;
    packet[42..44].fill(0);
    let sum = transport::checksum::Sum::default().bytes(&packet[8..]).word(24).word(58).field();
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
    let seen = link(None).receive(&header(EVERYBODY, VPP, IPV6), &packet, || 0.0);
    let kind = ndp::Kind::Advertisement { solicited: false, overrides: false };
    let told = ndp::Message { kind, source: PEER6, destination: ndp::ALL_NODES, target: PEER6, mac: Some(OWN) };
    let Received::Reply(frame, _) = seen else { panic!("{seen:?}") };
    assert_eq!(frame.bytes(), [&header([0x33, 0x33, 0, 0, 0, 1], OWN, IPV6)[..], &told.packet()].concat());
}

#[test]
fn a_learnt_address_is_asked_for_and_then_used() {
    let link = link(Some(GATEWAY));
    let sending = link.send(&four(PEER, HOST), || 10.0);
    assert_eq!(sending.header, Err("unresolved"));
    let asked = arp::Message { sender_mac: OWN, ..request(PEER, HOST) };
    assert_eq!(sending.ask.unwrap().bytes(), [&header(EVERYBODY, OWN, ARP)[..], &asked.bytes()].concat());
    assert_eq!(link.send(&four(PEER, HOST), || 10.5).ask, None);
    let reply = arp::Message {
        operation: arp::Operation::Reply,
        sender_mac: VPP,
        sender: HOST,
        target_mac: OWN,
        target: PEER,
    };
    assert_eq!(link.receive(&header(OWN, VPP, ARP), &reply.bytes(), || 11.0), Received::Nothing);
    assert_eq!(link.send(&four(PEER, HOST), || 12.0).header, Ok(header(VPP, OWN, IPV4)));

    let sending = link.send(&six(PEER6, HOST6), || 10.0);
    assert_eq!(sending.header, Err("unresolved"));
    let asked = ndp::Message { mac: Some(OWN), ..solicitation(PEER6, HOST6) };
    let to = [0x33, 0x33, 0xff, 0, 0, 1];
    assert_eq!(sending.ask.unwrap().bytes(), [&header(to, OWN, IPV6)[..], &asked.packet()].concat());
    let kind = ndp::Kind::Advertisement { solicited: true, overrides: true };
    let told = ndp::Message { kind, source: HOST6, destination: PEER6, target: HOST6, mac: Some(VPP) };
    assert_eq!(link.receive(&header(OWN, VPP, IPV6), &told.packet(), || 11.0), Received::Nothing);
    assert_eq!(link.send(&six(PEER6, HOST6), || 12.0).header, Ok(header(VPP, OWN, IPV6)));
}

#[test]
fn a_request_comes_from_an_address_that_we_answer_for() {
    let link = link(None);
    let asked = link.send(&four(0x0b00_0001, HOST), || 10.0).ask.unwrap();
    assert_eq!(arp::Message::parse(&asked.bytes()[ETHERNET..]).unwrap().sender, 0x0a09_0001);
    let asked = link.send(&six(1, HOST6), || 10.0).ask.unwrap();
    let ndp::Found::Message(message) = ndp::parse(&asked.bytes()[ETHERNET..]) else { panic!() };
    assert_eq!(message.source, 0xfe80 << 112 | 0x0000_00ff_fe00_0001);
    let seen = link.receive(&header(OWN, VPP, IPV6), &solicitation(HOST6, message.source).packet(), || 0.0);
    assert!(matches!(seen, Received::Reply(..)), "{seen:?}");
}

#[test]
fn the_rest_goes_to_the_gateway_or_to_whoever_sent_the_last_packet() {
    let elsewhere = four(PEER, 0x0808_0808);
    let to = |link: &Link| link.send(&elsewhere, || 0.0).header;
    let (fixed, free) = (link(Some(GATEWAY)), link(None));
    assert_eq!(to(&fixed), Ok(header(GATEWAY, OWN, IPV4)));
    assert_eq!(to(&free), Ok(header(EVERYBODY, OWN, IPV4)));
    for link in [&fixed, &free] {
        link.receive(&header(EVERYBODY, GATEWAY, ARP), &request(HOST, PEER).bytes(), || 0.0);
        assert_eq!(link.receive(&header(OWN, VPP, IPV6), &six(HOST6, PEER6), || 0.0), Received::Packet(48));
    }
    assert_eq!(to(&fixed), Ok(header(GATEWAY, OWN, IPV4)));
    assert_eq!(to(&free), Ok(header(VPP, OWN, IPV4)));
    // A frame of ours that came back, and one of nobody.
    for source in [OWN, [0; 6]] {
        assert_eq!(free.receive(&header(EVERYBODY, source, IPV6), &six(HOST6, PEER6), || 0.0), Received::Packet(48));
        assert_eq!(to(&free), Ok(header(VPP, OWN, IPV4)));
    }
}

#[test]
fn packets_to_many_go_to_their_mac_addresses() {
    let link = link(Some(GATEWAY));
    let to = |packet: Vec<u8>| link.send(&packet, || 0.0).header.unwrap()[..6].to_vec();
    assert_eq!(to(four(PEER, u32::MAX)), EVERYBODY);
    assert_eq!(to(four(PEER, 0xe081_0203)), [1, 0, 0x5e, 1, 2, 3]);
    assert_eq!(to(six(PEER6, 0xff02 << 112 | 0x0102_0304)), [0x33, 0x33, 1, 2, 3, 4]);
}

#[test]
fn what_is_no_packet_for_us_is_left_out_and_named() {
    let link = link(None);
    let seen = |to, kind, body: &[u8]| link.receive(&header(to, VPP, kind), body, || 0.0);
    let good = four(HOST, PEER);
    assert_eq!(seen(OWN, [0x81, 0], &good), Received::Drop("vlan"));
    assert_eq!(seen(OWN, [0x88, 0xa8], &good), Received::Drop("vlan"));
    assert_eq!(seen(VPP, IPV4, &good), Received::Drop("other_mac"));
    assert_eq!(seen(OWN, [0x88, 0xcc], &good), Received::Drop("other_type"));
    assert_eq!(seen(OWN, IPV6, &good), Received::Drop("not_ip"));
    assert_eq!(seen(OWN, IPV4, &good[..27]), Received::Drop("bad_length"));
    assert_eq!(seen(OWN, ARP, &good), Received::Drop("bad_arp"));
    let mut damaged = solicitation(HOST6, PEER6).packet();
    damaged[7] = 64;
    assert_eq!(seen(OWN, IPV6, &damaged), Received::Drop("bad_ndp"));
    assert_eq!(link.send(&good, || 0.0).header.unwrap()[..6], EVERYBODY, "nobody is learnt from these");
    assert_eq!(seen(OWN, IPV4, &[&good[..], &[0; 18]].concat()), Received::Packet(28), "padding");
    let mut fragment = good.clone();
    fragment[6..8].copy_from_slice(&[0x20, 1]);
    assert_eq!(seen(OWN, IPV4, &fragment), Received::Packet(28), "a fragment is a packet");
    fragment[6..8].copy_from_slice(&[0x1f, 0xff]);
    assert_eq!(seen(OWN, IPV4, &fragment), Received::Drop("bad_fragment"));
}

#[test]
fn an_error_goes_back_to_the_one_who_sent_the_packet_to_us_alone() {
    let link = link(None);
    assert_eq!(link.back(&header(OWN, VPP, IPV4)), Some(header(VPP, OWN, IPV4)));
    assert_eq!(link.back(&header(OWN, VPP, IPV6)), Some(header(VPP, OWN, IPV6)));
    for (to, from) in [(EVERYBODY, VPP), (OWN, EVERYBODY), (OWN, OWN), (OWN, [0; 6])] {
        assert_eq!(link.back(&header(to, from, IPV4)), None);
    }
}

#[test]
fn no_peer_may_speak_for_the_links_addresses() {
    let link = link(Some(GATEWAY));
    let kind = ndp::Kind::Advertisement { solicited: false, overrides: true };
    let told = ndp::Message { kind, source: PEER6, destination: ndp::ALL_NODES, target: HOST6, mac: Some(VPP) };
    assert_eq!(link.send(&told.packet(), || 0.0).header, Err("foreign_ndp"));
    assert_eq!(link.send(&[], || 0.0).header, Err("not_ip"));
    assert_eq!(link.send(&[0x45; 19], || 0.0).header, Err("not_ip"));
}

#[test]
fn other_ranges_are_answered_for_at_once_and_learnt_ones_stay() {
    let link = link(None);
    let range = |address, prefix| Network { address: Address::V4(address), prefix };
    let answers = |target: u32| {
        let header = header(EVERYBODY, VPP, ARP);
        matches!(link.receive(&header, &request(HOST, target).bytes(), || 0.0), Received::Reply(..))
    };
    assert!(answers(PEER) && !answers(0x0a0a_0001));
    // All of a learnt range, which was learnt before.
    link.answer_for(&[range(0x0a0a_0000, 16), range(0x0a09_0100, 24)]);
    assert!(!answers(PEER) && answers(0x0a0a_0001) && answers(HOST + 1));
    // A packet of theirs is asked for in the name of the first range that is answered for.
    link.answer_for(&[range(0x0a0a_0000, 16)]);
    assert!(!answers(HOST + 1));
    let asked = link.send(&four(PEER, HOST), || 0.0).ask.unwrap();
    assert_eq!(arp::Message::parse(&asked.bytes()[ETHERNET..]).unwrap().sender, 0x0a0a_0001);
    link.answer_for(&[]);
    assert!(!answers(0x0a0a_0001));
}
