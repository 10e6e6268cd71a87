//! The AEAD packet by packet under Miri, which can't run ring: RustCrypto's, in Rust.

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead as _, KeyInit};

use super::interface::Aead;
use crate::wire::TAG_SIZE;

/// Takes the place of ring's cipher.
pub struct RingCipher(ChaCha20Poly1305);

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

impl Aead for RingCipher {
    fn new(key: &[u8; 32]) -> Self {
        Self(ChaCha20Poly1305::new(key.into()))
    }

    fn seal(&self, counter: u64, body: &mut [u8]) {
        let packet = &body[..body.len() - TAG_SIZE];
        let sealed =
            self.0.encrypt(&nonce(counter).into(), packet).expect("a packet is far below the cipher's 256 GiB");
        body.copy_from_slice(&sealed);
    }

    fn open(&self, counter: u64, body: &mut [u8]) -> bool {
        let opened = self.0.decrypt(&nonce(counter).into(), &*body);
        opened.map(|packet| body[..packet.len()].copy_from_slice(&packet)).is_ok()
    }
}
