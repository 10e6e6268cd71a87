//! The key stream of a batch, XORed into its texts sixteen blocks at a time.
//!
//! A group is sixteen blocks, of any texts. The first group has block 0 of each body, which is the
//! key of its tag, and fills the other lanes. So few short bodies need a single group.

use std::arch::x86_64::*;

use super::batch::{Batch, nonce, text_size};
use super::chacha20::{self, BLOCK_SIZE, Blocks, Key, LANES};
use super::vector::{LONGS, Places};

/// Sixteen blocks, and where they belong in the buffer.
struct Group {
    which: Blocks,
    /// Lanes whose result isn't used have no bytes.
    places: [Places; 2],
}

/// The blocks of the texts, in order.
pub struct Stream<'a> {
    key: &'a Key,
    batch: &'a Batch<'a>,
    /// Bytes of each text that need no block.
    start: usize,
    /// The body of the next block.
    body: usize,
    /// Bytes of its text that need no block any more.
    done: usize,
    first: Group,
}

impl<'a> Stream<'a> {
    /// Begin with these bodies. The first `start` bytes of each, which are whole blocks, need none.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(key: &'a Key, batch: &'a Batch, start: usize) -> Self {
        let which = Blocks { counters: _mm512_setzero_si512(), nonces: batch.nonces };
        let mut first = Group { which, places: [Places::none(); 2] };
        let mut stream =
            Self { key, batch, start, body: 0, done: start, first: Group { which, places: first.places } };
        if !batch.are_single_blocks() {
            stream.fill(&mut first, batch.bodies.len(), &[true; LANES]);
        }
        stream.first = first;
        stream
    }

    /// Return the words of the first group. In lane n they are block 0 of body n.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn first(&self) -> [__m512i; 16] {
        chacha20::words(self.key, &self.first.which)
    }

    /// XOR the texts that `wanted` names. `words` are those of the first group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn crypt(mut self, mut words: [__m512i; 16], buffer: &mut [u8], wanted: &[bool; LANES]) {
        if self.batch.are_single_blocks() {
            return self.crypt_single_blocks(buffer, wanted);
        }
        let mut group = Group { which: self.first.which, places: self.first.places };
        if wanted[..self.batch.bodies.len()].contains(&false) {
            // The first group has blocks of all texts. Begin again with those that are wanted.
            (self.body, self.done, group.places) = (0, self.start, [Places::none(); 2]);
        }
        let mut any = self.body > 0 || self.done > self.start;
        loop {
            if any {
                let blocks = chacha20::blocks(&words);
                for (places, blocks) in group.places.iter().zip(blocks.as_chunks().0) {
                    places.xor(buffer, blocks);
                }
            }
            group.places = [Places::none(); 2];
            any = self.fill(&mut group, 0, wanted);
            if !any {
                return;
            }
            words = chacha20::words(self.key, &group.which);
        }
    }

    /// XOR texts of a block or less, each in its body's lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn crypt_single_blocks(&self, buffer: &mut [u8], wanted: &[bool; LANES]) {
        let which = Blocks { counters: _mm512_set1_epi32(1), nonces: self.batch.nonces };
        let blocks = chacha20::blocks(&chacha20::words(self.key, &which));
        let wanted =
            wanted[..self.batch.bodies.len()].iter().rev().fold(0_u16, |mask, wanted| mask << 1 | u16::from(*wanted));
        for (half, (text, blocks)) in self.batch.texts.iter().zip(blocks.as_chunks().0).enumerate() {
            let sizes = _mm512_maskz_mov_epi64((wanted >> (LONGS * half)) as u8, text.sizes);
            Places { at: text.at, sizes }.xor(buffer, blocks);
        }
    }

    /// Give the lanes from `lane` on the next blocks. Return whether there were any.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fill(&mut self, group: &mut Group, mut lane: usize, wanted: &[bool; LANES]) -> bool {
        let numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let lower = _mm512_set_epi64(448, 384, 320, 256, 192, 128, 64, 0);
        let bytes = [lower, _mm512_add_epi64(lower, _mm512_set1_epi64((LONGS * BLOCK_SIZE) as i64))];
        let Group { which, places } = group;
        let first = lane;
        while lane < LANES {
            let Some(body) = self.batch.bodies.get(self.body) else { break };
            let left = text_size(body).saturating_sub(self.done);
            if left == 0 || !wanted[self.body] {
                (self.body, self.done) = (self.body + 1, self.start);
                continue;
            }
            // As if all further lanes were for this body. Those that are not are set again, or have
            // no bytes.
            let lanes = 0xffff << lane;
            let counter = (self.done / BLOCK_SIZE + 1) as i32 - lane as i32;
            let [_, low, high] = nonce(body).map(|word| _mm512_set1_epi32(word as i32));
            which.counters = _mm512_mask_add_epi32(which.counters, lanes, numbers, _mm512_set1_epi32(counter));
            which.nonces[1] = _mm512_mask_mov_epi32(which.nonces[1], lanes, low);
            which.nonces[2] = _mm512_mask_mov_epi32(which.nonces[2], lanes, high);
            let before = (lane * BLOCK_SIZE) as i64;
            let at = _mm512_set1_epi64((body.at + self.done) as i64 - before);
            let size = _mm512_set1_epi64(left as i64 + before);
            for (half, (places, bytes)) in places.iter_mut().zip(bytes).enumerate() {
                let lanes = (lanes >> (LONGS * half)) as u8;
                places.at = _mm512_mask_add_epi64(places.at, lanes, at, bytes);
                places.sizes = _mm512_mask_sub_epi64(places.sizes, lanes, size, bytes);
            }
            let count = left.div_ceil(BLOCK_SIZE).min(LANES - lane);
            self.done += count * BLOCK_SIZE;
            lane += count;
        }
        lane > first
    }
}
