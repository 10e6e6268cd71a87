//! Moves 256 bits in and out of memory. The types say how many bytes there are.

#![allow(unsafe_code, reason = "the intrinsics for memory take pointers")]

use std::arch::x86_64::*;

/// Return a register of eight words, one per lane.
#[inline]
#[target_feature(enable = "avx2")]
pub fn from_words(words: &[u32; 8]) -> __m256i {
    // SAFETY: 32 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

/// Return the four halves of a key of 256 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub fn to_longs(key: __m256i) -> [u64; 4] {
    let mut longs = [0; 4];
    // SAFETY: 32 bytes are writable; the instruction asks for no alignment.
    unsafe { _mm256_storeu_si256(longs.as_mut_ptr().cast(), key) };
    longs
}

/// XOR a block with its stream.
#[inline]
#[target_feature(enable = "avx2")]
pub fn xor(block: &mut [u8; 64], stream: &[__m256i; 2]) {
    for (half, stream) in block.as_chunks_mut::<32>().0.iter_mut().zip(stream) {
        // SAFETY: 32 bytes are readable and writable; the instructions ask for no alignment.
        unsafe {
            let mixed = _mm256_xor_si256(_mm256_loadu_si256(half.as_ptr().cast()), *stream);
            _mm256_storeu_si256(half.as_mut_ptr().cast(), mixed);
        }
    }
}
