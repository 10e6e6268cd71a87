//! ChaCha20-Poly1305 (RFC 8439 section 2.8) of sixteen packets of one key at once, for x86-64 with
//! AVX-512 IFMA. [`eight`] is for processors with AVX2.
//!
//! [`batch`] assigns packets to lanes. [`chacha20`] has the key stream, [`poly1305`] the tags,
//! [`fused`] both for as much as sixteen packets have in common, [`stream`] the key stream for the
//! rest, [`vector`] the access to memory.
//!
//! Branches and indices depend only on lengths, counters and verdicts, which an observer of the
//! network knows. Tags are compared in constant time. [`fused`] decrypts while the tags are computed;
//! what turns out to have a wrong tag is encrypted again before [`Lanes::open`] returns. The key is
//! wiped when the batch is done. Registers that the compiler spills are not wiped, but the next
//! batch overwrites them.

#![allow(unsafe_code, reason = "a function compiled for certain processors is unsafe to call")]
#![allow(clippy::incompatible_msrv, reason = "build.rs leaves this out for compilers that lack it")]

mod batch;
mod chacha20;
pub mod eight;
mod fused;
mod poly1305;
mod stream;
mod vector;

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;
use std::array::from_fn;

use ctutils::CtEq;
use zeroize::Zeroizing;

use crate::body::Body;
use crate::wire::TAG_SIZE;
use batch::{Batch, text_size};
use chacha20::{Key, LANES};
use poly1305::Mac;
use stream::Stream;
use vector::Places;

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
        are_available().then(|| Self(chacha20::key_words(key)))
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

#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn seal(key: &Key, buffer: &mut [u8], bodies: &[Body]) {
    let batch = Batch::new(bodies);
    let size = batch.fused_size();
    let stream = Stream::new(key, &batch, size);
    let one_time = stream.first();
    let mut macs = macs(&one_time);
    if size > 0 {
        batch.fused(key, &macs, size).seal(&mut macs, buffer);
    }
    stream.crypt(one_time, buffer, &[true; LANES]);
    let tags = tags(macs, buffer, &batch, size);
    for (body, tag) in bodies.iter().zip(tags) {
        buffer[body.at..body.at + body.size][text_size(body)..].copy_from_slice(&tag.to_le_bytes());
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn open(key: &Key, buffer: &mut [u8], bodies: &[Body]) -> [bool; LANES] {
    let batch = Batch::new(bodies);
    let size = batch.fused_size();
    let stream = Stream::new(key, &batch, size);
    let one_time = stream.first();
    let mut macs = macs(&one_time);
    if size > 0 {
        batch.fused(key, &macs, size).open(&mut macs, buffer);
    }
    let tags = tags(macs, buffer, &batch, size);
    let mut holds = [false; LANES];
    for ((holds, body), tag) in holds.iter_mut().zip(bodies).zip(tags) {
        let claimed = &buffer[body.at..body.at + body.size][text_size(body)..];
        *holds = tag.to_le_bytes().as_slice().ct_eq(claimed).to_bool();
    }
    stream.crypt(one_time, buffer, &holds);
    if size > 0 && holds.contains(&false) {
        close(key, buffer, bodies, size, holds.map(|holds| !holds));
    }
    holds
}

/// Seal the first `size` bytes of those texts again that [`Fused`] opened although their tags are
/// wrong.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn close(key: &Key, buffer: &mut [u8], bodies: &[Body], size: usize, wrong: [bool; LANES]) {
    let bodies: Vec<Body> = bodies.iter().map(|body| Body { size: size + TAG_SIZE, ..*body }).collect();
    let batch = Batch::new(&bodies);
    let stream = Stream::new(key, &batch, 0);
    let first = stream.first();
    stream.crypt(first, buffer, &wrong);
}

/// Return the accumulators of the lanes, before the first block.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
fn macs(one_time: &[__m512i; 16]) -> [Mac; 2] {
    [Mac::new(poly1305::keys::<false>(one_time)), Mac::new(poly1305::keys::<true>(one_time))]
}

/// Return the tags of the texts. Their first `done` bytes have been added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn tags(macs: [Mac; 2], buffer: &[u8], batch: &Batch, done: usize) -> [u128; LANES] {
    let mut tags = [0; LANES];
    if batch.bodies.len() <= poly1305::LANES {
        tags[..poly1305::LANES].copy_from_slice(finished([macs[0]], buffer, &[batch.texts[0]], done).as_flattened());
    } else {
        tags.copy_from_slice(finished(macs, buffer, &batch.texts, done).as_flattened());
    }
    tags
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn finished<const N: usize>(
    mut macs: [Mac; N],
    buffer: &[u8],
    texts: &[Places; N],
    done: usize,
) -> [[u128; poly1305::LANES]; N] {
    let done = _mm512_set1_epi64(done as i64);
    poly1305::absorb(&mut macs, &texts.map(|text| text.after(done)), buffer);
    let mut tags = [[0; poly1305::LANES]; N];
    for ((mac, text), tags) in macs.iter_mut().zip(texts).zip(&mut tags) {
        mac.lengths(_mm512_setzero_si512(), text.sizes);
        let [low, high] = mac.tags();
        *tags = from_fn(|lane| u128::from(high[lane]) << 64 | u128::from(low[lane]));
    }
    tags
}

#[cfg(test)]
mod tests;
