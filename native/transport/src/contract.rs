//! The types that Python and a plane exchange, as in `rustguard_py/planes/contract.py`.
//!
//! Times are seconds of one monotonic clock.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ring::hmac;
use zeroize::Zeroizing;

/// Seconds of the plane's clock.
pub type Seconds = f64;
/// A time that never comes.
pub const NEVER: Seconds = f64::INFINITY;

// Whitepaper section 6.1, in seconds and messages, with the paper's names.
/// Messages after which a new handshake is due.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages that one session may send.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Age at which an initiator that sends starts a new handshake.
pub const REKEY_AFTER_TIME: Seconds = 120.0;
/// Age from which a session neither sends nor receives.
pub const REJECT_AFTER_TIME: Seconds = 180.0;
/// Pause between two initiations.
pub const REKEY_TIMEOUT: Seconds = 5.0;
/// Pause after which received data is answered by an empty datagram.
pub const KEEPALIVE_TIMEOUT: Seconds = 10.0;
/// A datagram received by the initiator this close to REJECT-AFTER-TIME starts a new handshake (section 6.2).
pub const REKEY_AFTER_TIME_RECEIVING: Seconds = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
/// Packets held per peer until its first handshake is done. The kernel's MAX_STAGED_PACKETS.
pub const MAX_STAGED_PACKETS: usize = 128;

/// The caller's number for a peer.
pub type PeerId = u64;

/// A peer's address, and our address to send to it from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The peer's address.
    pub remote: SocketAddr,
    /// Our address that the peer sent to. None lets the kernel choose.
    pub local: Option<IpAddr>,
    /// The number of the interface that it came by. 0 if that doesn't matter: then the local address
    /// is used whatever the route.
    pub interface: u32,
}

impl Endpoint {
    /// Return the same endpoint without our address.
    pub fn plain(self) -> Self {
        self.remote.into()
    }

    /// Return the same endpoint for an answer at once. Nobody looks up the route to somebody who has
    /// proved nothing.
    pub fn at_once(self) -> Self {
        Self { interface: 0, ..self }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None, interface: 0 }
    }
}

/// An IPv4 or IPv6 address, for look-ups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IPv4 address.
    V4(u32),
    /// An IPv6 address.
    V6(u128),
}

/// Addresses that share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Any one of these addresses.
    pub address: Address,
    /// Bits of the prefix, at most 32 or 128.
    pub prefix: u8,
}

/// The transport keys of one finished handshake (section 5.4.5).
#[derive(Clone)]
pub struct Keypair {
    /// Our index, the receiver field of what we receive.
    pub local_index: u32,
    /// The peer's index, the receiver field of what we send.
    pub remote_index: u32,
    /// Seals what we send.
    pub send_key: Zeroizing<[u8; 32]>,
    /// Opens what we receive.
    pub receive_key: Zeroizing<[u8; 32]>,
    /// Whether we sent the initiation. A responder's keypair is `next` until a datagram confirms it.
    pub initiator: bool,
    /// When the handshake ended.
    pub birth: Seconds,
}

impl fmt::Debug for Keypair {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Keypair").field("local_index", &self.local_index).finish_non_exhaustive()
    }
}

/// What a session has sent and received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Our index, in what we receive.
    pub local_index: u32,
    /// The peer's index, in what we send.
    pub remote_index: u32,
    /// The counter of the next datagram that we send.
    pub sent: u64,
    /// One more than the highest counter received.
    pub next: u64,
    /// How many authentic datagrams were received.
    pub received: u64,
}

/// The secrets of 120 seconds of pairing.
#[derive(Clone)]
pub struct PairingEpoch {
    /// Its number.
    pub number: u32,
    /// Makes and checks cookies.
    pub secret: hmac::Key,
    /// The server's X25519 public key of this epoch.
    pub ephemeral: [u8; 32],
}

impl PairingEpoch {
    /// Make an epoch whose cookies are made with `secret`.
    pub fn new(number: u32, secret: &[u8; 32], ephemeral: [u8; 32]) -> Self {
        Self { number, secret: hmac::Key::new(hmac::HMAC_SHA256, secret), ephemeral }
    }
}

/// An open pairing window.
#[derive(Clone)]
pub struct PairingGate {
    /// The server's identity in pairings.
    pub server_id: [u8; 32],
    /// The epoch that cookies are made in.
    pub current: PairingEpoch,
    /// The epoch before, whose cookies are still valid.
    pub previous: Option<PairingEpoch>,
    /// After the window was closed, CONFIRM and FORGET of known sessions pass for so many seconds.
    pub linger: Seconds,
}

/// Why a plane wants a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A packet has no session to go out on.
    NoSession,
    /// The session reached REKEY-AFTER.
    Rekey,
    /// Data was sent, and nothing heard for KEEPALIVE-TIMEOUT + REKEY-TIMEOUT.
    NoAnswer,
    /// The interface came up, and an initiation before that did not leave.
    InterfaceUp,
}

/// What a plane reports to Python.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A handshake message of types 1 to 3 that passed the gate.
    HandshakeReceived {
        /// The whole datagram.
        datagram: Box<[u8]>,
        /// Where it came from.
        source: Endpoint,
        /// Whether MAC2 shows that the sender receives there, or it answers a handshake of ours.
        proven: bool,
    },
    /// An enrollment datagram: it begins with `RGE`.
    ForeignReceived(Box<[u8]>, Endpoint),
    /// A session is missing, old or silent. Reported at most once per second and peer.
    HandshakeWanted(PeerId, Reason),
    /// The first authenticated datagram on a keypair that we made as responder, and its local
    /// index.
    KeypairConfirmed(PeerId, u32),
    /// An authenticated datagram came from another address, or to another address of ours. Reported
    /// at most every 0.1 s and peer, the last one in any case.
    EndpointMoved(PeerId, Endpoint),
    /// The plane can't go on, or (if not fatal) goes on with less.
    Fault {
        /// One sentence.
        message: String,
        /// Whether the plane has stopped.
        fatal: bool,
    },
}

/// A datagram to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Transmit {
    /// Where to send it.
    pub endpoint: Endpoint,
    /// The whole datagram.
    pub datagram: Vec<u8>,
    /// The TOS or traffic class of its IP header.
    pub tos: u8,
}

/// The results of a call: events for Python, datagrams for the network, and packets for the host,
/// each in order.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Events to report.
    pub events: Vec<Event>,
    /// Datagrams to send.
    pub transmits: Vec<Transmit>,
    /// Packets for the host: answers to what it can't reach.
    pub answers: Vec<Vec<u8>>,
}
