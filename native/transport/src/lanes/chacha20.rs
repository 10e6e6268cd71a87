//! ChaCha20's block function (RFC 8439 section 2.3) for sixteen blocks at once.
//!
//! A register has one word of the state of all sixteen blocks. A lane is a block. So the rounds
//! shuffle nothing. Only the result is shuffled, because the bytes of a block have to be neighbours
//! there.

use std::arch::x86_64::*;

use zeroize::Zeroizing;

/// Blocks at once.
pub const LANES: usize = 16;
/// Bytes of a block.
pub const BLOCK_SIZE: usize = 64;

pub const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The key, as eight little-endian words.
pub type Key = [u32; 8];

/// Return a key's words.
pub fn key_words(key: &[u8; 32]) -> Zeroizing<Key> {
    let mut words = Zeroizing::new([0; 8]);
    for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// The sixteen blocks to compute.
#[derive(Clone, Copy)]
pub struct Blocks {
    /// The block counter of each.
    pub counters: __m512i,
    /// The three words of each block's nonce: the first words of all, then the second, then the
    /// third.
    pub nonces: [__m512i; 3],
}

macro_rules! quarter_rounds {
    ($state:ident: $([$a:literal, $b:literal, $c:literal, $d:literal]),+) => {
        quarter_rounds!(@half $state, 16, 12: $([$a, $b, $c, $d]),+);
        quarter_rounds!(@half $state, 8, 7: $([$a, $b, $c, $d]),+);
    };
    (@half $state:ident, $left:literal, $right:literal: $([$a:literal, $b:literal, $c:literal, $d:literal]),+) => {
        $($state[$a] = _mm512_add_epi32($state[$a], $state[$b]);)+
        $($state[$d] = _mm512_rol_epi32::<$left>(_mm512_xor_si512($state[$d], $state[$a]));)+
        $($state[$c] = _mm512_add_epi32($state[$c], $state[$d]);)+
        $($state[$b] = _mm512_rol_epi32::<$right>(_mm512_xor_si512($state[$b], $state[$c]));)+
    };
}

/// Do two of the twenty rounds: on the columns, then on the diagonals.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn double_round(state: &mut [__m512i; 16]) {
    quarter_rounds!(state: [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]);
    quarter_rounds!(state: [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]);
}

/// Do the first round on the columns without the block counter. Blocks that differ in the counter
/// alone have that in common.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn begin(state: &mut [__m512i; 16]) {
    quarter_rounds!(state: [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]);
}

/// Do the rest of the first two rounds.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn finish_first(state: &mut [__m512i; 16]) {
    quarter_rounds!(state: [0, 4, 8, 12]);
    quarter_rounds!(state: [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]);
}

/// Return the state before the first round, in words.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn initial(key: &Key, blocks: &Blocks) -> [__m512i; 16] {
    let mut initial = [_mm512_setzero_si512(); 16];
    for (word, constant) in initial.iter_mut().zip(CONSTANTS.iter().chain(key)) {
        *word = _mm512_set1_epi32(*constant as i32);
    }
    initial[12] = blocks.counters;
    initial[13..].copy_from_slice(&blocks.nonces);
    initial
}

/// Return the key stream's words after the last round: the first word of each block, the second, up
/// to the sixteenth.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn finished(mut state: [__m512i; 16], initial: [__m512i; 16]) -> [__m512i; 16] {
    for (word, initial) in state.iter_mut().zip(initial) {
        *word = _mm512_add_epi32(*word, initial);
    }
    state
}

/// Return the key stream's words.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn words(key: &Key, blocks: &Blocks) -> [__m512i; 16] {
    let initial = initial(key, blocks);
    let mut state = initial;
    for _ in 0..10 {
        double_round(&mut state);
    }
    finished(state, initial)
}

/// Return the sixteen blocks, each as its 64 bytes, from their words.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn blocks(words: &[__m512i; 16]) -> [__m512i; LANES] {
    // First transpose 4 × 4 words within each quarter of the registers. `quads[4 * group + n]` has
    // the words 4 * group to 4 * group + 3 of the lanes n, n + 4, n + 8 and n + 12.
    let mut quads = *words;
    for group in 0..4 {
        let [a, b, c, d] = [words[4 * group], words[4 * group + 1], words[4 * group + 2], words[4 * group + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        quads[4 * group] = _mm512_unpacklo_epi64(ab, cd);
        quads[4 * group + 1] = _mm512_unpackhi_epi64(ab, cd);
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        quads[4 * group + 2] = _mm512_unpacklo_epi64(ab, cd);
        quads[4 * group + 3] = _mm512_unpackhi_epi64(ab, cd);
    }
    // Then transpose 4 × 4 quarters.
    let mut lanes = quads;
    for lane in 0..4 {
        let [a, b, c, d] = [quads[lane], quads[4 + lane], quads[8 + lane], quads[12 + lane]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        lanes[lane] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        lanes[lane + 4] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        lanes[lane + 8] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        lanes[lane + 12] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    lanes
}
