//! Moves 512 bits in and out of memory. Each function checks, for all lanes at once, that what it
//! accesses is in the slice or array.

#![allow(unsafe_code, reason = "the intrinsics for memory take pointers")]

use std::arch::x86_64::*;

use super::chacha20::BLOCK_SIZE;

/// Lanes of 64 bits in a register.
pub const LONGS: usize = 8;

/// A place in a buffer for each of eight lanes.
#[derive(Clone, Copy)]
pub struct Places {
    /// Where each begins.
    pub at: __m512i,
    /// How many bytes it has. It may be negative, which means none.
    pub sizes: __m512i,
}

impl Places {
    /// Return places without bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn none() -> Self {
        Self { at: _mm512_setzero_si512(), sizes: _mm512_setzero_si512() }
    }

    /// Return what remains of each place after `offsets` bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn after(&self, offsets: __m512i) -> Self {
        Self { at: _mm512_add_epi64(self.at, offsets), sizes: _mm512_sub_epi64(self.sizes, offsets) }
    }

    /// Return where each place begins and the mask of its bytes, at most a block. Panics if they
    /// aren't all in a buffer of `length` bytes. A place without bytes begins at 0.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn within(&self, length: usize) -> ([u64; LONGS], [u64; LONGS]) {
        let (end, block) = (_mm512_set1_epi64(length as i64), _mm512_set1_epi64(BLOCK_SIZE as i64));
        let sizes = _mm512_min_epi64(_mm512_max_epi64(self.sizes, _mm512_setzero_si512()), block);
        let at = _mm512_maskz_mov_epi64(_mm512_test_epi64_mask(sizes, sizes), self.at);
        let begin_within = _mm512_cmple_epu64_mask(at, end);
        let end_within = _mm512_cmple_epu64_mask(_mm512_add_epi64(at, sizes), end);
        assert!(begin_within & end_within == 0xff, "a place is outside of the buffer");
        // A shift by 64 leaves 0.
        let masks = _mm512_srlv_epi64(_mm512_set1_epi64(-1), _mm512_sub_epi64(block, sizes));
        (to_longs(at), to_longs(masks))
    }

    /// Return the first 64 bytes of each place, or as many as it has, followed by zeros.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn load(&self, buffer: &[u8]) -> [__m512i; LONGS] {
        let (at, masks) = self.within(buffer.len());
        let mut loaded = [_mm512_setzero_si512(); LONGS];
        for ((at, mask), loaded) in at.into_iter().zip(masks).zip(&mut loaded) {
            // SAFETY: `at` and the bytes of the mask are within the buffer. Bytes outside the mask
            // are not accessed.
            *loaded = unsafe { _mm512_maskz_loadu_epi8(mask, buffer.as_ptr().add(at as usize).cast()) };
        }
        loaded
    }

    /// XOR the first 64 bytes of each place, or as many as it has, with as many of its stream.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn xor(&self, buffer: &mut [u8], streams: &[__m512i; LONGS]) {
        let (at, masks) = self.within(buffer.len());
        for ((at, mask), stream) in at.into_iter().zip(masks).zip(streams) {
            // SAFETY: `at` and the bytes of the mask are within the buffer. Bytes outside the mask
            // are not accessed.
            unsafe {
                let bytes = buffer.as_mut_ptr().add(at as usize);
                let mixed = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, bytes.cast()), *stream);
                _mm512_mask_storeu_epi8(bytes.cast(), mask, mixed);
            }
        }
    }
}

/// As many bytes of a buffer for each of eight lanes.
pub struct Rows {
    /// Where each begins.
    at: [u64; LONGS],
    /// How many bytes each has.
    size: usize,
    /// Where the last of them ends.
    end: usize,
}

impl Rows {
    /// Return the first `size` bytes of the places.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(places: &Places, size: usize) -> Self {
        let last = _mm512_reduce_max_epu64(places.at) as usize;
        Self { at: to_longs(places.at), size, end: last.saturating_add(size) }
    }

    /// Panics unless all rows are in a buffer of `length` bytes, and have 64 bytes at `offset`.
    fn check(&self, length: usize, offset: usize) {
        let fits = offset < self.size && self.size - offset >= BLOCK_SIZE;
        assert!(fits && self.end <= length, "a row is outside of the buffer");
    }

    /// Return the 64 bytes at `offset` of each row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load(&self, buffer: &[u8], offset: usize) -> [__m512i; LONGS] {
        self.check(buffer.len(), offset);
        let mut loaded = [_mm512_setzero_si512(); LONGS];
        for (loaded, at) in loaded.iter_mut().zip(self.at) {
            // SAFETY: the row is in the buffer, and these 64 bytes are in the row.
            *loaded = unsafe { _mm512_loadu_si512(buffer.as_ptr().add(at as usize + offset).cast()) };
        }
        loaded
    }

    /// XOR the 64 bytes at `offset` of each row with its stream.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn xor(&self, buffer: &mut [u8], streams: &[__m512i; LONGS], offset: usize) {
        self.check(buffer.len(), offset);
        for (at, stream) in self.at.into_iter().zip(streams) {
            // SAFETY: the row is in the buffer, and these 64 bytes are in the row.
            unsafe {
                let bytes = buffer.as_mut_ptr().add(at as usize + offset);
                let mixed = _mm512_xor_si512(_mm512_loadu_si512(bytes.cast()), *stream);
                _mm512_storeu_si512(bytes.cast(), mixed);
            }
        }
    }
}

/// Return a register of eight words, one per lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn from_longs(longs: &[u64; LONGS]) -> __m512i {
    // SAFETY: 64 bytes are readable; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(longs.as_ptr().cast()) }
}

/// Return the eight words of the lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn to_longs(lanes: __m512i) -> [u64; LONGS] {
    let mut longs = [0; LONGS];
    // SAFETY: 64 bytes are writable; the instruction asks for no alignment.
    unsafe { _mm512_storeu_si512(longs.as_mut_ptr().cast(), lanes) };
    longs
}
