//! Netlink (rtnetlink(7)): questions about links, addresses, neighbours and routes, and news of
//! changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use transport::ethernet::MacAddress;

const PROTOCOL_UDP: u8 = 17;

/// The state of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub mac: MacAddress,
    pub mtu: usize,
    pub up: bool,
}

/// How the kernel would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub interface: u32,
    /// The next hop on that link.
    pub next: IpAddr,
    pub source: IpAddr,
    /// The MTU of the path, if it is known to be less than the link's.
    pub mtu: Option<usize>,
}

/// By which interface a datagram would leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    By(u32),
    ByNone,
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A link, or None if it is gone.
    Link(u32, Option<Link>),
    /// A neighbour's address on a link, and its MAC address, or None if that is unknown.
    Neighbour(u32, IpAddr, Option<MacAddress>),
    /// An address of ours on a link. False means that it is gone.
    Address(u32, IpAddr, bool),
    /// A route, a rule, or a message that can't be read.
    Routes,
}

/// A socket for news, and one for questions.
pub struct Netlink {
    news: Socket,
    questions: Socket,
}

impl Netlink {
    /// Open both. News are those of some groups of linux/rtnetlink.h.
    pub fn open(groups: &[u32]) -> io::Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            Ok::<_, io::Error>(socket)
        };
        let (news, questions) = (open()?, open()?);
        news.set_non_blocking(true)?;
        for group in groups {
            news.add_membership(*group)?;
        }
        questions.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { news, questions })
    }

    /// Return the descriptor that is readable while there is news.
    pub fn fd(&self) -> RawFd {
        self.news.as_raw_fd()
    }

    /// Return the next news. It is empty if there is none. ENOBUFS means that some were lost.
    pub fn read_news(&self) -> io::Result<Vec<News>> {
        match self.news.recv_from_full() {
            Ok((bytes, _)) => Ok(messages(&bytes).iter().filter_map(news_in).collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Take all news, unread.
    pub fn skip_news(&self) {
        loop {
            match self.news.recv_from_full() {
                Ok(_) => {}
                // Some were lost, and there may be more.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// Return all neighbours, and all addresses of ours.
    pub fn dump(&self) -> io::Result<Vec<News>> {
        let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut found = Vec::new();
        for question in [neighbours, addresses] {
            let answers = self.ask(question, NLM_F_DUMP)?;
            found.extend(answers.iter().filter_map(news_of));
        }
        Ok(found)
    }

    /// Return an interface, or None if it doesn't exist.
    pub fn link(&self, interface: u32) -> io::Result<Option<Link>> {
        let mut question = LinkMessage::default();
        question.header.index = interface;
        let answers = self.ask(RouteNetlinkMessage::GetLink(question), 0)?;
        Ok(answers.iter().find_map(|one| match news_of(one) {
            Some(News::Link(index, link)) if index == interface => link,
            _ => None,
        }))
    }

    /// Return how the kernel would send UDP to an address. None means not at all, or not directly
    /// to a neighbour.
    pub fn route(
        &self,
        destination: IpAddr,
        scope: u32,
        source: Option<IpAddr>,
        mark: u32,
    ) -> io::Result<Option<Hop>> {
        let question = route_question(destination, scope, source, mark);
        let answers = self.ask(RouteNetlinkMessage::GetRoute(question), 0)?;
        Ok(answers.iter().find_map(|one| match one {
            RouteNetlinkMessage::NewRoute(route) => hop(route, destination, source),
            _ => None,
        }))
    }

    /// Return by which interface the kernel would send UDP from an address of ours to another.
    pub fn leaves(&self, destination: IpAddr, source: IpAddr, mark: u32) -> io::Result<Leaves> {
        let question = route_question(destination, 0, Some(source), mark);
        self.send(RouteNetlinkMessage::GetRoute(question), 0)?;
        let (bytes, _) = self.questions.recv_from_full()?;
        let found = messages(&bytes).into_iter().find_map(|one| match one {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(Leaves::By(*index)),
                    _ => None,
                })
            }
            NetlinkPayload::Error(_) => Some(Leaves::ByNone),
            _ => None,
        });
        found.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Ask a question and return the answers. The kernel has them ready once the question is sent.
    /// An error has no answers.
    fn ask(&self, question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(question, flags)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.questions.recv_from_full()?;
            for message in messages(&bytes) {
                match message {
                    NetlinkPayload::InnerMessage(one) => found.push(one),
                    NetlinkPayload::Noop => {}
                    // The end of a dump, or an error.
                    _ => return Ok(found),
                }
            }
            if flags & NLM_F_DUMP == 0 {
                return Ok(found);
            }
        }
    }

    fn send(&self, question: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(question));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.questions.send(&bytes, 0).map(drop)
    }
}

fn route_question(destination: IpAddr, scope: u32, source: Option<IpAddr>, mark: u32) -> RouteMessage {
    let mut question = RouteMessage::default();
    let bits = if destination.is_ipv4() { 32 } else { 128 };
    question.header.address_family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    question.header.destination_prefix_length = bits;
    let attributes = &mut question.attributes;
    attributes.push(RouteAttribute::Destination(destination.into()));
    attributes.push(RouteAttribute::IpProto(PROTOCOL_UDP));
    if mark != 0 {
        attributes.push(RouteAttribute::Mark(mark));
    }
    if scope != 0 {
        attributes.push(RouteAttribute::Oif(scope));
    }
    if let Some(source) = source {
        attributes.push(RouteAttribute::Source(source.into()));
        question.header.source_prefix_length = bits;
    }
    question
}

type Payload = NetlinkPayload<RouteNetlinkMessage>;

/// Return the messages of a datagram. Noop stands for one that can't be read.
fn messages(mut bytes: &[u8]) -> Vec<Payload> {
    let mut found = Vec::new();
    while let Some(length) = bytes.first_chunk::<4>().map(|four| u32::from_ne_bytes(*four) as usize) {
        if length < 16 || length > bytes.len() {
            break;
        }
        let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes[..length]);
        found.push(read.map_or(NetlinkPayload::Noop, |message| message.payload));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn news_in(payload: &Payload) -> Option<News> {
    match payload {
        NetlinkPayload::InnerMessage(message) => news_of(message),
        NetlinkPayload::Noop => Some(News::Routes),
        _ => None,
    }
}

fn news_of(message: &RouteNetlinkMessage) -> Option<News> {
    match message {
        // A bridge reports its ports' links in messages of its own family.
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            link_of(link).map(|found| News::Link(link.header.index, Some(found)))
        }
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(News::Link(link.header.index, None))
        }
        RouteNetlinkMessage::NewNeighbour(one) => neighbour_of(one, true),
        RouteNetlinkMessage::DelNeighbour(one) => neighbour_of(one, false),
        RouteNetlinkMessage::NewAddress(one) => address_of(one, true),
        RouteNetlinkMessage::DelAddress(one) => address_of(one, false),
        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => None,
        _ => Some(News::Routes),
    }
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let (mut mac, mut mtu) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = MacAddress::try_from(&bytes[..]).ok(),
            LinkAttribute::Mtu(found) => mtu = Some(*found as usize),
            _ => {}
        }
    }
    Some(Link { mac: mac?, mtu: mtu?, up: message.header.flags.contains(LinkFlags::Up) })
}

fn neighbour_of(message: &NeighbourMessage, there: bool) -> Option<News> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddress::try_from(&bytes[..]).ok(),
            _ => {}
        }
    }
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let known = match message.header.state {
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None => false,
        _ => there,
    };
    Some(News::Neighbour(message.header.ifindex, address?, mac.filter(|_| known)))
}

fn address_of(message: &AddressMessage, there: bool) -> Option<News> {
    // On a point-to-point link, `Address` is that of the other end.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Some(News::Address(message.header.index, local.or(plain)?, there))
}

fn hop(route: &RouteMessage, destination: IpAddr, asked: Option<IpAddr>) -> Option<Hop> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut interface, mut next, mut source, mut mtu) = (None, destination, asked, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
                next = IpAddr::V4(*v4);
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
                next = IpAddr::V6(*v6);
            }
            RouteAttribute::PrefSource(RouteAddress::Inet(v4)) if asked.is_none() => source = Some(IpAddr::V4(*v4)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) if asked.is_none() => source = Some(IpAddr::V6(*v6)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|one| match one {
                    RouteMetric::Mtu(mtu) => Some(*mtu as usize),
                    _ => None,
                });
            }
            // Into another tunnel, or over several routes: this is left to the kernel.
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) | RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    Some(Hop { interface: interface?, next, source: source?, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_about_itself() {
        let netlink = Netlink::open(&[1]).unwrap();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(netlink.dump().unwrap().contains(&News::Address(1, loopback, true)));
        assert_eq!(netlink.link(1).unwrap().unwrap().mac, [0; 6]);
        assert_eq!(netlink.link(i32::MAX as u32).unwrap(), None);
        // A route to ourselves uses no link.
        assert_eq!(netlink.route(loopback, 0, None, 0).unwrap(), None);
        assert_eq!(netlink.leaves(loopback, loopback, 0).unwrap(), Leaves::By(1));
        let not_ours = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(netlink.leaves(loopback, not_ours, 0).unwrap(), Leaves::ByNone);
        assert_eq!(netlink.read_news().unwrap(), []);
    }

    #[test]
    fn what_can_not_be_read_counts_as_a_change() {
        let mut broken = vec![0; 20];
        broken[..4].copy_from_slice(&20_u32.to_ne_bytes());
        broken[4..6].copy_from_slice(&24_u16.to_ne_bytes());
        let found = messages(&broken);
        assert_eq!(found.iter().filter_map(news_in).collect::<Vec<_>>(), [News::Routes]);
        assert!(messages(&[0; 16]).is_empty());
        assert!(messages(&[255; 3]).is_empty());
    }
}
