//! Sums in registers of 512 and 256 bits, for x86-64 with AVX-512 and AVX2.
//!
//! A 64-bit word is two 32-bit words. The sums of both come from two sums that are cheaper: of whole
//! words modulo 2⁶⁴, and of their upper halves.

#![allow(unsafe_code, reason = "the intrinsics for memory take pointers")]
#![allow(clippy::incompatible_msrv, reason = "build.rs leaves this out for compilers that lack it")]

use std::arch::x86_64::*;
use std::arch::{asm, is_x86_feature_detected};

/// Bytes that are added at once.
const BLOCK: usize = 64;
const HALF: usize = BLOCK / 2;

/// Return the sum of little-endian 32-bit words, as if zeros followed. Copy the bytes to `target` if
/// there is one, which must be as long. Return None if the processor lacks the features.
pub fn total(source: &[u8], target: Option<&mut [u8]>) -> Option<u64> {
    assert!(target.as_ref().is_none_or(|target| target.len() == source.len()), "the lengths differ");
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has the features.
        Some(unsafe { with_512(source, target) })
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        Some(unsafe { with_256(source, target) })
    } else {
        None
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn with_512(source: &[u8], target: Option<&mut [u8]>) -> u64 {
    let (mut whole, mut upper) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    let mut add = |words| {
        whole = _mm512_add_epi64(whole, words);
        upper = _mm512_add_epi64(upper, _mm512_srli_epi64::<32>(words));
    };
    // SAFETY: a block's 64 bytes are readable; the instruction asks for no alignment.
    let load = |block: &[u8; BLOCK]| unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    let mask = |rest: &[u8]| (1 << rest.len()) - 1;
    // SAFETY: the bytes of the mask, less than a block, are readable. Others are not accessed.
    let get = |rest: &[u8]| unsafe { _mm512_maskz_loadu_epi8(mask(rest), rest.as_ptr().cast()) };
    // SAFETY: the bytes of the mask are writable.
    let put = |rest: &mut [u8], words| unsafe {
        _mm512_mask_storeu_epi8(rest.as_mut_ptr().cast(), mask(rest), words);
    };
    let (blocks, rest) = source.as_chunks();
    if let Some(target) = target {
        let (targets, end) = target.as_chunks_mut::<BLOCK>();
        for (block, target) in blocks.iter().zip(targets) {
            let mut words = load(block);
            // SAFETY: there is no instruction. But the compiler can't know that, so it doesn't make a
            // memcpy and a second loop of this one. A block's 64 bytes are writable; the instruction
            // asks for no alignment.
            unsafe {
                asm!("/* {0} */", inout(zmm_reg) words, options(pure, nomem, nostack, preserves_flags));
                _mm512_storeu_si512(target.as_mut_ptr().cast(), words);
            }
            add(words);
        }
        put(end, get(rest));
    } else {
        blocks.iter().for_each(|block| add(load(block)));
    }
    if !rest.is_empty() {
        add(get(rest));
    }
    let lower = _mm512_sub_epi64(whole, _mm512_slli_epi64::<32>(upper));
    _mm512_reduce_add_epi64(_mm512_add_epi64(lower, upper)) as u64
}

#[target_feature(enable = "avx2")]
fn with_256(source: &[u8], target: Option<&mut [u8]>) -> u64 {
    let (mut whole, mut upper) = ([_mm256_setzero_si256(); 2], [_mm256_setzero_si256(); 2]);
    let mut add = |halves: [__m256i; 2]| {
        for ((whole, upper), words) in whole.iter_mut().zip(&mut upper).zip(halves) {
            *whole = _mm256_add_epi64(*whole, words);
            *upper = _mm256_add_epi64(*upper, _mm256_srli_epi64::<32>(words));
        }
    };
    // SAFETY: a block's 64 bytes are readable; the instruction asks for no alignment.
    let load =
        |block: &[u8; BLOCK]| unsafe { [0, HALF].map(|half| _mm256_loadu_si256(block.as_ptr().add(half).cast())) };
    let (blocks, rest) = source.as_chunks();
    if let Some(target) = target {
        let (targets, end) = target.as_chunks_mut::<BLOCK>();
        for (block, target) in blocks.iter().zip(targets) {
            let mut halves = load(block);
            for (half, words) in halves.iter_mut().enumerate() {
                // SAFETY: as with 512 bits. Each half is 32 bytes of the block.
                unsafe {
                    asm!("/* {0} */", inout(ymm_reg) * words, options(pure, nomem, nostack, preserves_flags));
                    _mm256_storeu_si256(target.as_mut_ptr().add(half * HALF).cast(), *words);
                }
            }
            add(halves);
        }
        end.copy_from_slice(rest);
    } else {
        blocks.iter().for_each(|block| add(load(block)));
    }
    if !rest.is_empty() {
        add(load(&padded(rest)));
    }
    let whole = _mm256_add_epi64(whole[0], whole[1]);
    let upper = _mm256_add_epi64(upper[0], upper[1]);
    let lower = _mm256_sub_epi64(whole, _mm256_slli_epi64::<32>(upper));
    let mut sums = [0_u64; 4];
    // SAFETY: 32 bytes are writable; the instruction asks for no alignment.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), _mm256_add_epi64(lower, upper)) };
    sums.iter().sum()
}

/// Return less than a block as a block.
#[inline]
fn padded(rest: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Return the sum by each function that the processor has. Both copy, too.
    fn sums(data: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        let mut copies = [vec![0; data.len()], vec![0; data.len()]];
        let [first, second] = &mut copies;
        // SAFETY: each is called if the processor has its feature.
        unsafe {
            if is_x86_feature_detected!("avx512bw") {
                found.extend([with_512(data, None), with_512(data, Some(first))]);
                assert_eq!(first, data);
            }
            if is_x86_feature_detected!("avx2") {
                found.extend([with_256(data, None), with_256(data, Some(second))]);
                assert_eq!(second, data);
            }
        }
        found
    }

    #[test]
    fn sums_and_copies_of_every_length_are_right() {
        let word = |bytes: &[u8]| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from(u32::from_le_bytes(word))
        };
        let pattern: Vec<u8> = (0..1500_u32).map(|n| (n * n + 7 * n) as u8 | 0x80).collect();
        for data in [pattern, vec![0xff; 1500]] {
            for length in 0..data.len() {
                let expected: u64 = data[..length].chunks(4).map(word).sum();
                assert!(sums(&data[..length]).iter().all(|sum| *sum == expected), "{length} bytes");
            }
        }
        assert!(sums(&[0xff; 1 << 16]).iter().all(|sum| *sum == (1 << 14) * 0xffff_ffff));
    }
}
