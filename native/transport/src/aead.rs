//! ChaCha20-Poly1305 (RFC 8439) with WireGuard's nonces: four zero bytes and the counter (whitepaper section 5.4.6).
//!
//! A cipher lives as long as a batch: the session keeps 32 bytes, not an expanded key, and making a cipher of them
//! costs less than sealing sixteen bytes.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::wire::TAG_SIZE;

/// One direction of one session.
pub trait Aead {
    /// Make it of a 32-byte key.
    fn new(key: &[u8; 32]) -> Self;

    /// Seal in place: all but the last 16 bytes of `body` are the packet, the tag goes there.
    fn seal(&self, counter: u64, body: &mut [u8]);

    /// Open in place; false, with `body` of no use, if the tag doesn't hold. At least 16 bytes.
    fn open(&self, counter: u64, body: &mut [u8]) -> bool;

    /// Seal `plaintext` into `body`, which is 16 bytes longer.
    fn seal_from(&self, counter: u64, plaintext: &[u8], body: &mut [u8]) {
        body[..plaintext.len()].copy_from_slice(plaintext);
        self.seal(counter, body);
    }
}

/// ring's, in assembler for every machine it knows.
pub struct Ring(LessSafeKey);

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Aead for Ring {
    fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key");
        Self(LessSafeKey::new(key))
    }

    fn seal(&self, counter: u64, body: &mut [u8]) {
        let (packet, room) = body.split_at_mut(body.len() - TAG_SIZE);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), packet)
            .expect("a packet is far below the cipher's 256 GiB");
        room.copy_from_slice(tag.as_ref());
    }

    fn open(&self, counter: u64, body: &mut [u8]) -> bool {
        self.0.open_in_place(nonce(counter), Aad::empty(), body).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7539's key and text; made with WireGuard's nonce for counter 0x0706050403020100 by an independent
    /// implementation in the test below.
    #[test]
    fn sealing_is_chacha20poly1305_with_the_counter_as_nonce() {
        use chacha20poly1305::aead::{Aead as _, KeyInit};
        let key: [u8; 32] = std::array::from_fn(|n| 0x80 + n as u8);
        let counter = 0x0706_0504_0302_0100_u64;
        let text = b"Ladies and Gentlemen of the class of '99";
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        let other = chacha20poly1305::ChaCha20Poly1305::new(&key.into());
        let expected = other.encrypt(&nonce.into(), &text[..]).unwrap();

        let mut body = vec![0; text.len() + TAG_SIZE];
        let ours = Ring::new(&key);
        ours.seal_from(counter, text, &mut body);
        assert_eq!(body, expected);
        assert!(ours.open(counter, &mut body));
        assert_eq!(&body[..text.len()], text);
    }

    #[test]
    fn any_flipped_bit_or_other_counter_is_refused() {
        let cipher = Ring::new(&[7; 32]);
        let mut sealed = [0; 64];
        cipher.seal(5, &mut sealed);
        for bit in 0..64 * 8 {
            let mut forged = sealed;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!cipher.open(5, &mut forged));
        }
        assert!(!cipher.open(6, &mut sealed.clone()));
        assert!(cipher.open(5, &mut sealed));
    }
}
