//! Counters of what was dropped, by reason.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::locks::lock;

macro_rules! reasons {
    ($($name:ident $word:literal $what:literal)*) => {
        /// A reason for a drop that the rules know.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason {
            $(#[doc = $what] $name,)*
        }

        const WORDS: &[&str] = &[$($word),*];
    };
}

reasons! {
    BadLength "bad_length" "A datagram is too short or too long for its type."
    BadMac1 "bad_mac1" "The sender doesn't know our public key."
    BadTag "bad_tag" "A datagram is forged or damaged."
    Challenged "challenged" "A handshake was answered by a cookie."
    ExpiredSession "expired_session" "A datagram came after REJECT-AFTER-TIME."
    ForeignQueue "foreign_queue" "Too many enrollment datagrams wait for Python."
    ForeignRate "foreign_rate" "Enrollment datagrams come too fast for Python."
    HandshakeQueue "handshake_queue" "Too many handshake datagrams wait for Python."
    HandshakeRate "handshake_rate" "A source that proved its address, or an answer to us, comes too often."
    HeldTooMany "held_too_many" "Too many packets wait for a handshake."
    InnerLength "inner_length" "A packet's own length doesn't match what was received."
    InnerNotIp "inner_not_ip" "What was received is no IP packet."
    InnerSource "inner_source" "A peer sent from an address that isn't its own."
    InterfaceDown "interface_down" "The interface is down, so nothing but enrollment passes."
    NoAnswer "no_answer" "A packet waited for a handshake that was given up."
    RoutingLoop "routing_loop" "A packet is a datagram to the same peer: the route to it leads into the tunnel."
    NoEndpoint "no_endpoint" "A packet is for a peer without a known address."
    NoPeer "no_peer" "A packet's destination belongs to no peer."
    NoSocket "no_socket" "There is no socket for an endpoint's address family."
    RemovedPeer "removed_peer" "A packet waited for a peer that was removed."
    PairingClosed "pairing_closed" "The pairing window is closed."
    PairingCookie "pairing_cookie" "A SHARE_C holds no cookie that we made for its source."
    PairingMalformed "pairing_malformed" "A pairing datagram has the wrong length or type."
    PairingPace "pairing_pace" "Pairing datagrams come too fast, from one source or from all."
    PairingRevision "pairing_revision" "A HELLO of another revision of the pairing was answered by REVISION."
    PairingSession "pairing_session" "A CONFIRM or FORGET names no session."
    Replayed "replayed" "A datagram came twice, or too late."
    SendQueue "send_queue" "A packet waited too long for the network to take it."
    Superpacket "superpacket" "The host sent a malformed superpacket."
    UnknownIndex "unknown_index" "A datagram's receiver index belongs to no session."
    UnknownType "unknown_type" "A datagram has no type that we know."
}

impl DropReason {
    /// Return the word for it in the statistics.
    pub fn word(self) -> &'static str {
        WORDS[self as usize]
    }
}

/// The counters.
#[derive(Default)]
pub struct Drops {
    known: [AtomicU64; WORDS.len()],
    /// Reasons of the operating system, such as `send_enetunreach`.
    other: Mutex<BTreeMap<String, u64>>,
}

impl Drops {
    /// Count `count` drops.
    pub fn count(&self, reason: DropReason, count: u64) {
        self.known[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Count one drop for a reason that the rules don't know: a short word in snake_case.
    pub fn count_other(&self, reason: String) {
        *lock(&self.other).entry(reason).or_default() += 1;
    }

    /// Return the counters above zero.
    pub fn read(&self) -> Vec<(String, u64)> {
        let known =
            WORDS.iter().zip(&self.known).map(|(word, count)| ((*word).into(), count.load(Ordering::Relaxed)));
        let other = lock(&self.other).clone();
        known.filter(|(_, count)| *count > 0).chain(other).collect()
    }
}
