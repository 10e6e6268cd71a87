//! Whatever strangers send: the input is a segment size in two bytes and a message.

#![no_main]

use libfuzzer_sys::fuzz_target;
use transport::contract::Outbox;
use transport::inbound::{Inbound, Message};

mod ends;

fuzz_target!(|input: &[u8]| {
    let Some((segment, message)) = input.split_first_chunk::<2>() else { return };
    let end = ends::end(false);
    let mut buffer = message.to_vec();
    let segment = usize::from(u16::from_le_bytes(*segment));
    let given = Message { at: 0, size: buffer.len(), segment, source: ends::somewhere() };
    let mut inbound = Inbound::default();
    inbound.message(&end, &mut buffer, given, 1.0, &mut Outbox::default());
    assert!(inbound.packets().is_empty(), "a stranger's packet was taken");
});
