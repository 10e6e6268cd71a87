//! The AEAD of the crate ring, packet by packet.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::interface::Aead;
use crate::wire::TAG_SIZE;

/// ring's cipher, in assembler for every processor that ring supports.
pub struct RingCipher(LessSafeKey);

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Aead for RingCipher {
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
