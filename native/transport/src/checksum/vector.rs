//! Sums in registers of 512 and 256 bits, for x86-64 with AVX-512 and AVX2.
//!
//! A 64-bit word is two 32-bit words. Both sums of these come from two others that are cheaper: of
//! whole words modulo 2⁶⁴, and of their upper halves.

#![allow(unsafe_code, reason = "the intrinsics for memory take pointers")]
#![allow(clippy::incompatible_msrv, reason = "build.rs leaves this out for compilers that lack it")]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use super::{BLOCK, words};

/// Return the sum of little-endian 32-bit words, as if zeros followed. Copy the bytes to `target` if
/// there is one, which must be as long. Return None if the processor lacks the features.
pub fn total(source: &[u8], target: Option<&mut [u8]>) -> Option<u64> {
    assert!(target.as_ref().is_none_or(|target| target.len() == source.len()), "the lengths differ");
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has the features, and the lengths are the same.
        Some(unsafe { with_512(source, target) })
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        Some(unsafe { with_256(source, target) })
    } else {
        None
    }
}

/// # Safety
/// The target is as long as the source.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn with_512(source: &[u8], target: Option<&mut [u8]>) -> u64 {
    let from = source.as_ptr();
    let to = target.map(<[u8]>::as_mut_ptr);
    let (mut whole, mut upper) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    let rest = source.len() % BLOCK;
    for at in (0..source.len() - rest).step_by(BLOCK) {
        // SAFETY: these bytes are in the source, and so in the target.
        let words = unsafe {
            let words = _mm512_loadu_si512(from.add(at).cast());
            if let Some(to) = to {
                _mm512_storeu_si512(to.add(at).cast(), words);
            }
            words
        };
        whole = _mm512_add_epi64(whole, words);
        upper = _mm512_add_epi64(upper, _mm512_srli_epi64::<32>(words));
    }
    if rest > 0 {
        let (at, mask) = (source.len() - rest, u64::MAX >> (BLOCK - rest));
        // SAFETY: the bytes of the mask are in the source, and so in the target. Others aren't
        // accessed.
        let words = unsafe {
            let words = _mm512_maskz_loadu_epi8(mask, from.add(at).cast());
            if let Some(to) = to {
                _mm512_mask_storeu_epi8(to.add(at).cast(), mask, words);
            }
            words
        };
        whole = _mm512_add_epi64(whole, words);
        upper = _mm512_add_epi64(upper, _mm512_srli_epi64::<32>(words));
    }
    let lower = _mm512_sub_epi64(whole, _mm512_slli_epi64::<32>(upper));
    _mm512_reduce_add_epi64(_mm512_add_epi64(lower, upper)) as u64
}

/// # Safety
/// The target is as long as the source.
#[target_feature(enable = "avx2")]
unsafe fn with_256(source: &[u8], mut target: Option<&mut [u8]>) -> u64 {
    let from = source.as_ptr();
    let to = target.as_mut().map(|target| target.as_mut_ptr());
    let (mut whole, mut upper) = ([_mm256_setzero_si256(); 2], [_mm256_setzero_si256(); 2]);
    let taken = source.len() - source.len() % BLOCK;
    for at in (0..taken).step_by(BLOCK) {
        for (half, (whole, upper)) in whole.iter_mut().zip(&mut upper).enumerate() {
            let at = at + half * (BLOCK / 2);
            // SAFETY: these bytes are in the source, and so in the target.
            let words = unsafe {
                let words = _mm256_loadu_si256(from.add(at).cast());
                if let Some(to) = to {
                    _mm256_storeu_si256(to.add(at).cast(), words);
                }
                words
            };
            *whole = _mm256_add_epi64(*whole, words);
            *upper = _mm256_add_epi64(*upper, _mm256_srli_epi64::<32>(words));
        }
    }
    if let Some(target) = target {
        target[taken..].copy_from_slice(&source[taken..]);
    }
    let whole = _mm256_add_epi64(whole[0], whole[1]);
    let upper = _mm256_add_epi64(upper[0], upper[1]);
    let lower = _mm256_sub_epi64(whole, _mm256_slli_epi64::<32>(upper));
    let mut sums = [0; 4];
    // SAFETY: 32 bytes are writable; the instruction asks for no alignment.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), _mm256_add_epi64(lower, upper)) };
    sums.iter().sum::<u64>() + words(&source[taken..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Return the sum by each function that the processor has. Both copy, too.
    fn sums(data: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        let mut copies = [vec![0; data.len()], vec![0; data.len()]];
        let [first, second] = &mut copies;
        // SAFETY: each is called if the processor has its features, and the lengths are the same.
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
        let pattern: Vec<u8> = (0..1500_u32).map(|n| (n * n + 7 * n) as u8 | 0x80).collect();
        for data in [pattern, vec![0xff; 1500]] {
            for length in 0..data.len() {
                let expected = words(&data[..length]);
                assert!(sums(&data[..length]).iter().all(|sum| *sum == expected), "{length} bytes");
            }
        }
        assert!(sums(&[0xff; 1 << 16]).iter().all(|sum| *sum == (1 << 14) * 0xffff_ffff));
    }
}
