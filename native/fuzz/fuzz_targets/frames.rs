//! Whatever the device gives goes out, comes in at the other end and is written to a device again: virtio_net_hdr,
//! superpackets, inner packets, merging. The input is frames, each behind its length in two bytes.

#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use transport::Transport;
use transport::coalesce::next_run;
use transport::contract::Outbox;
use transport::inbound::{Inbound, Message};
use transport::outbound::{Outbound, Send};
use transport::segment::Superpacket;
use transport::vnet::{VNET_SIZE, Vnet};

mod ends;

/// What is sent comes in at once.
struct Wire<'a> {
    to: &'a Transport,
    inbound: Inbound,
    out: Outbox,
}

impl Send for Wire<'_> {
    fn send(&mut self, message: &[u8], segment: usize, source: SocketAddr) {
        let mut buffer = message.to_vec();
        self.inbound.clear();
        let given = Message { at: 0, size: buffer.len(), segment, source };
        self.inbound.message(self.to, &mut buffer, given, 1.0, &mut self.out);
        let mut rest = self.inbound.packets();
        while !rest.is_empty() {
            let run = next_run(&buffer, rest, true);
            let (mine, others) = rest.split_at(run.count);
            let mut frame = run.head().to_vec();
            mine.iter().for_each(|one| frame.extend_from_slice(&buffer[one.at + run.skip..one.at + one.size]));
            if run.count > 1 {
                let (vnet, packet) = frame.split_first_chunk::<VNET_SIZE>().expect("a head has one");
                let cut = Superpacket::examine(Vnet::decode(vnet), packet).expect("what was merged can be cut");
                assert_eq!(cut.count(), run.count);
            }
            rest = others;
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let (alice, bob) = (ends::end(true), ends::end(false));
    let (mut outbound, mut out) = (Outbound::default(), Outbox::default());
    let mut wire = Wire { to: &bob, inbound: Inbound::default(), out: Outbox::default() };
    let mut rest = input;
    while let Some((size, others)) = rest.split_first_chunk::<2>() {
        let (frame, others) = others.split_at(others.len().min(usize::from(u16::from_le_bytes(*size))));
        outbound.frame(&alice, &mut frame.to_vec(), 1.0, &mut out, &mut wire);
        rest = others;
    }
    outbound.flush(&alice, 1.0, &mut out, &mut wire);
});
