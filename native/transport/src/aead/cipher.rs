//! The fastest AEAD on this machine: lanes for long batches, ring for the rest.

use std::sync::OnceLock;

use super::by_ring::RingCipher;
use super::interface::Aead;
#[cfg(avx512)]
use crate::body::Body;
#[cfg(avx512)]
use crate::lanes::{self, Lanes};

/// The fastest cipher on this machine.
pub struct Cipher {
    ring: RingCipher,
    #[cfg(avx512)]
    lanes: Option<Lanes>,
}

/// Return whether long batches go through the lanes. The variable `RUSTGUARD_AEAD` and the
/// processor decide that once.
fn has_lanes() -> bool {
    static CHOSEN: OnceLock<bool> = OnceLock::new();
    #[cfg(avx512)]
    let available = lanes::are_available();
    #[cfg(not(avx512))]
    let available = false;
    *CHOSEN.get_or_init(|| available && std::env::var_os("RUSTGUARD_AEAD").is_none_or(|name| name != "ring"))
}

/// Return what seals and opens packets here, in words.
pub fn description() -> &'static str {
    if has_lanes() { "AVX-512 for 16 packets at once, ring for the rest" } else { "ring" }
}

/// Batches with fewer packets use ring. For 2 packets the lanes need 1.0 to 1.4 of ring's time, for
/// 3 up to 1.0 (`examples/aead`).
#[cfg(avx512)]
const FEWEST: usize = 3;

/// Divide bodies into those for the lanes and those for ring, which is faster with few.
#[cfg(avx512)]
fn divide(bodies: &[Body]) -> (&[Body], &[Body]) {
    let rest = bodies.len() % lanes::COUNT;
    bodies.split_at(if rest < FEWEST { bodies.len() - rest } else { bodies.len() })
}

impl Aead for Cipher {
    fn new(key: &[u8; 32]) -> Self {
        Self {
            ring: RingCipher::new(key),
            #[cfg(avx512)]
            lanes: if has_lanes() { Lanes::new(key) } else { None },
        }
    }

    fn seal(&self, counter: u64, body: &mut [u8]) {
        self.ring.seal(counter, body);
    }

    fn open(&self, counter: u64, body: &mut [u8]) -> bool {
        self.ring.open(counter, body)
    }

    #[cfg(avx512)]
    fn seal_batch(&self, buffer: &mut [u8], bodies: &[Body]) {
        let Some(lanes) = &self.lanes else { return self.ring.seal_batch(buffer, bodies) };
        let (many, few) = divide(bodies);
        lanes.seal(buffer, many);
        self.ring.seal_batch(buffer, few);
    }

    #[cfg(avx512)]
    fn open_batch(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        let Some(lanes) = &self.lanes else { return self.ring.open_batch(buffer, bodies, held) };
        let (many, few) = divide(bodies);
        lanes.open(buffer, many, held);
        self.ring.open_batch(buffer, few, held);
    }
}
