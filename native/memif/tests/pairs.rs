//! A client and a server of ours on one socket: the conversation, and packets both ways.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use memif::handshake::{Client, Failure, Link, Server, Settings};
use memif::message::{AddRing, Message, Mode, SIZE};
use memif::ring::{Received, Sent};
use memif::socket::{self, receive, send};

#[path = "../../transport/tests/support/dice.rs"]
mod dice;

use dice::Dice;

fn pair() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two descriptors, which nothing else owns.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, fds.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

fn settings() -> Settings {
    Settings {
        id: 3,
        mode: Mode::Ip,
        secret: b"psst".into(),
        program: b"test".into(),
        interface: b"wg0".into(),
        queues: 2,
        log2: 4,
        buffer: 256,
    }
}

fn next(socket: &OwnedFd) -> (Message, Option<OwnedFd>) {
    match receive(socket.as_fd()).unwrap() {
        socket::Received::Message(message, descriptor) => (message, descriptor),
        other => panic!("{other:?}"),
    }
}

/// Hold the conversation. Return the connections of the client and the server.
fn converse(client: Settings, server: Settings) -> Result<(Link, Link), Failure> {
    let (at_client, at_server) = pair();
    let (mut client, mut server) = (Client::new(client), Server::new(server));
    send(at_server.as_fd(), &server.hello(), None).unwrap();
    let mut serving = None;
    loop {
        let (message, descriptor) = next(&at_client);
        let step = client.handle(message, descriptor)?;
        if let Some(link) = step.link {
            return Ok((link, serving.expect("the server was connected before")));
        }
        let (message, descriptor) = step.reply.expect("the client goes on");
        send(at_client.as_fd(), &message, descriptor.as_deref().map(AsFd::as_fd)).unwrap();
        let (message, descriptor) = next(&at_server);
        let step = server.handle(message, descriptor)?;
        let (message, _) = step.reply.expect("the server answers");
        send(at_server.as_fd(), &message, None).unwrap();
        serving = step.link.or(serving);
    }
}

#[test]
fn both_sides_agree_on_rings_and_names() {
    let one = Settings { queues: 1, ..settings() };
    for (client, server, rings) in [(settings(), settings(), 2), (settings(), one.clone(), 1), (one, settings(), 1)] {
        let (client, server) = converse(client, server).unwrap_or_else(|failure| panic!("{failure}"));
        for link in [&client, &server] {
            assert_eq!((link.outlets.len(), link.inlets.len()), (rings, rings));
            assert_eq!((&link.program[..], &link.interface[..]), (&b"test"[..], &b"wg0"[..]));
        }
    }
}

#[test]
fn another_id_mode_or_secret_is_refused() {
    let others = [
        (Settings { id: 4, ..settings() }, "id 4"),
        (Settings { mode: Mode::Ethernet, ..settings() }, "mode Ethernet"),
        (Settings { secret: b"psss".into(), ..settings() }, "secret"),
        (Settings { secret: Vec::new(), ..settings() }, "secret"),
    ];
    for (client, word) in others {
        let failure = converse(client, settings()).err().expect("the server refuses it").to_string();
        assert!(failure.contains(word), "{failure}");
    }
}

/// Send packets of random sizes one way until `total` have arrived, and compare.
fn stream(from: &mut Link, to: &mut Link, ring: usize, seed: u64, total: usize) {
    let mut dice = Dice(seed);
    let (outlet, inlet) = (&mut from.outlets[ring].ring, &mut to.inlets[ring].ring);
    let mut waiting = std::collections::VecDeque::new();
    let mut frame = [0; 4096];
    let mut arrived = 0;
    while arrived < total {
        for _ in 0..dice.below(12) {
            let packet: Vec<u8> = (0..=dice.below(1500)).map(|_| dice.next() as u8).collect();
            let (front, back) = packet.split_at(dice.below(packet.len()));
            match outlet.send(packet.len(), [front, back].into_iter()).unwrap() {
                Sent::Queued => waiting.push_back(packet),
                Sent::Full => break,
                Sent::TooLong => panic!("1,500 bytes fit"),
            }
        }
        outlet.publish();
        for _ in 0..dice.below(12) {
            // A head of up to three buffers. A packet that doesn't fill it is invalid.
            let head = dice.below(600);
            let (front, body) = frame.split_at_mut(head);
            match inlet.receive_behind(front, body).unwrap() {
                Received::Packet(size) => assert_eq!(waiting.pop_front().as_deref(), Some(&frame[..size])),
                Received::Invalid => assert!(waiting.pop_front().is_some_and(|packet| packet.len() <= head)),
                Received::Empty => break,
                other => panic!("{other:?}"),
            }
            arrived += 1;
        }
        inlet.publish();
    }
}

#[test]
fn packets_arrive_whole_and_in_order_both_ways_on_every_ring() {
    let (mut client, mut server) = converse(settings(), settings()).unwrap_or_else(|failure| panic!("{failure}"));
    for ring in [0, 1] {
        // More than 65,536 slots: the indices wrap.
        stream(&mut client, &mut server, ring, 1, 30_000);
        stream(&mut server, &mut client, ring, 2, 30_000);
    }
}

#[test]
fn a_packet_that_needs_too_many_buffers_is_left_out_and_the_next_one_goes() {
    let (mut client, mut server) =
        converse(Settings { log2: 8, ..settings() }, settings()).unwrap_or_else(|failure| panic!("{failure}"));
    for (from, to) in [(0, 1), (1, 0)] {
        let links = [&mut client, &mut server];
        let long = vec![7; 64 * 256 + 1];
        let outlet = &mut links[from].outlets[0].ring;
        assert_eq!(outlet.send(long.len(), [&long[..]].into_iter()), Ok(Sent::TooLong));
        assert_eq!(outlet.send(long.len() - 1, [&long[1..]].into_iter()), Ok(Sent::Queued));
        assert!(outlet.publish(), "nobody asked for silence");
        let mut frame = vec![0; 20_000];
        assert_eq!(links[to].inlets[0].ring.receive(&mut frame[..16_383]), Ok(Received::TooLong));
        let outlet = &mut links[from].outlets[0].ring;
        assert_eq!(outlet.send(5, [&b"hello"[..]].into_iter()), Ok(Sent::Queued));
        links[to].inlets[0].ring.mask();
        assert!(!links[from].outlets[0].ring.publish(), "the receiver looks by itself");
        assert_eq!(links[to].inlets[0].ring.receive(&mut frame), Ok(Received::Packet(5)));
    }
}

/// Let a server take one message more after INIT.
fn after_init(message: Message, descriptor: Option<OwnedFd>) -> Result<(), String> {
    let mut server = initiated();
    server.handle(message, descriptor).map(drop).map_err(|failure| failure.to_string())
}

/// Return a server that took INIT.
fn initiated() -> Server {
    let mut server = Server::new(settings());
    let init = memif::message::Init {
        version: memif::message::VERSION,
        id: 3,
        mode: Mode::Ip,
        secret: b"psst".into(),
        name: Vec::new(),
    };
    assert!(server.handle(Message::Init(init), None).is_ok());
    server
}

fn memfd(flags: libc::c_uint, size: i64, seals: libc::c_int) -> OwnedFd {
    // SAFETY: the name ends in a zero byte; the descriptor is new.
    unsafe {
        let fd = OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), flags));
        assert_eq!(libc::ftruncate(fd.as_raw_fd(), size), 0);
        if seals != 0 {
            assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals), 0, "{}", io::Error::last_os_error());
        }
        fd
    }
}

#[test]
fn a_region_that_could_fault_is_refused() {
    let region = Message::AddRegion { index: 0, size: 8192 };
    let sealable = libc::MFD_ALLOW_SEALING;
    assert_eq!(after_init(region.clone(), Some(memfd(sealable, 8192, libc::F_SEAL_SHRINK))), Ok(()));
    // It isn't sealed yet, and we may.
    let open = memfd(sealable, 8192, 0);
    assert_eq!(after_init(region.clone(), Some(open.try_clone().unwrap())), Ok(()));
    // SAFETY: the call takes its arguments by value.
    assert_eq!(unsafe { libc::ftruncate(open.as_raw_fd(), 0) }, -1);
    let refused = |message: &Message, descriptor| after_init(message.clone(), descriptor).unwrap_err();
    assert!(refused(&region, None).contains("without a descriptor"));
    assert!(refused(&region, Some(memfd(0, 8192, 0))).contains("can shrink"));
    assert!(refused(&region, Some(memfd(sealable, 8191, 0))).contains("8192 bytes"));
    let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    assert!(refused(&region, Some(file)).contains("memfd"));
    assert!(refused(&Message::AddRegion { index: 0, size: 0 }, Some(memfd(sealable, 8192, 0))).contains("0 bytes"));
    let huge = Message::AddRegion { index: 0, size: u64::MAX };
    assert!(refused(&huge, Some(memfd(sealable, 8192, 0))).contains("18446744073709551615 bytes"));
    let second = Message::AddRegion { index: 1, size: 8192 };
    assert!(refused(&second, Some(memfd(sealable, 8192, 0))).contains("another index"));
}

#[test]
fn regions_that_are_too_large_together_are_refused() {
    let (mut server, gib) = (initiated(), 1 << 30);
    let mut add = |index, size: i64| {
        let message = Message::AddRegion { index, size: size as u64 };
        server.handle(message, Some(memfd(libc::MFD_ALLOW_SEALING, size, 0))).map(drop)
    };
    assert!(add(0, gib).is_ok());
    assert!(add(1, 3 * gib).is_ok());
    assert!(add(2, 4096).unwrap_err().to_string().contains("4 GiB together"));
}

#[test]
fn a_ring_that_is_none_is_refused() {
    let place = AddRing { c2s: true, index: 0, region: 0, offset: 0, log2_ring_size: 4, private_header: 0 };
    let bell = || Some(eventfd());
    let refused = |place, bell| after_init(Message::AddRing(place), bell).unwrap_err();
    assert_eq!(after_init(Message::AddRing(place), bell()), Ok(()));
    assert!(refused(place, None).contains("without a descriptor"));
    assert!(refused(place, Some(pair().0)).contains("no eventfd"));
    assert!(refused(place, Some(memfd(0, 8, 0))).contains("no eventfd"));
    assert!(refused(AddRing { index: 1, ..place }, bell()).contains("another index"));
    assert!(refused(AddRing { log2_ring_size: 15, ..place }, bell()).contains("too large"));
    assert!(refused(AddRing { private_header: 8, ..place }, bell()).contains("private headers"));
}

fn eventfd() -> OwnedFd {
    // SAFETY: the descriptor is new.
    unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) }
}

#[test]
fn a_message_of_another_size_or_with_many_descriptors_is_no_message() {
    let (ours, theirs) = pair();
    let bytes = [0_u8; SIZE + 1];
    for size in [1, SIZE - 1, SIZE + 1] {
        // SAFETY: the pointer and the length are those of `bytes`.
        unsafe { libc::send(theirs.as_raw_fd(), bytes.as_ptr().cast(), size, 0) };
        let got = receive(ours.as_fd()).unwrap();
        assert!(matches!(got, socket::Received::Malformed(_)), "{got:?}");
    }
    assert_eq!(receive(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(theirs);
    assert!(matches!(receive(ours.as_fd()).unwrap(), socket::Received::Closed));
}
