//! The relay: takes connections, hands each to one of its threads, and reports those that ended.

use std::io;
use std::mem::take;
use std::os::fd::{OwnedFd, RawFd};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::connection::{Connection, Ended};
use crate::counters::{Counters, Statistics, count};
use crate::pipes::Allowance;
use crate::system::{EventFd, set_nonblocking};
use crate::worker::{Inbox, Shared, run};

/// How a relay is to work.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Threads for all connections.
    pub threads: usize,
    /// The most connections at once.
    pub connections: usize,
    /// The most pipes at once, of two descriptors each. Without one, bytes go through a buffer.
    pub pipes: usize,
    /// After how long without a byte a connection ends. None: never.
    pub idle: Option<Duration>,
}

/// A relay. It is closed when it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    inboxes: Vec<Arc<Inbox>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    connections: u64,
    /// The process that has the threads.
    process: u32,
}

impl Relay {
    /// Start the threads.
    ///
    /// # Errors
    /// The kernel refuses a descriptor or a thread.
    pub fn new(settings: &Settings) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            allowance: Allowance::new(settings.pipes),
            ended: Mutex::default(),
            has_ended: EventFd::new()?,
            stops: AtomicBool::new(false),
            idle: settings.idle,
        });
        let mut relay = Self {
            shared,
            inboxes: Vec::new(),
            threads: Mutex::default(),
            connections: settings.connections as u64,
            process: process::id(),
        };
        for number in 0..settings.threads.max(1) {
            let inbox = Arc::new(Inbox::new()?);
            relay.inboxes.push(Arc::clone(&inbox));
            let shared = Arc::clone(&relay.shared);
            let thread = Builder::new().name(format!("rg-relay-{number}")).spawn(move || run(&shared, &inbox))?;
            relay.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(relay)
    }

    /// Move bytes between two connected stream sockets from now on. Return the connection's number.
    ///
    /// The relay owns the sockets, also if it refuses them: then they are closed. `early` was read
    /// from the first before, and is written to the second before anything else.
    ///
    /// # Errors
    /// There are too many connections (EMFILE), counting those whose end nobody has read; or the
    /// relay is closed (ESHUTDOWN).
    pub fn add(&self, first: OwnedFd, second: OwnedFd, early: &[u8]) -> io::Result<u64> {
        let counters = &self.shared.counters;
        let unread = self.lock_ended().len() as u64;
        let enter = |active: u64| (active + unread < self.connections).then_some(active + 1);
        if counters.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).is_err() {
            count(&counters.refused, 1);
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let entered = self.hand_over([first, second], early);
        if entered.is_err() {
            counters.active.fetch_sub(1, Ordering::AcqRel);
        }
        entered
    }

    fn hand_over(&self, sockets: [OwnedFd; 2], early: &[u8]) -> io::Result<u64> {
        sockets.iter().try_for_each(set_nonblocking)?;
        // Held while the connection is handed over, so that `close` leaves none behind in an inbox.
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        let number = self.shared.counters.added.fetch_add(1, Ordering::Relaxed);
        let inbox = &self.inboxes[number as usize % self.inboxes.len()];
        let connection = Connection::new(number, sockets, early.into(), Instant::now());
        inbox.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        inbox.wake.set();
        Ok(number)
    }

    /// Return what was done so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.counters.read()
    }

    /// Return the descriptor that is readable while ended connections wait to be read.
    pub fn fd(&self) -> RawFd {
        self.shared.has_ended.fd()
    }

    /// Return the connections that ended since the last call.
    pub fn ended(&self) -> Vec<Ended> {
        self.shared.has_ended.clear();
        take(&mut *self.lock_ended())
    }

    fn lock_ended(&self) -> std::sync::MutexGuard<'_, Vec<Ended>> {
        self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Close all connections and end the threads. Connections that bytes wait in are reset. Does
    /// nothing in a forked child, which has none of the threads.
    pub fn close(&self) {
        if process::id() != self.process {
            return;
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.stops.store(true, Ordering::Release);
        for inbox in &self.inboxes {
            inbox.wake.set();
        }
        for thread in threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
        for inbox in &self.inboxes {
            let never_begun = take(&mut *inbox.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            self.shared.counters.active.fetch_sub(never_begun.len() as u64, Ordering::AcqRel);
            never_begun.iter().filter(|one| one.holds()).for_each(|one| one.reset());
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}
