//! Sixteen texts at once: the key stream of one block of each, while a block of each is added to
//! the tags.
//!
//! Alone, either leaves a part of the processor idle. Together they take 0.9 of the time.

use std::arch::x86_64::*;

use super::chacha20::{self, BLOCK_SIZE, Blocks, Key, LANES};
use super::poly1305::{self, Factor, Mac, Sum};
use super::vector::Rows;

/// Sixteen texts, as far as all of them have whole blocks.
pub struct Fused<'a> {
    pub key: &'a Key,
    /// The nonces of the texts.
    pub nonces: [__m512i; 3],
    /// Their bytes, as far as they are taken.
    pub rows: [Rows; 2],
    /// How many bytes of each are taken: whole blocks, at least one.
    pub size: usize,
    /// The state of the texts' blocks after the part of the first round that all blocks of a text
    /// have in common.
    pub begun: [__m512i; 16],
    /// Four powers of r for each half of the lanes.
    pub powers: [[Factor; 4]; 2],
}

impl Fused<'_> {
    /// Seal the rows, and add them to the accumulators.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
    pub fn seal(&self, macs: &mut [Mac; 2], buffer: &mut [u8]) {
        let blocks = chacha20::blocks(&chacha20::words(self.key, &self.which(0)));
        self.xor(buffer, &blocks, 0);
        let last = self.size - BLOCK_SIZE;
        for at in (0..last).step_by(BLOCK_SIZE) {
            self.step(macs, buffer, at, at + BLOCK_SIZE);
        }
        for ((mac, rows), powers) in macs.iter_mut().zip(&self.rows).zip(&self.powers) {
            mac.blocks(&poly1305::transposed(&rows.load(buffer, last)), powers);
        }
    }

    /// Add the rows to the accumulators, and open them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
    pub fn open(&self, macs: &mut [Mac; 2], buffer: &mut [u8]) {
        for at in (0..self.size).step_by(BLOCK_SIZE) {
            self.step(macs, buffer, at, at);
        }
    }

    /// Return the blocks of the key stream for the 64 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn which(&self, at: usize) -> Blocks {
        Blocks { counters: _mm512_set1_epi32((at / BLOCK_SIZE + 1) as i32), nonces: self.nonces }
    }

    /// Add the 64 bytes at `absorbed` of each row to the accumulators. Then XOR those at `mixed`
    /// with the key stream.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
    fn step(&self, macs: &mut [Mac; 2], buffer: &mut [u8], absorbed: usize, mixed: usize) {
        let initial = chacha20::initial(self.key, &self.which(mixed));
        let mut state = self.begun;
        state[12] = initial[12];
        chacha20::finish_first(&mut state);
        for ((mac, rows), powers) in macs.iter_mut().zip(&self.rows).zip(&self.powers) {
            let blocks = poly1305::transposed(&rows.load(buffer, absorbed));
            let mut sum = Sum::none();
            for n in (0..4).rev() {
                chacha20::double_round(&mut state);
                sum.add(mac.added(blocks[n], n == 0), &powers[n]);
            }
            mac.h = sum.reduced();
        }
        chacha20::double_round(&mut state);
        let blocks = chacha20::blocks(&chacha20::finished(state, initial));
        self.xor(buffer, &blocks, mixed);
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor(&self, buffer: &mut [u8], blocks: &[__m512i; LANES], at: usize) {
        for (rows, blocks) in self.rows.iter().zip(blocks.as_chunks().0) {
            rows.xor(buffer, blocks, at);
        }
    }
}
