//! The routes to hosts. Each is looked up once, and kept until a link, address, neighbour or route
//! changes.
//!
//! Hosts without a known route over the interface are reached through the ordinary sockets. So is
//! the first message after every FORGET. The kernel doesn't see our other datagrams, and this one
//! makes it check the neighbour.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use transport::ethernet::{ETHERNET, MacAddress, Path};

use crate::descriptor::{EventFd, wait};
use crate::netlink::{Link, Netlink, News};
use crate::xdp::bound::Bound;
use crate::xdp::program::Program;

/// Milliseconds that a route is kept. The kernel doubts a neighbour after 15 to 45 seconds.
const FORGET: libc::c_int = 10_000;
/// Routes kept, and routes waiting to be looked up. Hosts beyond these use the ordinary sockets.
const MOST: usize = 16_384;
const MOST_WANTED: usize = 256;

// Groups of linux/rtnetlink.h: links, neighbours, addresses, routes and rules of both families, next hops.
const GROUPS: [u32; 9] = [1, 3, 5, 9, 7, 11, 8, 19, 32];

/// A host: its address, and the interface if the address is link-local.
type Host = (IpAddr, u32);

/// A route over the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The addresses of both ends.
    pub path: Path,
    /// Bytes of the longest frame.
    pub longest: usize,
}

/// The routes. The threads that send read them; the thread that follows the kernel writes them.
pub struct Routes {
    ways: RwLock<HashMap<Host, Option<Arc<Route>>>>,
    wanted: Mutex<Vec<Host>>,
    wake: EventFd,
    gone: AtomicBool,
    /// The mark that the system's routing rules see on what we send.
    mark: AtomicU32,
}

impl Routes {
    pub fn new(mark: u32) -> io::Result<Self> {
        Ok(Self {
            ways: RwLock::default(),
            wanted: Mutex::default(),
            wake: EventFd::new()?,
            gone: AtomicBool::new(false),
            mark: AtomicU32::new(mark),
        })
    }

    /// Return the route to an endpoint, if it is known and over the interface.
    pub fn find(&self, endpoint: SocketAddr) -> Option<Arc<Route>> {
        let scope = match endpoint {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        let host = (endpoint.ip(), scope);
        if let Some(known) = self.ways.read().unwrap_or_else(PoisonError::into_inner).get(&host) {
            return known.clone();
        }
        let mut wanted = self.wanted();
        if wanted.len() < MOST_WANTED && !wanted.contains(&host) {
            wanted.push(host);
            self.wake.set();
        }
        None
    }

    /// Look routes up with another mark from now on.
    pub fn set_mark(&self, mark: u32) {
        self.mark.store(mark, Ordering::Relaxed);
        self.wake.set();
        self.forget();
    }

    /// Return whether the interface is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn wanted(&self) -> MutexGuard<'_, Vec<Host>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        self.ways.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn keep(&self, host: Host, way: Option<Route>) {
        let mut ways = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        if ways.len() < MOST {
            ways.insert(host, way.map(Arc::new));
        }
    }
}

/// What we know of the kernel's state.
pub struct Follower {
    netlink: Netlink,
    interface: u32,
    bound: Bound,
    link: Link,
    neighbours: HashMap<IpAddr, MacAddress>,
    /// Our addresses, each with its links.
    addresses: HashSet<(IpAddr, u32)>,
}

impl Follower {
    /// Read the state, and report our addresses to the program.
    pub fn start(interface: u32, bound: Bound, program: &Program) -> io::Result<Self> {
        let netlink = Netlink::open(&GROUPS)?;
        let link = netlink.link(interface)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let mut made =
            Self { netlink, interface, bound, link, neighbours: HashMap::new(), addresses: HashSet::new() };
        made.learn(program)?;
        Ok(made)
    }

    fn learn(&mut self, program: &Program) -> io::Result<()> {
        self.neighbours.clear();
        let before = std::mem::take(&mut self.addresses);
        for news in self.netlink.dump()? {
            self.take(news, program);
        }
        for (address, link) in before {
            if !self.addresses.contains(&(address, link)) {
                self.take(News::Address(link, address, false), program);
            }
        }
        Ok(())
    }

    /// Apply a change. Return whether it may change a route.
    fn take(&mut self, news: News, program: &Program) -> bool {
        match news {
            News::Link(index, link) if index == self.interface => {
                let changed = link != Some(self.link);
                self.link = link.unwrap_or(Link { up: false, ..self.link });
                changed
            }
            News::Neighbour(index, address, mac) if index == self.interface => {
                let before = match mac {
                    Some(mac) => self.neighbours.insert(address, mac),
                    None => self.neighbours.remove(&address),
                };
                before != mac
            }
            News::Address(index, address, there) => self.take_address(index, address, there, program),
            News::Link(..) | News::Neighbour(..) => false,
            News::Routes => true,
        }
    }

    fn take_address(&mut self, index: u32, address: IpAddr, there: bool, program: &Program) -> bool {
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if address.is_loopback() || (link_local && index != self.interface) || !self.bound.takes(address) {
            return true;
        }
        if there {
            self.addresses.insert((address, index));
            // If there is no room for more addresses, the kernel handles theirs.
            let _ = program.add_address(address);
        } else {
            self.addresses.remove(&(address, index));
            if !self.addresses.iter().any(|(one, _)| *one == address) {
                program.remove_address(address);
            }
        }
        true
    }

    /// Follow the kernel until `stop` is readable or the interface is gone.
    pub fn follow(&mut self, routes: &Routes, program: &Program, stop: RawFd) -> io::Result<()> {
        loop {
            let polled = [(stop, libc::POLLIN), (self.netlink.fd(), libc::POLLIN), (routes.wake.fd(), libc::POLLIN)];
            let ready = wait(polled, FORGET)?;
            if ready & 1 != 0 {
                return Ok(());
            }
            let changed = self.hear(program)?;
            if routes.is_gone() || self.is_gone()? {
                routes.gone.store(true, Ordering::Relaxed);
                routes.forget();
                return Ok(());
            }
            if changed || ready == 0 {
                routes.forget();
            }
            routes.wake.clear();
            let wanted = std::mem::take(&mut *routes.wanted());
            for host in wanted {
                let way = self.way(host, routes.mark.load(Ordering::Relaxed))?;
                routes.keep(host, way);
            }
        }
    }

    /// Apply all waiting changes. Return whether they may change a route.
    fn hear(&mut self, program: &Program) -> io::Result<bool> {
        let mut changed = false;
        loop {
            match self.netlink.read_news() {
                Ok(news) if news.is_empty() => return Ok(changed),
                Ok(news) => {
                    for one in news {
                        changed |= self.take(one, program);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.learn(program)?;
                    changed = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Return whether the interface is gone. The kernel is asked only while the interface isn't up.
    fn is_gone(&mut self) -> io::Result<bool> {
        if self.link.up {
            return Ok(false);
        }
        let link = self.netlink.link(self.interface)?;
        if let Some(link) = link {
            self.link = link;
        }
        Ok(link.is_none())
    }

    /// Return the route to a host. None if it is not over the interface, or if its next hop is
    /// unknown.
    fn way(&self, (destination, scope): Host, mark: u32) -> io::Result<Option<Route>> {
        if !self.link.up {
            return Ok(None);
        }
        let hop = self.netlink.route(destination, scope, self.bound.source(destination), mark)?;
        let Some(hop) = hop.filter(|hop| hop.interface == self.interface) else { return Ok(None) };
        let Some(mac) = self.neighbours.get(&hop.next) else { return Ok(None) };
        let path = Path { source_mac: self.link.mac, destination_mac: *mac, source: hop.source, destination };
        let mtu = hop.mtu.map_or(self.link.mtu, |mtu| mtu.min(self.link.mtu));
        Ok(Some(Route { path, longest: ETHERNET + mtu }))
    }
}
