//! What the parsers are fed with, from any bytes. `cargo fuzz` drives these functions by coverage,
//! `main.rs` at random. They panic if something is wrong.

use std::net::SocketAddr;

use transport::Transport;
use transport::aead::{Aead, RingCipher};
use transport::coalesce::{Merge, next_run};
use transport::contract::{Address, Endpoint, Keypair, Network, Outbox, PairingEpoch, PairingGate};
use transport::ethernet::{Fields, Path, build, parse};
use transport::inbound::{Inbound, Message};
use transport::outbound::Outbound;
use transport::segment::{Superpacket, complete_checksum};
use transport::sink::Sink;
use transport::vnet::{GSO_NONE, VNET_SIZE, Vnet};
use transport::wire::{DATA_HEADER_SIZE, DATA_MAGIC, OVERHEAD};
use zeroize::Zeroizing;

const MTU: usize = 1420;
const KEY: [u8; 32] = [1; 32];
const INDEX: u32 = 1;

/// Frames of the device. Each is sent, received at the other end, and written to a device again:
/// virtio_net_hdr, superpackets, inner packets, merging. The input is frames, each after its length
/// in two bytes.
pub fn frames(input: &[u8]) {
    with_end(false, |bob| {
        let (mut outbound, mut out) = (Outbound::default(), Outbox::default());
        let mut wire = Wire { to: bob, inbound: Inbound::default(), out: Outbox::default() };
        with_end(true, |alice| {
            for frame in pieces(input) {
                outbound.frame(alice, &mut frame.to_vec(), 1.0, &mut out, &mut wire);
            }
            outbound.flush(alice, 1.0, &mut out, &mut wire);
        });
    });
}

/// Messages of strangers. The input is a segment size in two bytes, and a message.
pub fn messages(input: &[u8]) {
    let Some((segment, message)) = input.split_first_chunk::<2>() else { return };
    let mut buffer = message.to_vec();
    let segment = usize::from(u16::from_le_bytes(*segment));
    let given = Message { at: 0, size: buffer.len(), segment, source: somewhere(), tos: 0 };
    let mut inbound = Inbound::default();
    with_end(false, |end| inbound.message(end, &mut buffer, given, 1.0, &mut Outbox::default()));
    assert!(inbound.packets().is_empty(), "a stranger's packet was accepted");
}

/// Datagrams of strangers, one by one: handshakes, cookies, enrollment, data. The input is
/// datagrams, each after its length in two bytes.
pub fn datagrams(input: &[u8]) {
    with_end(false, |end| {
        for datagram in pieces(input) {
            let taken = end.handle_datagram(&mut datagram.to_vec(), somewhere(), 3, 1.0, &mut Outbox::default());
            assert!(taken.is_none(), "a stranger's packet was accepted");
        }
    });
}

/// Pairing datagrams at a server whose window is open, each after its length in two bytes and
/// without its first three bytes. Each is also sent, as Python would. No answer is longer than its
/// question, and what is answered goes no further.
pub fn pairing(input: &[u8]) {
    let epoch = |number| PairingEpoch::new(number, &KEY, KEY);
    let gate = PairingGate { server_id: KEY, current: epoch(1), previous: Some(epoch(0)), linger: 120.0 };
    with_end(false, |end| {
        end.set_pairing(Some(gate), 1.0);
        for piece in pieces(input) {
            let datagram = [b"RGE", piece].concat();
            let mut out = Outbox::default();
            let taken = end.handle_datagram(&mut datagram.clone(), somewhere(), 3, 1.0, &mut out);
            assert!(taken.is_none(), "a stranger's packet was accepted");
            assert!(out.events.len() + out.transmits.len() <= 1);
            assert!(out.transmits.iter().all(|answer| answer.datagram.len() <= datagram.len()));
            end.send(somewhere(), datagram, 1.0, &mut Outbox::default());
        }
    });
}

/// Packets that an enrolled peer seals. No device made them, and they are merged for ours. The
/// input is packets, each after its length in two bytes.
pub fn packets(input: &[u8]) {
    let (sealer, mut out) = (RingCipher::new(&KEY), Outbox::default());
    let (mut inbound, mut buffer, mut messages) = (Inbound::default(), vec![], vec![]);
    for (counter, packet) in (0_u64..).zip(pieces(input)) {
        let (at, size) = (buffer.len(), packet.len() + OVERHEAD);
        buffer.extend(DATA_MAGIC);
        buffer.extend(INDEX.to_le_bytes());
        buffer.extend(counter.to_le_bytes());
        buffer.extend(packet);
        buffer.resize(at + size, 0);
        sealer.seal(counter, &mut buffer[at + DATA_HEADER_SIZE..]);
        messages.push(Message { at, size, segment: size, source: somewhere(), tos: 0 });
    }
    with_end(false, |end| {
        messages.into_iter().for_each(|message| inbound.message(end, &mut buffer, message, 1.0, &mut out));
    });
    merge(&buffer, &inbound);
}

/// Ethernet frames with UDP. The datagram found in one is put into another and found again. The
/// input is a frame.
pub fn ethernet(input: &[u8]) {
    let Some(found) = parse(input) else { return };
    let payload = &input[found.payload];
    let path = Path {
        source_mac: [2; 6],
        destination_mac: [4; 6],
        source: found.source.ip(),
        destination: found.source.ip(),
    };
    let mut frame = vec![0; path.headers() + payload.len()];
    let fields = Fields { source_port: found.source.port(), destination_port: found.port, tos: found.tos };
    let size = build(&mut frame, &path, fields, 1, payload);
    assert_eq!(size, Some(frame.len()));
    let again = parse(&frame).expect("what is built can be read");
    assert_eq!((again.source, again.port, again.tos), (found.source, found.port, found.tos));
    assert_eq!(&frame[again.payload], payload);
}

/// A virtio_net_hdr and a packet, without a route in between. The input is a frame.
pub fn vnet(input: &[u8]) {
    let Some((header, packet)) = input.split_first_chunk::<VNET_SIZE>() else { return };
    let vnet = Vnet::decode(header);
    assert_eq!(vnet.encode(), *header);
    complete_checksum(vnet, &mut packet.to_vec());
    if vnet.gso_type == GSO_NONE {
        return;
    }
    let Some(cut) = Superpacket::examine(vnet, packet) else { return };
    assert!((1..=packet.len()).contains(&cut.count()));
    for number in 0..cut.count() {
        assert!(cut.size(number) <= packet.len());
        cut.write(number, &mut vec![0; cut.size(number)]);
    }
}

/// Split input in which each piece has its length before it, in two bytes. The last piece may be
/// cut off.
fn pieces(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = input;
    std::iter::from_fn(move || {
        let (size, others) = rest.split_first_chunk::<2>()?;
        let (piece, others) = others.split_at(others.len().min(usize::from(u16::from_le_bytes(*size))));
        rest = others;
        Some(piece)
    })
}

/// Call `act` with an end. It is connected to one with the same keys, which has all of IPv4 and
/// IPv6. `initiator`: it may send at once.
///
/// Making an end is slow compared with handling an input. So each thread has two ends, and each
/// input a new session.
fn with_end<R>(initiator: bool, act: impl FnOnce(&Transport) -> R) -> R {
    thread_local! {
        static ENDS: [Transport; 2] = [made(), made()];
    }
    ENDS.with(|ends| {
        let end = &ends[usize::from(initiator)];
        end.erase_keypairs(1);
        end.drop_held(1);
        let keypair = Keypair {
            local_index: INDEX,
            remote_index: INDEX,
            send_key: Zeroizing::new(KEY),
            receive_key: Zeroizing::new(KEY),
            initiator,
            birth: 0.0,
        };
        end.install_keypair(1, &keypair, 0.0, &mut Outbox::default());
        act(end)
    })
}

fn made() -> Transport {
    let made = Transport::new(&[7; 32], MTU, Box::new(|bytes| bytes.fill(9)), Box::new(|| 0));
    let everything = [Address::V4(0), Address::V6(0)].map(|address| Network { address, prefix: 0 });
    made.set_peer(1, Some(somewhere()), &everything, 0, 0.0, &mut Outbox::default());
    made
}

fn somewhere() -> Endpoint {
    SocketAddr::from(([192, 0, 2, 1], 51820)).into()
}

/// Delivers at once what is sent.
struct Wire<'a> {
    to: &'a Transport,
    inbound: Inbound,
    out: Outbox,
}

impl Sink for Wire<'_> {
    fn send(&mut self, message: &[u8], segment: usize, source: Endpoint, tos: u8) -> bool {
        let mut buffer = message.to_vec();
        self.inbound.clear();
        let given = Message { at: 0, size: buffer.len(), segment, source, tos };
        self.inbound.message(self.to, &mut buffer, given, 1.0, &mut self.out);
        merge(&buffer, &self.inbound);
        true
    }
}

/// Merge what was received as for a device. It must be possible to cut a superpacket again.
fn merge(buffer: &[u8], inbound: &Inbound) {
    let mut rest = inbound.packets();
    while !rest.is_empty() {
        let run = next_run(buffer, rest, Merge::ALL);
        let (mine, others) = rest.split_at(run.count);
        let mut frame = run.head().to_vec();
        mine.iter().for_each(|one| frame.extend_from_slice(&one.of(buffer)[run.skip..]));
        if run.count > 1 {
            let (vnet, packet) = frame.split_first_chunk::<VNET_SIZE>().expect("a head has one");
            let cut = Superpacket::examine(Vnet::decode(vnet), packet).expect("what was merged can be cut");
            assert_eq!(cut.count(), run.count);
        }
        rest = others;
    }
}
