//! Poly1305 (RFC 8439 section 2.5) of eight messages at once, each with its own key.
//!
//! A register has one limb of all eight messages. Limbs have 44, 44 and 42 bits, for the 52-bit
//! multiplier. With 2¹³⁰ = 5, a product that is two limbs too high comes back times 20, because 3 ·
//! 44 is 2 more than 130.
//!
//! Four blocks are added at once: (h + m₁)·r⁴ + m₂·r³ + m₃·r² + m₄·r. So the carries are moved once
//! for four blocks.
//!
//! Bounds: after [`Sum::reduced`] the limbs h0, h1 and h2 of the accumulators, and those of powers
//! of r, are below 2⁴⁴, 2⁴⁴ + 2⁹ and 2⁴². A block adds less than 2⁴⁴, 2⁴⁴ and 2⁴¹. So a limb with a
//! block is below 2⁴⁶, 20 times the second limb of a power is below 2⁴⁹, and 20 times the third is
//! below 2⁴⁷: below 2⁵², as the multiplier requires. Twelve low halves sum to less than 2⁵⁶. The high
//! halves of twelve products sum to less than 2⁴⁴ for the first limb, 2⁴¹ for the second and 2⁴⁰ for
//! the third. So the carry from the first limb is below 2⁵³, from the second below 2⁵⁰, and from the
//! third below 2⁵⁰ + 2¹⁴. Five times that is below 2⁵³ - 2⁴⁴, so the carry from the new first limb is
//! below 2⁹ again.

use std::arch::x86_64::*;

use super::chacha20::BLOCK_SIZE;
use super::vector::{LONGS, Places, Rows, to_longs};

/// Messages at once.
pub const LANES: usize = LONGS;
/// Bytes of a block of a message.
const SIZE: usize = 16;

/// If no message is this long, the powers of r cost more than they spare.
const FOUR_PAY: usize = 128;

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

/// A factor of eight messages: a power of r.
#[derive(Clone, Copy)]
pub struct Factor {
    limbs: [__m512i; 3],
    /// 20 times the second and the third limb.
    times_20: [__m512i; 2],
}

impl Factor {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(limbs: [__m512i; 3]) -> Self {
        Self { limbs, times_20: [times_20(limbs[1]), times_20(limbs[2])] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn times(&self, other: &Self) -> Self {
        let mut sum = Sum::none();
        sum.add(self.limbs, other);
        Self::new(sum.reduced())
    }
}

/// A sum of products: for each limb their low 52 bits, and the bits above.
pub struct Sum {
    low: [__m512i; 3],
    high: [__m512i; 3],
}

impl Sum {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn none() -> Self {
        Self { low: [_mm512_setzero_si512(); 3], high: [_mm512_setzero_si512(); 3] }
    }

    /// Add a product.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn add(&mut self, [a0, a1, a2]: [__m512i; 3], factor: &Factor) {
        let ([r0, r1, r2], [r1_20, r2_20]) = (factor.limbs, factor.times_20);
        for (a, of_limbs) in [(a2, [r1_20, r2_20, r0]), (a1, [r2_20, r0, r1]), (a0, [r0, r1, r2])] {
            for ((low, high), r) in self.low.iter_mut().zip(&mut self.high).zip(of_limbs) {
                *low = _mm512_madd52lo_epu64(*low, a, r);
                *high = _mm512_madd52hi_epu64(*high, a, r);
            }
        }
    }

    /// Return the limbs of the sum.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn reduced(self) -> [__m512i; 3] {
        let (add, and) = (_mm512_add_epi64, _mm512_and_si512);
        let (low_44, low_42) = (_mm512_set1_epi64(LOW_44), _mm512_set1_epi64(LOW_42));
        let ([d0, d1, d2], high) = (self.low, self.high);
        // A high half counts 2⁵²: 8 bits above a limb of 44, 10 above one of 42.
        let carry = add(_mm512_srli_epi64::<44>(d0), _mm512_slli_epi64::<8>(high[0]));
        let d1 = add(d1, carry);
        let carry = add(_mm512_srli_epi64::<44>(d1), _mm512_slli_epi64::<8>(high[1]));
        let d2 = add(d2, carry);
        let carry = add(_mm512_srli_epi64::<42>(d2), _mm512_slli_epi64::<10>(high[2]));
        let carry_5 = add(carry, _mm512_slli_epi64::<2>(carry));
        let h0 = add(and(d0, low_44), carry_5);
        let h1 = add(and(d1, low_44), _mm512_srli_epi64::<44>(h0));
        [and(h0, low_44), h1, and(d2, low_42)]
    }
}

/// The accumulators of eight messages.
#[derive(Clone, Copy)]
pub struct Mac {
    pub h: [__m512i; 3],
    r: Factor,
    s: [__m512i; 2],
}

impl Mac {
    /// Start with these keys.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2")]
    pub fn new([low, high, s0, s1]: Keys) -> Self {
        let low = _mm512_and_si512(low, _mm512_set1_epi64(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(high, _mm512_set1_epi64(0x0fff_fffc_0fff_fffc));
        Self { h: [_mm512_setzero_si512(); 3], r: Factor::new(limbs(low, high)), s: [s0, s1] }
    }

    /// Return r⁴, r³, r² and r.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn powers(&self) -> [Factor; 4] {
        let square = self.r.times(&self.r);
        [square.times(&square), square.times(&self.r), square, self.r]
    }

    /// Return a block's limbs. Those of the first are added to the accumulators.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2")]
    pub fn added(&self, [low, high]: [__m512i; 2], first: bool) -> [__m512i; 3] {
        let mut limbs = limbs(low, high);
        // The bit above the block.
        limbs[2] = _mm512_or_si512(limbs[2], _mm512_set1_epi64(1 << 40));
        if first {
            for (limb, h) in limbs.iter_mut().zip(self.h) {
                *limb = _mm512_add_epi64(*limb, h);
            }
        }
        limbs
    }

    /// Add blocks, as many as there are powers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub fn blocks<const N: usize>(&mut self, blocks: &[[__m512i; 2]; N], powers: &[Factor; N]) {
        let mut sum = Sum::none();
        // The first block comes last: only it needs the result of the blocks before.
        for n in (0..N).rev() {
            sum.add(self.added(blocks[n], n == 0), &powers[n]);
        }
        self.h = sum.reduced();
    }

    /// Do the same for the messages in `mask`. The other accumulators stay unchanged.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn blocks_of<const N: usize>(&mut self, mask: __mmask8, blocks: &[[__m512i; 2]; N], powers: &[Factor; N]) {
        let before = self.h;
        self.blocks(blocks, powers);
        for (h, before) in self.h.iter_mut().zip(before) {
            *h = _mm512_mask_mov_epi64(before, mask, *h);
        }
    }

    /// Add the AEAD's last block: the lengths of the associated data and of the text.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub fn lengths(&mut self, data: __m512i, text: __m512i) {
        let r = self.r;
        self.blocks(&[[data, text]], &[r]);
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
pub fn absorb<const N: usize>(macs: &mut [Mac; N], messages: &[Places; N], buffer: &[u8]) {
    let sizes = messages.map(|message| message.sizes);
    let shortest =
        _mm512_reduce_min_epi64(sizes.into_iter().fold(sizes[0], |least, sizes| _mm512_min_epi64(least, sizes)));
    let whole = |size| size as usize / BLOCK_SIZE * BLOCK_SIZE;
    let (all_have, one_has) = (whole(shortest), whole(longest(&sizes)));
    if one_has >= FOUR_PAY {
        let powers = macs.map(|mac| mac.powers());
        let rows = messages.map(|message| Rows::new(&message, all_have));
        for at in (0..all_have).step_by(BLOCK_SIZE) {
            for ((mac, rows), powers) in macs.iter_mut().zip(&rows).zip(&powers) {
                mac.blocks(&transposed(&rows.load(buffer, at)), powers);
            }
        }
        for at in (all_have..one_has).step_by(BLOCK_SIZE) {
            for ((mac, message), powers) in macs.iter_mut().zip(messages).zip(&powers) {
                let part = message.after(_mm512_set1_epi64(at as i64));
                let has_all = _mm512_cmpge_epi64_mask(part.sizes, _mm512_set1_epi64(BLOCK_SIZE as i64));
                mac.blocks_of(has_all, &transposed(&part.load(buffer)), powers);
            }
        }
    } else {
        for at in (0..one_has).step_by(BLOCK_SIZE) {
            let parts = messages.map(|message| {
                let part = message.after(_mm512_set1_epi64(at as i64));
                let has_all = _mm512_cmpge_epi64_mask(part.sizes, _mm512_set1_epi64(BLOCK_SIZE as i64));
                Places { at: part.at, sizes: _mm512_maskz_mov_epi64(has_all, part.sizes) }
            });
            absorb_part(macs, &parts, BLOCK_SIZE / SIZE, buffer);
        }
    }
    let below_block = _mm512_set1_epi64(BLOCK_SIZE as i64 - 1);
    let rests = messages.map(|message| message.after(_mm512_andnot_si512(below_block, message.sizes)));
    let size = longest(&rests.map(|rest| rest.sizes)) as usize;
    absorb_part(macs, &rests, size.div_ceil(SIZE), buffer);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn longest(sizes: &[__m512i]) -> i64 {
    _mm512_reduce_max_epi64(sizes.iter().fold(_mm512_setzero_si512(), |most, sizes| _mm512_max_epi64(most, *sizes)))
}

/// Add up to `count` blocks of each message, at most four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn absorb_part<const N: usize>(macs: &mut [Mac; N], messages: &[Places; N], count: usize, buffer: &[u8]) {
    if count == 0 {
        return;
    }
    let mut blocks = [[[_mm512_setzero_si512(); 2]; 4]; N];
    for (blocks, message) in blocks.iter_mut().zip(messages) {
        *blocks = transposed(&message.load(buffer));
    }
    for block in 0..count {
        let end = _mm512_set1_epi64((block * SIZE) as i64);
        for ((mac, blocks), message) in macs.iter_mut().zip(&blocks).zip(messages) {
            let r = mac.r;
            mac.blocks_of(_mm512_cmpgt_epi64_mask(message.sizes, end), &[blocks[block]], &[r]);
        }
    }
}

/// Split 128 bits into 44, 44 and 40.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
pub fn limbs(low: __m512i, high: __m512i) -> [__m512i; 3] {
    let low_44 = _mm512_set1_epi64(LOW_44);
    let middle = _mm512_shrdi_epi64::<44>(low, high);
    [_mm512_and_si512(low, low_44), _mm512_and_si512(middle, low_44), _mm512_srli_epi64::<24>(high)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn times_20(limb: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb))
}

/// Return four blocks of all messages from 64 bytes of each: the low halves, then the high halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn transposed(bytes: &[__m512i; LANES]) -> [[__m512i; 2]; 4] {
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
