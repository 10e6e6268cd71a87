//! Events from the plane's threads to Python: bounded lanes behind a descriptor.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use transport::contract::Event;
use transport::drops::DropReason;
use transport::event_queue::EventQueue;

use crate::descriptor::EventFd;

/// The events that wait.
pub struct Events {
    ready: EventFd,
    waiting: Mutex<EventQueue>,
    /// Shared with the gate, which reads it while it holds other locks.
    handshakes: Arc<AtomicUsize>,
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

    fn lock(&self) -> MutexGuard<'_, EventQueue> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queue an event, or return why it is dropped. See [`EventQueue::put`].
    pub fn put(&self, event: Event) -> Result<(), DropReason> {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        waiting.put(event)?;
        self.handshakes.store(waiting.handshakes(), Ordering::Relaxed);
        if was_empty {
            self.ready.set();
        }
        Ok(())
    }

    /// Take the next events. The descriptor stays readable if there are more.
    pub fn take(&self) -> Vec<Event> {
        let mut waiting = self.lock();
        let taken = waiting.take();
        self.handshakes.store(waiting.handshakes(), Ordering::Relaxed);
        if waiting.is_empty() {
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
    use transport::event_queue::{EVENTS_AT_ONCE, FOREIGN_QUEUE};
    use transport::gate::HANDSHAKE_QUEUE;

    fn somewhere() -> Endpoint {
        std::net::SocketAddr::from(([192, 0, 2, 1], 1)).into()
    }

    fn handshake(number: u32) -> Event {
        let datagram = Box::new(number.to_le_bytes());
        Event::HandshakeReceived { datagram, source: somewhere(), proven: false }
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
        const EACH: u32 = 1_300;
        let events = Events::new(Arc::default()).unwrap();
        let mut next = [0; 3];
        std::thread::scope(|scope| {
            for thread in 0..next.len() as u32 {
                let events = &events;
                scope.spawn(move || (0..EACH).for_each(|n| events.put(handshake(n << 2 | thread)).unwrap()));
            }
            while next != [EACH; 3] {
                wait([(events.fd(), libc::POLLIN)], -1).unwrap();
                for event in events.take() {
                    let Event::HandshakeReceived { datagram, .. } = event else { panic!("{event:?}") };
                    let number = u32::from_le_bytes((*datagram).try_into().unwrap());
                    let thread = (number & 3) as usize;
                    assert_eq!(number >> 2, next[thread]);
                    next[thread] += 1;
                }
            }
        });
        assert!(events.take().is_empty());
    }

    #[test]
    fn each_kind_is_bounded_and_a_fault_still_gets_through() {
        let handshakes = Arc::default();
        let events = Events::new(Arc::clone(&handshakes)).unwrap();
        let foreign = || Event::ForeignReceived(Box::new([1]), somewhere());
        let put = |make: &dyn Fn() -> Event, count: usize| (0..count).filter(|_| events.put(make()).is_ok()).count();
        assert_eq!(put(&|| handshake(1), HANDSHAKE_QUEUE + 5), HANDSHAKE_QUEUE);
        assert_eq!(put(&foreign, 2 * FOREIGN_QUEUE), FOREIGN_QUEUE);
        assert_eq!(events.put(foreign()), Err(DropReason::ForeignQueue));
        assert_eq!(put(&|| Event::KeypairConfirmed(1, 1), 100), 100);
        let fault = Event::Fault { message: String::new(), fatal: true };
        assert!(events.put(fault.clone()).is_ok());
        let taken = events.take();
        assert_eq!((taken.len(), &taken[0]), (EVENTS_AT_ONCE, &fault));
        assert_eq!(taken.iter().filter(|one| matches!(one, Event::KeypairConfirmed(..))).count(), 1);
        let handed = taken.iter().filter(|one| matches!(one, Event::HandshakeReceived { .. })).count();
        assert_eq!(handshakes.load(Ordering::Relaxed), HANDSHAKE_QUEUE - handed);
        assert_eq!(put(&|| handshake(1), 100), handed);
    }
}
