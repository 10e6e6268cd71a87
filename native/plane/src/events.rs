//! Events from the plane's threads to Python: a bounded queue behind a descriptor.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use transport::contract::{Event, Seconds};
use transport::drops::DropReason;
use transport::gate::HANDSHAKE_QUEUE;

use crate::descriptor::{EventFd, now};
use crate::foreign::ForeignPace;

/// Enrollment datagrams that may wait for Python.
const FOREIGN_QUEUE: usize = 1024;
/// Events of all kinds that may wait for Python.
const EVENT_QUEUE: usize = 65536;
/// Events taken at once. Python handles them before it takes more, and the gate sees how many still
/// wait.
const EVENTS_AT_ONCE: usize = 32;

/// The queue of events.
pub struct Events {
    ready: EventFd,
    waiting: Mutex<Waiting>,
    /// Shared with the gate, which reads it while it holds other locks.
    handshakes: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Event>,
    foreign: usize,
    pace: ForeignPace,
}

impl Waiting {
    /// Return an error unless there is room for an enrollment datagram.
    fn admit_foreign(&mut self, datagram: &[u8], now: Seconds) -> Result<(), DropReason> {
        if self.foreign >= FOREIGN_QUEUE {
            return Err(DropReason::ForeignQueue);
        }
        if !self.pace.admit(datagram, now) {
            return Err(DropReason::ForeignRate);
        }
        self.foreign += 1;
        Ok(())
    }
}

impl Events {
    /// Make an empty queue. `handshakes` always has the number of handshake datagrams in the queue.
    pub fn new(handshakes: Arc<AtomicUsize>) -> io::Result<Self> {
        Ok(Self { ready: EventFd::new()?, waiting: Mutex::default(), handshakes })
    }

    /// Return the descriptor that is readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.ready.fd()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queue an event, or return why it is dropped: too many of its kind wait. Faults always have
    /// room.
    pub fn put(&self, event: Event) -> Result<(), DropReason> {
        let mut waiting = self.lock();
        match event {
            Event::HandshakeReceived(..) => {
                if self.handshakes.load(Ordering::Relaxed) >= HANDSHAKE_QUEUE {
                    return Err(DropReason::HandshakeQueue);
                }
                self.handshakes.fetch_add(1, Ordering::Relaxed);
            }
            Event::ForeignReceived(ref datagram, _) => waiting.admit_foreign(datagram, now())?,
            Event::Fault { .. } => {}
            _ if waiting.events.len() >= EVENT_QUEUE => return Err(DropReason::EventQueue),
            _ => {}
        }
        if waiting.events.is_empty() {
            self.ready.set();
        }
        waiting.events.push_back(event);
        Ok(())
    }

    /// Take the next events. The descriptor stays readable if there are more.
    pub fn take(&self) -> Vec<Event> {
        let mut waiting = self.lock();
        let count = waiting.events.len().min(EVENTS_AT_ONCE);
        let taken: Vec<Event> = waiting.events.drain(..count).collect();
        for event in &taken {
            match event {
                Event::HandshakeReceived(..) => _ = self.handshakes.fetch_sub(1, Ordering::Relaxed),
                Event::ForeignReceived(..) => waiting.foreign -= 1,
                _ => {}
            }
        }
        if waiting.events.is_empty() {
            self.ready.clear();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::wait;
    use transport::contract::{Endpoint, Reason};

    fn somewhere() -> Endpoint {
        std::net::SocketAddr::from(([192, 0, 2, 1], 1)).into()
    }

    fn handshake() -> Event {
        Event::HandshakeReceived(Box::new([1]), somewhere())
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_events_wait() {
        let events = Events::new(Arc::default()).unwrap();
        let readable = || wait([(events.fd(), libc::POLLIN)], 0).unwrap() == 1;
        assert!(!readable());
        for peer in 0..EVENTS_AT_ONCE as u64 + 1 {
            events.put(Event::HandshakeWanted(peer, Reason::Rekey)).unwrap();
        }
        assert!(readable());
        assert_eq!(events.take().len(), EVENTS_AT_ONCE);
        assert!(readable());
        assert_eq!(events.take(), [Event::HandshakeWanted(EVENTS_AT_ONCE as u64, Reason::Rekey)]);
        assert!(!readable());
        assert!(events.take().is_empty());
    }

    #[test]
    fn threads_lose_no_event_and_keep_each_ones_order() {
        const EACH: u32 = 2_000;
        let events = Events::new(Arc::default()).unwrap();
        let mut next = [0; 3];
        std::thread::scope(|scope| {
            for peer in 0..next.len() as u64 {
                let events = &events;
                scope.spawn(move || (0..EACH).for_each(|n| events.put(Event::KeypairConfirmed(peer, n)).unwrap()));
            }
            while next != [EACH; 3] {
                wait([(events.fd(), libc::POLLIN)], -1).unwrap();
                for event in events.take() {
                    let Event::KeypairConfirmed(peer, n) = event else { panic!("{event:?}") };
                    assert_eq!(n, next[peer as usize]);
                    next[peer as usize] += 1;
                }
            }
        });
        assert!(events.take().is_empty());
    }

    #[test]
    fn enrollment_is_bounded_in_rate_and_in_number() {
        let mut waiting = Waiting::default();
        let mut admit = |now: Seconds| waiting.admit_foreign(b"RGE2\x01", now);
        assert_eq!((0..FOREIGN_QUEUE).filter(|_| admit(100.0).is_ok()).count(), FOREIGN_QUEUE);
        assert_eq!(admit(200.0), Err(DropReason::ForeignQueue));
        // Python takes each at once, so only the pace limits them.
        let refused = (0..100_000).find_map(|_| {
            waiting.foreign = 0;
            waiting.admit_foreign(b"RGE2\x01", 200.0).err()
        });
        assert_eq!(refused, Some(DropReason::ForeignRate));
    }

    #[test]
    fn each_kind_is_bounded_and_a_fault_still_gets_through() {
        let handshakes = Arc::default();
        let events = Events::new(Arc::clone(&handshakes)).unwrap();
        let foreign = || Event::ForeignReceived(Box::new([1]), somewhere());
        let put = |make: &dyn Fn() -> Event, count: usize| (0..count).filter(|_| events.put(make()).is_ok()).count();
        assert_eq!(put(&handshake, HANDSHAKE_QUEUE + 5), HANDSHAKE_QUEUE);
        assert_eq!(put(&foreign, 2 * FOREIGN_QUEUE), FOREIGN_QUEUE);
        assert_eq!(events.put(foreign()), Err(DropReason::ForeignQueue));
        let room = EVENT_QUEUE - HANDSHAKE_QUEUE - FOREIGN_QUEUE;
        assert_eq!(put(&|| Event::KeypairConfirmed(1, 1), EVENT_QUEUE), room);
        assert!(events.put(Event::Fault { message: String::new(), fatal: true }).is_ok());
        assert_eq!(events.take().len(), EVENTS_AT_ONCE);
        assert_eq!(handshakes.load(Ordering::Relaxed), HANDSHAKE_QUEUE - EVENTS_AT_ONCE);
        assert_eq!(put(&handshake, 100), EVENTS_AT_ONCE);
    }
}
