//! What becomes of a frame of the link, and where a packet of ours goes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use transport::allowed_ips::AllowedIps;
use transport::contract::{Address, Network, Seconds};
use transport::ethernet::{ETHERNET, MacAddress};

use crate::checks::Reason;
use crate::table::Table;
use crate::{arp, checks, ndp};

const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const TYPES_VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const EVERYBODY: MacAddress = [0xff; 6];
/// Set in the first byte of an address of many receivers.
const GROUP: u8 = 1;

/// The reasons there are.
pub const REASONS: [Reason; 10] = [
    "vlan",
    "other_mac",
    "other_type",
    "not_ip",
    "bad_length",
    "bad_fragment",
    "bad_arp",
    "bad_ndp",
    "foreign_ndp",
    "unresolved",
];

/// Our side of a link.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our MAC address.
    pub mac: MacAddress,
    /// Whom packets go to unless their destination is in a learnt range. None for the sender of the
    /// last packet.
    pub gateway: Option<MacAddress>,
    /// Ranges that we answer for.
    pub answered: Vec<Network>,
    /// Ranges whose MAC addresses we ask for. Of two ranges with an address, the longer prefix counts.
    pub learnt: Vec<Network>,
}

/// What a range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    Answered,
    Learnt,
}

/// A short frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: [u8; ETHERNET + ndp::SIZE],
    size: usize,
}

impl Frame {
    fn new(header: [u8; ETHERNET], body: &[u8]) -> Self {
        let mut bytes = [0; ETHERNET + ndp::SIZE];
        let size = ETHERNET + body.len();
        bytes[..ETHERNET].copy_from_slice(&header);
        bytes[ETHERNET..size].copy_from_slice(body);
        Self { bytes, size }
    }

    /// Return its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The first so many bytes behind the header are a packet.
    Packet(usize),
    /// Somebody asked for this address, and this is the answer.
    Reply(Frame, Address),
    /// It was meant for the link only.
    Nothing,
    /// It is left out.
    Drop(Reason),
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// A frame to send first, which asks for the destination.
    pub ask: Option<Frame>,
    /// The packet's header, or why it is left out.
    pub header: Result<[u8; ETHERNET], Reason>,
}

/// The state of a link.
pub struct Link {
    own: MacAddress,
    gateway: Option<MacAddress>,
    ranges: AllowedIps<Use>,
    learnt: Vec<Network>,
    /// Of an answered range, for requests of ours. 0 for none.
    host: AtomicU32,
    /// Ours, from the MAC address (RFC 4291, appendix A).
    link_local: u128,
    /// The sender of the last packet, in the low 48 bits.
    other: AtomicU64,
    table: Mutex<Table>,
}

impl Link {
    /// Make a link on which nobody is known yet.
    pub fn new(settings: &Settings) -> Self {
        let [a, b, c, d, e, f] = settings.mac;
        let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        let link = Self {
            own: settings.mac,
            gateway: settings.gateway,
            ranges: AllowedIps::default(),
            learnt: settings.learnt.clone(),
            host: AtomicU32::new(0),
            link_local: 0xfe80 << 112 | u128::from(interface),
            other: AtomicU64::new(number(EVERYBODY)),
            table: Mutex::default(),
        };
        link.answer_for(&settings.answered);
        link
    }

    /// Answer for these ranges from now on, and for no others.
    pub fn answer_for(&self, answered: &[Network]) {
        // Again, because what both had is only answered so far.
        self.ranges.set(&Use::Learnt, &self.learnt);
        // Last, so that it wins where both have the same range.
        self.ranges.set(&Use::Answered, answered);
        let host = answered.iter().find_map(|range| match range.address {
            Address::V4(address) => Some(if range.prefix >= 31 { address } else { address | 1 }),
            Address::V6(_) => None,
        });
        self.host.store(host.unwrap_or(0), Ordering::Relaxed);
    }

    /// Look at a frame. `body`: what is behind its header.
    pub fn receive(&self, header: &[u8; ETHERNET], body: &[u8], now: impl Fn() -> Seconds) -> Received {
        let [d @ .., s0, s1, s2, s3, s4, s5, k0, k1] = *header;
        let (destination, source, kind): (MacAddress, MacAddress, _) = (d, [s0, s1, s2, s3, s4, s5], [k0, k1]);
        if TYPES_VLAN.contains(&kind) {
            return Received::Drop("vlan");
        }
        if destination[0] & GROUP == 0 && destination != self.own {
            return Received::Drop("other_mac");
        }
        if kind == TYPE_ARP {
            return arp::Message::parse(body).map_or(Received::Drop("bad_arp"), |message| self.arp(message, now()));
        }
        if kind != TYPE_IPV4 && kind != TYPE_IPV6 {
            return Received::Drop("other_type");
        }
        if body.first().is_none_or(|first| first >> 4 != if kind == TYPE_IPV4 { 4 } else { 6 }) {
            return Received::Drop("not_ip");
        }
        let size = match checks::check(body) {
            Ok(size) => size,
            Err(reason) => return Received::Drop(reason),
        };
        if kind == TYPE_IPV6 {
            match ndp::parse(&body[..size]) {
                ndp::Found::Other => {}
                ndp::Found::Invalid => return Received::Drop("bad_ndp"),
                ndp::Found::Message(message) => return self.ndp(message, source, now()),
            }
        }
        // A frame of ours that a loop brings back must not make us send to ourselves.
        if self.may_be_a_neighbour(source) {
            let source = number(source);
            if self.other.load(Ordering::Relaxed) != source {
                self.other.store(source, Ordering::Relaxed);
            }
        }
        Received::Packet(size)
    }

    fn arp(&self, message: arp::Message, now: Seconds) -> Received {
        let arp::Message { operation, sender_mac, sender, target, .. } = message;
        if !self.may_be_a_neighbour(sender_mac) {
            return Received::Nothing;
        }
        self.learn(Address::V4(sender), sender_mac, true, now);
        // An address that is announced, or asked for by its owner, is never ours.
        if operation == arp::Operation::Reply || sender == target || !self.answers(Address::V4(target)) {
            return Received::Nothing;
        }
        let reply = arp::Message {
            operation: arp::Operation::Reply,
            sender_mac: self.own,
            sender: target,
            target_mac: sender_mac,
            target: sender,
        };
        let frame = Frame::new(self.header(sender_mac, TYPE_ARP), &reply.bytes());
        Received::Reply(frame, Address::V4(target))
    }

    fn ndp(&self, message: ndp::Message, from: MacAddress, now: Seconds) -> Received {
        let ndp::Message { kind, source, target, mac, .. } = message;
        if mac.is_some_and(|mac| !self.may_be_a_neighbour(mac)) {
            return Received::Nothing;
        }
        if let ndp::Kind::Advertisement { overrides, .. } = kind {
            if let Some(mac) = mac {
                self.learn(Address::V6(target), mac, overrides, now);
            }
            return Received::Nothing;
        }
        if let Some(mac) = mac {
            self.learn(Address::V6(source), mac, true, now);
        }
        if source == target || !self.answers(Address::V6(target)) {
            return Received::Nothing;
        }
        // Who only asks whether it may have the address can't be told in person.
        let to = if source == 0 { ndp::ALL_NODES } else { source };
        // A unicast solicitation may leave its sender's MAC address out (RFC 4861, section 4.3).
        let receiver = mac.or_else(|| group(Address::V6(to))).unwrap_or(from);
        if !self.may_be_a_neighbour(receiver) && source != 0 {
            return Received::Nothing;
        }
        let answer = ndp::Message {
            // We stand in for others, so an owner's own answer counts more (RFC 4861, section 7.2.4).
            kind: ndp::Kind::Advertisement { solicited: source != 0, overrides: false },
            source: target,
            destination: to,
            target,
            mac: Some(self.own),
        };
        let frame = Frame::new(self.header(receiver, TYPE_IPV6), &answer.packet());
        Received::Reply(frame, Address::V6(target))
    }

    /// Return where a packet goes. `start`: its first bytes.
    pub fn send(&self, start: &[u8], now: impl Fn() -> Seconds) -> Sending {
        let refused = |reason| Sending { ask: None, header: Err(reason) };
        let Some((kind, source, destination)) = addresses(start) else { return refused("not_ip") };
        if checks::is_discovery(start) {
            return refused("foreign_ndp");
        }
        if let Some(mac) = group(destination) {
            return Sending { ask: None, header: Ok(self.header(mac, kind)) };
        }
        if self.asks() && self.ranges.is_owned_by(destination, &Use::Learnt) {
            let way = self.table().find(destination, now());
            return Sending {
                ask: way.ask.then(|| self.ask(source, destination)),
                header: way.mac.map(|mac| self.header(mac, kind)).ok_or("unresolved"),
            };
        }
        let [_, _, other @ ..] = self.other.load(Ordering::Relaxed).to_be_bytes();
        Sending { ask: None, header: Ok(self.header(self.gateway.unwrap_or(other), kind)) }
    }

    /// Return the header of an answer to a frame with this header. None if it was for many receivers, who
    /// would all answer (RFC 1122, section 3.2.2), or from nobody in particular.
    pub fn back(&self, header: &[u8; ETHERNET]) -> Option<[u8; ETHERNET]> {
        let [destination, _, _, _, _, _, s0, s1, s2, s3, s4, s5, k0, k1] = *header;
        let source = [s0, s1, s2, s3, s4, s5];
        (destination & GROUP == 0 && self.may_be_a_neighbour(source)).then(|| self.header(source, [k0, k1]))
    }

    /// Return a frame that asks for an address. `from`: the source of the packet that needs it.
    fn ask(&self, from: Address, wanted: Address) -> Frame {
        let is_ours = self.ranges.is_owned_by(from, &Use::Answered);
        match (from, wanted) {
            (Address::V6(from), Address::V6(target)) => {
                let destination = ndp::solicited_node(target);
                let source = if is_ours { from } else { self.link_local };
                let kind = ndp::Kind::Solicitation;
                let message = ndp::Message { kind, source, destination, target, mac: Some(self.own) };
                let mac = group(Address::V6(destination)).unwrap_or(EVERYBODY);
                Frame::new(self.header(mac, TYPE_IPV6), &message.packet())
            }
            (Address::V4(from), Address::V4(target)) => self.ask_v4(if is_ours { from } else { self.host() }, target),
            // The addresses of one packet are of one family.
            (_, Address::V4(target)) => self.ask_v4(self.host(), target),
            (_, Address::V6(_)) => self.ask(Address::V6(self.link_local), wanted),
        }
    }

    fn ask_v4(&self, sender: u32, target: u32) -> Frame {
        let operation = arp::Operation::Request;
        let message = arp::Message { operation, sender_mac: self.own, sender, target_mac: [0; 6], target };
        Frame::new(self.header(EVERYBODY, TYPE_ARP), &message.bytes())
    }

    fn header(&self, destination: MacAddress, kind: [u8; 2]) -> [u8; ETHERNET] {
        let mut header = [0; ETHERNET];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&self.own);
        header[12..].copy_from_slice(&kind);
        header
    }

    fn host(&self) -> u32 {
        self.host.load(Ordering::Relaxed)
    }

    fn asks(&self) -> bool {
        !self.learnt.is_empty()
    }

    fn answers(&self, address: Address) -> bool {
        address == Address::V6(self.link_local) || self.ranges.is_owned_by(address, &Use::Answered)
    }

    fn learn(&self, address: Address, mac: MacAddress, overrides: bool, now: Seconds) {
        if self.asks() && self.ranges.is_owned_by(address, &Use::Learnt) {
            self.table().learn(address, mac, overrides, now);
        }
    }

    fn may_be_a_neighbour(&self, mac: MacAddress) -> bool {
        mac[0] & GROUP == 0 && mac != [0; 6] && mac != self.own
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Return a packet's EtherType, source and destination.
fn addresses(start: &[u8]) -> Option<([u8; 2], Address, Address)> {
    let four = |at: usize| Some(Address::V4(u32::from_be_bytes(start.get(at..at + 4)?.try_into().ok()?)));
    let six = |at: usize| Some(Address::V6(u128::from_be_bytes(start.get(at..at + 16)?.try_into().ok()?)));
    match start.first()? >> 4 {
        4 => Some((TYPE_IPV4, four(12)?, four(16)?)),
        6 => Some((TYPE_IPV6, six(8)?, six(24)?)),
        _ => None,
    }
}

/// Return the MAC address of many receivers (RFC 1112 and RFC 2464). None if an address has one.
fn group(address: Address) -> Option<MacAddress> {
    match address {
        Address::V4(u32::MAX) => Some(EVERYBODY),
        Address::V4(address) if address >> 28 == 0xe => {
            let [_, b, c, d] = address.to_be_bytes();
            Some([1, 0, 0x5e, b & 0x7f, c, d])
        }
        Address::V6(address) if ndp::is_multicast(address) => {
            let [.., a, b, c, d] = address.to_be_bytes();
            Some([0x33, 0x33, a, b, c, d])
        }
        _ => None,
    }
}

fn number([a, b, c, d, e, f]: MacAddress) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}
