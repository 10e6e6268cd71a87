//! The fastest AEAD on this machine: sixteen lanes for long batches, eight for batches of short
//! packets, ring for the rest.

use std::sync::OnceLock;

use super::by_ring::RingCipher;
use super::interface::Aead;
#[cfg(lanes)]
use crate::body::Body;
#[cfg(lanes)]
use crate::lanes::{self, Lanes, eight, eight::Eight};
#[cfg(lanes)]
use crate::wire::TAG_SIZE;

/// The fastest cipher on this machine.
pub struct Cipher {
    ring: RingCipher,
    #[cfg(lanes)]
    sixteen: Option<Lanes>,
    #[cfg(lanes)]
    eight: Option<Eight>,
}

/// Which lanes are used.
#[derive(Clone, Copy)]
struct Chosen {
    sixteen: bool,
    eight: bool,
}

/// Return which lanes are used. The variable `RUSTGUARD_AEAD` and the processor decide that once.
fn chosen() -> Chosen {
    static CHOSEN: OnceLock<Chosen> = OnceLock::new();
    #[cfg(lanes)]
    let available = Chosen { sixteen: lanes::are_available(), eight: eight::are_available() };
    #[cfg(not(lanes))]
    let available = Chosen { sixteen: false, eight: false };
    *CHOSEN.get_or_init(|| match std::env::var("RUSTGUARD_AEAD").as_deref() {
        Ok("ring") => Chosen { sixteen: false, eight: false },
        Ok("lanes8") => Chosen { sixteen: false, ..available },
        _ => available,
    })
}

/// Return what seals and opens packets here, in words.
pub fn description() -> &'static str {
    match chosen() {
        Chosen { sixteen: true, .. } => "AVX-512 for 16 packets at once, AVX2 for 2 short ones, ring for the rest",
        Chosen { eight: true, .. } => "AVX2 for several short packets at once, ring for the rest",
        _ => "ring",
    }
}

/// Batches with fewer packets don't use the sixteen lanes. For 2 packets they need 1.0 to 1.4 of
/// ring's time, for 3 up to 1.0 (`examples/aead`).
#[cfg(lanes)]
const FEWEST: usize = 3;

/// Divide bodies into those for the sixteen lanes and those for which they are slow.
#[cfg(lanes)]
fn divide(bodies: &[Body]) -> (&[Body], &[Body]) {
    let rest = bodies.len() % lanes::COUNT;
    bodies.split_at(if rest < FEWEST { bodies.len() - rest } else { bodies.len() })
}

/// Return whether the eight lanes are faster than ring. The mean length decides: 2 and 3 packets of
/// up to 128 bytes, 4 and more of up to 512 (`examples/aead`).
#[cfg(lanes)]
fn suits_eight(bodies: &[Body]) -> bool {
    let longest = match bodies.len() {
        0 | 1 => return false,
        2 | 3 => 128,
        _ => 512,
    };
    bodies.iter().map(|body| body.size - TAG_SIZE).sum::<usize>() <= longest * bodies.len()
}

impl Aead for Cipher {
    fn new(key: &[u8; 32]) -> Self {
        #[cfg(lanes)]
        let Chosen { sixteen, eight } = chosen();
        Self {
            ring: RingCipher::new(key),
            #[cfg(lanes)]
            sixteen: if sixteen { Lanes::new(key) } else { None },
            #[cfg(lanes)]
            eight: if eight { Eight::new(key) } else { None },
        }
    }

    fn seal(&self, counter: u64, body: &mut [u8]) {
        self.ring.seal(counter, body);
    }

    fn open(&self, counter: u64, body: &mut [u8]) -> bool {
        self.ring.open(counter, body)
    }

    #[cfg(lanes)]
    fn seal_batch(&self, buffer: &mut [u8], bodies: &[Body]) {
        let mut rest = bodies;
        if let Some(sixteen) = &self.sixteen {
            let (many, few) = divide(bodies);
            sixteen.seal(buffer, many);
            rest = few;
        }
        match &self.eight {
            Some(eight) if suits_eight(rest) => eight.seal(buffer, rest),
            _ => self.ring.seal_batch(buffer, rest),
        }
    }

    #[cfg(lanes)]
    fn open_batch(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        let mut rest = bodies;
        if let Some(sixteen) = &self.sixteen {
            let (many, few) = divide(bodies);
            sixteen.open(buffer, many, held);
            rest = few;
        }
        match &self.eight {
            Some(eight) if suits_eight(rest) => eight.open(buffer, rest, held),
            _ => self.ring.open_batch(buffer, rest, held),
        }
    }
}
