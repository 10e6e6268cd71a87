//! Up to sixteen packets, one per lane.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::chacha20::{self, BLOCK_SIZE, Blocks, Key, LANES};
use super::fused::Fused;
use super::poly1305::Mac;
use super::vector::{self, Places, Rows};
use crate::body::Body;
use crate::wire::TAG_SIZE;

/// If a text is shorter, the powers of r cost more than they spare.
const FUSED_PAYS: usize = 128;

/// Return WireGuard's nonce: four zero bytes and the counter.
pub fn nonce(body: &Body) -> [u32; 3] {
    [0, body.counter as u32, (body.counter >> 32) as u32]
}

/// Return the bytes of a body before its tag.
pub fn text_size(body: &Body) -> usize {
    body.size - TAG_SIZE
}

/// Up to sixteen bodies, one per lane.
pub struct Batch<'a> {
    pub bodies: &'a [Body],
    /// Lanes without a body repeat the first, and their results are ignored.
    pub texts: [Places; 2],
    /// The three words of the nonces.
    pub nonces: [__m512i; 3],
}

impl<'a> Batch<'a> {
    /// Make a batch of 1 to 16 bodies.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(bodies: &'a [Body]) -> Self {
        let of_lane = |lane| bodies.get(lane).unwrap_or(&bodies[0]);
        let [at, sizes, counters] = [
            from_fn(|lane| of_lane(lane).at as u64),
            from_fn(|lane| text_size(of_lane(lane)) as u64),
            from_fn(|lane| of_lane(lane).counter),
        ]
        .map(|lanes: [u64; LANES]| {
            let (halves, _) = lanes.as_chunks();
            [vector::from_longs(&halves[0]), vector::from_longs(&halves[1])]
        });
        let texts = from_fn(|half| Places { at: at[half], sizes: sizes[half] });
        let [low, high] =
            [counters, counters.map(|counters| _mm512_srli_epi64::<32>(counters))].map(|[lower, upper]| {
                let lower = _mm512_castsi256_si512(_mm512_cvtepi64_epi32(lower));
                _mm512_inserti64x4::<1>(lower, _mm512_cvtepi64_epi32(upper))
            });
        Self { bodies, texts, nonces: [_mm512_setzero_si512(), low, high] }
    }

    /// Return how many bytes of each text [`Fused`] takes: none, or as many whole blocks as the
    /// shortest has.
    pub fn fused_size(&self) -> usize {
        let shortest = self.bodies.iter().map(text_size).min().unwrap_or(0);
        let pays = self.bodies.len() == LANES && shortest >= FUSED_PAYS;
        if pays { shortest - shortest % BLOCK_SIZE } else { 0 }
    }

    /// Return whether a second group with the bodies' own lanes is enough, and no text can be in the
    /// first.
    pub fn are_single_blocks(&self) -> bool {
        self.bodies.len() > LANES / 2 && self.bodies.iter().all(|body| text_size(body) <= BLOCK_SIZE)
    }

    /// Return [`Fused`] for the first `size` bytes of the texts.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn fused<'k>(&self, key: &'k Key, macs: &[Mac; 2], size: usize) -> Fused<'k> {
        let rows = self.texts.map(|texts| Rows::new(&texts, size));
        let mut begun = chacha20::initial(key, &Blocks { counters: _mm512_setzero_si512(), nonces: self.nonces });
        chacha20::begin(&mut begun);
        Fused { key, nonces: self.nonces, rows, size, begun, powers: macs.map(|mac| mac.powers()) }
    }
}
