//! ChaCha20-Poly1305 (RFC 8439) with WireGuard's nonces: four zero bytes and the counter
//! (whitepaper section 5.4.6).
//!
//! A cipher lives as long as a batch. The session keeps 32 bytes, not an expanded key, because
//! making a cipher costs less than sealing sixteen bytes. [`RingCipher`] handles single packets.
//! Batches go through `lanes` if the processor has AVX-512 IFMA, batches of short packets if it has
//! AVX2. `RUSTGUARD_AEAD` may leave out either (`lanes8`) or both (`ring`).

// Miri can't run assembler.
#[cfg_attr(miri, path = "interpreted.rs")]
mod by_ring;
mod cipher;
mod interface;
#[cfg(test)]
mod tests;

pub use by_ring::RingCipher;
pub use cipher::{Cipher, description};
pub use interface::Aead;
