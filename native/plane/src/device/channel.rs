//! A channel in place of an interface: whoever holds its other end reads and writes plain packets.
//!
//! Each queue of the device has a lane for the packets to seal. All queues share one lane for opened
//! packets, so its reader has one descriptor. Each packet is copied once into a lane; out of a lane
//! it comes as a [`Batch`] where it lies.

use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use transport::vnet::VNET_SIZE;

use super::batch::Batch;
use super::lane::{Closed, Lane, Limits, Writer};
use super::{Device, full};
use crate::descriptor::EventFd;

/// What a channel is, see [`Device::kind`].
const KIND: &str = "channel";
/// Packets that a queue takes out of its lane at once.
const AT_ONCE: usize = 256;

/// The end of a channel that isn't the plane's. Any thread may use it.
pub struct Channel {
    to_user: Lane,
    to_plane: Vec<Lane>,
    room: Arc<EventFd>,
    used: AtomicBool,
}

impl Channel {
    /// Make a channel for a device of `queues` queues. Each lane has these limits.
    pub fn new(queues: usize, limits: Limits) -> io::Result<Arc<Self>> {
        let room = Arc::new(EventFd::new()?);
        let to_plane = (0..queues).map(|_| Lane::new(limits, Arc::clone(&room))).collect::<io::Result<_>>()?;
        // Nobody waits for room in the lane that the plane writes to.
        let to_user = Lane::new(limits, Arc::new(EventFd::new()?))?;
        Ok(Arc::new(Self { to_user, to_plane, room, used: AtomicBool::new(false) }))
    }

    /// Return the queues of the device, for a plane. None if a plane has them already. The channel is
    /// closed when one of them is dropped.
    pub fn devices(self: &Arc<Self>) -> Option<Vec<Arc<dyn Device>>> {
        let queue = |lane| {
            let queue = ChannelQueue { channel: Arc::clone(self), lane, reading: Mutex::default() };
            Arc::new(queue) as Arc<dyn Device>
        };
        let used = self.used.swap(true, Ordering::Relaxed);
        (!used).then(|| (0..self.to_plane.len()).map(queue).collect())
    }

    /// Take packets that the plane has opened, at most `most`. None if none wait. After the end, what
    /// still waits comes first.
    pub fn read_batch(&self, most: usize) -> Result<Option<Batch>, Closed> {
        self.to_user.take(most)
    }

    /// Write packets for the plane to seal, each of at most [`transport::vnet::MAX_PACKET`] bytes, in this
    /// order. Return how many were taken: the first ones
    /// that there is room for. The packets of one pair of addresses go to one queue.
    pub fn write_batch<'a>(&self, packets: impl Iterator<Item = &'a [u8]>) -> Result<usize, Closed> {
        let mut writer: Option<(usize, Writer<'_>)> = None;
        let mut taken = 0;
        for packet in packets {
            let lane = if self.to_plane.len() == 1 { 0 } else { flow(packet) % self.to_plane.len() };
            if writer.as_ref().is_none_or(|(of, _)| *of != lane) {
                // One lock at a time: writers in two threads would wait for each other.
                drop(writer.take());
                match self.to_plane[lane].writer() {
                    Ok(begun) => writer = Some((lane, begun)),
                    Err(Closed) if taken > 0 => break,
                    Err(Closed) => return Err(Closed),
                }
            }
            let Some((_, writer)) = &mut writer else { break };
            if !writer.put(packet.len(), [packet].into_iter()) {
                writer.wait_for_room();
                break;
            }
            taken += 1;
        }
        Ok(taken)
    }

    /// Have [`Channel::fd`] become readable with the next packet. Return false if one waits.
    pub fn fall_asleep(&self) -> bool {
        self.to_user.fall_asleep()
    }

    /// Have [`Channel::fd`] be readable while packets wait, whatever the reader does.
    pub fn follow(&self) {
        self.to_user.follow();
    }

    /// Return the descriptor that is readable while packets wait for a reader that fell asleep.
    pub fn fd(&self) -> RawFd {
        self.to_user.fd()
    }

    /// Return the descriptor that is readable when there is room again after a write that wasn't
    /// taken wholly.
    pub fn room_fd(&self) -> RawFd {
        self.room.fd()
    }

    /// End it. What was written before still arrives at the other end.
    pub fn close(&self) {
        self.to_plane.iter().for_each(Lane::close);
        self.to_user.close();
    }

    /// Return whether either end has closed it.
    pub fn is_closed(&self) -> bool {
        self.to_user.is_closed()
    }
}

/// Return a number that all packets of one pair of addresses have.
fn flow(packet: &[u8]) -> usize {
    let addresses = match packet {
        [first, ..] if first >> 4 == 6 => packet.get(8..40),
        _ => packet.get(12..20),
    };
    let bytes = addresses.unwrap_or_default();
    bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)) as usize >> 8
}

/// One queue of a channel, for the plane.
struct ChannelQueue {
    channel: Arc<Channel>,
    lane: usize,
    /// What the reader has taken out of the lane and not yet read. Only he locks it.
    reading: Mutex<Option<Batch>>,
}

impl Device for ChannelQueue {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn fd(&self) -> RawFd {
        self.channel.to_plane[self.lane].fd()
    }

    fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(packet) = reading.as_mut().and_then(Batch::next) {
                let size = VNET_SIZE + packet.len();
                frame[..VNET_SIZE].fill(0);
                frame[VNET_SIZE..size].copy_from_slice(packet);
                return Ok(size);
            }
            *reading = match self.channel.to_plane[self.lane].take(AT_ONCE) {
                Ok(Some(batch)) => Some(batch),
                Ok(None) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(Closed) => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }

    fn write(&self, frame: &mut [IoSlice<'_>]) -> io::Result<()> {
        let pieces = || {
            let first = frame.first().and_then(|first| first.get(VNET_SIZE..));
            first.into_iter().chain(frame[1..].iter().map(|piece| &piece[..]))
        };
        match self.channel.to_user.put(pieces().map(<[u8]>::len).sum(), pieces()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(full()),
            Err(Closed) => Err(io::Error::from_raw_os_error(libc::EPIPE)),
        }
    }

    fn flush(&self) {
        self.channel.to_user.wake();
    }

    fn fall_asleep(&self) -> bool {
        self.channel.to_plane[self.lane].fall_asleep()
    }
}

impl Drop for ChannelQueue {
    fn drop(&mut self) {
        self.channel.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::descriptor::wait;
    use crate::device::contract::{FarEnd, HERE, THERE, check, packet};
    use crate::device::is_full;
    use crate::device::metered::Metered;

    const LIMITS: Limits = Limits { packets: 256, bytes: 1 << 20 };

    struct User(Arc<Channel>);

    impl FarEnd for User {
        fn send(&self, payloads: &[&[u8]]) {
            let packets: Vec<_> = payloads.iter().map(|payload| packet(HERE, THERE, payload)).collect();
            assert_eq!(self.0.write_batch(packets.iter().map(Vec::as_slice)), Ok(packets.len()));
        }

        fn receive(&self, count: usize) -> Vec<Vec<u8>> {
            let mut payloads = Vec::new();
            while payloads.len() < count {
                if let Some(batch) = self.0.read_batch(7).unwrap() {
                    payloads.extend(batch.places().map(|place| batch.bytes()[place][28..].to_vec()));
                } else if self.0.fall_asleep() {
                    assert_ne!(wait([(self.0.fd(), libc::POLLIN)], 5000).unwrap(), 0);
                }
            }
            payloads
        }

        fn close(&self) -> bool {
            self.0.close();
            true
        }
    }

    fn made(queues: usize, limits: Limits) -> (Vec<Arc<dyn Device>>, Arc<Channel>) {
        let channel = Channel::new(queues, limits).unwrap();
        (channel.devices().unwrap(), channel)
    }

    fn write(device: &dyn Device, payload: &[u8]) -> io::Result<()> {
        device.write(&mut [&[0; VNET_SIZE], payload].map(IoSlice::new))
    }

    #[test]
    fn it_keeps_the_contract_of_devices() {
        check(|| {
            let (mut devices, channel) = made(1, LIMITS);
            (devices.remove(0), User(channel))
        });
    }

    #[test]
    fn it_keeps_the_contract_while_its_calls_are_metered() {
        check(|| {
            let (mut devices, channel) = made(1, LIMITS);
            let metered = Metered::new(devices.remove(0), Arc::default());
            (Arc::new(metered) as Arc<dyn Device>, User(channel))
        });
    }

    #[test]
    fn a_frame_without_room_is_lost_and_the_reader_is_woken_at_half() {
        let (devices, channel) = made(1, Limits { packets: 4, bytes: 1 << 20 });
        assert!(channel.fall_asleep());
        let woken = || wait([(channel.fd(), libc::POLLIN)], 0).unwrap() != 0;
        write(&*devices[0], b"1").unwrap();
        write(&*devices[0], b"2").unwrap();
        assert!(!woken());
        write(&*devices[0], b"3").unwrap();
        assert!(woken());
        write(&*devices[0], b"4").unwrap();
        assert!(is_full(&write(&*devices[0], b"5").unwrap_err()));
        assert_eq!(channel.read_batch(9).unwrap().unwrap().bytes(), b"1234");
        write(&*devices[0], b"6").unwrap();
        assert_eq!(channel.read_batch(9).unwrap().unwrap().bytes(), b"6");
    }

    #[test]
    fn bytes_are_bounded_too_but_one_packet_always_has_room() {
        let (devices, channel) = made(1, Limits { packets: 100, bytes: 1000 });
        write(&*devices[0], &[1; 2000]).unwrap();
        assert!(is_full(&write(&*devices[0], b"2").unwrap_err()));
        assert_eq!(channel.read_batch(9).unwrap().unwrap().bytes().len(), 2000);
        assert_eq!(channel.write_batch([&[0; 600][..], &[0; 400], &[0; 1]].into_iter()), Ok(2));
    }

    #[test]
    fn a_writer_hears_of_room_once_half_of_it_is_there_again() {
        let (devices, channel) = made(1, Limits { packets: 4, bytes: 1 << 20 });
        let has_room = || wait([(channel.room_fd(), libc::POLLIN)], 0).unwrap() != 0;
        assert!(!has_room());
        let packets = [&b"a"[..]; 6];
        assert_eq!(channel.write_batch(packets.into_iter()), Ok(4));
        assert!(!has_room());
        // A queue takes all that waits, so it makes room at once.
        devices[0].read(&mut [0; 100]).unwrap();
        assert!(has_room());
        assert_eq!(channel.write_batch(packets.into_iter()), Ok(4));
        assert!(!has_room());
        assert_eq!(channel.write_batch(packets.into_iter()), Ok(0));
    }

    #[test]
    fn the_end_wakes_readers_and_writers() {
        for by_plane in [false, true] {
            let (devices, channel) = made(2, LIMITS);
            assert!(channel.fall_asleep());
            if by_plane {
                drop(devices)
            } else {
                channel.close()
            }
            let woken = wait([channel.fd(), channel.room_fd()].map(|fd| (fd, libc::POLLIN)), 0).unwrap();
            assert_eq!((woken, channel.is_closed()), (3, true));
            assert_eq!(channel.read_batch(1).err(), Some(Closed));
            assert_eq!(channel.write_batch([&b"x"[..]].into_iter()), Err(Closed));
        }
    }

    #[test]
    fn the_packets_of_two_addresses_stay_on_one_queue_and_others_are_spread() {
        let (devices, channel) = made(4, LIMITS);
        let flows: Vec<_> = (0..64).map(|host| packet(HERE, [10, 9, 1, host], b"x")).collect();
        let all = flows.iter().chain(&flows).chain(&flows);
        assert_eq!(channel.write_batch(all.map(Vec::as_slice)), Ok(192));
        let mut frame = [0; 100];
        let hosts = devices.iter().map(|device| {
            let mut hosts = Vec::new();
            while device.read(&mut frame).is_ok() {
                hosts.push(frame[VNET_SIZE + 19]);
            }
            hosts
        });
        let hosts: Vec<_> = hosts.collect();
        for queue in &hosts {
            assert!(queue.len() >= 3 * 4, "{hosts:?}");
            let (first, rest) = queue.split_at(queue.len() / 3);
            assert_eq!([first, first].concat(), rest);
        }
    }

    #[test]
    fn threads_at_both_ends_lose_nothing() {
        const PACKETS: u32 = 60_000;
        let (devices, channel) = made(1, Limits { packets: 16, bytes: 400 });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut next = 0;
                while next < PACKETS {
                    let batch: Vec<_> = (next..PACKETS.min(next + 1 + next % 23)).map(u32::to_be_bytes).collect();
                    let taken = channel.write_batch(batch.iter().map(|packet| &packet[..])).unwrap();
                    next += taken as u32;
                    if taken < batch.len() {
                        let room = wait([(channel.room_fd(), libc::POLLIN)], 10_000).unwrap();
                        assert_ne!(room, 0, "nobody told of the room for {next}");
                    }
                    if next % 97 == 0 {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
            });
            let mut frame = [0; VNET_SIZE + 4];
            for number in 0..PACKETS {
                while devices[0].read(&mut frame).is_err() {
                    if devices[0].fall_asleep() {
                        let woken = wait([(devices[0].fd(), libc::POLLIN)], 10_000).unwrap();
                        assert_ne!(woken, 0, "nobody woke the reader for {number}");
                    }
                }
                assert_eq!(frame[VNET_SIZE..], number.to_be_bytes());
            }
        });
    }
}
