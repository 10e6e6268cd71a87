//! What is tested: the sixteen lanes and the eight, whole and by their parts.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::transmute;
use std::panic::RefUnwindSafe;

use super::super::chacha20::{self, Blocks, Key};
use super::super::eight::{self, Eight};
use super::super::poly1305::{self, Mac};
use super::super::vector::{self, Places};
use super::super::{Lanes, are_available};
use crate::body::Body;

/// Lanes of either number.
pub trait Subject: Sized + RefUnwindSafe {
    /// Blocks of ChaCha20 at once.
    const LANES: usize;

    /// Make it from a key. Return None if the processor lacks a feature.
    fn make(key: &[u8; 32]) -> Option<Self>;
    fn is_available() -> bool;
    fn seal(&self, buffer: &mut [u8], bodies: &[Body]);
    fn open(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>);

    /// Return one block of the key stream, computed in `lane` next to others.
    fn stream_block(key: &Key, nonce: [u32; 3], counter: u32, lane: usize) -> [u8; 64];

    /// Return the tag over associated data and text. Where several are computed at once, it is in
    /// `lane`. Without `lengths` the text must be whole blocks.
    fn tag(one_time: &[u8], data: &[u8], text: &[u8], lengths: bool, lane: usize) -> [u8; 16];
}

fn halves(one_time: &[u8]) -> [u64; 4] {
    from_fn(|n| u64::from_le_bytes(one_time.as_chunks::<8>().0[n]))
}

impl Subject for Lanes {
    const LANES: usize = chacha20::LANES;

    fn make(key: &[u8; 32]) -> Option<Self> {
        Self::new(key)
    }

    fn is_available() -> bool {
        are_available()
    }

    fn seal(&self, buffer: &mut [u8], bodies: &[Body]) {
        self.seal(buffer, bodies);
    }

    fn open(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        self.open(buffer, bodies, held);
    }

    /// Compares the results in bytes and in words.
    fn stream_block(key: &Key, nonce: [u32; 3], counter: u32, lane: usize) -> [u8; 64] {
        let others = |value: u32, step: u32| from_fn(|other| value + step * other as u32);
        let mut which: [[u32; chacha20::LANES]; 4] = [others(77, 1), others(0, 1), others(5, 0), others(6, 0)];
        for (words, word) in which.iter_mut().zip([&[counter][..], &nonce].concat()) {
            words[lane] = word;
        }
        // SAFETY: the tests ask `are_available` first. All of them are 64 bytes without padding, and any
        // bits are numbers.
        let (words, blocks) = unsafe {
            let [counters, nonces @ ..] = transmute::<[[u32; chacha20::LANES]; 4], [__m512i; 4]>(which);
            let words = chacha20::words(key, &Blocks { counters, nonces });
            let blocks =
                transmute::<[__m512i; chacha20::LANES], [[u8; 64]; chacha20::LANES]>(chacha20::blocks(&words));
            (transmute::<[__m512i; 16], [[u32; chacha20::LANES]; 16]>(words), blocks)
        };
        let block = blocks[lane];
        let of_words: Vec<u8> = words.iter().flat_map(|word| word[lane].to_le_bytes()).collect();
        assert_eq!(block, *of_words);
        block
    }

    fn tag(one_time: &[u8], data: &[u8], text: &[u8], lengths: bool, lane: usize) -> [u8; 16] {
        // The other lanes have someone else's text.
        let buffer = [data, text, b"someone else's text"].concat();
        let others = (data.len() + text.len()) as u64;
        let only = |value: usize, other: u64| {
            let longs = from_fn(|n| if n == lane { value as u64 } else { other });
            // SAFETY: the tests ask `are_available` first.
            unsafe { vector::from_longs(&longs) }
        };
        // SAFETY: the tests ask `are_available` first.
        let [low, high] = unsafe {
            let mut keys = [[9; poly1305::LANES]; 4].map(|longs| vector::from_longs(&longs));
            for (key, half) in keys.iter_mut().zip(halves(one_time)) {
                let mut longs = vector::to_longs(*key);
                longs[lane] = half;
                *key = vector::from_longs(&longs);
            }
            let mut mac = Mac::new(keys);
            for (at, message) in [(0, data), (data.len(), text)] {
                let places = Places { at: only(at, others), sizes: only(message.len(), 19) };
                poly1305::absorb(std::array::from_mut(&mut mac), &[places], &buffer);
            }
            if lengths {
                mac.lengths(only(data.len(), 3), only(text.len(), 3));
            }
            mac.tags()
        };
        (u128::from(high[lane]) << 64 | u128::from(low[lane])).to_le_bytes()
    }
}

impl Subject for Eight {
    const LANES: usize = eight::chacha20::LANES;

    fn make(key: &[u8; 32]) -> Option<Self> {
        Self::new(key)
    }

    fn is_available() -> bool {
        eight::are_available()
    }

    fn seal(&self, buffer: &mut [u8], bodies: &[Body]) {
        self.seal(buffer, bodies);
    }

    fn open(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        self.open(buffer, bodies, held);
    }

    fn stream_block(key: &Key, nonce: [u32; 3], counter: u32, lane: usize) -> [u8; 64] {
        let others = |value: u32, step: u32| from_fn(|other| value + step * other as u32);
        let mut which =
            eight::chacha20::Blocks { counters: others(77, 1), nonces: [others(0, 1), others(5, 0), others(6, 0)] };
        which.counters[lane] = counter;
        for (words, word) in which.nonces.iter_mut().zip(nonce) {
            words[lane] = word;
        }
        // SAFETY: the tests ask `is_available` first. Both are 64 bytes without padding, and any bits
        // are numbers.
        unsafe {
            let initial = eight::chacha20::initial(key, &which);
            let mut state = initial;
            (0..10).for_each(|_| eight::chacha20::double_round(&mut state, |_| {}));
            transmute::<[__m256i; 2], [u8; 64]>(eight::chacha20::stream(state, initial)[lane])
        }
    }

    fn tag(one_time: &[u8], data: &[u8], text: &[u8], lengths: bool, _: usize) -> [u8; 16] {
        let mut mac = eight::poly1305::Mac::new(halves(one_time));
        mac.padded(data);
        mac.padded(text);
        if lengths {
            mac.block((text.len() as u128) << 64 | data.len() as u128);
        }
        mac.tag().to_le_bytes()
    }
}
