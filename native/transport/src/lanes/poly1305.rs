//! Poly1305 (RFC 8439 section 2.5) of eight messages at once, each with its own key.
//!
//! A register has one limb of all eight messages. Limbs have 44, 44 and 42 bits, for the 52-bit
//! multiplier. With 2¹³⁰ = 5, a product that is two limbs too high comes back times 20, because 3 ·
//! 44 is 2 more than 130.
//!
//! Bounds, with `r` clamped: r0, r1 < 2⁴⁴, r2 < 2³⁶, 20·r1 < 2⁴⁹, 20·r2 < 2⁴¹. Between blocks h1 <
//! 2⁴⁴ and h2 < 2⁴². A block adds less than 2⁴⁴, 2⁴⁴ and 2⁴¹. Let h0 < 2⁵¹. Then each factor is
//! below 2⁵², as the multiplier requires. The high halves that are added for one limb sum to less
//! than 2⁴⁴, their carry to less than 2⁵², and the low halves with it to less than 2⁵⁴. For the
//! third limb the high halves sum to less than 2³⁸. So the carry c from it is below 2⁴⁸ + 2¹², and
//! the new h0 < 2⁴⁴ + 5·c < 2⁵¹ again.

use std::arch::x86_64::*;

use super::chacha20::BLOCK_SIZE;
use super::vector::{from_longs, load_padded, to_longs};

/// Messages at once.
pub const LANES: usize = 8;
/// Bytes of a block of a message.
const SIZE: usize = 16;

const LOW_44: i64 = (1 << 44) - 1;
const LOW_42: i64 = (1 << 42) - 1;

/// Keys: r's low and high half, then s's.
pub type Keys = [__m512i; 4];

/// Return eight of sixteen one-time keys, from the words of ChaCha20 (RFC 8439 section 2.6).
#[inline]
#[target_feature(enable = "avx512f")]
pub fn keys<const UPPER: bool>(words: &[__m512i; 16]) -> Keys {
    let mut keys = [_mm512_setzero_si512(); 4];
    for (key, pair) in keys.iter_mut().zip(words.chunks_exact(2)) {
        let mut wide = [_mm512_setzero_si512(); 2];
        for (wide, word) in wide.iter_mut().zip(pair) {
            let half = if UPPER { _mm512_extracti64x4_epi64::<1>(*word) } else { _mm512_castsi512_si256(*word) };
            *wide = _mm512_cvtepu32_epi64(half);
        }
        *key = _mm512_or_si512(wide[0], _mm512_slli_epi64::<32>(wide[1]));
    }
    keys
}

/// The accumulators of eight messages.
#[derive(Clone, Copy)]
pub struct Mac {
    h: [__m512i; 3],
    r: [__m512i; 3],
    /// 20 · r1 and 20 · r2.
    r20: [__m512i; 2],
    s: [__m512i; 2],
}

impl Mac {
    /// Start with these keys.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2")]
    pub fn new([low, high, s0, s1]: Keys) -> Self {
        let low = _mm512_and_si512(low, _mm512_set1_epi64(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(high, _mm512_set1_epi64(0x0fff_fffc_0fff_fffc));
        let r = limbs(low, high);
        Self { h: [_mm512_setzero_si512(); 3], r, r20: [times_20(r[1]), times_20(r[2])], s: [s0, s1] }
    }

    /// Add the next sixteen bytes of each message.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn block(&mut self, [low, high]: [__m512i; 2]) {
        let (add, and) = (_mm512_add_epi64, _mm512_and_si512);
        let (low_44, low_42) = (_mm512_set1_epi64(LOW_44), _mm512_set1_epi64(LOW_42));
        let [m0, m1, m2] = limbs(low, high);
        let a0 = add(self.h[0], m0);
        let a1 = add(self.h[1], m1);
        // The bit above the block.
        let a2 = add(self.h[2], _mm512_or_si512(m2, _mm512_set1_epi64(1 << 40)));

        let ([r0, r1, r2], [r1_20, r2_20]) = (self.r, self.r20);
        let (d0, d0_high) = dot([a2, a1, a0], [r1_20, r2_20, r0]);
        let (d1, d1_high) = dot([a2, a1, a0], [r2_20, r0, r1]);
        let (d2, d2_high) = dot([a2, a1, a0], [r0, r1, r2]);

        // A high half counts 2⁵²: 8 bits above a limb of 44, 10 above one of 42.
        let carry = add(_mm512_srli_epi64::<44>(d0), _mm512_slli_epi64::<8>(d0_high));
        let d1 = add(d1, carry);
        let carry = add(_mm512_srli_epi64::<44>(d1), _mm512_slli_epi64::<8>(d1_high));
        let d2 = add(d2, carry);
        let carry = add(_mm512_srli_epi64::<42>(d2), _mm512_slli_epi64::<10>(d2_high));
        let carry_5 = add(carry, _mm512_slli_epi64::<2>(carry));
        self.h = [add(and(d0, low_44), carry_5), and(d1, low_44), and(d2, low_42)];
    }

    /// Do the same for the messages in `mask`. The other accumulators stay unchanged.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn block_of(&mut self, mask: __mmask8, bytes: [__m512i; 2]) {
        let before = self.h;
        self.block(bytes);
        for (h, before) in self.h.iter_mut().zip(before) {
            *h = _mm512_mask_mov_epi64(before, mask, *h);
        }
    }

    /// Add the AEAD's last block: the lengths of the associated data and of the text.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub fn lengths(&mut self, data: &[u64; LANES], text: &[u64; LANES]) {
        self.block([from_longs(data), from_longs(text)]);
    }

    /// Return the tags: the low halves, then the high halves.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn tags(&self) -> [[u64; LANES]; 2] {
        let (add, and, or) = (_mm512_add_epi64, _mm512_and_si512, _mm512_or_si512);
        let (low_44, low_42) = (_mm512_set1_epi64(LOW_44), _mm512_set1_epi64(LOW_42));
        let [mut h0, mut h1, mut h2] = self.h;
        // The first round of carries leaves less than 2¹³⁰ + 5. So after the second the limbs are
        // normalized and h < 2¹³⁰.
        for _ in 0..2 {
            h1 = add(h1, _mm512_srli_epi64::<44>(h0));
            h2 = add(h2, _mm512_srli_epi64::<44>(h1));
            let top = _mm512_srli_epi64::<42>(h2);
            h0 = add(and(h0, low_44), add(top, _mm512_slli_epi64::<2>(top)));
            (h1, h2) = (and(h1, low_44), and(h2, low_42));
        }
        // g = h + 5 - 2¹³⁰. If that isn't negative, it is h mod p.
        let g0 = add(h0, _mm512_set1_epi64(5));
        let g1 = add(h1, _mm512_srli_epi64::<44>(g0));
        let g2 = add(h2, _mm512_srli_epi64::<44>(g1));
        let over = _mm512_test_epi64_mask(g2, _mm512_set1_epi64(1 << 42));
        h0 = _mm512_mask_mov_epi64(h0, over, and(g0, low_44));
        h1 = _mm512_mask_mov_epi64(h1, over, and(g1, low_44));
        h2 = _mm512_mask_mov_epi64(h2, over, and(g2, low_42));
        // Add s, modulo 2¹²⁸.
        let low = add(or(h0, _mm512_slli_epi64::<44>(h1)), self.s[0]);
        let carry = _mm512_cmplt_epu64_mask(low, self.s[0]);
        let high = add(or(_mm512_srli_epi64::<20>(h1), _mm512_slli_epi64::<24>(h2)), self.s[1]);
        let high = _mm512_mask_add_epi64(high, carry, high, _mm512_set1_epi64(1));
        [to_longs(low), to_longs(high)]
    }
}

/// Add the messages of all accumulators, each padded to whole blocks with zeros.
///
/// The accumulators take turns. The next block needs a block's result, and meanwhile another
/// accumulator's is computed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
pub fn absorb<const N: usize>(macs: &mut [Mac; N], messages: &[[&[u8]; LANES]; N]) {
    let sizes = || messages.as_flattened().iter().map(|message| message.len());
    let (shortest, longest) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
    let whole = shortest - shortest % BLOCK_SIZE;
    for at in (0..whole).step_by(BLOCK_SIZE) {
        let mut blocks = [[[_mm512_setzero_si512(); 2]; 4]; N];
        for (blocks, messages) in blocks.iter_mut().zip(messages) {
            *blocks = transposed(messages, at);
        }
        for block in 0..4 {
            for (mac, blocks) in macs.iter_mut().zip(&blocks) {
                mac.block(blocks[block]);
            }
        }
    }
    for at in (whole..longest).step_by(BLOCK_SIZE) {
        let mut blocks = [[[_mm512_setzero_si512(); 2]; 4]; N];
        let mut left = [_mm512_setzero_si512(); N];
        for ((blocks, left), messages) in blocks.iter_mut().zip(&mut left).zip(messages) {
            *blocks = transposed(messages, at);
            *left = from_longs(&messages.map(|message| message.len().saturating_sub(at) as u64));
        }
        for block in 0..4 {
            let end = _mm512_set1_epi64((block * SIZE) as i64);
            for ((mac, blocks), left) in macs.iter_mut().zip(&blocks).zip(left) {
                mac.block_of(_mm512_cmpgt_epi64_mask(left, end), blocks[block]);
            }
        }
    }
}

/// Return the sums of three products: their low 52 bits, and the bits above.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn dot(a: [__m512i; 3], b: [__m512i; 3]) -> (__m512i, __m512i) {
    let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for (a, b) in a.into_iter().zip(b) {
        low = _mm512_madd52lo_epu64(low, a, b);
        high = _mm512_madd52hi_epu64(high, a, b);
    }
    (low, high)
}

/// Split 128 bits into 44, 44 and 40.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
fn limbs(low: __m512i, high: __m512i) -> [__m512i; 3] {
    let low_44 = _mm512_set1_epi64(LOW_44);
    let middle = _mm512_shrdi_epi64::<44>(low, high);
    [_mm512_and_si512(low, low_44), _mm512_and_si512(middle, low_44), _mm512_srli_epi64::<24>(high)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn times_20(limb: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb))
}

/// Return four blocks of all messages, from up to 64 bytes at `at` of each: the low halves, then
/// the high halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transposed(messages: &[&[u8]; LANES], at: usize) -> [[__m512i; 2]; 4] {
    let mut bytes = [_mm512_setzero_si512(); LANES];
    for (bytes, message) in bytes.iter_mut().zip(messages) {
        *bytes = load_padded(message.get(at..).unwrap_or_default());
    }
    let mut pairs = [[_mm512_setzero_si512(); 4]; 2];
    for n in 0..4 {
        pairs[0][n] = _mm512_unpacklo_epi64(bytes[2 * n], bytes[2 * n + 1]);
        pairs[1][n] = _mm512_unpackhi_epi64(bytes[2 * n], bytes[2 * n + 1]);
    }
    let mut blocks = [[_mm512_setzero_si512(); 2]; 4];
    for (half, [a, b, c, d]) in pairs.into_iter().enumerate() {
        let (ab, cd) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0x44>(c, d));
        blocks[0][half] = _mm512_shuffle_i64x2::<0x88>(ab, cd);
        blocks[1][half] = _mm512_shuffle_i64x2::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i64x2::<0xee>(a, b), _mm512_shuffle_i64x2::<0xee>(c, d));
        blocks[2][half] = _mm512_shuffle_i64x2::<0x88>(ab, cd);
        blocks[3][half] = _mm512_shuffle_i64x2::<0xdd>(ab, cd);
    }
    blocks
}
