//! Whether datagrams may leave from the address at which their peer was heard, as the kernel's
//! WireGuard decides it: only while the route from that address leads over the interface at which
//! the peer was heard. So a better route over another interface is taken at once, with that
//! interface's address. A router that filters by source would drop the old one.
//!
//! Each answer is kept until links, addresses, routes or rules change.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use transport::contract::Endpoint;

use crate::netlink::{Leaves, Netlink};

// Groups of linux/rtnetlink.h: links, addresses, routes and rules of both families, next hops. When
// a link goes down, the kernel reports the link, but not the routes that go with it.
const GROUPS: [u32; 8] = [1, 5, 9, 7, 11, 8, 19, 32];
/// Answers kept.
const MOST: usize = 16_384;

/// No two states of any plane have the same number.
static NEXT: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The last answer of this thread, and the state of the routes that it is of.
    static LAST: Cell<Option<(u64, Endpoint, bool)>> = const { Cell::new(None) };
}

/// The answers so far.
pub struct Sources {
    known: Mutex<Known>,
    /// The number of the state of the routes.
    state: AtomicU64,
    news: RawFd,
}

struct Known {
    netlink: Netlink,
    mark: u32,
    answers: HashMap<Endpoint, bool>,
}

impl Sources {
    /// Follow the routes of datagrams with this mark.
    pub fn open(mark: u32) -> io::Result<Self> {
        let netlink = Netlink::open(&GROUPS)?;
        let (news, answers) = (netlink.fd(), HashMap::new());
        let state = AtomicU64::new(NEXT.fetch_add(1, Ordering::Relaxed));
        Ok(Self { known: Mutex::new(Known { netlink, mark, answers }), state, news })
    }

    /// Return the descriptor that is readable when something changed: call [`Self::renew`] then.
    pub fn fd(&self) -> RawFd {
        self.news
    }

    /// Forget all answers, because something changed.
    pub fn renew(&self) {
        let mut known = self.known();
        known.netlink.skip_news();
        self.forget(&mut known);
    }

    /// Ask for datagrams with another mark from now on.
    pub fn set_mark(&self, mark: u32) {
        let mut known = self.known();
        known.mark = mark;
        self.forget(&mut known);
    }

    /// Return the endpoint to send to: without its local address if that must not be used.
    pub fn usable(&self, endpoint: Endpoint) -> Endpoint {
        let scoped = matches!(endpoint.remote, SocketAddr::V6(v6) if v6.scope_id() != 0);
        // A link-local peer is on one link, and what came from nowhere is not asked for.
        if endpoint.local.is_none() || endpoint.interface == 0 || scoped || self.permits(endpoint) {
            endpoint
        } else {
            endpoint.plain()
        }
    }

    fn permits(&self, endpoint: Endpoint) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if let Some((of, last, answer)) = LAST.get() {
            if of == state && last == endpoint {
                return answer;
            }
        }
        let mut known = self.known();
        // Others wait for the lock until they change it.
        let state = self.state.load(Ordering::Acquire);
        let answer = known.answer(endpoint);
        LAST.set(Some((state, endpoint, answer)));
        answer
    }

    fn forget(&self, known: &mut Known) {
        known.answers.clear();
        self.state.store(NEXT.fetch_add(1, Ordering::Relaxed), Ordering::Release);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn answer(&mut self, endpoint: Endpoint) -> bool {
        if let Some(answer) = self.answers.get(&endpoint) {
            return *answer;
        }
        let Some(local) = endpoint.local else { return true };
        let answer = match self.netlink.leaves(endpoint.remote.ip(), local, self.mark) {
            Ok(Leaves::By(interface)) => interface == endpoint.interface,
            // The address isn't ours any more, or no route leads from it.
            Ok(Leaves::ByNone) => false,
            Err(_) => true,
        };
        if self.answers.len() >= MOST {
            self.answers.clear();
        }
        self.answers.insert(endpoint, answer);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_used_while_the_route_leads_over_its_interface() {
        let sources = Sources::open(0).unwrap();
        for host in ["127.0.0.1", "::1"] {
            let remote = SocketAddr::new(host.parse().unwrap(), 7);
            let heard = Endpoint { remote, local: Some(remote.ip()), interface: 1 };
            let elsewhere = Endpoint { interface: 9999, ..heard };
            let unknown = Endpoint { interface: 0, ..heard };
            for _ in 0..2 {
                assert_eq!(sources.usable(heard), heard);
                assert_eq!(sources.usable(elsewhere), elsewhere.plain());
                assert_eq!(sources.usable(unknown), unknown);
                assert_eq!(sources.usable(heard.plain()), heard.plain());
                sources.renew();
            }
        }
        let remote = SocketAddr::from(([127, 0, 0, 1], 7));
        let gone = Endpoint { remote, local: Some("192.0.2.99".parse().unwrap()), interface: 1 };
        assert_eq!(sources.usable(gone), gone.plain());
        sources.set_mark(5);
        assert_eq!(sources.known().answers.len(), 0);
    }
}
