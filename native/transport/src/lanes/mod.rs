//! ChaCha20-Poly1305 (RFC 8439 section 2.8) of sixteen packets of one key at once, for x86-64 with
//! AVX-512 IFMA.
//!
//! [`chacha20`] has the key stream, [`poly1305`] the tags, [`vector`] the access to memory. This
//! file assigns packets to lanes.
//!
//! Branches and indices depend only on lengths, counters and verdicts, which an observer of the
//! network knows. Tags are compared in constant time. Nothing is decrypted if its tag is wrong. The
//! key is wiped when the batch is done. Registers that the compiler spills are not wiped, but the
//! next batch overwrites them.

#![allow(unsafe_code, reason = "a function compiled for certain processors is unsafe to call")]
#![allow(clippy::incompatible_msrv, reason = "build.rs leaves this out for compilers that lack it")]

mod chacha20;
mod poly1305;
mod vector;

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::__m512i;
use std::array::from_fn;

use ctutils::CtEq;
use zeroize::Zeroizing;

use crate::body::Body;
use crate::wire::TAG_SIZE;
use chacha20::{BLOCK_SIZE, Blocks, Key, LANES};
use poly1305::Mac;

/// Packets at once.
pub const COUNT: usize = LANES;

/// A key. It exists only on processors with the required features.
pub struct Lanes(Zeroizing<Key>);

/// Return whether this processor and the system have the required features.
pub fn are_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512ifma")
        && is_x86_feature_detected!("avx512vbmi2")
}

impl Lanes {
    /// Make it from a 32-byte key. Return None if the processor lacks a feature.
    pub fn new(key: &[u8; 32]) -> Option<Self> {
        are_available().then(|| {
            let mut words = Zeroizing::new([0; 8]);
            for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            Self(words)
        })
    }

    /// Seal bodies in place. Panics if one isn't in the buffer.
    pub fn seal(&self, buffer: &mut [u8], bodies: &[Body]) {
        for group in bodies.chunks(LANES) {
            // SAFETY: there is no `Lanes` on a processor that lacks a feature.
            unsafe { seal(&self.0, buffer, group) };
        }
    }

    /// Open bodies in place. Push for each whether its tag is right. A body with a wrong tag stays
    /// unchanged.
    pub fn open(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        for group in bodies.chunks(LANES) {
            // SAFETY: there is no `Lanes` on a processor that lacks a feature.
            let holds = unsafe { open(&self.0, buffer, group) };
            held.extend_from_slice(&holds[..group.len()]);
        }
    }
}

/// Return WireGuard's nonce: four zero bytes and the counter.
fn nonce(body: &Body) -> [u32; 3] {
    [0, body.counter as u32, (body.counter >> 32) as u32]
}

fn text_size(body: &Body) -> usize {
    body.size - TAG_SIZE
}

#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn seal(key: &Key, buffer: &mut [u8], bodies: &[Body]) {
    let one_time = one_time_keys(key, bodies);
    crypt(key, buffer, bodies.iter());
    let tags = tags(&one_time, buffer, bodies);
    for (body, tag) in bodies.iter().zip(tags) {
        buffer[body.at..body.at + body.size][text_size(body)..].copy_from_slice(&tag.to_le_bytes());
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn open(key: &Key, buffer: &mut [u8], bodies: &[Body]) -> [bool; LANES] {
    let one_time = one_time_keys(key, bodies);
    let tags = tags(&one_time, buffer, bodies);
    let mut holds = [false; LANES];
    for ((holds, body), tag) in holds.iter_mut().zip(bodies).zip(tags) {
        let claimed = &buffer[body.at..body.at + body.size][text_size(body)..];
        *holds = tag.to_le_bytes().as_slice().ct_eq(claimed).to_bool();
    }
    crypt(key, buffer, bodies.iter().zip(holds).filter_map(|(body, holds)| holds.then_some(body)));
    holds
}

/// Return the bodies of the lanes. Lanes without one repeat the first body, and their results are
/// ignored.
fn lanes(bodies: &[Body]) -> [Body; LANES] {
    from_fn(|lane| *bodies.get(lane).unwrap_or(&bodies[0]))
}

/// Return block 0 of each body's key stream, in words. The first eight are the key of its tag.
#[inline]
#[target_feature(enable = "avx512f")]
fn one_time_keys(key: &Key, bodies: &[Body]) -> [__m512i; 16] {
    let mut which = Blocks::default();
    for (lane, body) in lanes(bodies).iter().enumerate() {
        which.set(lane, 0, nonce(body));
    }
    chacha20::words(key, &which)
}

/// XOR the texts with the key stream from block 1 on. Sixteen blocks are computed at once, of any
/// bodies. At the end there may be fewer, and the results of the other lanes are ignored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn crypt<'a>(key: &Key, buffer: &mut [u8], bodies: impl Iterator<Item = &'a Body>) {
    let (mut which, mut places, mut count) = (Blocks::default(), [(0, 0); LANES], 0);
    for body in bodies {
        let (mut at, end) = (body.at, body.at + text_size(body));
        let nonce = nonce(body);
        for counter in 1.. {
            if at >= end {
                break;
            }
            which.set(count, counter, nonce);
            places[count] = (at, end.min(at + BLOCK_SIZE));
            at += BLOCK_SIZE;
            count += 1;
            if count == LANES {
                xor(key, &which, buffer, &places);
                count = 0;
            }
        }
    }
    xor(key, &which, buffer, &places[..count]);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn xor(key: &Key, which: &Blocks, buffer: &mut [u8], places: &[(usize, usize)]) {
    if places.is_empty() {
        return;
    }
    for (stream, (at, end)) in chacha20::blocks(key, which).into_iter().zip(places) {
        vector::xor(&mut buffer[*at..*end], stream);
    }
}

/// Return the tags of the texts in the buffer.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn tags(one_time: &[__m512i; 16], buffer: &[u8], bodies: &[Body]) -> [u128; LANES] {
    let texts = lanes(bodies).map(|body| &buffer[body.at..body.at + text_size(&body)]);
    let (lower, upper) = (from_fn(|lane| texts[lane]), from_fn(|lane| texts[lane + poly1305::LANES]));
    let macs = [Mac::new(poly1305::keys::<false>(one_time)), Mac::new(poly1305::keys::<true>(one_time))];
    let mut tags = [0; LANES];
    if bodies.len() <= poly1305::LANES {
        tags[..poly1305::LANES].copy_from_slice(finished([macs[0]], &[lower]).as_flattened());
    } else {
        tags.copy_from_slice(finished(macs, &[lower, upper]).as_flattened());
    }
    tags
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn finished<const N: usize>(
    mut macs: [Mac; N],
    texts: &[[&[u8]; poly1305::LANES]; N],
) -> [[u128; poly1305::LANES]; N] {
    poly1305::absorb(&mut macs, texts);
    let mut tags = [[0; poly1305::LANES]; N];
    for ((mac, texts), tags) in macs.iter_mut().zip(texts).zip(&mut tags) {
        mac.lengths(&[0; poly1305::LANES], &texts.map(|text| text.len() as u64));
        let [low, high] = mac.tags();
        *tags = from_fn(|lane| u128::from(high[lane]) << 64 | u128::from(low[lane]));
    }
    tags
}

#[cfg(test)]
mod tests;
