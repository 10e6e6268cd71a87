//! What [`Device`] promises, as tests for every device that can be made here.
//!
//! A device's own tests make its two ends and call [`check`].

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport::vnet::{MAX_PACKET, NEEDS_CHECKSUM, VNET_SIZE};

use super::Device;
use crate::descriptor::wait;

/// The addresses of both ends: the plane's peer writes from the second to the first.
pub const HERE: [u8; 4] = [10, 9, 0, 1];
pub const THERE: [u8; 4] = [10, 9, 0, 2];
/// The ports of all packets.
pub const PORT: u16 = 7000;

/// What the plane is not: whoever has the other end of the device.
pub trait FarEnd {
    /// Have packets from HERE to THERE with these payloads come to the device.
    fn send(&self, payloads: &[&[u8]]);
    /// Return the payloads of `count` packets that the device was given, from THERE to HERE. Waits.
    fn receive(&self, count: usize) -> Vec<Vec<u8>>;
    /// End it, if it can end.
    fn close(&self) -> bool;
}

/// Return a UDP packet with its checksums.
pub fn packet(source: [u8; 4], target: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let size = (28 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, size[0], size[1], 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(source.iter().chain(&target));
    let header = checksum(&packet[..20], 0);
    packet[10..12].copy_from_slice(&header);
    let length = 8 + payload.len() as u16;
    packet.extend([PORT.to_be_bytes(), PORT.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat());
    packet.extend(payload);
    let pseudo: u32 =
        [source, target].concat().chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let udp = checksum(&packet[20..], pseudo + 17 + u32::from(length));
    packet[26..28].copy_from_slice(&udp);
    packet
}

fn checksum(bytes: &[u8], and: u32) -> [u8; 2] {
    let words = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)));
    let mut sum = words.sum::<u32>() + and;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Check everything that is promised, with ends that `make` makes.
pub fn check<F: FarEnd>(make: impl Fn() -> (Arc<dyn Device>, F)) {
    nothing_waits(&make());
    what_comes_is_read_in_order(&make());
    a_sleeper_is_woken_and_what_woke_him_is_used_up(&make());
    what_is_written_in_pieces_arrives_whole(&make());
    it_is_up_and_what_it_says_of_itself_fits(&make());
    threads_may_write_at_once(&make());
    after_the_end_what_came_is_read_first(&make());
    the_end_wakes_a_sleeper(&make());
}

/// Read one frame. Return its packet, or None if nothing waits.
fn read(device: &dyn Device) -> Option<Vec<u8>> {
    // What is left in it from before doesn't matter.
    let mut frame = vec![0xaa; VNET_SIZE + MAX_PACKET];
    match device.read(&mut frame) {
        Ok(size) => {
            let (header, packet) = frame[..size].split_at(VNET_SIZE);
            if device.has_vnet() {
                assert_eq!(header[0] & !NEEDS_CHECKSUM, 0, "{header:?}");
            } else {
                assert_eq!(header, [0; VNET_SIZE]);
            }
            Some(packet.to_vec())
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            None
        }
    }
}

/// Read `count` packets of the far end, and give their payloads. Waits as the plane's threads do.
fn payloads(device: &dyn Device, count: usize) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut found = Vec::new();
    while found.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} frames came", found.len());
        match read(device) {
            // A kernel also sends packets of its own, such as router solicitations.
            Some(packet) if packet.get(16..20) == Some(&THERE) => found.push(packet[28..].to_vec()),
            Some(_) => {}
            None if device.fall_asleep() => {
                wait([(device.fd(), libc::POLLIN)], 1000).unwrap();
            }
            None => {}
        }
    }
    found
}

fn settle(device: &dyn Device) {
    while read(device).is_some() {}
}

fn is_readable(device: &dyn Device) -> bool {
    wait([(device.fd(), libc::POLLIN)], 0).unwrap() != 0
}

fn nothing_waits<F: FarEnd>((device, _far): &(Arc<dyn Device>, F)) {
    settle(&**device);
    assert_eq!(read(&**device), None);
    assert!(device.fall_asleep());
    assert!(!is_readable(&**device));
    assert_eq!(read(&**device), None, "to fall asleep changes nothing");
}

fn what_comes_is_read_in_order<F: FarEnd>((device, far): &(Arc<dyn Device>, F)) {
    let sent: Vec<Vec<u8>> = (0..60).map(|number: u8| vec![number; usize::from(number) * 20]).collect();
    far.send(&sent.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(payloads(&**device, sent.len()), sent);
    assert_eq!(read(&**device), None);
}

fn a_sleeper_is_woken_and_what_woke_him_is_used_up<F: FarEnd>((device, far): &(Arc<dyn Device>, F)) {
    for round in 0..3 {
        settle(&**device);
        assert!(device.fall_asleep());
        assert!(!is_readable(&**device), "round {round}");
        far.send(&[b"one", b"two"]);
        assert_ne!(wait([(device.fd(), libc::POLLIN)], 5000).unwrap(), 0, "round {round}");
        assert_eq!(payloads(&**device, 2), [b"one", b"two"]);
    }
    far.send(&[b"before he sleeps"]);
    // Refused, or readable at once: either way he doesn't sleep.
    assert!(!device.fall_asleep() || wait([(device.fd(), libc::POLLIN)], 5000).unwrap() != 0);
    assert_eq!(payloads(&**device, 1), [b"before he sleeps"]);
}

fn what_is_written_in_pieces_arrives_whole<F: FarEnd>((device, far): &(Arc<dyn Device>, F)) {
    let sent: Vec<Vec<u8>> = (1..30_u8).map(|number| vec![number; usize::from(number) * 40]).collect();
    for payload in &sent {
        let mut packet = packet(THERE, HERE, payload);
        let (header, zeros) = packet.split_at(21);
        let (middle, end) = zeros.split_at(zeros.len() / 2);
        let head = [&[0; VNET_SIZE][..], header].concat();
        let mut frame = [&head[..], middle, &[], end].map(IoSlice::new);
        device.write(&mut frame).unwrap();
        // What was written isn't looked at any more.
        drop(head);
        packet.fill(0);
    }
    device.flush();
    assert_eq!(far.receive(sent.len()), sent);
    device.flush();
}

fn it_is_up_and_what_it_says_of_itself_fits<F: FarEnd>((device, _far): &(Arc<dyn Device>, F)) {
    assert!(device.is_up());
    let (fd, events) = device.up_fd();
    assert!(fd == -1 || wait([(fd, events)], 0).unwrap() != 0);
    assert!(device.kind().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    assert_eq!(device.fd(), device.fd());
}

fn threads_may_write_at_once<F: FarEnd>((device, far): &(Arc<dyn Device>, F)) {
    const EACH: u8 = 40;
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let device = &**device;
            scope.spawn(move || {
                for number in 0..EACH {
                    let packet = packet(THERE, HERE, &[thread, number]);
                    device.write(&mut [&[0; VNET_SIZE], &packet[..]].map(IoSlice::new)).unwrap();
                    device.flush();
                }
            });
        }
    });
    let mut next = [0; 3];
    for payload in far.receive(3 * usize::from(EACH)) {
        let [thread, number] = payload[..] else { panic!("{payload:?}") };
        assert_eq!(next[usize::from(thread)], number);
        next[usize::from(thread)] += 1;
    }
}

fn after_the_end_what_came_is_read_first<F: FarEnd>((device, far): &(Arc<dyn Device>, F)) {
    settle(&**device);
    far.send(&[b"one", b"two"]);
    if !far.close() {
        return;
    }
    assert!(!device.fall_asleep() || is_readable(&**device), "nobody sleeps through the end");
    assert_eq!(payloads(&**device, 2), [b"one", b"two"]);
    for _ in 0..2 {
        let error = device.read(&mut [0; VNET_SIZE + 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(!device.fall_asleep() || is_readable(&**device));
    }
    let packet = packet(THERE, HERE, b"late");
    assert!(device.write(&mut [&[0; VNET_SIZE], &packet[..]].map(IoSlice::new)).is_err());
}

fn the_end_wakes_a_sleeper<F: FarEnd>((device, far): &(Arc<dyn Device>, F)) {
    settle(&**device);
    assert!(device.fall_asleep());
    assert!(!far.close() || is_readable(&**device));
}
