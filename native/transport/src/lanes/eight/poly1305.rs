//! Poly1305 (RFC 8439 section 2.5) with the processor's 64-bit multiplier.
//!
//! Vector registers are busy with ChaCha20, and this leaves them alone. So both run at once.
//!
//! Bounds: r's halves are below 2⁶⁰. After a block h is below 2¹³⁰ + 2⁶⁴, so its top is at most 4,
//! and at most 6 with the next block. So no product of the top has more than 64 bits, the new top is
//! below 2⁶³ before it is reduced, and five quarters of that are below 2⁶⁴.

/// Bytes of a block.
pub const SIZE: usize = 16;

/// One message's accumulator.
#[derive(Clone, Copy)]
pub struct Mac {
    /// The low 128 bits.
    low: u128,
    /// What is above.
    top: u64,
    r: [u64; 2],
    /// Five quarters of r's upper half, whose lowest two bits are 0. 2¹²⁸ · 4 is 5.
    r1_5_4: u64,
    s: u128,
}

impl Mac {
    /// Start with a one-time key: r's low and high half, then s's.
    #[inline]
    pub fn new([r0, r1, s0, s1]: [u64; 4]) -> Self {
        let r = [r0 & 0x0fff_fffc_0fff_ffff, r1 & 0x0fff_fffc_0fff_fffc];
        Self { low: 0, top: 0, r, r1_5_4: r[1] + (r[1] >> 2), s: u128::from(s1) << 64 | u128::from(s0) }
    }

    /// Add a block.
    #[inline]
    pub fn block(&mut self, block: u128) {
        let wide = |a: u64, b: u64| u128::from(a) * u128::from(b);
        let (sum, carry) = self.low.overflowing_add(block);
        let (h0, h1, h2) = (sum as u64, (sum >> 64) as u64, self.top + 1 + u64::from(carry));
        let [r0, r1] = self.r;
        let low = wide(h0, r0) + wide(h1, self.r1_5_4);
        let high = wide(h0, r1) + wide(h1, r0) + u128::from(h2 * self.r1_5_4) + (low >> 64);
        let top = h2 * r0 + (high >> 64) as u64;
        let (low, carry) = (high << 64 | u128::from(low as u64)).overflowing_add(u128::from((top & !3) + (top >> 2)));
        (self.low, self.top) = (low, (top & 3) + u64::from(carry));
    }

    /// Add bytes, padded to whole blocks with zeros.
    #[inline]
    pub fn padded(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<SIZE>();
        for block in blocks {
            self.block(u128::from_le_bytes(*block));
        }
        if !rest.is_empty() {
            let mut block = [0; SIZE];
            block[..rest.len()].copy_from_slice(rest);
            self.block(u128::from_le_bytes(block));
        }
    }

    /// Return the tag.
    #[inline]
    pub fn tag(&self) -> u128 {
        // h + 5 - 2¹³⁰. If that isn't negative, it is h mod p.
        let (less, carry) = self.low.overflowing_add(5);
        let over = (self.top + u64::from(carry)) >> 2;
        let mask = u128::from(over).wrapping_neg();
        (less & mask | self.low & !mask).wrapping_add(self.s)
    }
}
