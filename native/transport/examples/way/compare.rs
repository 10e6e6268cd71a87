//! A message out and in.

use std::hint::black_box;
use std::net::SocketAddr;

use crate::clock::{Taken, take};
use transport::Transport;
use transport::coalesce::{Merge, next_run};
use transport::contract::{Address, Endpoint, Keypair, Network, Outbox};
use transport::inbound::{Inbound, Message};
use transport::outbound::Outbound;
use transport::sink::Sink;
use transport::vnet::{GSO_TCP4, GSO_UDP, NEEDS_CHECKSUM, VNET_SIZE, Vnet};
use zeroize::Zeroizing;

const ROUNDS: usize = 61;
/// Messages of a run.
const RUN: usize = 3;
const MTU: usize = 1420;
const MESSAGE: usize = 1 << 16;
/// IPv4, and TCP with timestamps.
const TCP: usize = 52;
const UDP: usize = 28;

/// Keeps messages, or takes them as the network would.
struct Wire {
    buffer: Vec<u8>,
    messages: Vec<Message>,
    keeps: bool,
}

impl Sink for Wire {
    fn send(&mut self, message: &[u8], segment: usize, source: Endpoint, tos: u8) -> bool {
        if self.keeps {
            self.messages.push(Message { at: self.buffer.len(), size: message.len(), segment, source, tos });
            self.buffer.extend_from_slice(message);
        }
        black_box(message);
        true
    }
}

fn end(initiator: bool) -> Transport {
    let transport = Transport::new(&[1; 32], MTU, Box::new(|bytes| bytes.fill(1)), Box::new(|| 0));
    let networks = [Network { address: Address::V4(0), prefix: 0 }];
    let somewhere = SocketAddr::from(([192, 0, 2, 1], 1)).into();
    transport.set_peer(7, Some(somewhere), &networks, 0, 0.0, &mut Outbox::default());
    let keypair = Keypair {
        local_index: 1,
        remote_index: 1,
        send_key: Zeroizing::new([1; 32]),
        receive_key: Zeroizing::new([1; 32]),
        initiator,
        birth: 0.0,
    };
    transport.install_keypair(7, &keypair, 0.0, &mut Outbox::default());
    transport
}

/// Make a superpacket of `count` packets with `payload` bytes each.
fn superpacket(tcp: bool, count: usize, payload: usize) -> Vec<u8> {
    let header = if tcp { TCP } else { UDP };
    let total = header + count * payload;
    let vnet = Vnet {
        flags: NEEDS_CHECKSUM,
        gso_type: if tcp { GSO_TCP4 } else { GSO_UDP },
        header_size: header as u16,
        gso_size: payload as u16,
        checksum_start: 20,
        checksum_offset: if tcp { 16 } else { 6 },
    };
    let mut frame = vnet.encode().to_vec();
    let protocol = if tcp { 6 } else { 17 };
    frame.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    frame.resize(VNET_SIZE + header, 0);
    let transport = &mut frame[VNET_SIZE + 20..];
    let length = (total - 20) as u16;
    // The pseudo-header's sum.
    let sum = 2 * 0x0a09 + 1 + 2 + u32::from(protocol) + u32::from(length);
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    if tcp {
        transport[12..14].copy_from_slice(&[8 << 4, 0x10]);
        transport[16..18].copy_from_slice(&sum.to_be_bytes());
    } else {
        transport[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    frame.extend((0..count * payload).map(|n| (n * 31 + n / 251) as u8));
    frame
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Return nanoseconds and cycles per packet: out, then in.
fn measure(tcp: bool, count: usize, payload: usize) -> [[f64; 2]; 2] {
    let mut frame = superpacket(tcp, count, payload);
    let (alice, bob) = (end(true), end(false));
    let (mut outbound, mut inbound, mut out) = (Outbound::default(), Inbound::default(), Outbox::default());
    let mut wire = Wire { buffer: Vec::with_capacity(MESSAGE * (RUN + 1)), messages: vec![], keeps: false };
    let mut rounds: [Vec<Taken>; 2] = Default::default();
    for _ in 0..ROUNDS {
        let mut go = |wire: &mut Wire| {
            outbound.frame(&alice, black_box(&mut frame), 1.0, &mut out, wire);
            outbound.flush(&alice, 1.0, &mut out, wire);
        };
        wire.keeps = false;
        rounds[0].push(take(RUN, || go(&mut wire)));
        wire = Wire { keeps: true, messages: vec![], ..wire };
        wire.buffer.clear();
        (0..=RUN).for_each(|_| go(&mut wire));
        let Wire { buffer, messages, .. } = &mut wire;
        let mut left = messages.chunks(messages.len() / (RUN + 1));
        rounds[1].push(take(RUN, || {
            for message in left.next().expect("a message is left") {
                inbound.message(&bob, buffer, *message, 1.0, &mut out);
            }
            let mut rest = inbound.packets();
            assert_eq!(rest.len(), count, "a packet was lost");
            while !rest.is_empty() {
                let run = black_box(next_run(buffer, rest, Merge::ALL));
                rest = &rest[run.count..];
            }
            inbound.clear();
        }));
        out = Outbox::default();
    }
    rounds.map(|taken| {
        let nanoseconds = median(taken.iter().map(|taken| taken.nanoseconds).collect());
        let cycles = median(taken.iter().filter_map(|taken| taken.cycles).collect());
        [nanoseconds, cycles].map(|taken| taken / count as f64)
    })
}

fn cases() -> impl Iterator<Item = (String, [[f64; 2]; 2])> {
    let cases = [(true, 16, 1368), (true, 45, 1368), (true, 2, 1368), (false, 45, 1372), (false, 64, 64)];
    let name = |tcp| if tcp { "TCP" } else { "UDP" };
    cases
        .into_iter()
        .map(move |(tcp, count, size)| (format!("{count} {} of {size}", name(tcp)), measure(tcp, count, size)))
}

/// Print a table for people.
pub fn table() {
    println!("{:>22} | out | in (ns per packet)", "payloads of bytes");
    for (name, [out, inward]) in cases() {
        println!("{name:>22} | {:6.0} | {:6.0}", out[0], inward[0]);
    }
}

/// Print a line per case for `turns`: nanoseconds out and in, then cycles.
pub fn rows() {
    for (name, [out, inward]) in cases() {
        println!("{name}\t{}\t{}\t{}\t{}", out[0], inward[0], out[1], inward[1]);
    }
}
