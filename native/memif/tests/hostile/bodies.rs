//! What the other side may send or write: functions that take any bytes and check what may never
//! happen. `make test` drives them with random input, `make fuzz` by coverage.

use std::sync::Arc;

use memif::handshake::{Client, Server, Settings};
use memif::layout::ring_size;
use memif::memory::Memory;
use memif::message::{Message, Mode, SIZE};
use memif::ring::{Descriptor, Received, Receiver, Role, Sender, Slots};
use memif::slots::RegionSlots;

/// The size of the rings, as the exponent of 2.
const LOG2: u8 = 4;
const SLOTS: u32 = 1 << LOG2;
/// Bytes of the region with the ring and our buffers.
const REGION: usize = 16_384;
/// Bytes of a region that only the other side uses.
const FOREIGN: usize = 4096;
/// Our buffers.
const BUFFER: u32 = 256;
const BUFFERS_AT: u32 = 4096;

/// A message: whatever parses is written the same way again, but for bytes that have no meaning and
/// the last one of a text that fills its room.
pub fn message(input: &[u8]) {
    if let Ok(message) = Message::parse(input) {
        assert_eq!(input.len(), SIZE);
        let bytes = message.to_bytes();
        let again = Message::parse(&bytes);
        assert!(again.is_ok_and(|again| again.to_bytes() == bytes), "{message:?}");
    }
}

fn settings() -> Settings {
    Settings {
        id: 0,
        mode: Mode::Ip,
        secret: Vec::new(),
        program: b"test".into(),
        interface: b"wg0".into(),
        queues: 2,
        log2: LOG2,
        buffer: BUFFER,
    }
}

/// A conversation: the messages in `input`, for both roles. Descriptors come with none of them.
pub fn conversation(input: &[u8]) {
    let (mut client, mut server) = (Client::new(settings()), Server::new(settings()));
    let (mut client_goes_on, mut server_goes_on) = (true, true);
    for bytes in input.chunks(SIZE) {
        let mut whole = [0; SIZE];
        whole[..bytes.len()].copy_from_slice(bytes);
        let Ok(message) = Message::parse(&whole) else { continue };
        client_goes_on = client_goes_on && client.handle(message.clone(), None).is_ok();
        server_goes_on = server_goes_on && server.handle(message, None).is_ok_and(|step| step.link.is_none());
    }
}

/// Reads numbers from the input, zeros at its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_ne_bytes([self.byte(), self.byte()])
    }

    fn number(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }
}

/// A ring whose memory the other side changes between our calls, and how it wants. `input` is a list
/// of what happens.
pub fn ring(input: &[u8]) {
    let mut script = Script(input);
    let private = |size| Memory::private(size).expect("there is memory");
    let regions: Arc<[Memory]> = [private(REGION), private(FOREIGN)].into();
    let slots = || RegionSlots::new(&regions, 0, 0, LOG2).expect("the ring lies in the region");
    let (theirs, client) = (slots(), script.byte() % 2 == 0);
    let role = if client { Role::Client { region: 0, offset: BUFFERS_AT, buffer: BUFFER } } else { Role::Server };
    let sends = script.byte() % 2 == 0;
    let mut sender = Sender::new(slots(), role);
    let mut receiver = (!sends).then(|| Receiver::new(slots(), role));
    let mut frame = [0; 2048];
    while !script.0.is_empty() {
        let index = if client { theirs.tail() } else { theirs.head() };
        match script.byte() % 7 {
            0 => {
                let at = usize::from(script.word()) % REGION;
                // What goes beyond the region isn't written.
                let _ = regions[0].write(at, &script.number().to_ne_bytes());
            }
            1 => {
                let step = u16::from(script.byte() % 4);
                index.fetch_add(step, std::sync::atomic::Ordering::Relaxed);
            }
            2 => {
                let (flags, region) = (u16::from(script.byte() % 2), u16::from(script.byte() % 2));
                let (length, offset) = (u32::from(script.byte()) * 8, u32::from(script.word()) % 4096);
                theirs.put(script.word(), Descriptor { flags, region, length, offset });
            }
            3 => {
                let (flags, region) = (script.word(), script.word());
                let (length, offset) = (script.number(), script.number());
                theirs.put(script.word(), Descriptor { flags, region, length, offset });
            }
            4 => match &mut receiver {
                Some(receiver) => receiver.publish(),
                None => drop(sender.publish()),
            },
            _ => {
                let goes_on = if let Some(receiver) = &mut receiver {
                    let room = usize::from(script.word()) % frame.len();
                    let (head, body) = frame[..room].split_at_mut(room.min(14));
                    let least = head.len();
                    receiver.receive_behind(head, body).map(|got| match got {
                        Received::Packet(size) => assert!(size > least && size <= room),
                        Received::Empty | Received::Invalid | Received::TooLong => {}
                    })
                } else {
                    let size = usize::from(script.word()) % frame.len() + 1;
                    let half = frame[..size].split_at(size / 2);
                    sender.send(size, [half.0, half.1].into_iter()).map(drop)
                };
                if goes_on.is_err() {
                    break;
                }
            }
        }
    }
    if client {
        // The other side can't make us write outside our ring and our buffers.
        let mut foreign = [0; FOREIGN];
        assert!(regions[1].read(0, &mut foreign) && foreign.iter().all(|byte| *byte == 0));
    }
    assert!(ring_size(LOG2) < BUFFERS_AT as usize && BUFFERS_AT + SLOTS * BUFFER <= REGION as u32);
}
