//! The parsers under random inputs for some seconds: valid ones, and those with flipped bits, cuts,
//! insertions and splices. This runs everywhere. `make fuzz` drives the same functions by coverage,
//! and finds more.
//!
//! RUSTGUARD_FUZZ_SECONDS sets the duration of each (2 s), RUSTGUARD_FUZZ_SEED the seed.

use std::time::{Duration, Instant};

mod bodies;
#[path = "../support/dice.rs"]
mod dice;

use dice::Dice;
use transport::ethernet::{Fields, Path, build};
use transport::vnet::{GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP, NEEDS_CHECKSUM, Vnet};
use transport::wire::{COOKIE_REPLY_SIZE, INITIATION_SIZE, RESPONSE_SIZE};

/// Inputs that are kept to be changed again.
const POOL: usize = 256;
/// Bytes of an input.
const LONGEST: usize = 20_000;
/// Values that parsers often get wrong.
const EDGES: [u8; 10] = [0, 1, 4, 5, 6, 17, 0x45, 0x60, 0x7f, 0xff];

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Return a place in `bytes`, often near the beginning, where the headers are.
fn place(dice: &mut Dice, bytes: &[u8]) -> usize {
    let end = if dice.below(3) > 0 { bytes.len().min(80) } else { bytes.len() };
    dice.below(end)
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, other: &[u8]) {
    let at = place(dice, input);
    match dice.below(8) {
        0 | 1 if !input.is_empty() => input[at] ^= 1 << dice.below(8),
        2 if !input.is_empty() => input[at] = EDGES[dice.below(EDGES.len())],
        3 if !input.is_empty() => input[at] = dice.next() as u8,
        4 => input.truncate(at),
        5 => {
            let piece = &other[dice.below(other.len())..];
            input.extend_from_slice(&piece[..dice.below(piece.len() + 1)]);
        }
        6 => {
            let piece = other[..place(dice, other)].to_vec();
            input.splice(at..at, piece);
        }
        _ => {
            let end = at + dice.below(input.len() - at + 1);
            input.drain(at..end);
        }
    }
    input.truncate(LONGEST);
}

/// Return an IPv4 or IPv6 packet with TCP (flags ACK) or UDP. Its checksums are not completed.
fn packet(four: bool, tcp: bool, payload: usize) -> Vec<u8> {
    let transport = if tcp { 20 } else { 8 } + payload;
    let protocol = if tcp { 6 } else { 17 };
    let mut packet = if four {
        let [high, low] = (20 + transport as u16).to_be_bytes();
        vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]
    } else {
        let [high, low] = (transport as u16).to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, high, low, protocol, 64];
        header.extend([[0xfd; 16], [0xfe; 16]].concat());
        header
    };
    packet.extend([0x12, 0x34, 0x56, 0x78]);
    if tcp {
        packet.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        let [high, low] = (transport as u16).to_be_bytes();
        packet.extend([high, low, 0, 0]);
    }
    packet.resize(packet.len() + payload, 7);
    packet
}

fn frame(four: bool, tcp: bool, payload: usize, gso_size: u16) -> Vec<u8> {
    let gso_type = match (gso_size, tcp, four) {
        (0, ..) => GSO_NONE,
        (_, false, _) => GSO_UDP,
        (_, true, true) => GSO_TCP4,
        (_, true, false) => GSO_TCP6,
    };
    let checksum_start = if four { 20 } else { 40 };
    let checksum_offset = if tcp { 16 } else { 6 };
    let header_size = checksum_start + if tcp { 20 } else { 8 };
    let vnet = Vnet { flags: NEEDS_CHECKSUM, gso_type, header_size, gso_size, checksum_start, checksum_offset };
    [vnet.encode().to_vec(), packet(four, tcp, payload)].concat()
}

fn with_length(piece: &[u8]) -> Vec<u8> {
    [&(piece.len() as u16).to_le_bytes(), piece].concat()
}

/// Return valid inputs of all kinds. Valid input for one parser is noise for the next.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![], vec![0; 64]];
    for (four, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        for (payload, gso_size) in [(0, 0), (100, 0), (3000, 1000), (900, 100)] {
            let frame = frame(four, tcp, payload, gso_size);
            let packet = packet(four, tcp, payload.min(1000));
            seeds.push(with_length(&frame).repeat(2));
            seeds.push(with_length(&packet).repeat(3));
            seeds.push(frame);
        }
    }
    for (kind, size) in [(1, INITIATION_SIZE), (2, RESPONSE_SIZE), (3, COOKIE_REPLY_SIZE), (4, 32), (4, 96)] {
        let mut datagram = vec![kind, 0, 0, 0, 1, 0, 0, 0];
        datagram.resize(size, 0);
        seeds.push(with_length(&datagram).repeat(3));
        seeds.push([&(size as u16).to_le_bytes()[..], &datagram.repeat(3)].concat());
    }
    seeds.push(with_length(b"RGE enrollment"));
    // Without their first three bytes, as `bodies::pairing` takes them.
    for (kind, size) in [(1, 128), (3, 132), (4, 1232), (5, 1232), (7, 48)] {
        let mut datagram = vec![b'3', kind, 0, 0, 0];
        datagram.resize(size - 3, 0);
        seeds.push(with_length(&datagram).repeat(2));
    }
    seeds.push(with_length(&[&b"2\x01\0\0\0"[..], &[7; 123]].concat()));
    for ends in ["192.0.2.1", "2001:db8::1"] {
        let end = ends.parse().unwrap();
        let path = Path { source_mac: [2; 6], destination_mac: [4; 6], source: end, destination: end };
        let mut frame = vec![0; 200];
        let size =
            build(&mut frame, &path, Fields { source_port: 1, destination_port: 2, tos: 0 }, 3, &[7; 32]).unwrap();
        frame.truncate(size);
        seeds.push(frame);
    }
    seeds
}

fn drive(name: &str, parse: fn(&[u8])) {
    let seed = variable("RUSTGUARD_FUZZ_SEED").unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs());
    println!("{name}: RUSTGUARD_FUZZ_SEED={seed}");
    let (mut dice, mut pool, mut count) = (Dice(seed), seeds(), 0_u64);
    let seeds = pool.len();
    pool.iter().for_each(|input| parse(input));
    let (start, time) = (Instant::now(), Duration::from_secs(variable("RUSTGUARD_FUZZ_SECONDS").unwrap_or(2)));
    while start.elapsed() < time {
        let mut input = pool[dice.below(pool.len())].clone();
        for _ in 0..=dice.below(4) {
            let other = dice.below(pool.len());
            change(&mut dice, &mut input, &pool[other]);
        }
        parse(&input);
        count += 1;
        if pool.len() < POOL {
            pool.push(input);
        } else {
            // The seeds stay, because random changes seldom lead back to them.
            let at = seeds + dice.below(POOL - seeds);
            pool[at] = input;
        }
    }
    println!("{name}: {count} inputs");
}

#[test]
fn frames_of_any_shape_are_survived() {
    drive("frames", bodies::frames);
}

#[test]
fn messages_of_any_shape_are_survived() {
    drive("messages", bodies::messages);
}

#[test]
fn datagrams_of_any_shape_are_survived() {
    drive("datagrams", bodies::datagrams);
}

#[test]
fn pairing_datagrams_of_any_shape_are_survived() {
    drive("pairing", bodies::pairing);
}

#[test]
fn packets_of_any_shape_are_survived() {
    drive("packets", bodies::packets);
}

#[test]
fn ethernet_frames_of_any_shape_are_survived() {
    drive("ethernet", bodies::ethernet);
}

#[test]
fn virtio_net_hdrs_of_any_shape_are_survived() {
    drive("vnet", bodies::vnet);
}
