//! ChaCha20-Poly1305 (RFC 8439) with WireGuard's nonces: four zero bytes and the counter (whitepaper section 5.4.6).
//!
//! A cipher lives as long as a batch: the session keeps 32 bytes, not an expanded key, and making a cipher of them
//! costs less than sealing sixteen bytes. [`Ring`] does all that comes alone. Batches that are long enough go through
//! `lanes`, sixteen packets at once, where the processor has AVX-512 IFMA and `RUSTGUARD_AEAD` isn't `ring`.

use std::sync::OnceLock;

// Miri knows no assembler.
#[cfg_attr(miri, path = "aead/interpreted.rs")]
mod by_ring;

pub use by_ring::Ring;

#[cfg(avx512)]
use crate::lanes::{self, Lanes};

/// Where a packet lies in a buffer, sealed or to be sealed.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Where it begins.
    pub at: usize,
    /// Bytes, of which the last 16 are the tag. At least 16.
    pub size: usize,
    /// Its nonce.
    pub counter: u64,
}

/// One direction of one session.
pub trait Aead {
    /// Make it of a 32-byte key.
    fn new(key: &[u8; 32]) -> Self;

    /// Seal in place: all but the last 16 bytes of `body` are the packet, the tag goes there.
    fn seal(&self, counter: u64, body: &mut [u8]);

    /// Open in place; false, with `body` of no use, if the tag doesn't hold. At least 16 bytes.
    fn open(&self, counter: u64, body: &mut [u8]) -> bool;

    /// Seal bodies that don't overlap, in place.
    fn seal_batch(&self, buffer: &mut [u8], bodies: &[Body]) {
        for body in bodies {
            self.seal(body.counter, &mut buffer[body.at..body.at + body.size]);
        }
    }

    /// Open bodies that don't overlap, in place; push for each whether its tag holds.
    fn open_batch(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        held.extend(bodies.iter().map(|body| self.open(body.counter, &mut buffer[body.at..body.at + body.size])));
    }
}

/// The fastest here.
pub struct Cipher {
    ring: Ring,
    #[cfg(avx512)]
    lanes: Option<Lanes>,
}

/// Whether long batches go through the lanes. Decided once: by the variable `RUSTGUARD_AEAD` and the processor.
fn has_lanes() -> bool {
    static CHOSEN: OnceLock<bool> = OnceLock::new();
    #[cfg(avx512)]
    let available = lanes::are_available();
    #[cfg(not(avx512))]
    let available = false;
    *CHOSEN.get_or_init(|| available && std::env::var_os("RUSTGUARD_AEAD").is_none_or(|name| name != "ring"))
}

/// What seals and opens here, in words.
pub fn description() -> &'static str {
    if has_lanes() { "AVX-512 for 16 packets at once, ring for the rest" } else { "ring" }
}

/// Fewer than this are for ring: of 4 packets the lanes need 0.9 to 1.4 of its time, of 5 up to 0.9
/// (`examples/aead.rs`).
#[cfg(avx512)]
const FEWEST: usize = 5;

/// Divide bodies into those for the lanes and those for ring, which is faster with few.
#[cfg(avx512)]
fn divide(bodies: &[Body]) -> (&[Body], &[Body]) {
    let rest = bodies.len() % lanes::COUNT;
    bodies.split_at(if rest < FEWEST { bodies.len() - rest } else { bodies.len() })
}

impl Aead for Cipher {
    fn new(key: &[u8; 32]) -> Self {
        Self {
            ring: Ring::new(key),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TAG_SIZE;

    /// RFC 7539's key and text; made with WireGuard's nonce for counter 0x0706050403020100 by an independent
    /// implementation in the test below.
    #[test]
    fn sealing_is_chacha20poly1305_with_the_counter_as_nonce() {
        use chacha20poly1305::aead::{Aead as _, KeyInit};
        let key: [u8; 32] = std::array::from_fn(|n| 0x80 + n as u8);
        let counter = 0x0706_0504_0302_0100_u64;
        let text = b"Ladies and Gentlemen of the class of '99";
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        let other = chacha20poly1305::ChaCha20Poly1305::new(&key.into());
        let expected = other.encrypt(&nonce.into(), &text[..]).unwrap();

        let mut body = vec![0; text.len() + TAG_SIZE];
        let ours = Ring::new(&key);
        body[..text.len()].copy_from_slice(text);
        ours.seal(counter, &mut body);
        assert_eq!(body, expected);
        assert!(ours.open(counter, &mut body));
        assert_eq!(&body[..text.len()], text);
    }

    #[test]
    fn batches_of_any_count_are_rings() {
        println!("AEAD tested: {}", description());
        let (cipher, ring) = (Cipher::new(&[5; 32]), Ring::new(&[5; 32]));
        for count in 0..=if cfg!(miri) { 6 } else { 64 } {
            let body = |n: usize| Body { at: 90 * n, size: 90 - n % 3, counter: n as u64 };
            let bodies: Vec<Body> = (0..count).map(body).collect();
            let (mut buffer, mut expected) = (vec![3; 90 * count], vec![3; 90 * count]);
            cipher.seal_batch(&mut buffer, &bodies);
            ring.seal_batch(&mut expected, &bodies);
            assert_eq!(buffer, expected);
            buffer.iter_mut().step_by(7 * 90).for_each(|byte| *byte ^= 1);
            let mut held = vec![];
            cipher.open_batch(&mut buffer, &bodies, &mut held);
            assert_eq!(held, (0..count).map(|n| n % 7 != 0).collect::<Vec<_>>());
            for (body, held) in bodies.iter().zip(held) {
                assert!(!held || buffer[body.at..body.at + body.size - TAG_SIZE].iter().all(|byte| *byte == 3));
            }
        }
    }

    #[test]
    fn any_flipped_bit_or_other_counter_is_refused() {
        let cipher = Ring::new(&[7; 32]);
        let mut sealed = [0; 64];
        cipher.seal(5, &mut sealed);
        for bit in (0..64 * 8).step_by(if cfg!(miri) { 41 } else { 1 }) {
            let mut forged = sealed;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!cipher.open(5, &mut forged));
        }
        assert!(!cipher.open(6, &mut sealed.clone()));
        assert!(cipher.open(5, &mut sealed));
    }
}
