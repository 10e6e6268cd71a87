//! ChaCha20's block function (RFC 8439 section 2.3) for eight blocks at once.
//!
//! A register has one word of the state of all eight blocks, as in the sixteen lanes. The state
//! alone fills the sixteen registers that there are.

use std::arch::x86_64::*;

use super::super::chacha20::{CONSTANTS, Key};
use super::vector;

/// Blocks at once.
pub const LANES: usize = 8;

/// The key stream's bytes, 64 for each lane.
pub type Stream = [[__m256i; 2]; LANES];

/// The eight blocks to compute.
#[derive(Clone, Copy)]
pub struct Blocks {
    /// The block counter of each.
    pub counters: [u32; LANES],
    /// The three words of each block's nonce: the first words of all, then the second, then the
    /// third.
    pub nonces: [[u32; LANES]; 3],
}

macro_rules! quarter_rounds {
    ($state:ident: $([$a:literal, $b:literal, $c:literal, $d:literal]),+) => {
        quarter_rounds!(@half $state, rotated_16, rotated::<12, 20>; $([$a, $b, $c, $d]),+);
        quarter_rounds!(@half $state, rotated_8, rotated::<7, 25>; $([$a, $b, $c, $d]),+);
    };
    (@half $state:ident, $left:path, $right:path; $([$a:literal, $b:literal, $c:literal, $d:literal]),+) => {
        $($state[$a] = _mm256_add_epi32($state[$a], $state[$b]);)+
        $($state[$d] = $left(_mm256_xor_si256($state[$d], $state[$a]));)+
        $($state[$c] = _mm256_add_epi32($state[$c], $state[$d]);)+
        $($state[$b] = $right(_mm256_xor_si256($state[$b], $state[$c]));)+
    };
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotated<const LEFT: i32, const RIGHT: i32>(words: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_slli_epi32::<LEFT>(words), _mm256_srli_epi32::<RIGHT>(words))
}

/// Rotate by whole bytes. There is no instruction for other counts.
#[inline]
#[target_feature(enable = "avx2")]
fn rotated_16(words: __m256i) -> __m256i {
    let order = _mm_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2);
    _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(order))
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotated_8(words: __m256i) -> __m256i {
    let order = _mm_set_epi8(14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3);
    _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(order))
}

/// Do two of the twenty rounds: on the columns, then on the diagonals. Meanwhile do `other` four
/// times, with 0 to 3.
#[inline]
#[target_feature(enable = "avx2")]
pub fn double_round(state: &mut [__m256i; 16], mut other: impl FnMut(usize)) {
    quarter_rounds!(@half state, rotated_16, rotated::<12, 20>; [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]);
    other(0);
    quarter_rounds!(@half state, rotated_8, rotated::<7, 25>; [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]);
    other(1);
    quarter_rounds!(@half state, rotated_16, rotated::<12, 20>; [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]);
    other(2);
    quarter_rounds!(@half state, rotated_8, rotated::<7, 25>; [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]);
    other(3);
}

/// Return the state before the first round, in words.
#[inline]
#[target_feature(enable = "avx2")]
pub fn initial(key: &Key, blocks: &Blocks) -> [__m256i; 16] {
    let mut initial = [_mm256_setzero_si256(); 16];
    for (word, constant) in initial.iter_mut().zip(CONSTANTS.iter().chain(key)) {
        *word = _mm256_set1_epi32(*constant as i32);
    }
    initial[12] = vector::from_words(&blocks.counters);
    for (word, nonces) in initial[13..].iter_mut().zip(&blocks.nonces) {
        *word = vector::from_words(nonces);
    }
    initial
}

/// Return the key stream from the state after the last round and the one before the first.
#[inline]
#[target_feature(enable = "avx2")]
pub fn stream(mut state: [__m256i; 16], initial: [__m256i; 16]) -> Stream {
    for (word, initial) in state.iter_mut().zip(initial) {
        *word = _mm256_add_epi32(*word, initial);
    }
    let mut stream = [[_mm256_setzero_si256(); 2]; LANES];
    for (half, words) in state.as_chunks::<8>().0.iter().enumerate() {
        let (first, second) =
            (quads([words[0], words[1], words[2], words[3]]), quads([words[4], words[5], words[6], words[7]]));
        for lane in 0..4 {
            stream[lane][half] = _mm256_permute2x128_si256::<0x20>(first[lane], second[lane]);
            stream[lane + 4][half] = _mm256_permute2x128_si256::<0x31>(first[lane], second[lane]);
        }
    }
    stream
}

/// Transpose 4 × 4 words within each half of the registers. Register n of the result has the four
/// words of the lanes n and n + 4.
#[inline]
#[target_feature(enable = "avx2")]
fn quads([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}
