//! The relay between real sockets: TCP on loopback, where a test is about resets, else a pair.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::{End, Ended, Relay, Settings, Statistics};

const SETTINGS: Settings = Settings { threads: 2, connections: 4096, pipes: 256, idle: None };
const PATIENCE: Duration = Duration::from_secs(20);

/// Two sockets that are connected by a relay: what a client and a server of it see.
fn pair(relay: &Relay, early: &[u8]) -> (UnixStream, UnixStream) {
    let ((client, first), (second, server)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    relay.add(first.into(), second.into(), early).unwrap();
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        end.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (client, server)
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    (one, other)
}

fn tcp_pair(relay: &Relay) -> (TcpStream, TcpStream) {
    let ((client, first), (server, second)) = (tcp(), tcp());
    relay.add(first.into(), second.into(), b"").unwrap();
    (client, server)
}

/// Close a socket with a reset.
fn reset(socket: TcpStream) {
    let socket = OwnedFd::from(socket);
    crate::system::reset_at_close(&socket);
}

/// Raise the limit of open files to the hard limit: connections here have four.
fn allow_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes `limit`, and then reads it.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}

/// Write until nothing more is taken for a while.
fn fill(mut socket: &TcpStream) {
    socket.set_nonblocking(true).unwrap();
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(100) {
        match socket.write(&[0; 1 << 16]) {
            Ok(count) => {
                assert!(count > 0);
                last = Instant::now();
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Wait for one connection to end.
fn the_end(relay: &Relay) -> Ended {
    let mut found = Vec::new();
    until("no connection ended", || {
        found.extend(relay.ended());
        !found.is_empty()
    });
    assert_eq!(found.len(), 1);
    found[0]
}

/// Return so many bytes that no two pieces of them are alike.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(step).collect()
}

fn read_all(mut from: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn early_bytes_come_first_and_then_bytes_both_ways() {
    let relay = Relay::new(&SETTINGS).unwrap();
    let (mut client, mut server) = pair(&relay, b"early ");
    client.write_all(b"and later").unwrap();
    let mut read = [0; 15];
    server.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"early and later");
    server.write_all(b"back").unwrap();
    client.read_exact(&mut read[..4]).unwrap();
    assert_eq!(&read[..4], b"back");
    drop((client, server));
    assert_eq!(the_end(&relay), Ended { number: 0, end: End::Finished, forth: 15, back: 4 });
}

#[test]
fn the_end_of_a_stream_is_passed_on_while_the_other_goes_on() {
    let relay = Relay::new(&SETTINGS).unwrap();
    for client_ends_first in [true, false] {
        let (client, server) = tcp_pair(&relay);
        let (mut first, mut other) = if client_ends_first { (client, server) } else { (server, client) };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&other), b"question");
        other.write_all(b"answer").unwrap();
        assert!(relay.ended().is_empty());
        other.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&first), b"answer");
        assert_eq!(the_end(&relay).end, End::Finished);
    }
    assert_eq!(relay.statistics().resets, 0);
}

#[test]
fn a_reset_is_passed_on_behind_the_bytes_before_it() {
    let relay = Relay::new(&SETTINGS).unwrap();
    for client_resets in [true, false] {
        let (client, server) = tcp_pair(&relay);
        let (mut one, mut other) = if client_resets { (client, server) } else { (server, client) };
        one.write_all(b"before").unwrap();
        let mut read = [0; 6];
        other.read_exact(&mut read).unwrap();
        reset(one);
        assert_eq!(other.read(&mut read).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(the_end(&relay).end, End::Reset);
    }
    assert_eq!(relay.statistics().resets, 2);
}

#[test]
fn a_reset_is_seen_on_a_side_whose_stream_has_ended() {
    let relay = Relay::new(&SETTINGS).unwrap();
    let (mut client, server) = tcp_pair(&relay);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    reset(server);
    assert_eq!(the_end(&relay).end, End::Reset);
    until("the client isn't told", || client.write(b"x").is_err());
}

#[test]
fn what_a_side_sent_before_it_was_lost_arrives() {
    let relay = Relay::new(&SETTINGS).unwrap();
    let (mut client, mut server) = tcp_pair(&relay);
    // The server answers, and closes with a request unread: its kernel resets the connection.
    client.write_all(&noise(100_000)).unwrap();
    server.read_exact(&mut [0; 10]).unwrap();
    server.write_all(b"too long").unwrap();
    drop(server);
    let mut read = [0; 8];
    client.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"too long");
    assert_eq!(the_end(&relay).end, End::Reset);
}

#[test]
fn a_reset_reaches_a_side_whose_bytes_still_wait() {
    let relay = Relay::new(&SETTINGS).unwrap();
    let (client, server) = tcp_pair(&relay);
    fill(&client);
    reset(server);
    assert_eq!(the_end(&relay).end, End::Reset);
    assert_eq!((&client).write(b"more").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_connection_outlives_a_lost_side_until_its_bytes_are_read() {
    let relay = Relay::new(&SETTINGS).unwrap();
    let (client, server) = tcp_pair(&relay);
    fill(&client);
    fill(&server);
    reset(server);
    thread::sleep(Duration::from_millis(200));
    assert!(relay.ended().is_empty());
    client.set_nonblocking(false).unwrap();
    assert_eq!(io::copy(&mut &client, &mut io::sink()).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(the_end(&relay).end, End::Reset);
}

fn many_bytes_arrive(settings: &Settings) -> Statistics {
    const COUNT: usize = 16 << 20;
    let relay = Relay::new(settings).unwrap();
    let (client, server) = tcp_pair(&relay);
    let sent = noise(COUNT);
    thread::scope(|scope| {
        for mut end in [&client, &server] {
            let sent = &sent;
            scope.spawn(move || {
                end.write_all(sent).unwrap();
                end.shutdown(Shutdown::Write).unwrap();
            });
        }
        let there = scope.spawn(|| read_all(&server));
        // `assert_eq` would print both.
        assert!(read_all(&client) == sent);
        assert!(there.join().unwrap() == sent);
    });
    let ended = the_end(&relay);
    assert_eq!((ended.end, ended.forth, ended.back), (End::Finished, COUNT as u64, COUNT as u64));
    relay.statistics()
}

#[test]
fn many_bytes_arrive_unchanged_by_pipes() {
    assert_eq!(many_bytes_arrive(&SETTINGS).copied, 0);
}

#[test]
fn without_pipes_they_arrive_by_a_buffer() {
    let statistics = many_bytes_arrive(&Settings { pipes: 0, ..SETTINGS });
    assert_eq!(statistics.copied, statistics.forth + statistics.back);
}

#[test]
fn a_slow_reader_stops_its_writer() {
    for pipes in [256, 0] {
        let relay = Relay::new(&Settings { pipes, ..SETTINGS }).unwrap();
        let (client, mut server) = pair(&relay, b"");
        client.set_nonblocking(true).unwrap();
        let block = noise(1 << 16);
        let mut sent = 0;
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(200) {
            match (&client).write(&block) {
                Ok(count) => {
                    sent += count;
                    last = Instant::now();
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
            assert!(sent < 8 << 20, "nobody reads, and still it takes more");
        }
        // It goes on once the reader does.
        client.shutdown(Shutdown::Write).unwrap();
        let mut read = 0;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = server.read(&mut buffer) {
            read += count;
        }
        assert_eq!(read, sent);
    }
}

#[test]
fn one_that_never_reads_does_not_stop_the_others() {
    let relay = Relay::new(&Settings { threads: 1, ..SETTINGS }).unwrap();
    let (stuck, _silent) = pair(&relay, b"");
    stuck.set_nonblocking(true).unwrap();
    while (&stuck).write(&[0; 1 << 16]).is_ok() {}
    let (mut client, mut server) = pair(&relay, b"");
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn an_idle_connection_ends_and_a_busy_one_does_not() {
    let relay = Relay::new(&Settings { idle: Some(Duration::from_millis(300)), ..SETTINGS }).unwrap();
    let (mut quiet, _other) = pair(&relay, b"");
    let (mut busy, mut echo) = pair(&relay, b"");
    let start = Instant::now();
    let mut ended = Vec::new();
    while start.elapsed() < Duration::from_millis(900) {
        busy.write_all(b"x").unwrap();
        echo.read_exact(&mut [0]).unwrap();
        ended.extend(relay.ended());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ended.iter().map(|one| (one.number, one.end)).collect::<Vec<_>>(), [(0, End::Idle)]);
    assert_eq!(quiet.read(&mut [0]).unwrap(), 0);
    assert_eq!(relay.statistics().idle, 1);
}

#[test]
fn no_more_connections_than_asked_for_and_refused_ones_are_closed() {
    let relay = Relay::new(&Settings { connections: 2, ..SETTINGS }).unwrap();
    let (first, _) = pair(&relay, b"");
    let _second = pair(&relay, b"");
    let refused = || {
        let ((mut client, one), (two, _server)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let error = relay.add(one.into(), two.into(), b"").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    };
    refused();
    // An end that nobody has read still takes a place, so that the list of ends is bounded.
    drop(first);
    until("it never ends", || relay.statistics().active == 1);
    refused();
    assert_eq!(relay.ended().len(), 1);
    let _third = pair(&relay, b"");
    assert_eq!(relay.statistics().refused, 2);
}

#[test]
fn the_descriptor_is_readable_while_an_end_waits() {
    let relay = Relay::new(&SETTINGS).unwrap();
    let readable = |timeout| {
        let mut polled = libc::pollfd { fd: relay.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the kernel writes into `polled`, which is one.
        unsafe { libc::poll(&raw mut polled, 1, timeout) == 1 }
    };
    let (client, server) = pair(&relay, b"");
    assert!(!readable(0));
    drop((client, server));
    assert!(readable(PATIENCE.as_millis() as libc::c_int));
    assert_eq!(relay.ended().len(), 1);
    assert!(!readable(0));
}

#[test]
fn closing_ends_every_connection_and_resets_those_that_bytes_wait_in() {
    let relay = Relay::new(&SETTINGS).unwrap();
    let (mut quiet, _other) = tcp_pair(&relay);
    let (full, mut silent) = tcp_pair(&relay);
    fill(&full);
    relay.close();
    relay.close();
    assert_eq!(quiet.read(&mut [0]).unwrap(), 0);
    let error = io::copy(&mut silent, &mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(relay.statistics().active, 0);
    let ((_client, one), (two, _server)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    assert_eq!(relay.add(one.into(), two.into(), b"").unwrap_err().raw_os_error(), Some(libc::ESHUTDOWN));
}

#[test]
fn a_thousand_connections_at_once() {
    allow_files();
    let relay = Relay::new(&SETTINGS).unwrap();
    let mut all: Vec<_> = (0..1000).map(|_| pair(&relay, b"")).collect();
    assert_eq!(relay.statistics().active, 1000);
    for (number, (client, _)) in all.iter_mut().enumerate() {
        client.write_all(&number.to_be_bytes()).unwrap();
    }
    for (number, (_, server)) in all.iter_mut().enumerate() {
        let mut read = [0; 8];
        server.read_exact(&mut read).unwrap();
        assert_eq!(usize::from_be_bytes(read), number);
    }
    drop(all);
    until("some never end", || relay.statistics().active == 0);
    assert_eq!(relay.ended().iter().filter(|one| one.end == End::Finished).count(), 1000);
}
