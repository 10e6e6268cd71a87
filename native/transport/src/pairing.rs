//! What a pairing datagram must show before a server's Python looks at it
//! (docs/internals/enrollment.md). The twin of `rustguard_py/protocol/pairing_filter.py`.
//!
//! In order:
//!
//! - Its length and its type. A HELLO of another revision is answered by REVISION.
//! - HELLO is answered here and leaves nothing behind. Anybody can send one in anybody's name, so
//!   there is one pace for all. A source that sends many has only half of it.
//! - SHARE_C must hold a cookie that we made for its source. Only then is its source charged, and
//!   then all sources.
//! - CONFIRM and FORGET must name a session. We learn the sessions from what Python sends. A session
//!   is charged, and then all sessions.
//!
//! So nothing that somebody off the path sends is charged to a source or to a session.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use blake2::Blake2sMac;
use blake2::digest::consts::U8;
use blake2::digest::{KeyInit as _, Mac as _};
use ctutils::CtEq as _;
use ring::hmac;

use crate::contract::{NEVER, PairingEpoch, PairingGate, Seconds};
use crate::drops::DropReason;
use crate::indices::Random;
use crate::wire::{FOREIGN_MAGIC, u32_at};

const REVISION: u8 = b'3';
const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const SHARE_C: u8 = 3;
const SHARE_S: u8 = 4;
const CONFIRM: u8 = 5;
const RESULT: u8 = 6;
const FORGET: u8 = 7;
const OTHER_REVISION: u8 = 8;
/// Bytes of a HELLO of any revision: the header and nonce_c.
const SHORTEST_HELLO: usize = 24;
const CHALLENGE_SIZE: usize = 124;
const COOKIE_SIZE: usize = 16;

/// HELLOs answered per second and at once, for all sources together.
const HELLO_PACE: Pace = Pace { rate: 10_000.0, burst: 2048.0 };
/// SHARE_Cs, and CONFIRMs and FORGETs, passed per second and at once, for all together. A crowd that
/// joins at once is as fast as a flood for a moment.
const PASS_PACE: Pace = Pace { rate: 1000.0, burst: 2048.0 };
/// In a flood they are passed in runs of this many seconds' worth each. Python is woken per run, not
/// per datagram.
const RUN: Seconds = 0.02;
/// Of a source (an IPv4 address or an IPv6 /64).
const SOURCE_PACE: Pace = Pace { rate: 20.0, burst: 5.0 };
/// Of a session. Whoever sees the session on the path can forge CONFIRMs in it, and the right one has
/// to get through among them.
const SESSION_PACE: Pace = Pace { rate: 256.0, burst: 128.0 };
/// Of an IPv6 /48.
const SITE_PACE: Pace = Pace { rate: 80.0, burst: 20.0 };
/// A source or session that has used its pace within so many seconds is busy.
const BUSY_SECONDS: Seconds = 0.5;
/// A busy one gets this much of the burst for all.
const BUSY_SHARE: f64 = 0.5;
/// Sums of fractions of a second are off by less.
const ROUNDING: Seconds = 1e-9;
/// Seconds that a session is known after Python sent a SHARE_S or RESULT of it: 15 until a CONFIRM,
/// 120 for repeats.
const SESSION_SECONDS: Seconds = 135.0;
const SESSIONS: usize = 32768;
/// Slots of the sources' levels, one float each: 128 KiB.
const SLOTS: usize = 1 << 14;

/// What to do with a pairing datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it to Python.
    Pass,
    /// Send this back, and drop it.
    Answer(Vec<u8>),
    /// Drop it.
    Drop(DropReason),
}

/// So many per second, and so many at once.
#[derive(Clone, Copy)]
struct Pace {
    rate: f64,
    burst: f64,
}

/// A pace, and the time at which all so far would be done at its rate.
struct Level {
    pace: Pace,
    until: Seconds,
}

impl Level {
    fn new(pace: Pace) -> Self {
        Self { pace, until: Seconds::NEG_INFINITY }
    }

    /// Take one, or return false if none is left: for the busy already when half is taken.
    fn take(&mut self, now: Seconds, busy: bool) -> bool {
        let Pace { rate, burst } = self.pace;
        let until = self.until.max(now) + 1.0 / rate;
        let share = if busy { BUSY_SHARE } else { 1.0 };
        let left = until - now <= burst * share / rate + ROUNDING;
        if left {
            self.until = until;
        }
        left
    }
}

/// A pace for each source, in a table of fixed size.
///
/// Each has two slots, by a keyed hash that strangers can't aim at. The lower one counts: few
/// sources share both with busy ones.
struct SourceLevels {
    pace: Pace,
    key: [u8; 16],
    until: Box<[Seconds]>,
}

impl SourceLevels {
    fn new(pace: Pace, key: [u8; 16]) -> Self {
        Self { pace, key, until: vec![Seconds::NEG_INFINITY; SLOTS].into() }
    }

    /// Take one of a source's. Return whether one was left, and whether the source has taken another
    /// lately.
    fn take(&mut self, source: &[u8], now: Seconds) -> (bool, bool) {
        let keyed = Blake2sMac::<U8>::new_from_slice(&self.key);
        let mut mac = keyed.expect("keys have 16 bytes");
        mac.update(source);
        let digest: [u8; 8] = mac.finalize().into_bytes().into();
        let slots = [0, 4].map(|half| u32_at(&digest, half) as usize % SLOTS);
        let before = slots.iter().fold(NEVER, |least, slot| least.min(self.until[*slot]));
        let next = before.max(now) + 1.0 / self.pace.rate;
        let left = next - now <= self.pace.burst / self.pace.rate + ROUNDING;
        if left {
            for slot in slots {
                self.until[slot] = self.until[slot].max(next);
            }
        }
        (left, before > now - BUSY_SECONDS)
    }
}

/// A known session.
struct Known {
    expires: Seconds,
    level: Level,
}

/// The filter of one plane. The window is closed at first.
pub struct PairingFilter {
    gate: Option<PairingGate>,
    lingers_until: Seconds,
    hellos_by_source: SourceLevels,
    shares_by_source: SourceLevels,
    shares_by_site: SourceLevels,
    hellos: Level,
    shares: Level,
    confirms: Level,
    sessions: HashMap<[u8; 8], Known>,
    /// When each is forgotten, the oldest first. An entry is stale if the session has another time.
    order: VecDeque<(Seconds, [u8; 8])>,
}

impl PairingFilter {
    /// Make a filter whose window is closed.
    pub fn new(random: &Random) -> Self {
        let mut key = [0; 16];
        random(&mut key);
        Self {
            gate: None,
            lingers_until: Seconds::NEG_INFINITY,
            hellos_by_source: SourceLevels::new(SOURCE_PACE, key),
            shares_by_source: SourceLevels::new(SOURCE_PACE, key),
            shares_by_site: SourceLevels::new(SITE_PACE, key),
            hellos: Level::new(HELLO_PACE),
            shares: Level::new(PASS_PACE),
            confirms: Level::new(PASS_PACE),
            sessions: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Open the window, change its epoch, or close it (None).
    pub fn set_gate(&mut self, gate: Option<PairingGate>, now: Seconds) {
        if let (None, Some(before)) = (&gate, &self.gate) {
            self.lingers_until = now + before.linger;
        }
        self.gate = gate;
    }

    /// Note what Python sends: SHARE_S and RESULT name a session.
    pub fn sent(&mut self, datagram: &[u8], now: Seconds) {
        let Some((b"RGE3", [SHARE_S | RESULT, _, _, _, rest @ ..])) = datagram.split_first_chunk() else { return };
        let Some(session) = rest.first_chunk::<8>() else { return };
        while self.order.front().is_some_and(|(expires, _)| *expires <= now) {
            self.forget_oldest();
        }
        // Not each time: a client repeats itself.
        let known = self.sessions.get(session);
        if known.is_some_and(|known| known.expires - now > SESSION_SECONDS / 2.0) {
            return;
        }
        let level = self.sessions.remove(session).map_or_else(|| Level::new(SESSION_PACE), |known| known.level);
        while self.sessions.len() >= SESSIONS {
            self.forget_oldest();
        }
        let expires = now + SESSION_SECONDS;
        self.sessions.insert(*session, Known { expires, level });
        self.order.push_back((expires, *session));
    }

    fn forget_oldest(&mut self) {
        let Some((expires, session)) = self.order.pop_front() else { return };
        if self.sessions.get(&session).is_some_and(|known| known.expires == expires) {
            self.sessions.remove(&session);
        }
    }

    /// Judge a datagram that begins with `RGE`.
    pub fn judge(&mut self, datagram: &[u8], source: SocketAddr, now: Seconds, random: &Random) -> Verdict {
        let Some((revision, kind)) = parse(datagram) else { return Verdict::Drop(DropReason::PairingMalformed) };
        if kind == CONFIRM || kind == FORGET {
            return self.judge_confirm(datagram, now);
        }
        let Some(gate) = &self.gate else { return Verdict::Drop(DropReason::PairingClosed) };
        let address = Address::of(source);
        if kind == SHARE_C {
            if !cookie_holds(gate, datagram, &address) {
                return Verdict::Drop(DropReason::PairingCookie);
            }
            return self.judge_share(&address, now);
        }
        let (_, busy) = self.hellos_by_source.take(address.prefix(8), now);
        if !self.hellos.take(now, busy) {
            return Verdict::Drop(DropReason::PairingPace);
        }
        Verdict::Answer(if revision == REVISION {
            challenge(gate, datagram, &address, random)
        } else {
            [&header(OTHER_REVISION), &datagram[8..SHORTEST_HELLO]].concat()
        })
    }

    fn judge_share(&mut self, address: &Address, now: Seconds) -> Verdict {
        let (mut left, mut busy) = self.shares_by_source.take(address.prefix(8), now);
        if left && address.size == 16 {
            (left, busy) = self.shares_by_site.take(address.prefix(6), now);
        }
        if left && self.shares.take(run(now), busy) { Verdict::Pass } else { Verdict::Drop(DropReason::PairingPace) }
    }

    fn judge_confirm(&mut self, datagram: &[u8], now: Seconds) -> Verdict {
        if self.gate.is_none() && now >= self.lingers_until {
            return Verdict::Drop(DropReason::PairingClosed);
        }
        let known = datagram[8..].first_chunk::<8>().and_then(|session| self.sessions.get_mut(session));
        let Some(known) = known.filter(|known| known.expires > now) else {
            return Verdict::Drop(DropReason::PairingSession);
        };
        let busy = known.level.until > now - BUSY_SECONDS;
        if known.level.take(now, false) && self.confirms.take(run(now), busy) {
            Verdict::Pass
        } else {
            Verdict::Drop(DropReason::PairingPace)
        }
    }
}

/// Return whether an answer tells a client of another revision which one we speak.
pub fn is_revision(answer: &[u8]) -> bool {
    answer.starts_with(&header(OTHER_REVISION))
}

/// Return the revision and type of what a client may send, if its length is right.
fn parse(datagram: &[u8]) -> Option<(u8, u8)> {
    let rest = datagram.strip_prefix(FOREIGN_MAGIC)?;
    let &[revision, kind, 0, 0, 0, ..] = rest else { return None };
    let right = match (revision, kind) {
        (REVISION, HELLO) => datagram.len() == 128 && datagram[28..].iter().all(|byte| *byte == 0),
        (REVISION, SHARE_C) => datagram.len() == 132,
        (REVISION, CONFIRM) => datagram.len() == 1232,
        (REVISION, FORGET) => datagram.len() == 48,
        (REVISION, _) => false,
        (_, kind) => kind == HELLO && datagram.len() >= SHORTEST_HELLO,
    };
    right.then_some((revision, kind))
}

fn run(now: Seconds) -> Seconds {
    (now / RUN).floor() * RUN
}

fn header(kind: u8) -> [u8; 8] {
    let [r, g, e] = *FOREIGN_MAGIC;
    [r, g, e, REVISION, kind, 0, 0, 0]
}

/// A source: 4 or 16 bytes, then the port. An IPv4-mapped address is the IPv4 address that it stands
/// for.
struct Address {
    bytes: [u8; 18],
    size: usize,
}

impl Address {
    fn of(source: SocketAddr) -> Self {
        let mut bytes = [0; 18];
        let size = match source.ip().to_canonical() {
            IpAddr::V4(address) => {
                bytes[..4].copy_from_slice(&address.octets());
                4
            }
            IpAddr::V6(address) => {
                bytes[..16].copy_from_slice(&address.octets());
                16
            }
        };
        bytes[size..size + 2].copy_from_slice(&source.port().to_le_bytes());
        Self { bytes, size }
    }

    /// Return the first bytes of the address, at most `most`.
    fn prefix(&self, most: usize) -> &[u8] {
        &self.bytes[..most.min(self.size)]
    }
}

/// Return the cookie of an address and port.
fn cookie(epoch: &PairingEpoch, address: &Address, nonces: &[u8], token: &[u8]) -> [u8; COOKIE_SIZE] {
    let mut context = hmac::Context::with_key(&epoch.secret);
    context.update(&address.bytes[..address.size + 2]);
    context.update(nonces);
    context.update(token);
    *context.sign().as_ref().first_chunk().expect("a tag has 32 bytes")
}

/// Return whether a whole SHARE_C holds a cookie that we made for its source. The time doesn't
/// depend on where it differs.
fn cookie_holds(gate: &PairingGate, datagram: &[u8], address: &Address) -> bool {
    let number = u32_at(datagram, 40);
    let mut epochs = [Some(&gate.current), gate.previous.as_ref()].into_iter().flatten();
    let Some(epoch) = epochs.find(|epoch| epoch.number == number) else { return false };
    cookie(epoch, address, &datagram[8..40], &datagram[60..64]).as_slice().ct_eq(&datagram[44..60]).to_bool()
}

fn challenge(gate: &PairingGate, hello: &[u8], address: &Address, random: &Random) -> Vec<u8> {
    let mut made = Vec::with_capacity(CHALLENGE_SIZE);
    made.extend(header(CHALLENGE));
    made.extend(&hello[8..24]);
    made.resize(40, 0);
    random(&mut made[24..]);
    let cookie = cookie(&gate.current, address, &made[8..40], &hello[24..28]);
    made.extend(gate.current.number.to_le_bytes());
    made.extend(cookie);
    made.extend(gate.server_id);
    made.extend(gate.current.ephemeral);
    made
}
