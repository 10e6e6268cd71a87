//! A model of memif's rings: `native/memif/src/ring.rs` itself, with loom's atomics and memory. loom
//! runs each test in every order that the memory model permits, and fails if one of them lets two
//! threads touch a buffer at once, loses a packet or loses a wakeup.

#![cfg(test)]

#[path = "../../memif/src/ring.rs"]
mod ring;

mod sync {
    pub use loom::sync::atomic::{AtomicU16, Ordering, fence};
}

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use ring::{Descriptor, Received, Receiver, Role, Sender, Sent, Slots};
use sync::AtomicU16;

/// Slots of the ring.
const SIZE: u16 = 2;

/// A ring of one byte per buffer. loom watches every access to descriptors and buffers.
struct Shared {
    head: AtomicU16,
    tail: AtomicU16,
    flags: AtomicU16,
    descriptors: [UnsafeCell<Descriptor>; SIZE as usize],
    buffers: [UnsafeCell<u8>; SIZE as usize],
    bell: AtomicBool,
}

impl Shared {
    fn new() -> Arc<Self> {
        let empty = |_| UnsafeCell::new(Descriptor { flags: 0, region: 0, length: 1, offset: 0 });
        Arc::new(Self {
            head: AtomicU16::new(0),
            tail: AtomicU16::new(0),
            flags: AtomicU16::new(0),
            descriptors: [0, 1].map(empty),
            buffers: [0, 1].map(|_| UnsafeCell::new(0)),
            bell: AtomicBool::new(false),
        })
    }
}

#[derive(Clone)]
struct View(Arc<Shared>);

fn slot(index: u16) -> usize {
    usize::from(index % SIZE)
}

impl Slots for View {
    fn size(&self) -> u16 {
        SIZE
    }

    fn head(&self) -> &AtomicU16 {
        &self.0.head
    }

    fn tail(&self) -> &AtomicU16 {
        &self.0.tail
    }

    fn flags(&self) -> &AtomicU16 {
        &self.0.flags
    }

    fn get(&self, index: u16) -> Descriptor {
        // SAFETY: loom reports it if another thread writes at the same time.
        let read = self.0.descriptors[slot(index)].with(|place| unsafe { *place });
        Descriptor { offset: slot(index) as u32, ..read }
    }

    fn put(&self, index: u16, descriptor: Descriptor) {
        // SAFETY: as above.
        self.0.descriptors[slot(index)].with_mut(|place| unsafe { *place = descriptor });
    }

    fn holds(&self, _: Descriptor) -> bool {
        true
    }

    fn read(&self, buffer: Descriptor, _: usize, into: &mut [u8]) -> bool {
        // SAFETY: as above.
        into[0] = self.0.buffers[buffer.offset as usize].with(|place| unsafe { *place });
        true
    }

    fn write(&self, buffer: Descriptor, _: usize, from: &[u8]) -> bool {
        // SAFETY: as above.
        self.0.buffers[buffer.offset as usize].with_mut(|place| unsafe { *place = from[0] });
        true
    }
}

fn roles(c2s: bool) -> (Role, Role) {
    let client = Role::Client { region: 0, offset: 0, buffer: 1 };
    if c2s { (client, Role::Server) } else { (Role::Server, client) }
}

/// Send up to `count` packets in one direction while another thread receives. Which arrive, arrive
/// in order; which don't, found no room.
fn packets_cross(c2s: bool, count: u8) {
    loom::model(move || {
        let shared = Shared::new();
        let (sends, receives) = roles(c2s);
        let mut receiver = Receiver::new(View(Arc::clone(&shared)), receives);
        let mut sender = Sender::new(View(Arc::clone(&shared)), sends);
        let sent = thread::spawn(move || {
            let mut sent = Vec::new();
            for number in 1..=count {
                if sender.send(1, std::iter::once(&[number][..])) == Ok(Sent::Queued) {
                    sent.push(number);
                }
                sender.publish();
            }
            sent
        });
        let mut arrived = Vec::new();
        let mut take = |arrived: &mut Vec<u8>| {
            let mut frame = [0];
            while receiver.receive(&mut frame) == Ok(Received::Packet(1)) {
                arrived.push(frame[0]);
            }
            receiver.publish();
        };
        for _ in 0..2 {
            take(&mut arrived);
        }
        let sent = sent.join().unwrap();
        take(&mut arrived);
        assert_eq!(sent, arrived);
    });
}

#[test]
fn packets_cross_from_the_client_to_the_server() {
    packets_cross(true, 3);
}

#[test]
fn packets_cross_from_the_server_to_the_client() {
    packets_cross(false, 3);
}

/// A receiver that saw nothing after it asked for the bell is woken by whatever comes.
fn no_wakeup_is_lost(c2s: bool) {
    loom::model(move || {
        let shared = Shared::new();
        let (sends, receives) = roles(c2s);
        let mut receiver = Receiver::new(View(Arc::clone(&shared)), receives);
        receiver.mask();
        let mut sender = Sender::new(View(Arc::clone(&shared)), sends);
        let bell = Arc::clone(&shared);
        let sending = thread::spawn(move || {
            assert_eq!(sender.send(1, std::iter::once(&[1][..])), Ok(Sent::Queued));
            if sender.publish() {
                bell.bell.store(true, Ordering::Relaxed);
            }
        });
        receiver.unmask();
        let sleeps = receiver.has_packets() == Ok(false);
        sending.join().unwrap();
        assert!(!sleeps || shared.bell.load(Ordering::Relaxed), "it sleeps on with a packet in the ring");
    });
}

#[test]
fn no_wakeup_is_lost_at_the_server() {
    no_wakeup_is_lost(true);
}

#[test]
fn no_wakeup_is_lost_at_the_client() {
    no_wakeup_is_lost(false);
}
