//! Internet checksums (RFC 1071).
//!
//! One's complement sums of 16-bit words are sums modulo 65535. So the words may be added in any
//! order and width, and the sum over little-endian words is that over big-endian words with its two
//! bytes swapped.
//!
//! A checksum field is 65535 less the sum, which here is never 0. For UDP a zero field means "no
//! checksum". For TCP and IPv4, 0 and 0xffff mean the same.

#[cfg(lanes)]
mod vector;

/// Bytes that are summed at once. What is shorter is summed where it is, word by word.
const BLOCK: usize = 64;

/// An unfinished sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Add bytes. An odd last byte counts as if a zero followed, so only the last piece may have an
    /// odd length.
    #[must_use]
    #[inline]
    pub fn bytes(self, data: &[u8]) -> Self {
        Self(self.fold_64() + if data.len() < BLOCK { words(data) } else { blocks(data) })
    }

    /// Copy bytes to `target`, which is as long, and add them.
    #[must_use]
    pub fn copied(self, data: &[u8], target: &mut [u8]) -> Self {
        #[cfg(lanes)]
        if let Some(total) = vector::total(data, Some(&mut *target)) {
            return Self(self.fold_64() + total);
        }
        target.copy_from_slice(data);
        self.bytes(data)
    }

    /// Add a number that is in the packet as a big-endian 16-bit word.
    #[must_use]
    pub fn word(self, number: u16) -> Self {
        Self(self.fold_64() + u64::from(number.swap_bytes()))
    }

    /// Return the sum, folded so that there is room for the next addition.
    fn fold_64(self) -> u64 {
        (self.0 & 0xffff_ffff) + (self.0 >> 32)
    }

    /// Return the sum of big-endian words modulo 65535: 0 to 65534.
    pub fn folded(self) -> u16 {
        let remainder = (self.0 % 65535) as u16;
        // Swapping the bytes multiplies by 256 modulo 65535. What is below 65535 stays below.
        remainder.swap_bytes()
    }

    /// Return the value for a checksum field that was zero in the sum: 1 to 65535.
    pub fn field(self) -> u16 {
        65535 - self.folded()
    }

    /// Return whether a sum that includes its checksum field is right.
    pub fn holds(self) -> bool {
        self.folded() == 0
    }
}

/// Return the sum of little-endian 32-bit words, as if zeros followed.
#[inline]
fn words(data: &[u8]) -> u64 {
    let word = |bytes: &[u8]| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let mut words = data.chunks_exact(4);
    let whole = (&mut words).map(word).sum::<u64>();
    let odd = words.remainder();
    let mut last = [0; 4];
    last[..odd.len()].copy_from_slice(odd);
    whole + word(&last)
}

/// Return the same, in vectors if the processor has them.
fn blocks(data: &[u8]) -> u64 {
    #[cfg(lanes)]
    if let Some(total) = vector::total(data, None) {
        return total;
    }
    portable(data)
}

fn portable(data: &[u8]) -> u64 {
    // Independent lanes, so that the compiler can use vector registers.
    let mut lanes = [0_u64; 16];
    let mut blocks = data.chunks_exact(BLOCK);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    lanes.iter().sum::<u64>() + words(blocks.remainder())
}

/// Return the sum of the addresses in an IP header without options.
pub fn addresses(packet: &[u8], v4: bool) -> Sum {
    Sum::default().bytes(if v4 { &packet[12..20] } else { &packet[8..40] })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Sum word by word, as in RFC 1071.
    pub(crate) fn naive(data: &[u8]) -> u16 {
        let mut total = 0_u32;
        for word in data.chunks(2) {
            total += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn sums_of_every_length_are_those_of_rfc_1071() {
        let data: Vec<u8> = (0..2000_u32).map(|n| (n * n + 7 * n) as u8).collect();
        for length in 0..data.len() {
            let expected = naive(&data[..length]) % 65535;
            assert_eq!(Sum::default().bytes(&data[..length]).folded(), expected, "{length} bytes");
            assert_eq!((portable(&data[..length]) % 65535) as u16, expected.swap_bytes());
            let mut copy = vec![0; length];
            assert_eq!(Sum::default().copied(&data[..length], &mut copy).folded(), expected);
            assert_eq!(copy, data[..length]);
        }
        assert_eq!(Sum::default().bytes(&[0xff; 65535]).folded(), naive(&[0xff; 65535]) % 65535);
    }

    #[test]
    fn pieces_and_words_add_up() {
        let data = [0x45, 0, 5, 0xdc, 0x12, 0x34, 0x40, 0];
        let pieces = Sum::default().bytes(&data[..4]).word(0x1234).bytes(&data[6..]);
        assert_eq!(pieces.folded(), naive(&data));
        let field = pieces.field().to_be_bytes();
        assert!(pieces.bytes(&field).holds());
    }

    #[test]
    fn a_field_is_never_zero() {
        assert_eq!(Sum::default().bytes(&[0xff, 0xff]).field(), 0xffff);
        assert_eq!(Sum::default().field(), 0xffff);
        assert_eq!(Sum::default().bytes(&[0xff, 0xfe]).field(), 1);
    }
}
