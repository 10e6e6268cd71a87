//! 512 bits in and out of memory. What bounds an access is the slice or array it is given.

#![allow(unsafe_code, reason = "the intrinsics for memory take pointers")]

use std::arch::x86_64::*;

/// Read 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Read the first 64 bytes, or as many as there are; behind them are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn load_padded(bytes: &[u8]) -> __m512i {
    if let Some(whole) = bytes.first_chunk() {
        return load(whole);
    }
    // An empty slice may point to nowhere: allowed, but the processor takes long to find out.
    if bytes.is_empty() {
        return _mm512_setzero_si512();
    }
    // SAFETY: the mask is of no byte beyond the slice, and what it leaves out is not accessed.
    unsafe { _mm512_maskz_loadu_epi8(first(bytes.len()), bytes.as_ptr().cast()) }
}

/// XOR the first 64 bytes, or as many as there are, with as many of `stream`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn xor(bytes: &mut [u8], stream: __m512i) {
    if let Some(whole) = bytes.first_chunk_mut::<64>() {
        let mixed = _mm512_xor_si512(load(whole), stream);
        // SAFETY: 64 bytes are writable; the instruction asks for no alignment.
        unsafe { _mm512_storeu_si512(whole.as_mut_ptr().cast(), mixed) };
    } else {
        let mixed = _mm512_xor_si512(load_padded(bytes), stream);
        // SAFETY: the mask is of no byte beyond the slice, and what it leaves out is not accessed.
        unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), first(bytes.len()), mixed) };
    }
}

/// Sixteen words, one a lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn from_words(words: &[u32; 16]) -> __m512i {
    // SAFETY: 64 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Eight words, one a lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn from_longs(longs: &[u64; 8]) -> __m512i {
    // SAFETY: 64 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(longs.as_ptr().cast()) }
}

/// The lanes' eight words.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn to_longs(lanes: __m512i) -> [u64; 8] {
    let mut longs = [0; 8];
    // SAFETY: 64 bytes are writable; the instruction asks for no alignment.
    unsafe { _mm512_storeu_si512(longs.as_mut_ptr().cast(), lanes) };
    longs
}

/// The mask of the first `count` bytes, which are fewer than 64.
fn first(count: usize) -> __mmask64 {
    (1 << count) - 1
}
