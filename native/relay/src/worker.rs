//! A thread of a relay: it waits for its connections' sockets and moves their bytes.

use std::io;
use std::mem::take;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::{Connection, End, Ended, Next};
use crate::counters::{Counters, count};
use crate::direction::{COPIED_AT_ONCE, Tools};
use crate::pipes::{Allowance, Pipes};
use crate::system::{Epoll, EventFd, block_sigpipe};

/// The token of a worker's own descriptor. Those of connections are twice their place, plus the
/// side.
const WAKE: u64 = u64::MAX;
/// Events taken at once.
const EVENTS: usize = 256;
/// How often idle connections are looked for within the idle time.
const LOOKS: u32 = 4;

/// What all threads of a relay share.
pub struct Shared {
    pub counters: Counters,
    pub allowance: Allowance,
    pub ended: Mutex<Vec<Ended>>,
    pub has_ended: EventFd,
    pub stops: AtomicBool,
    pub idle: Option<Duration>,
}

/// How a thread gets its connections.
pub struct Inbox {
    pub wake: EventFd,
    pub waiting: Mutex<Vec<Connection>>,
    epoll: Epoll,
}

impl Inbox {
    pub fn new() -> io::Result<Self> {
        let (wake, epoll) = (EventFd::new()?, Epoll::new()?);
        epoll.add(wake.fd(), libc::EPOLLIN, WAKE)?;
        Ok(Self { wake, waiting: Mutex::default(), epoll })
    }
}

/// The connections of one thread.
struct Worker<'a> {
    shared: &'a Shared,
    epoll: &'a Epoll,
    tools: Tools<'a>,
    places: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Places of connections that have something to do at once.
    queue: Vec<usize>,
}

/// Move bytes until the relay stops, and then close all connections.
pub fn run(shared: &Shared, inbox: &Inbox) {
    block_sigpipe();
    let buffer = vec![0; COPIED_AT_ONCE].into_boxed_slice();
    let tools = Tools { pipes: Pipes::new(&shared.allowance), buffer, copied: 0 };
    let epoll = &inbox.epoll;
    let mut worker = Worker { shared, epoll, tools, places: Vec::new(), free: Vec::new(), queue: Vec::new() };
    let mut room = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    let interval = shared.idle.map(|idle| (idle / LOOKS).max(Duration::from_millis(1)));
    let mut looked = Instant::now();
    loop {
        let timeout = match interval {
            _ if !worker.queue.is_empty() => 0,
            Some(interval) => i32::try_from(interval.as_millis()).unwrap_or(i32::MAX),
            None => -1,
        };
        // The arguments are valid, so only an interruption is possible, which is none of ours.
        let events = epoll.wait(&mut room, timeout).expect("epoll_wait(2) failed");
        let mut is_woken = false;
        for event in events {
            match event.u64 {
                WAKE => is_woken = true,
                token => worker.heard(token, event.events),
            }
        }
        worker.turns();
        // After the turns: a place that one of the events was about isn't given away before.
        if is_woken {
            inbox.wake.clear();
            if shared.stops.load(Ordering::Acquire) {
                break;
            }
            for connection in take(&mut *inbox.waiting.lock().unwrap_or_else(PoisonError::into_inner)) {
                worker.add(connection);
            }
        }
        if let (Some(interval), Some(idle)) = (interval, shared.idle) {
            if looked.elapsed() >= interval {
                looked = Instant::now();
                worker.end_idle(looked, idle);
            }
        }
    }
    worker.close();
}

impl Worker<'_> {
    fn add(&mut self, connection: Connection) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let watched = [0, 1].into_iter().try_for_each(|side| {
            let token = 2 * place as u64 + side as u64;
            self.epoll.add(connection.sides[side].socket.as_raw_fd(), events, token)
        });
        self.places[place] = Some(connection);
        // The limit of watches, or no memory: the connection can't be served.
        if watched.is_err() {
            self.end(place, End::Reset);
        }
    }

    fn heard(&mut self, token: u64, events: u32) {
        let (place, side) = ((token / 2) as usize, (token % 2) as usize);
        let Some(connection) = self.places.get_mut(place).and_then(Option::as_mut) else { return };
        connection.heard(side, events);
        if !connection.is_queued {
            connection.is_queued = true;
            self.queue.push(place);
        }
    }

    /// Give each queued connection its turn.
    fn turns(&mut self) {
        for place in take(&mut self.queue) {
            let Some(connection) = self.places[place].as_mut() else { continue };
            let before = [connection.ways[0].moved, connection.ways[1].moved];
            let next = connection.turn(&mut self.tools);
            let moved = [connection.ways[0].moved - before[0], connection.ways[1].moved - before[1]];
            connection.is_queued = next == Next::Turn;
            if moved != [0, 0] {
                connection.active_at = Instant::now();
                for (counter, moved) in self.shared.counters.moved.iter().zip(moved) {
                    count(counter, moved);
                }
            }
            match next {
                Next::Wait => {}
                Next::Turn => self.queue.push(place),
                Next::End(end) => self.end(place, end),
            }
        }
        count(&self.shared.counters.copied, take(&mut self.tools.copied));
    }

    fn end_idle(&mut self, now: Instant, idle: Duration) {
        for place in 0..self.places.len() {
            let is_idle = |one: &Connection| now.duration_since(one.active_at) >= idle;
            if self.places[place].as_ref().is_some_and(is_idle) {
                self.end(place, End::Idle);
            }
        }
    }

    /// Close a connection and report its end.
    fn end(&mut self, place: usize, end: End) {
        let Some(connection) = self.places[place].take() else { return };
        self.free.push(place);
        let counters = &self.shared.counters;
        if end == End::Reset || connection.holds() {
            connection.reset();
        }
        match end {
            End::Finished => {}
            End::Reset => count(&counters.resets, 1),
            End::Idle => count(&counters.idle, 1),
        }
        let [forth, back] = [connection.ways[0].moved, connection.ways[1].moved];
        let ended = Ended { number: connection.number, end, forth, back };
        self.drop(connection);
        // In this order: a connection that has ended is counted by `active`, or waits to be read.
        self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
        counters.active.fetch_sub(1, Ordering::AcqRel);
        self.shared.has_ended.set();
    }

    fn drop(&mut self, mut connection: Connection) {
        connection.discard(&self.tools.pipes);
        for side in &connection.sides {
            self.epoll.remove(side.socket.as_raw_fd());
        }
    }

    /// Close all connections. Those that bytes wait in are reset: their streams have no end yet.
    fn close(&mut self) {
        for place in 0..self.places.len() {
            let Some(connection) = self.places[place].take() else { continue };
            if connection.holds() {
                connection.reset();
            }
            self.drop(connection);
            self.shared.counters.active.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
