//! What a handshake datagram must show before it may cost Python a Diffie-Hellman (whitepaper
//! sections 5.3, 5.4.7).
//!
//! - The right length.
//! - MAC1: the sender knows our public key.
//! - MAC2: the sender receives at its address. This is asked of a source that sends too often, and
//!   of everybody while we are under load. Any MAC2 but zero is checked before the datagram gets the
//!   place of a sender who proves something.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use crate::contract::Seconds;
use crate::cookie::{CookieSecrets, cookie_key, cookie_reply, mac1_holds, mac1_key};
use crate::drops::DropReason;
use crate::indices::Random;
use crate::locks::lock;
use crate::wire::{INITIATION, INITIATION_SIZE, MAC_SIZE, RESPONSE_SIZE};

/// Handshake datagrams that may wait for Python. The kernel's MAX_QUEUED_INCOMING_HANDSHAKES.
pub const HANDSHAKE_QUEUE: usize = 4096;
/// We are under load while this many wait, and for a second afterwards. The load also lasts while
/// this many datagrams per second are challenged that would have passed without it.
pub const LOADED_QUEUE: usize = HANDSHAKE_QUEUE / 8;
const LOAD_LASTS: Seconds = 1.0;
/// A source's budget per second, per /32 or /64 (the kernel's ratelimiter).
pub const RATE: f64 = 20.0;
/// A source's budget at once.
pub const BURST: u32 = 5;
/// Sources remembered at once, for each of the two budgets.
pub const SOURCES: usize = 8192;
/// Seconds between two searches for sources whose bucket is full again.
const SWEEP_INTERVAL: Seconds = 0.1;

/// What to do with a handshake datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it to Python. `proven`: MAC2 holds.
    Pass {
        /// Whether it goes before those that prove nothing.
        proven: bool,
    },
    /// Answer with this cookie reply, and drop it.
    Challenge(Vec<u8>),
    /// Drop it.
    Drop(DropReason),
}

/// The owner of a budget: an IPv4 address, or the first 64 bits of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SourcePrefix {
    V4(u32),
    V6(u64),
}

impl SourcePrefix {
    fn of(source: SocketAddr) -> Self {
        match source.ip() {
            IpAddr::V4(address) => Self::V4(address.into()),
            IpAddr::V6(address) => Self::V6((u128::from(address) >> 64) as u64),
        }
    }
}

/// A token bucket per source: RATE per second, BURST at once.
///
/// One number is kept per source: the time at which its bucket will be full again. A full bucket
/// needs no number. The sender chooses the source, so the map keeps the standard library's keyed
/// hash.
struct Budgets<K> {
    full_at: HashMap<K, Seconds>,
    swept_at: Seconds,
}

impl<K> Default for Budgets<K> {
    fn default() -> Self {
        Self { full_at: HashMap::new(), swept_at: Seconds::NEG_INFINITY }
    }
}

impl<K: Copy + Eq + Hash> Budgets<K> {
    /// Take a token of `source`. Return false if none is left.
    ///
    /// While SOURCES buckets are not full again, a new source gets false: so many at once are a
    /// flood from made-up addresses.
    fn spend(&mut self, source: K, now: Seconds) -> bool {
        let known = self.full_at.get(&source).copied();
        if known.is_none() && self.full_at.len() >= SOURCES && !self.forget_full(now) {
            return false;
        }
        let full_at = known.map_or(now, |at| at.max(now));
        if full_at - now > f64::from(BURST - 1) / RATE + 1e-9 {
            return false;
        }
        self.full_at.insert(source, full_at + 1.0 / RATE);
        true
    }

    /// Make room in the map. Return whether there is some.
    fn forget_full(&mut self, now: Seconds) -> bool {
        // Searching the map for each datagram would help a flood.
        if now - self.swept_at < SWEEP_INTERVAL {
            return false;
        }
        self.swept_at = now;
        self.full_at.retain(|_, at| *at > now);
        self.full_at.len() < SOURCES
    }
}

/// The gate of one plane.
///
/// Each source has two budgets: one for datagrams that prove their address by MAC2, one for those
/// that do not. So a flood in a peer's name costs the peer nothing, except that it is challenged.
pub struct Gate {
    keys: Mutex<GateKeys>,
    state: Mutex<State>,
}

/// The keys that follow from our public key.
#[derive(Clone, Copy)]
struct GateKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl GateKeys {
    fn of(public_key: &[u8; 32]) -> Self {
        Self { mac1: mac1_key(public_key), cookie: cookie_key(public_key) }
    }
}

struct State {
    secrets: CookieSecrets,
    unproven: Budgets<SourcePrefix>,
    proven: Budgets<SourcePrefix>,
    /// Of each receiver index of ours, for cookie replies.
    answers: Budgets<u32>,
    loaded_until: Seconds,
    /// Datagrams that were challenged under load, but would have passed without it.
    pressing: usize,
}

impl State {
    /// Return whether a datagram that proves nothing passes.
    fn passes(&mut self, network: SourcePrefix, now: Seconds) -> bool {
        let in_budget = self.unproven.spend(network, now);
        if now >= self.loaded_until {
            self.pressing = 0;
            return in_budget;
        }
        self.pressing += usize::from(in_budget);
        if self.pressing >= LOADED_QUEUE {
            // Without the load, Python would get this many in vain each second.
            self.pressing = 0;
            self.loaded_until = now + LOAD_LASTS;
        }
        false
    }
}

impl Gate {
    /// Guard the owner of `public_key`.
    pub fn new(public_key: &[u8; 32]) -> Self {
        let state = State {
            secrets: CookieSecrets::default(),
            unproven: Budgets::default(),
            proven: Budgets::default(),
            answers: Budgets::default(),
            loaded_until: Seconds::NEG_INFINITY,
            pressing: 0,
        };
        Self { keys: Mutex::new(GateKeys::of(public_key)), state: Mutex::new(state) }
    }

    /// Guard the owner of another key from now on.
    pub fn set_public_key(&self, public_key: &[u8; 32]) {
        *lock(&self.keys) = GateKeys::of(public_key);
    }

    /// Judge a whole datagram of type 1 or 2 from `source`. `backlog`: handshake datagrams that
    /// wait for Python.
    pub fn judge(
        &self,
        datagram: &[u8],
        source: SocketAddr,
        backlog: usize,
        now: Seconds,
        random: &Random,
    ) -> Verdict {
        let size = if datagram[0] == INITIATION { INITIATION_SIZE } else { RESPONSE_SIZE };
        if datagram.len() != size {
            return Verdict::Drop(DropReason::BadLength);
        }
        let keys = *lock(&self.keys);
        if !mac1_holds(datagram, &keys.mac1) {
            return Verdict::Drop(DropReason::BadMac1);
        }
        let mut state = lock(&self.state);
        if backlog >= LOADED_QUEUE {
            state.loaded_until = now + LOAD_LASTS;
        }
        let network = SourcePrefix::of(source);
        let proven = state.secrets.mac2_holds(datagram, source, now, random);
        if proven && state.proven.spend(network, now) {
            return Verdict::Pass { proven };
        }
        if state.passes(network, now) {
            return Verdict::Pass { proven: false };
        }
        if proven {
            return Verdict::Drop(DropReason::HandshakeRate);
        }
        let cookie = state.secrets.cookie_for(source, now, random);
        drop(state);
        let sender = [datagram[4], datagram[5], datagram[6], datagram[7]];
        let mac1 = &datagram[size - 2 * MAC_SIZE..size - MAC_SIZE];
        Verdict::Challenge(cookie_reply(sender, &cookie, mac1, &keys.cookie, random))
    }

    /// Judge a cookie reply to the index `receiver`. We gave out that index, and only those who saw a
    /// datagram of ours know it.
    pub fn judge_cookie_reply(&self, receiver: u32, now: Seconds) -> Verdict {
        if lock(&self.state).answers.spend(receiver, now) {
            Verdict::Pass { proven: true }
        } else {
            Verdict::Drop(DropReason::HandshakeRate)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cookie::mac;
    use crate::wire::COOKIE_REPLY_SIZE;
    use chacha20poly1305::XChaCha20Poly1305;
    use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};

    const KEY: [u8; 32] = [b'k'; 32];
    const PASS: Verdict = Verdict::Pass { proven: false };
    const PROVEN: Verdict = Verdict::Pass { proven: true };

    fn random() -> Random {
        Box::new(|bytes| bytes.fill(0x5a))
    }

    fn here() -> SocketAddr {
        "192.0.2.7:1000".parse().unwrap()
    }

    fn initiation(cookie: Option<&[u8]>) -> Vec<u8> {
        let mut message = vec![7; INITIATION_SIZE - 2 * MAC_SIZE];
        message[..4].copy_from_slice(&[INITIATION, 0, 0, 0]);
        let mac1 = mac(&mac1_key(&KEY), &message);
        message.extend_from_slice(&mac1);
        let mac2 = cookie.map_or([0; MAC_SIZE], |cookie| mac(cookie, &message));
        message.extend_from_slice(&mac2);
        message
    }

    /// Return the cookie in a reply, as the sender of `sent` decrypts it.
    fn taste(reply: &[u8], sent: &[u8]) -> Vec<u8> {
        assert_eq!(reply.len(), COOKIE_REPLY_SIZE);
        let nonce: [u8; 24] = reply[8..32].try_into().unwrap();
        let aad = &sent[sent.len() - 32..sent.len() - 16];
        let cipher = XChaCha20Poly1305::new((&cookie_key(&KEY)).into());
        cipher.decrypt(&nonce.into(), Payload { msg: &reply[32..], aad }).unwrap()
    }

    #[test]
    fn length_and_mac1_decide_before_anything_else() {
        let gate = Gate::new(&KEY);
        let good = initiation(None);
        assert_eq!(gate.judge(&good, here(), 0, 0.0, &random()), PASS);
        let mut bad = good.clone();
        bad[20] ^= 1;
        assert_eq!(gate.judge(&bad, here(), 0, 0.0, &random()), Verdict::Drop(DropReason::BadMac1));
        assert_eq!(gate.judge(&good[..147], here(), 0, 0.0, &random()), Verdict::Drop(DropReason::BadLength));
    }

    #[test]
    fn under_load_everybody_is_challenged_and_a_cookie_opens_for_its_address_only() {
        let gate = Gate::new(&KEY);
        let first = initiation(None);
        let Verdict::Challenge(reply) = gate.judge(&first, here(), LOADED_QUEUE, 0.0, &random()) else {
            panic!("not challenged");
        };
        let proven = initiation(Some(&taste(&reply, &first)));
        assert_eq!(gate.judge(&proven, here(), LOADED_QUEUE, 0.1, &random()), PROVEN);
        for other in ["192.0.2.8:1000", "192.0.2.7:1001"] {
            let verdict = gate.judge(&proven, other.parse().unwrap(), LOADED_QUEUE, 0.1, &random());
            assert!(matches!(verdict, Verdict::Challenge(_)), "{other}");
        }
        assert_eq!(gate.judge(&initiation(None), here(), 0, 1.2, &random()), PASS);
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn load_goes_on_as_long_as_it_would_come_again() {
        let gate = Gate::new(&KEY);
        let mut from = (0_u32..).map(|number| SocketAddr::from((number.to_be_bytes(), 1000)));
        let mut judge = |backlog, now| gate.judge(&initiation(None), from.next().unwrap(), backlog, now, &random());
        // One too few for another second of load, then just enough.
        for (began, more, goes_on) in [(0.0, LOADED_QUEUE - 2, false), (2.0, LOADED_QUEUE - 1, true)] {
            judge(LOADED_QUEUE, began);
            for _ in 0..more {
                assert!(matches!(judge(0, began + 0.9), Verdict::Challenge(_)));
            }
            assert_eq!(judge(0, began + 1.5) == PASS, !goes_on);
        }
        assert_eq!(judge(0, 3.91), PASS);
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn row_16_one_flooding_source_is_challenged_and_no_other_ever_is() {
        let gate = Gate::new(&KEY);
        let mut passed = 0;
        for step in 0..10_000_u32 {
            let now = f64::from(step) / 50_000.0;
            passed += u32::from(gate.judge(&initiation(None), here(), 0, now, &random()) == PASS);
            if step % 100 == 0 {
                let other = SocketAddr::from(([198, 51, 0, (step / 100) as u8], 1000));
                assert_eq!(gate.judge(&initiation(None), other, 0, now, &random()), PASS);
            }
        }
        println!("row 16: {passed} of 10,000 in 0.2 s passed from the flooding source, 100 others never challenged");
        assert!(passed <= BURST + 5);
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn a_budget_is_20_a_second_after_5_at_once_and_made_up_sources_are_bounded() {
        let mut budget = Budgets::default();
        let one = SourcePrefix::V4(1);
        assert_eq!([0; 6].map(|_| budget.spend(one, 0.0)), [true, true, true, true, true, false]);
        let later = (1..=10_000).filter(|step| budget.spend(one, f64::from(*step) / 1000.0)).count();
        assert_eq!(later, 200);
        let mut budget = Budgets::default();
        let granted = (0..3 * SOURCES as u64).filter(|number| budget.spend(SourcePrefix::V6(*number), 0.0)).count();
        assert_eq!((granted, budget.full_at.len()), (SOURCES, SOURCES));
        assert!(budget.spend(one, 1.0));
    }

    #[test]
    fn a_budget_belongs_to_an_ipv4_address_or_an_ipv6_64() {
        let of = |text: &str| SourcePrefix::of(text.parse().unwrap());
        assert_eq!(of("[2001:db8:0:1::5]:1"), of("[2001:db8:0:1:ffff::9]:2"));
        assert_ne!(of("[2001:db8:0:1::5]:1"), of("[2001:db8:0:2::5]:1"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
    }
}
