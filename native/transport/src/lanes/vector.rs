//! Moves 512 bits in and out of memory. The slice or array limits each access.

#![allow(unsafe_code, reason = "the intrinsics for memory take pointers")]

use std::arch::x86_64::*;

/// Read 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Read the first 64 bytes, or as many as there are, followed by zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn load_padded(bytes: &[u8]) -> __m512i {
    if let Some(whole) = bytes.first_chunk() {
        return load(whole);
    }
    // An empty slice may point nowhere. That is allowed, but slow on the processor.
    if bytes.is_empty() {
        return _mm512_setzero_si512();
    }
    // SAFETY: the mask has no byte beyond the slice, and bytes outside the mask are not accessed.
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
        // SAFETY: the mask has no byte beyond the slice, and bytes outside the mask are not
        // accessed.
        unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), first(bytes.len()), mixed) };
    }
}

/// Return a register of sixteen words, one per lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn from_words(words: &[u32; 16]) -> __m512i {
    // SAFETY: 64 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Return a register of eight words, one per lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn from_longs(longs: &[u64; 8]) -> __m512i {
    // SAFETY: 64 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(longs.as_ptr().cast()) }
}

/// Return the eight words of the lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn to_longs(lanes: __m512i) -> [u64; 8] {
    let mut longs = [0; 8];
    // SAFETY: 64 bytes are writable; the instruction asks for no alignment.
    unsafe { _mm512_storeu_si512(longs.as_mut_ptr().cast(), lanes) };
    longs
}

/// Return the mask of the first `count` bytes. There are fewer than 64.
fn first(count: usize) -> __mmask64 {
    (1 << count) - 1
}
